"""What a run says while it runs: one line per long phase, one per epoch, and a bar on a terminal."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only

from lit_mmpg.heartbeat import tell
from lit_mmpg.report import SHOWN, format_row

_CHATTER = (
    "GPU available",
    "TPU available",
    "HPU available",
    "IPU available",
    "LOCAL_RANK",
    "Seed set to",
    "Restor",
    "Loading `",
    "`weights_only` was not set",
    "Loaded model weights",
    "`Trainer.",
    "`Trainer(",
    "Trainer already configured",
    "Detected KeyboardInterrupt",
    "Running in `fast_dev_run`",
    "Initializing distributed",
    "distributed_backend",
    "All distributed processes",
    "-----",
    "\U0001f4a1 Tip",
)
"""How the lines begin that Lightning says in every run; what callbacks, profilers and loggers say is heard."""


class Spoken(logging.Handler):
    """Prints logs as plain lines: information to stdout, warnings to stderr; rank 0 alone speaks."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out what Lightning says in every run."""
        return record.levelno > logging.INFO or not record.getMessage().lstrip().startswith(_CHATTER)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if getattr(rank_zero_only, "rank", 0):
            return
        warned = record.levelno >= logging.WARNING
        # Looked up at each call: whoever redirects the streams is heard.
        print(
            f"warning: {record.getMessage()}" if warned else record.getMessage(),
            file=sys.stderr if warned else sys.stdout,
            flush=True,
        )


def speak() -> None:
    """Let the package's long phases say what they do, and Lightning's callbacks, profilers and loggers."""
    for name in ("lit_mmpg", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        if not any(isinstance(handler, Spoken) for handler in logger.handlers):
            logger.handlers[:] = [Spoken()]
        logger.propagate = name == "lit_mmpg"  # Lightning's own handlers would say all of it once more


class Bar(RichProgressBar):
    """Lightning's bar, with the training loss alone beside it and with epochs counted from 1."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:  # type: ignore[override]
        """Metrics beside the bar; those of the validation have a line of their own."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name.removeprefix("train/"): value for name, value in metrics.items() if name.startswith("train/")}

    def _get_train_description(self, current_epoch: int) -> str:
        return _epoch(current_epoch, self.trainer)


def _batch_end(what: str, counted: str) -> Callable[..., None]:
    """A hook that tells how far the batches are which the trainer counts by that name."""

    def hook(
        self: Callback,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        counts = getattr(trainer, counted)
        group = f" {dataloader_idx + 1}/{len(counts)}" if len(counts) > 1 else ""
        tell(f"{_half(pl_module)}: {what}{group}", batch_idx + 1, _count(counts[dataloader_idx]), "batches")

    return hook


class Lines(Callback):
    """What is trained, then one line per validation; between them the heartbeat is told how far the work is."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the size of what is trained, and of an epoch."""
        if not trainer.is_global_zero:
            return
        sizes = [(p.numel(), p.requires_grad) for p in pl_module.parameters()]
        total, trained = sum(size for size, _ in sizes), sum(size for size, grad in sizes if grad)
        print(
            f"{_half(pl_module)}: {total:,} parameters, {'all' if trained == total else f'{trained:,}'} trained, "
            f"{trainer.num_training_batches} steps an epoch",
            flush=True,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell how far the epoch is."""
        epoch = f"{_half(pl_module)}: {_epoch(trainer.current_epoch, trainer)}"
        tell(epoch, batch_idx + 1, _count(trainer.num_training_batches), "steps")

    on_validation_batch_end = _batch_end("validation", "num_val_batches")
    on_test_batch_end = _batch_end("test", "num_test_batches")
    on_predict_batch_end = _batch_end("answers", "num_predict_batches")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what comes after the last batch."""
        tell(f"{_half(pl_module)}: computing results and intervals")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print epoch, step and the headline metrics of the validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = {name: metrics[f"val/{name}"] for name in SHOWN if f"val/{name}" in metrics}
        if not shown:
            monitored = str(pl_module.monitor[0])  # type: ignore[index, union-attr]
            shown = {monitored: metrics[monitored]} if monitored in metrics else {}
        values = "  ".join(
            f"{SHOWN.get(name, name)} {format_row({'metric': name, 'value': value})}" for name, value in shown.items()
        )
        loss = f"  train loss {metrics['train/loss']:.4g}" if "train/loss" in metrics else ""
        print(
            f"{_half(pl_module)}: {_epoch(trainer.current_epoch, trainer)}  "
            f"step {trainer.global_step}{loss}  validation: {values}",
            flush=True,
        )


def _count(batches: float) -> int | None:
    """A number of batches; None where a loader does not know its own."""
    return int(batches) if math.isfinite(batches) else None


def _half(pl_module: LightningModule) -> str:
    return f"{getattr(pl_module, 'half_name', type(pl_module).__name__)} half"


def _epoch(epoch: int, trainer: Trainer) -> str:
    """``epoch 1/8``; without the total where the run is limited by steps or time."""
    return f"epoch {epoch + 1}" + (f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else "")
