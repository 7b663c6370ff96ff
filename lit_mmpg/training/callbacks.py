"""Callbacks that every run has, whatever its configuration says."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_mmpg.errors import UserError, closest
from lit_mmpg.runtime.folder import FolderInUseError, StateFolder
from lit_mmpg.tracking.address import kept_uri, portable
from lit_mmpg.tracking.logger import MLflowLogger
from lit_mmpg.tracking.store import CHECKPOINTS_TAG
from lit_mmpg.writing import write_bytes


class ExactResume(Callback):
    """Lets a resumed run end with the same weights as one that was never interrupted.

    Torch is seeded at each training batch from (seed, batch number, rank), so that the same dropout masks and samples
    are drawn, and the position in the interrupted epoch is restored where Lightning has missed it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the loader's position; say from which step the run goes on."""
        loop = trainer.fit_loop
        # A module that asks for estimated_stepping_batches makes Lightning set up the loader before it has read its
        # saved position, which it then never uses.
        if loop._combined_loader_states_to_load and loop._data_fetcher is not None:
            loop._load_combined_loader_states()
            iter(loop._data_fetcher)
        if trainer.global_step and trainer.is_global_zero:
            print(f"resumed at step {trainer.global_step}", flush=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed."""
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        torch.manual_seed((self.seed * 1_000_003 + number) * 4_099 + trainer.global_rank)


class Watch(Callback):
    """Ends a training that leads nowhere: by a loss or a selection metric that is not finite, or a wrong monitor."""

    def __init__(self) -> None:
        self._bad: torch.Tensor | None = None

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the validation metrics that callbacks monitor, before the first epoch.

        Raises:
            UserError: If there is no such metric.
        """
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if isinstance(monitor, str) and monitor.startswith("val") and monitor not in trainer.callback_metrics:
                known = sorted(trainer.callback_metrics)
                raise UserError(
                    f"{type(callback).__name__} monitors '{monitor}', but the validation metrics are "
                    f"{', '.join(known) or 'none'}{closest(monitor, known)}"
                )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss: at each step where that is free, else where Lightning logs."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        bad = ~torch.isfinite(loss.detach()).all()
        self._bad = bad if self._bad is None else self._bad | bad
        free = trainer.world_size == 1 and loss.device.type == "cpu"
        if free or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what was not looked at."""
        self.check(trainer, pl_module)

    on_validation_start = on_train_epoch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the metric that selects the checkpoint.

        Raises:
            UserError: If it is not finite.
        """
        name = str(pl_module.monitor[0]) if hasattr(pl_module, "monitor") else ""  # type: ignore[index, union-attr]
        value = trainer.callback_metrics.get(name)
        if trainer.state.fn != "fit" or trainer.sanity_checking or value is None:
            return
        if not bool(torch.isfinite(torch.as_tensor(value)).all()):
            raise UserError(f"{name} is {float(value)} at step {trainer.global_step}: {self.REMEDY}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Nothing is saved that came of a loss that is not finite."""
        self.check(trainer, pl_module)

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop in all processes where the loss of one was not finite.

        Raises:
            UserError: If it was.
        """
        if self._bad is None or trainer.state.fn != "fit":
            return
        bad, self._bad = bool(self._bad), None
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            raise UserError(f"the training loss is not finite by step {trainer.global_step}: {self.REMEDY}")

    REMEDY = (
        "the training was stopped and names no checkpoint; look for NaN in the data, lower "
        "--model.optimiser.learning_rate, or limit the gradients with --trainer.gradient_clip_val=1"
    )


class RunRecord(Callback):
    """Writes the complete configuration of a run, and what else belongs to it, into the checkpoint and into MLflow."""

    def __init__(self, config: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        self.config = dict(config)
        self.tags = dict(tags)
        self.text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record configuration, code, data and devices; the data module is set up by now."""
        logger = _logger(trainer)
        if logger is None:
            return
        client, run_id = logger.experiment, logger.run_id
        logger.log_config(self.config)
        client.log_text(run_id, self.text, "config.yaml")
        data = trainer.datamodule  # type: ignore[attr-defined]
        tags = dict(self.tags) | {
            "half": getattr(pl_module, "half_name", None),
            "task": data.meta.get("task"),
            "lit_mmpg.data_fingerprint": data.fingerprint,
        }
        for key, value in tags.items():
            if value is not None:
                client.set_tag(run_id, key, value)
        client.log_text(run_id, json.dumps(data.device_table.to_json(), indent=1), "devices.json")
        name = str(self.config["data"]["class_path"])
        source = (self.config["data"].get("init_args") or {}).get("root") or name
        profile = {"task": data.meta.get("task"), "devices": len(data.device_table.devices)}
        assert trainer.state.fn is not None
        contexts = {"fit": "training", "validate": "validation"}
        logger.log_dataset(
            name, data.fingerprint, str(source), profile, contexts.get(str(trainer.state.fn.value), "testing")
        )
        logger.watch_system()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record where the checkpoints lie, so that an interrupted run is found again, and where it went on."""
        logger, checkpoints = _logger(trainer), trainer.checkpoint_callback
        if logger is not None and isinstance(checkpoints, ModelCheckpoint):
            logger.experiment.set_tag(logger.run_id, CHECKPOINTS_TAG, portable(str(checkpoints.dirpath)))
        if logger is not None and trainer.global_step:
            logger.experiment.set_tag(logger.run_id, "lit_mmpg.resumed_at_step", str(trainer.global_step))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the configuration and the run into the checkpoint."""
        logger = _logger(trainer)
        checkpoint.setdefault("lit_mmpg", {}).update(
            config=self.text,
            run_id=logger.run_id if logger else None,
            tracking_uri=kept_uri(logger.uri) if logger else None,
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the checkpoint that the training leaves and the figures with the run."""
        logger, product = _logger(trainer), product_of(trainer)
        if logger is not None and product:
            logger.experiment.log_artifact(logger.run_id, product, "checkpoints")
        _log_figures(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the rows of the verb validate."""
        if trainer.state.fn == "validate":
            _log_results(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the rows of the verb test."""
        _log_results(trainer, pl_module)


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces: Lightning's copies it from a temporary folder over that."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint in one step; addresses of other places are left to Lightning."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        data = io.BytesIO()
        torch.save(checkpoint, data)
        write_bytes(Path(path), data.getbuffer())


class Best(ModelCheckpoint):
    """Keeps the best checkpoint. Lightning tells callbacks apart by class and settings: these are not the user's."""


def hold(folder: str | Path) -> StateFolder:
    """Keep the folder of a run to this process: two that train into it would mix their weights and their records.

    Raises:
        UserError: If another process holds it.
    """
    try:
        return StateFolder(Path(folder))
    except FolderInUseError:
        raise UserError(
            f"another process trains the run in {folder}; wait for its end, or leave --ckpt_path out to start anew"
        ) from None
    except UserError as error:
        raise UserError(f"{folder} cannot be written to; name another with --trainer.default_root_dir") from error


class Last(ModelCheckpoint):
    """Keeps the latest checkpoint, for resuming; where no validation chose one, it is what the training leaves."""

    product = ""
    _held: StateFolder | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold the folder of the run, unless several share it."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and not trainer.fast_dev_run and not self._enable_version_counter:  # type: ignore[attr-defined]
            self._held = hold(Path(str(self.dirpath)).parent)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let others have the folder."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same."""
        super().on_exception(trainer, pl_module, exception)
        self.teardown(trainer, pl_module, "fit")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last weights where there is no best checkpoint."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step and not trainer.fast_dev_run and not product_of(trainer):  # type: ignore[attr-defined]
            self.product = self._get_metric_interpolated_filepath_name({}, trainer, self.best_model_path)
            trainer.save_checkpoint(self.product)


def product_of(trainer: Trainer) -> str:
    """The checkpoint that a training leaves, '' for none."""
    best = getattr(trainer.checkpoint_callback, "best_model_path", "")
    last = next((str(c.product) for c in trainer.callbacks if isinstance(c, Last)), "")  # type: ignore[attr-defined]
    return best or last


def _logger(trainer: Trainer) -> MLflowLogger | None:
    """MLflow logger of the first process; None in the others and where tracking is off."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, MLflowLogger)), None)


def _log_results(trainer: Trainer, pl_module: LightningModule) -> None:
    logger = _logger(trainer)
    if logger is None:
        return
    rows = list(pl_module.result_rows)  # type: ignore[arg-type]
    logger.experiment.log_text(logger.run_id, json.dumps({"rows": rows}, indent=2), "rows.json")
    metrics: dict[str, float] = {}
    for row in rows:
        name = f"{row['split']}/{row['metric']}/{row['method']}"
        metrics |= {name: row["value"]} | {f"{name}/{key}": row.get(key) for key in ("low", "high")}
        metrics |= {f"{key}/{row['method']}": row.get(key) for key in ("upload_bytes", "download_bytes")}
    logger.log_metrics({name: float(value) for name, value in metrics.items() if value is not None})
    _log_figures(trainer, pl_module)


def _log_figures(trainer: Trainer, pl_module: LightningModule) -> None:
    logger = _logger(trainer)
    if logger is None:
        return
    for name, figure in pl_module.figures().items():  # type: ignore[operator]
        logger.experiment.log_figure(logger.run_id, figure, f"figures/{name}.png")
