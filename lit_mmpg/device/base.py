"""What the LightningModules of both halves share: settings, checkpoints, evaluation, optimiser."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from lit_mmpg import pretrained
from lit_mmpg.batch import Batch
from lit_mmpg.checkpoint import read_checkpoint, rebuild
from lit_mmpg.data.corpus import check_encoder
from lit_mmpg.device.contract import DeviceModel, Shapes, evaluating
from lit_mmpg.device.evaluation import Cost, Evaluation, predictions
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.device.plots import accuracy_per_device
from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ENCODE
from lit_mmpg.settings import Remembering, within
from lit_mmpg.texts import duration

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self

    from lit_mmpg.data.batches import Group
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.prefix import Prefix


_log = logging.getLogger(__name__)

SAMPLE = 8
"""Frames on which the cost of encoding is measured, and that a prefix computes at once."""

MOST_KEPT_BYTES = 4 * 2**30
"""Memory for what comes before the first dynamic layer of an encoder."""


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW with linear warm-up and cosine decay to zero.

    Attributes:
        learning_rate: Peak learning rate.
        projection_learning_rate: Peak learning rate of the frame projection, where it starts from a closed form;
            ``None``: as all others.
        weight_decay: Decoupled weight decay on matrices (not on biases, norms and vectors).
        warmup_share: Share of the steps that warm up.
    """

    learning_rate: float = 1e-3
    projection_learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup_share: float = 0.05

    def __post_init__(self) -> None:
        """Refuse what does not descend."""
        rates = {"learning_rate": self.learning_rate, "projection_learning_rate": self.projection_learning_rate}
        within("model.optimiser.", 0, 1000, **rates)
        within("model.optimiser.", 0, weight_decay=self.weight_decay)
        within("model.optimiser.", 0, 1, warmup_share=self.warmup_share)


def shapes_of(meta: Mapping[str, Any]) -> Shapes:
    """What the data's description decides about the model."""
    return Shapes(
        task=meta["task"],
        frame=tuple(meta["frame_shape"]),
        words=meta["words"],
        answers=meta["answer_count"],
        max_words=meta["max_words"],
    )


