"""The Lightning CLI as this package uses it: one parser per verb, errors for people, a trainer with our callbacks."""

from __future__ import annotations

import atexit
import logging
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_mmpg.errors import UserError, find_user_error
from lit_mmpg.tracking.logger import MLflowLogger, Tracking
from lit_mmpg.training.callbacks import ExactResume, RunRecord
from lit_mmpg.training.config import OPTIONS, Request
from lit_mmpg.training.console import Bar, Lines, speak

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

CLASSES = (
    "lit_mmpg.data.datamodule",
    "lit_mmpg.data.camera_clips",
    "lit_mmpg.device.module",
    "lit_mmpg.cloud.module",
)
"""Modules whose classes a configuration may name without their module."""

_UNHELPFUL = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*exists and is not empty.*",
    ".*args parameter is intended to run from within Python.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*in eval mode at the start of training.*",
    ".*dirpath has changed from.*",
    ".*torch.distributed.nn.functional.all_gather is deprecated.*",
    ".*LeafSpec.* is deprecated.*",
    ".*``instantiate_classes`` was deprecated.*",
    # Metrics that are logged at the end of an epoch are computed over all processes already.
    ".*when logging on epoch level in distributed setting.*",
)


_TYPES = (
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: NestedArg",
    "Does not validate",
)


@dataclass(frozen=True, slots=True)
class Run:
    """How a run is recorded.

    Attributes:
        tags: Tags of the MLflow run.
        uri: Store, where it is not the configured one.
        experiment: Experiment, where it is not the configured one.
        run_id: Run to go on with; None for a new one.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    uri: str | None = None
    experiment: str | None = None
    run_id: str | None = None


class Best(ModelCheckpoint):
    """Keeps the best checkpoint. Lightning tells callbacks apart by class and settings: these are not the user's."""


class Last(ModelCheckpoint):
    """Keeps the latest checkpoint, for resuming."""


class CLI(LightningCLI):
    """Parses one verb's configuration and flags; :meth:`build` then makes data, model and trainer.

    Args:
        request: What was asked.

    Attributes:
        record: The complete configuration as plain data, without the verb's own options.
        model: The LightningModule, after :meth:`build`.
        datamodule: The LightningDataModule, after :meth:`build`.
        trainer: The Trainer, after :meth:`build`.

    Raises:
        UserError: If the configuration or a flag is wrong.
    """

    def __init__(self, request: Request) -> None:
        _silence()
        speak()
        for module in CLASSES:
            # jsonargparse resolves short class names among the classes that are imported.
            import_module(module)
        self.verb = request.verb
        self.run = Run()
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                trainer_defaults={"default_root_dir": "outputs"},
                seed_everything_default=0,
                parser_kwargs={"prog": f"lit-mmpg {request.verb}", "description": None, "exit_on_error": False},
                args=request.arguments(),
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except ArgumentError as error:
            raise find_user_error(error) or UserError(f"{request.name}: {_plain(str(error))}") from error
        self.tracking = Tracking(**self.config["tracking"].as_dict())
        self.experiment = self.tracking.experiment or request.name
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_unset=False, skip_validation=True))
        self.record: dict[str, Any] = {k: v for k, v in dumped.items() if k not in {"config", *OPTIONS[self.verb]}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the tracking group and, for the help text, the verb's own options."""
        parser.add_class_arguments(Tracking, "tracking")
        for option, text in OPTIONS[self.verb].items():
            parser.add_argument(f"--{option}", type=str | None, default=None, help=text)
        if self.verb == "fit":
            parser.add_argument(
                "--save_every_n_steps", type=int, default=50, help="a killed run loses at most this many training steps"
            )

    def data(self) -> DeviceData:
        """The configured data module alone, not set up."""
        return self.parser.instantiate(self.config).data  # type: ignore[no-any-return]

    def instantiate_classes(self) -> None:
        """Nothing yet: which run goes on decides how the trainer is made."""

    def build(self, run: Run) -> None:
        """Make data, model and trainer.

        Raises:
            UserError: If Lightning refuses the trainer's settings.
        """
        self.run = run
        seed_everything(self.config["seed_everything"], workers=True, verbose=False)
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Trainer with our logger and callbacks beside the configured ones."""
        config = self.config_init["trainer"]
        terminal = sys.stdout.isatty()
        keep = self.verb == "fit" and config["enable_checkpointing"] is not False
        # Ours come first: the first ModelCheckpoint is the trainer's checkpoint_callback, whose best checkpoint counts.
        callbacks: list[Callback] = [*(self._checkpoints() if keep else []), *(config["callbacks"] or [])]
        callbacks.append(ExactResume(self.config["seed_everything"]))
        bar = terminal and config["enable_progress_bar"] is not False
        if bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks.append(Bar())
        if config["enable_progress_bar"] is not False:
            callbacks.append(Lines())
        callbacks.append(RunRecord(self.record, self.run.tags))
        try:
            return super().instantiate_trainer(
                logger=self._loggers(config["logger"]),
                callbacks=callbacks,
                enable_progress_bar=bar,
                enable_model_summary=config["enable_model_summary"] is True,
                **kwargs,
            )
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"the trainer cannot be made: {' '.join(str(error).split())}") from error

    def _checkpoints(self) -> list[ModelCheckpoint]:
        monitor, mode = self.model.monitor
        return [
            Best(filename="best", monitor=monitor, mode=mode, enable_version_counter=False),
            Last(filename="last", every_n_train_steps=self.config["save_every_n_steps"], enable_version_counter=False),
        ]

    def _loggers(self, configured: Any) -> Any:
        if configured is False:
            return False
        if not first_process():
            ours: Any = DummyLogger()
        else:
            ours = MLflowLogger(
                self.run.experiment or self.experiment,
                self.run.uri or self.tracking.uri,
                self.run.run_id,
                self.tracking.run_name or f"{self.verb} {type(self.model).__name__}",
                self.run.tags,
            )
        others = [] if configured in (None, True) else configured
        return [ours, *(others if isinstance(others, list) else [others])]


def first_process() -> bool:
    """Whether this is the process of rank 0, as far as is known before the trainer starts."""
    return not getattr(rank_zero_only, "rank", 0)


def _plain(message: str) -> str:
    """What a parser's message says, without the types of each alternative that it tried."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return "; ".join(line.rstrip(":") for line in lines if line and not line.startswith(_TYPES))


def _silence() -> None:
    """Leave out what Lightning says that nobody can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _UNHELPFUL:
        warnings.filterwarnings("ignore", message)


@atexit.register
def _leave_group() -> None:
    """Leave the group of processes; threads of gloo that are alive at the very end abort a run that has succeeded."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
