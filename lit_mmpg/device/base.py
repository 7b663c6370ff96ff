"""What the LightningModules of both halves share: building from the data, evaluation, optimiser, checkpoints."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from lit_mmpg.batch import Batch
from lit_mmpg.device.evaluation import Cost, Evaluation
from lit_mmpg.device.model import DeviceModelConfig, Shapes
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.device.plots import accuracy_per_device
from lit_mmpg.device.predictions import predictions
from lit_mmpg.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lit_mmpg.data.datamodule import DeviceData


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


def shapes_of(meta: Mapping[str, Any]) -> Shapes:
    """What the data's description decides about the model."""
    return Shapes(
        task=meta["task"],
        frame=tuple(meta["frame_shape"]),
        words=meta["words"],
        answers=meta["answer_count"],
        max_words=meta["max_words"],
    )


class AnsweringModule(L.LightningModule):
    """Base of both halves.

    Args:
        optimiser: Optimiser settings.
        label_smoothing: See :func:`lit_mmpg.device.outputs.task_loss`.
    """

    half_name: str
    """``device`` or ``cloud``."""
    network_config: DeviceModelConfig
    """Sizes of the device model; a cloud half takes them from the checkpoint of the device half."""
    monitor = ("val/score", "max")
    """Model selection: the task's primary metric on validation, with the sign that makes higher better."""
    needs_context = False
    needs_clean = False

    def __init__(self, optimiser: OptimiserConfig, label_smoothing: float) -> None:
        super().__init__()
        self.optimiser, self.label_smoothing = optimiser, label_smoothing
        self.meta: dict[str, Any] | None = None
        self.evaluation: Evaluation | None = None
        self.result_rows: list[dict[str, object]] = []
        self._figures: dict[str, Figure] = {}

    # -- building ------------------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, meta: dict[str, Any], data: DeviceData | None) -> None:
        """Create the networks.

        Args:
            meta: Description of the data (``DeviceData.meta``).
            data: The data itself when training starts, for initialisation; ``None`` when a checkpoint will be loaded.
        """

    @property
    def data(self) -> DeviceData:
        """The data module that the trainer holds."""
        return self.trainer.datamodule  # type: ignore[attr-defined, no-any-return]

    def setup(self, stage: str) -> None:
        """Build from the data (Lightning calls this before it restores a checkpoint)."""
        meta = self.data.meta
        if self.meta is None:
            self.meta = meta
            # Everything that is drawn here must not depend on what was drawn before, or resuming would differ.
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.initial_seed()) % 2**31)
                self.build(meta, self.data if stage == "fit" else None)
        else:
            self.check_meta(self.meta, meta)

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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the data decided, so that the checkpoint stands alone."""
        checkpoint.setdefault("lit_mmpg", {}).update(
            {"data": self.meta, "half": self.half_name, "network": asdict(self.network_config)}
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the half and build the networks where the trainer has not."""
        stored = checkpoint.get("lit_mmpg", {})
        if stored.get("half") != self.half_name:
            raise UserError(
                f"the checkpoint holds the {stored.get('half', 'unknown')} half, this is the {self.half_name} half; "
                "name a checkpoint of this half (ckpt_path), or give the device half as model.init_args.device_ckpt"
            )
        if self.meta is None:
            self.meta = stored["data"]
            self.build(self.meta, None)
        else:
            self.check_meta(stored["data"], self.meta)

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

    def on_validation_epoch_start(self) -> None:
        """Fresh metrics."""
        self.evaluation = Evaluation.over(self.data, ["val"], self.methods[:1]).to(self.device)

    def on_test_epoch_start(self) -> None:
        """Fresh metrics for each group of test devices."""
        self.evaluation = Evaluation.over(self.data, self.data.test_groups, self.methods).to(self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the answers of the module's own method."""
        assert self.evaluation is not None
        for method, outputs in self.respond(batch, self.methods[:1]).items():
            self.evaluation.update("val", method, batch, outputs)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect the answers of all methods."""
        assert self.evaluation is not None
        for method, outputs in self.respond(batch, self.methods).items():
            self.evaluation.update(self.data.test_groups[dataloader_idx], method, batch, outputs)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[dict[str, object]]:
        """Answers of the module's own method: one row per question, or per caption its ranked clips.

        Retrieval ranks the clips of the same device that are in the batch's query group.
        """
        outputs = self.respond(batch, self.methods[:1])[self.methods[0]]
        return predictions(self.data, batch, outputs)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the module's own method."""
        assert self.evaluation is not None
        method = self.methods[0]
        values = self.evaluation.compute("val", method)
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
        names = [device.id for device in self.data.device_table.devices]
        if self.trainer.is_global_zero:
            self._figures = {
                f"per_device_{group}": accuracy_per_device(results, names, self.evaluation.task.primary.name)
                for group, results in per_device.items()
            }

    def figures(self) -> dict[str, Figure]:
        """Figures of the last test, by name."""
        return self._figures

    # -- optimiser -----------------------------------------------------------------------------------------------

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