class AnsweringModule(Remembering, L.LightningModule):
    """Base of both halves: networks from a description of the data, and nothing but that.

    Args:
        data: Description of the data, as :attr:`DeviceData.meta <lit_mmpg.data.datamodule.DeviceData.meta>` gives it.
        optimiser: Optimiser settings.
        label_smoothing: Share of the probability that is spread over all answers, where that means something.
    """

    half_name: str
    """``device`` or ``cloud``."""
    monitor = ("val/score", "max")
    """Model selection: the task's primary metric on validation, with the sign that makes higher better."""
    needs_context = False
    needs_clean = False
    network: DeviceModel

    def __init__(self, data: Mapping[str, Any], optimiser: OptimiserConfig, label_smoothing: float) -> None:
        super().__init__()
        within("model.", 0, 1, label_smoothing=label_smoothing)
        self.meta = dict(data)
        self.optimiser, self.label_smoothing = optimiser, label_smoothing
        self.evaluation: Evaluation | None = None
        self.result_rows: list[dict[str, object]] = []
        self._figures: dict[str, Figure] = {}
        self._groups: list[Group] = []
        self._training: DeviceData | None = None
        self._has_weights = False

    # -- building ------------------------------------------------------------------------------------------------

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """What is drawn within depends on the seed alone, not on what was drawn before: else resuming would differ."""
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.initial_seed()) % 2**31)
            yield

    @classmethod
    def for_data(cls, data: DeviceData, **settings: Any) -> Self:
        """A module for some data, ready to be trained on it.

        Args:
            data: The data; it is set up for training.
            **settings: Further arguments of the class.

        Raises:
            UserError: If the data or a setting is not usable.
        """
        data.setup("fit")
        return cls(data.meta, **settings).prepare(data)

    def prepare(self, data: DeviceData) -> Self:
        """Make ready for training: take start values from the data, unless the weights came from a checkpoint.

        Args:
            data: The training data, set up.

        Raises:
            UserError: If the data does not fit the description, or lacks what a setting needs.
        """
        self.check_meta(self.meta, data.meta)
        self.network.prefix = None  # what an earlier training left
        data.encode_once(None, None)
        data.bring(self.needs_context, self.needs_clean)
        self._training = data
        with self._drawing():
            self.start(data, fresh=not self._has_weights)
        self._has_weights = True
        return self

    @abstractmethod
    def start(self, data: DeviceData, fresh: bool) -> None:
        """Take from the training data what :meth:`prepare` says.

        Args:
            data: The training data, set up.
            fresh: Whether weights should start from the data.
        """

    def on_fit_start(self) -> None:
        """Training needs a prepared module."""
        if not self._has_weights:
            name = type(self).__name__
            raise UserError(
                f"this {name} has no start values; make it by {name}.for_data(data, ...), or call prepare(data) first"
            )

    # -- frames that are encoded once ----------------------------------------------------------------------------

    @property
    @abstractmethod
    def static_encoder(self) -> bool:
        """Whether the frame encoder stays as it is in training, dynamic layers within it aside."""

    def setup(self, stage: str) -> None:
        """In training, frames that are always encoded alike are encoded once, not once per epoch.

        Where dynamic layers lie in the encoder, this holds for contexts; of the clips that are asked about, what comes
        before the first of these layers is computed once. What that costs is measured on a few frames and said before.

        Raises:
            UserError: If the trainer would keep weights in another precision.
        """
        precision = str(self.trainer.precision) if self._trainer is not None else "32-true"
        if precision.endswith("-true") and precision != "32-true":
            kept = "weights and generated parameters are kept, sent and exported in float32"
            raise UserError(f"trainer.precision is {precision}, but {kept}; use bf16-mixed, or 32-true")
        data = self._training
        if stage != "fit" or data is None or not self.network.shapes.pixels or not self.static_encoder:
            return
        if not self.network.encodes_personally:
            _log.info("%s; epochs begin behind it", self._cost_of_encoding(data))
            data.encode_once(self._encode_pixels, self._encode_pixels)
            return
        self.network.prefix, kept = self._find_prefix(data)
        _log.info("%s, for contexts; %s", self._cost_of_encoding(data), self._cost_of_an_epoch(data, kept))
        data.encode_once(self._encode_pixels, self._encode_prefix if self.network.prefix is not None else None)

    def teardown(self, stage: str) -> None:
        """Let the data hand out pixels again."""
        if stage == "fit" and self._training is not None:
            self.network.prefix = None
            self._training.encode_once(None, None)

    @torch.inference_mode()
    def _encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        with evaluating(self.network):
            encoded = self.network.encode(torch.from_numpy(pixels).to(self.device))
        return encoded.float().cpu().numpy()

    @torch.inference_mode()
    def _encode_prefix(self, pixels: np.ndarray) -> np.ndarray:
        prefix = self.network.prefix
        assert prefix is not None
        with evaluating(self.network):
            parts = [
                prefix.values(
                    self.network.encode_values, torch.from_numpy(pixels[i : i + SAMPLE]).to(self.device)
                ).cpu()
                for i in range(0, len(pixels), SAMPLE)
            ]
        return torch.cat(parts).numpy()

    def _find_prefix(self, data: DeviceData) -> tuple[Prefix | None, str]:
        """What comes before the first dynamic layer of the encoder, if it is kept; and what is done, in words."""
        first = next(entry.name for entry in self.network.spec.of(ENCODE)).rpartition(".")[0]
        anew = f"frames anew with personal parameters (from {first} on)"
        if self._compiler_ctx is not None:  # modules that hand out what was kept are no code for a compiler
            return None, anew
        source = data.corpus.frames
        prefix = self.network.find_prefix(torch.from_numpy(source.values[:SAMPLE]).to(self.device))
        if prefix is None:
            return None, anew
        size = len(source.values) * prefix.width * 4
        if size > MOST_KEPT_BYTES:
            return None, f"{anew}, since what comes before would take {size / 2**30:.1f} GiB"
        return (
            prefix,
            f"frames from {first} on with personal parameters, what comes before is kept ({size / 2**20:.0f} MiB)",
        )

    def _cost_of_encoding(self, data: DeviceData) -> str:
        """What encoding all frames costs on this machine, in words."""
        frames, total = data.corpus.frames.values[:SAMPLE], len(data.corpus.frames.values)
        once = _seconds(lambda: self._encode_pixels(frames)) / len(frames)
        return f"frame encoder: {total} frames once, about {duration(once * total)}"

    def _cost_of_an_epoch(self, data: DeviceData, kept: str) -> str:
        """What the clips that are asked about cost in each epoch, in words."""
        own = self.network.neutral_parameters()
        frames = data.corpus.frames.values[:SAMPLE]
        given = torch.from_numpy(frames if self.network.prefix is None else self._encode_prefix(frames)).to(self.device)

        def step() -> None:
            learnt = [tensor.clone().requires_grad_() for tensor in own]
            torch.autograd.grad(self.network.encode_asked(given, learnt).sum(), learnt, allow_unused=True)

        with evaluating(self.network), torch.enable_grad():
            anew = _seconds(step) / len(frames)
        asked = data.training_frames()
        return f"each epoch encodes {asked} {kept}, about {duration(anew * asked)} on this machine"

    @staticmethod
    def check_meta(trained: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Check that data fits a checkpoint.

        Raises:
            UserError: If task, frames, own statistics, vocabulary or answers differ.
        """
        if trained["task"] != data["task"]:
            raise UserError(f"the checkpoint was trained for task '{trained['task']}', the data has '{data['task']}'")
        if list(trained["frame_shape"]) != list(data["frame_shape"]):
            raise UserError(
                f"the checkpoint was trained on frames of shape {tuple(trained['frame_shape'])}, the data has "
                f"{tuple(data['frame_shape'])}; extract the features with the same encoder (data.features)"
            )
        check_encoder(trained, data.get("extracted", {}))
        priors = [meta.get("own_statistics", {}).get("prior", 0) for meta in (trained, data)]
        if priors[0] != priors[1]:
            raise UserError(
                f"the checkpoint was trained with data.batch.own_statistics {priors[0]}, the data has {priors[1]}; use "
                "the same"
            )
        for name, size, what in (("vocabulary", "words", "vocabulary"), ("answers", "answer_count", "answer list")):
            if trained[name] != data[name]:
                raise UserError(
                    f"the {what} of the checkpoint ({trained[size]} entries) is not that of the training data "
                    f"({data[size]} entries); train both halves on the same data, or train the device half again"
                )

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what tells a checkpoint of this half from others."""
        checkpoint.setdefault("lit_mmpg", {}).update({"data": self.meta, "half": self.half_name})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the half and the data."""
        stored = checkpoint.get("lit_mmpg", {})
        if stored.get("half") != self.half_name:
            raise UserError(
                f"the checkpoint holds the {stored.get('half', 'unknown')} half, this is the {self.half_name} half; "
                "name a checkpoint of this half (ckpt_path), or give the device half as model.init_args.device_ckpt"
            )
        self.check_meta(stored["data"], self.meta)
        self._has_weights = True

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: Any = None, **changed: Any
    ) -> Self:
        """The module of a checkpoint with its weights. Only tensors and plain data are read, never pickled code.

        Args:
            checkpoint_path: A file that ``lit-mmpg fit`` or a Lightning trainer wrote.
            map_location: Where the module goes; ``None``: the CPU.
            **changed: Arguments of the class that replace those of the checkpoint.

        Raises:
            UserError: If the file is not a checkpoint of this class.
        """
        checkpoint = read_checkpoint(checkpoint_path, half=getattr(cls, "half_name", None))
        module = rebuild(checkpoint, str(checkpoint_path), cls, **changed)
        return module if map_location is None else module.to(map_location)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, which :meth:`from_pretrained` reads: no pickle.

        Args:
            save_directory: Folder, made where it is missing.

        Raises:
            UserError: If it cannot be written.
        """
        pretrained.save(self, save_directory)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub: Any) -> Self:
        """The module that :meth:`save_pretrained` wrote, in evaluation mode.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the Hugging Face hub.
            **hub: Options of ``huggingface_hub.snapshot_download`` (``revision``, ``token``, ``cache_dir``,
                ``local_files_only``, ...).

        Raises:
            UserError: If there is no such folder or repository, or it does not hold this class.
        """
        return pretrained.load(cls, pretrained_model_name_or_path, **hub)

    # -- evaluation ----------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def methods(self) -> list[str]:
        """Methods that a test compares."""

    @abstractmethod
    def respond(self, batch: Batch, methods: list[str]) -> dict[str, Outputs]:
        """Outputs of each method on an evaluation batch."""

    def costs(self) -> dict[str, Cost]:
        """Bytes per adaptation of each method."""
        return {}

    def _evaluate(self, loaders: Any, methods: list[str]) -> None:
        """Fresh metrics for what the trainer's loaders ask."""
        self._groups = _groups(loaders)
        self.evaluation = Evaluation(self._groups, methods).to(self.device)

    def on_validation_epoch_start(self) -> None:
        """Fresh metrics."""
        self._evaluate(self.trainer.val_dataloaders, self.methods[:1])

    def on_test_epoch_start(self) -> None:
        """Fresh metrics for each group of test devices."""
        self._evaluate(self.trainer.test_dataloaders, self.methods)

    def on_predict_start(self) -> None:
        """Remember what is asked."""
        self._groups = _groups(self.trainer.predict_dataloaders)

    @torch.compiler.disable
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the answers of the module's own method."""
        assert self.evaluation is not None
        for method, outputs in self.respond(batch, self.methods[:1]).items():
            self.evaluation.update(self._groups[0].name, method, batch, outputs)

    @torch.compiler.disable
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect the answers of all methods."""
        assert self.evaluation is not None
        for method, outputs in self.respond(batch, self.methods).items():
            self.evaluation.update(self._groups[dataloader_idx].name, method, batch, outputs)

    @torch.compiler.disable
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, object]]:
        """Answers of the module's own method: one row per question, or per caption its ranked clips.

        Retrieval ranks the clips of the same device that are in the batch's query group.
        """
        outputs = self.respond(batch, self.methods[:1])[self.methods[0]]
        return predictions(self._groups[dataloader_idx], batch, outputs)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the module's own method."""
        assert self.evaluation is not None
        method = self.methods[0]
        values = self.evaluation.compute(self._groups[0].name, method)
        primary = self.evaluation.task.primary
        self.log_dict({f"val/{name}": value for name, value in values.items()}, rank_zero_only=True)
        self.log("val/score", primary.score(values[primary.name]), prog_bar=True)
        for name, value in asdict(self.costs().get(method, Cost())).items():
            self.log(f"val/{name}", float(value))
        if self.trainer.state.fn == "validate":
            self.result_rows = self.evaluation.rows(self.costs())

    def on_test_epoch_end(self) -> None:
        """Make the result rows and the figures."""
        assert self.evaluation is not None
        costs = self.costs()
        self.result_rows = self.evaluation.rows(
            costs, "static" if len(self.methods) > 1 and "static" in self.methods else None
        )
        for row in self.result_rows:
            if row["method"] == self.methods[0]:
                self.log(f"test/{row['split']}/{row['metric']}", float(row["value"]), rank_zero_only=True)  # type: ignore[arg-type]
        per_device = {
            group: {method: self.evaluation.items(group, method) for method in self.methods}
            for group in self.evaluation.groups
        }
        names = list(self._groups[0].devices)
        if self.trainer.is_global_zero:
            self._figures = {
                f"per_device_{group}": accuracy_per_device(results, names, self.evaluation.task.primary.name)
                for group, results in per_device.items()
            }

    def figures(self) -> dict[str, Figure]:
        """Figures of the last test, by name."""
        return self._figures

    # -- logging and evaluation, which stay in Python where a step is compiled ----------------------------------------

    @torch.compiler.disable
    def log(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        super().log(*args, **kwargs)

    @torch.compiler.disable
    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        super().log_dict(*args, **kwargs)

    # -- optimiser -----------------------------------------------------------------------------------------------

    def task_loss(self, batch: Batch, outputs: Outputs) -> Tensor:
        """Loss of the task on a training batch, over all processes."""
        return self.network.task.loss(self.network, batch, outputs, self.label_smoothing, self.gather)

    def gather(self, tensor: Tensor) -> Tensor:
        """Concatenate over processes, with gradients; the identity in one process."""
        if self.trainer.world_size == 1:
            return tensor
        gathered = self.all_gather(tensor, sync_grads=tensor.is_floating_point())
        return gathered.flatten(0, 1)  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine decay."""
        rate, projection = self.optimiser.learning_rate, self.optimiser.projection_learning_rate
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                own = projection if projection is not None and name.startswith("network.frame_projection.") else rate
                decay = self.optimiser.weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((own, decay), []).append(parameter)
        optimiser = torch.optim.AdamW(
            [{"params": params, "lr": own, "weight_decay": decay} for (own, decay), params in groups.items()]
        )
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = max(1, round(self.optimiser.warmup_share * total))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _seconds(call: Callable[[], object]) -> float:
    """Time of a call that was made once before, the lesser of two, in seconds."""
    call()
    times = []
    for _ in range(2):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _groups(loaders: Any) -> list[Group]:
    """What the loaders of a trainer ask.

    Raises:
        UserError: If they do not say.
    """
    groups = [
        getattr(loader, "group", None) for loader in (loaders if isinstance(loaders, list | tuple) else [loaders])
    ]
    if not groups or None in groups:
        raise UserError(
            "the loaders do not say whom they ask what; take those of a data module of lit_mmpg.data, or give them a "
            "'group' (lit_mmpg.data.batches.Group)"
        )
    return [group for group in groups if group is not None]
