"""What a task has to say. Boards import this: torch is imported inside the methods that need it, nowhere else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from lit_mmpg.records import Caption, Question

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lit_mmpg.batch import Batch, Outputs
    from lit_mmpg.tasks.graphs import GraphSpec

Gather = Callable[["Tensor"], "Tensor"]
"""Concatenates a tensor over processes along its first dimension, with gradients; the identity in one process."""

Gallery = Literal["mixed", "device"]
"""Where a search ranks: among the clips of all devices, or among those of its own."""


@dataclass(frozen=True)
class Metric:
    """A metric on which claims stand.

    Attributes:
        name: Its name in result rows.
        title: Its name for people.
        explain: One sentence: what it is, and which direction is better.
        lower_is_better: Its direction.
        percent: Whether it is a share, shown in per cent and its differences in points.
    """

    name: str
    title: str
    explain: str
    lower_is_better: bool = False
    percent: bool = False

    def score(self, value: float) -> float:
        """The value, turned so that higher is better."""
        return -value if self.lower_is_better else value


@dataclass(frozen=True)
class Figure:
    """A figure by which a device judges how outputs with personal parameters differ from those without.

    Attributes:
        words: What it is, for people.
        least_width: A range of plausible values counts as at least this wide.
        least: Its smallest value, where that is not suspicious: a model that stays the same, or is sure.
        most: Its largest value, likewise.
    """

    words: str
    least_width: float
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class ItemResults:
    """Results of single items, sorted by (device, item), so that methods can be compared pair by pair.

    Attributes:
        device: ``[n]`` device index.
        clip: ``[n]`` clip index.
        item: ``[n]`` index of the item in its split.
        values: Metric name -> ``[n]``, whose mean is the metric.
    """

    device: np.ndarray
    clip: np.ndarray
    item: np.ndarray
    values: dict[str, np.ndarray]


class Task(ABC):
    """A task of device models. Stateless: one object is shared.

    :class:`~lit_mmpg.tasks.questions.QuestionTask` is the base of tasks that score the answers to a question.

    Attributes:
        name: Name in configurations, checkpoints and bundles.
        items: Name of its text items in messages, such as ``questions``.
        primary: Primary metric, on which model selection and claims are based.
        answer_list: Whether answers come from a list that is fitted on the training texts.
        takes_options: Whether each question has options to choose from.
        searches: Whether clips and sentences are embedded separately, so that a device searches instead of answering.
        max_words: Default for the longest text of a user's own data, words.
        example_options: Number of options of an example question.
        lacks: Missing property -> reason, shown for methods that need it: ``frequent_answer`` (an answer that is right
            more often than others), ``shared_classes`` (answers that several questions share).
        frozen: Parts of the device model that fine-tuning does not change, since one device has too little data.
        figures: The figures of :meth:`output_figures`.
        paired_roles: Role of a graph -> role whose outputs its embeddings are compared with.
    """

    name: ClassVar[str]
    items: ClassVar[str]
    primary: ClassVar[Metric]
    answer_list: ClassVar[bool] = False
    takes_options: ClassVar[bool] = False
    searches: ClassVar[bool] = False
    max_words: ClassVar[int] = 20
    example_options: ClassVar[int] = 1
    lacks: ClassVar[Mapping[str, str]] = {}
    frozen: ClassVar[tuple[str, ...]] = ()
    figures: ClassVar[Mapping[str, Figure]]
    paired_roles: ClassVar[Mapping[str, str]] = {}

    @property
    def full_items(self) -> str:
        """Name of its items beside those of other tasks."""
        return f"{self.name.replace('_', '-')} {self.items}"

    # -- data ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def takes(self, text: Question | Caption, split: str) -> bool:
        """Whether a text of a split is an item of the task."""

    @classmethod
    def fits_table(cls, questions: bool, options: bool) -> bool:
        """Whether a user's table, with or without questions and options, is for this task."""
        return False

    def device_model(self, texts: int, small: int) -> str | dict[str, Any]:
        """Return settings of the device half for a user's table: a file name, or the section itself.

        Args:
            texts: Number of training texts.
            small: With fewer texts, rare words are kept.
        """
        return "configs/model/device_video_qa.yaml"

    def answers(self, texts: Sequence[Question | Caption]) -> list[str]:
        """Return the answers to training texts, from which the answer list is made; empty for a task without one."""
        return []

    @abstractmethod
    def candidates(self, text: Question | Caption) -> list[str]:
        """Return the texts of one item: one, or one per option."""

    def target(self, text: Question | Caption, index: Callable[[str], int]) -> int:
        """Return the target of an item, a whole number; ``index`` gives the place of an answer in the list, or -1."""
        return 0

    @abstractmethod
    def hide_labels(self, batch: Batch, seed: int) -> Batch:
        """Return a support batch without its labels."""

    @abstractmethod
    def query_view(self, batch: Batch) -> Batch:
        """Return the part of a query batch that a method may see."""

    # -- device model --------------------------------------------------------------------------------------------

    def head_width(self, answers: int) -> int:
        """Return the number of outputs of the head for one row of words; not called for a task that searches.

        Args:
            answers: Size of the answer list.
        """
        return 1

    @abstractmethod
    def scores(
        self, network: Any, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()
    ) -> Tensor:
        """Compute the scores of one text item per clip.

        Args:
            network: The device model.
            frames: ``[..., T, H]`` contextualised frames.
            mask: ``[..., T]``.
            text: ``[..., O, L]``.
            parameters: Personal parameters, or nothing.
        """

    @abstractmethod
    def respond(self, network: Any, batch: Batch, frames: Tensor, parameters: Sequence[Tensor] = ()) -> Outputs:
        """Compute the outputs for a batch.

        Args:
            network: The device model.
            batch: The batch.
            frames: ``[B, M, T, H]`` contextualised query frames.
            parameters: Personal parameters with leading dimension B, or nothing.
        """

    def initialise(self, network: Any, answer: np.ndarray, answers: int) -> None:  # noqa: B027
        """Set start values of the head from the training texts.

        Args:
            network: A fresh device model.
            answer: ``[items]`` targets of the training items.
            answers: Size of the answer list.
        """

    @abstractmethod
    def loss(
        self, network: Any, batch: Batch, outputs: Outputs, label_smoothing: float = 0.0, gather: Gather = lambda x: x
    ) -> Tensor:
        """Loss of a batch, a scalar; 0 (with a gradient) for a batch without a usable item.

        Args:
            network: The device model.
            batch: The batch.
            outputs: Its outputs.
            label_smoothing: Share of the probability that is spread over all answers, for tasks with an answer list.
            gather: Gathers tensors over processes.
        """

    @abstractmethod
    def device_loss(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """Compute the loss of each device, ``[B]``, from its own items alone."""

    @abstractmethod
    def choices(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """Return logits ``[B, N, K]`` of the possible answers to each text item, of the same device alone."""

    @abstractmethod
    def head_mask(self, batch: Batch) -> Tensor:
        """Return a mask of inputs of the head that are not padding, in the shape in which the head gets a batch."""

    # -- evaluation ----------------------------------------------------------------------------------------------

    @abstractmethod
    def new_metric(self, kinds: Sequence[str], gallery: Gallery) -> nn.Module:
        """Make a torchmetrics metric.

        Args:
            kinds: Names of the question types.
            gallery: Clips among which a search ranks.
        """

    @abstractmethod
    def update_metric(self, metric: Any, batch: Batch, outputs: Outputs) -> None:
        """Add one batch."""

    @abstractmethod
    def item_results(self, metric: Any, item_clip: np.ndarray) -> ItemResults:
        """Return results of single items over all processes, including those of :attr:`primary`.

        Args:
            metric: The metric.
            item_clip: ``[items]`` clip of each item of the split.
        """

    @abstractmethod
    def prediction(
        self,
        text: Question | Caption,
        batch: Batch,
        outputs: Outputs,
        place: tuple[int, int],
        answers: Sequence[str],
        clips: Sequence[str],
    ) -> dict[str, object]:
        """Return one item and its prediction as a readable row.

        Args:
            text: The item.
            batch: Its batch.
            outputs: Outputs of the device model for the batch.
            place: Indices of its device and of the item, ``(b, n)``.
            answers: The answer list.
            clips: Names of the device's clips in the batch, blank for padding.
        """

    # -- bundle and device, without torch except for the graphs ---------------------------------------------------

    @abstractmethod
    def graphs(
        self, network: Any, clips: dict[str, Tensor], clip_dims: dict[str, dict[int, str]], words: Tensor
    ) -> list[GraphSpec]:
        """Return the graphs to export; the one that takes personal parameters is first.

        Args:
            network: The device model.
            clips: Example ``frames`` and ``frame_mask``, two rows.
            clip_dims: Names of their varying dimensions.
            words: ``[2, O, L]`` example words.
        """

    @abstractmethod
    def graph_inputs(self, clips: dict[str, np.ndarray], text: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Role -> inputs of :meth:`graphs`.

        Args:
            clips: ``frames`` and ``frame_mask`` of R clips.
            text: ``[R, O, L]`` words.
        """

    @abstractmethod
    def decode(self, scores: np.ndarray, options: Sequence[str], answers: Sequence[str]) -> list[tuple[str, float]]:
        """Rank all answers with their probabilities, or for a task that searches, sentences with their similarity.

        Args:
            scores: ``[A]`` float64, of one question or one clip.
            options: Its options, or the sentences; empty if it has none.
            answers: The answer list of the bundle.
        """

    @abstractmethod
    def output_figures(self, static: np.ndarray, personal: np.ndarray) -> dict[str, float]:
        """Measure how outputs with personal parameters differ from static ones; devices check downloads by it.

        Args:
            static: ``[R, A]`` scores, or ``[R, H]`` embeddings, of the static model; finite.
            personal: The same with personal parameters.
        """

    @abstractmethod
    def unit(self) -> str:
        """Name of one unit of work in tables of timings."""
