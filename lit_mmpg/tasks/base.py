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
    """One kind of thing that is asked of a device model. Stateless: one object serves all.

    :class:`~lit_mmpg.tasks.questions.QuestionTask` is the base of tasks that score the answers to a question.

    Attributes:
        name: Its name in configurations, checkpoints and bundles.
        items: What its text items are called.
        primary: The one metric on which claims stand.
        answer_list: Whether answers come from a list that is fitted on the training texts.
        takes_options: Whether each question brings the options to choose from.
        searches: Whether clips and sentences are embedded apart, so that a device searches instead of answering.
        max_words: Longest text of a data set that people bring, in words, unless they say otherwise.
        example_options: Options of an example question.
        lacks: What the task does not have -> why, as a reason for what then does not apply: ``frequent_answer`` (an
            answer that is right more often than others), ``shared_classes`` (answers that several questions share).
        frozen: Parts of the device model that fine-tuning leaves as they are, since one device is no measure of them.
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
        """What its items are called where other tasks have some, too."""
        return f"{self.name.replace('_', '-')} {self.items}"

    # -- data ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def takes(self, text: Question | Caption, split: str) -> bool:
        """Whether a text of a split is an item of the task."""

    @classmethod
    def fits_table(cls, questions: bool, options: bool) -> bool:
        """Whether a table of somebody's own, with or without questions and options, asks for this task."""
        return False

    def device_model(self, texts: int, small: int) -> str | dict[str, Any]:
        """Settings of the device half for such a table: a file, or the section itself.

        Args:
            texts: Training texts.
            small: With fewer than these, every word counts.
        """
        return "configs/model/device_video_qa.yaml"

    def answers(self, texts: Sequence[Question | Caption]) -> list[str]:
        """Answers to training texts, from which the answer list is made; empty where the task has none."""
        return []

    @abstractmethod
    def candidates(self, text: Question | Caption) -> list[str]:
        """The texts of one item, each of which gets a row of words: one, or one per option."""

    def target(self, text: Question | Caption, index: Callable[[str], int]) -> int:
        """What :attr:`Batch.answer` holds for an item; ``index`` finds an answer in the list, -1 where it is not."""
        return 0

    @abstractmethod
    def hide_labels(self, batch: Batch, seed: int) -> Batch:
        """A support batch without what is asked for."""

    @abstractmethod
    def query_view(self, batch: Batch) -> Batch:
        """What a method sees of a query batch."""

    # -- device model --------------------------------------------------------------------------------------------

    def head_width(self, answers: int) -> int:
        """Outputs of the head for one row of words; a task that searches has embeddings and is not asked.

        Args:
            answers: Size of the answer list.
        """
        return 1

    @abstractmethod
    def scores(
        self, network: Any, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()
    ) -> Tensor:
        """Scores of one text item per clip.

        Args:
            network: The device model.
            frames: ``[..., T, H]`` contextualised frames.
            mask: ``[..., T]``.
            text: ``[..., O, L]``.
            parameters: Personal parameters, or nothing.
        """

    @abstractmethod
    def respond(self, network: Any, batch: Batch, frames: Tensor, parameters: Sequence[Tensor] = ()) -> Outputs:
        """Outputs for a batch.

        Args:
            network: The device model.
            batch: The batch.
            frames: ``[B, M, T, H]`` contextualised query frames.
            parameters: Personal parameters with leading dimension B, or nothing.
        """

    def initialise(self, network: Any, answer: np.ndarray, answers: int) -> None:  # noqa: B027
        """Start values of the head that training texts tell.

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
            outputs: What it said.
            label_smoothing: Share of the probability that is spread over all answers, where that means something.
            gather: Gathers tensors over processes.
        """

    @abstractmethod
    def device_loss(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """Loss of each device by itself, ``[B]``; nothing of one device enters another's."""

    @abstractmethod
    def choices(self, network: Any, batch: Batch, outputs: Outputs) -> Tensor:
        """Logits ``[B, N, K]`` of what each text item can be answered with, the device's own alone."""

    @abstractmethod
    def head_mask(self, batch: Batch) -> Tensor:
        """Which inputs of the head are real, in the shape in which the head sees a batch."""

    # -- evaluation ----------------------------------------------------------------------------------------------

    @abstractmethod
    def new_metric(self, kinds: Sequence[str], gallery: Gallery) -> nn.Module:
        """A fresh metric (of torchmetrics).

        Args:
            kinds: Names of the question types.
            gallery: Where searches rank.
        """

    @abstractmethod
    def update_metric(self, metric: Any, batch: Batch, outputs: Outputs) -> None:
        """Add one batch."""

    @abstractmethod
    def item_results(self, metric: Any, item_clip: np.ndarray) -> ItemResults:
        """Results of single items over all processes, those of :attr:`primary` among them.

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
        """One item as a row that people can read.

        Args:
            text: The item.
            batch: The batch that it is in.
            outputs: What the device model said about it.
            place: Its device and its place there, ``(b, n)``.
            answers: The answer list.
            clips: Names of the device's clips in the batch, blank for padding.
        """

    # -- bundle and device, without torch except for the graphs ---------------------------------------------------

    @abstractmethod
    def graphs(
        self, network: Any, clips: dict[str, Tensor], clip_dims: dict[str, dict[int, str]], words: Tensor
    ) -> list[GraphSpec]:
        """Graphs that answer, the one that takes personal parameters first.

        Args:
            network: The device model.
            clips: Example of ``frames`` and ``frame_mask``, two rows.
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
        """All answers with their probabilities, best first; of a task that searches, sentences with their similarity.

        Args:
            scores: ``[A]`` float64, of one question or one clip.
            options: Its options, or the sentences; empty where it has none.
            answers: The answer list of the bundle.
        """

    @abstractmethod
    def output_figures(self, static: np.ndarray, personal: np.ndarray) -> dict[str, float]:
        """How outputs with personal parameters differ from those without: what a device holds a download against.

        Args:
            static: ``[R, A]`` scores, or ``[R, H]`` embeddings, of the static model; finite.
            personal: The same with personal parameters.
        """

    @abstractmethod
    def unit(self) -> str:
        """What one answer is, for a table of timings."""
