"""The Lightning CLI as this package uses it: one parser per verb, errors for people, a trainer with our callbacks."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_mmpg.checkpoint import in_memory
from lit_mmpg.data.datamodule import DeviceData
from lit_mmpg.device.base import AnsweringModule
from lit_mmpg.errors import UserError, closest, find_user_error
from lit_mmpg.settings import from_plain, within
from lit_mmpg.texts import masked
from lit_mmpg.tracking.logger import MLflowLogger, Tracking
from lit_mmpg.training.callbacks import Best, ExactResume, Last, RunRecord, Watch, WholeFiles
from lit_mmpg.training.config import DEMO, FLAGS, OPTIONS, Request
from lit_mmpg.training.console import Bar, Lines, speak

CLASSES = ("lit_mmpg.data.datamodule", "lit_mmpg.data.camera_clips", "lit_mmpg.device.module", "lit_mmpg.cloud.module")
"""Modules whose classes a configuration may name without their module."""

PLUGINS = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "lightning.pytorch.profilers")

_UNHELPFUL = (
    ".*does not have many workers.*",
    ".*smaller than the logging interval.*",
    ".*exists and is not empty.*",
    ".*args parameter is intended to run from within Python.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*in eval mode at the start of training.*",
    ".*dirpath has changed from.*",
    # Said in better words at the end of the training.
    ".*could not find the monitored key.*",
    ".*torch.distributed.nn.functional.all_gather is deprecated.*",
    ".*LeafSpec.* is deprecated.*",
    ".*``instantiate_classes`` was deprecated.*",
    # Metrics that are logged at the end of an epoch are computed over all processes already.
    ".*when logging on epoch level in distributed setting.*",
)


_EPILOG = (
    "Fields of the classes that --model and --data name are flags too: --model.help CloudModule (or DeviceModule) and "
    "--data.help VideoData (or PersonalClipsData, CameraClipsData) list them, --print_config all values at once. "
    "${NAME} in a configuration file stands for an environment variable; there is no other interpolation, and "
    "variables such as PL_TRAINER__MAX_EPOCHS are not read."
)

_TYPES = (
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: NestedArg",
    "Does not validate",
    "Subclasses are disabled",
)


_CALLABLE = re.compile(r"^Type .* expects a function or a callable class: ")


@dataclass(frozen=True, slots=True)
class Run:
    """How a run is recorded.

    Attributes:
        tags: Tags of the MLflow run.
        uri: Store, where it is not the configured one.
        experiment: Experiment, where it is not the configured one.
        run_id: Run to go on with; None for a new one.
        name: Name of the run, where the configuration gives none; None for configuration, half and seed.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    uri: str | None = None
    experiment: str | None = None
    run_id: str | None = None
    name: str | None = None


_CONTRACT = {
    "model": (("half_name", "monitor", "figures"), "lit_mmpg.device.base.AnsweringModule"),
    "data": (("meta", "use_meta", "fingerprint", "device_table"), "lit_mmpg.data.datamodule.DeviceData"),
}
"""What the verbs use of a module beside Lightning's own methods, and the class that has it."""

_NOTHING = {
    "max_epochs": 0,
    "max_steps": 0,
    "limit_train_batches": 0,
    "enable_checkpointing": False,
    "barebones": True,
}
"""Settings of the trainer with which nothing would be left of a training."""


class CLI(LightningCLI):
    """Parses one verb's configuration and flags; :meth:`build` then makes data, model and trainer.

    Attributes:
        record: The complete configuration as plain data, without the verb's own options.
        half: Which half the model is.
        model: The LightningModule, after :meth:`build`.
        datamodule: The LightningDataModule, after :meth:`build`.
        trainer: The Trainer, after :meth:`build`.

    Raises:
        UserError: If the configuration or a flag is wrong.
    """

    def __init__(self, request: Request) -> None:
        _silence()
        speak()
        if os.getcwd() not in sys.path:  # classes of the user's own are named by their file in the current folder
            sys.path.append(os.getcwd())
        for module in CLASSES:
            # jsonargparse resolves short class names among the classes that are imported.
            import_module(module)
        self.verb = request.verb
        self.run = Run()
        self._trained: dict[str, Any] | None = None
        try:
            super().__init__(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                trainer_defaults={"default_root_dir": "outputs"},
                seed_everything_default=0,
                parser_kwargs={
                    "prog": f"lit-mmpg {request.verb}",
                    "description": None,
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    "epilog": _EPILOG,
                },
                args=request.arguments(),
                run=False,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        except ArgumentError as error:
            raise find_user_error(error) or UserError(f"{request.name}: {self._explain(str(error))}") from error
        self.tracking = Tracking(**self.config["tracking"].as_dict())
        self.experiment = self.tracking.experiment or request.name
        self.name = request.name
        dumped = yaml.safe_load(masked(self.parser.dump(self.config, skip_unset=False, skip_validation=True)))
        self.record: dict[str, Any] = {k: v for k, v in dumped.items() if k not in {"config", *OPTIONS[self.verb]}}
        for part, (names, base) in _CONTRACT.items():
            path = str(self.record[part]["class_path"])
            kind = getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2])
            lacking = [name for name in names if not hasattr(kind, name)]
            if part == "model":
                self.half = str(getattr(kind, "half_name", kind.__name__))
            if lacking:
                raise UserError(f"{part} {path} lacks {', '.join(lacking)}; derive it from {base}, which has them")
            _check_settings(part, kind, self.record[part].get("init_args") or {})
        within("", 1, save_every_n_steps=self.config.get("save_every_n_steps"))
        trainer = self.record["trainer"]
        counts = ("accumulate_grad_batches", "check_val_every_n_epoch")
        within("trainer.", 1, **{name: trainer[name] for name in counts})
        within("trainer.", 0, gradient_clip_val=trainer["gradient_clip_val"])
        if trainer["val_check_interval"] == 0:
            raise UserError(
                "trainer.val_check_interval is 0; give a share of an epoch, a number of steps, or "
                "trainer.limit_val_batches=0 to validate never"
            )
        for name, value in _NOTHING.items() if self.verb == "fit" and not trainer["fast_dev_run"] else ():
            if trainer[name] is not None and trainer[name] == value:
                raise UserError(
                    f"trainer.{name} is {trainer[name]}: nothing would be left of the training; leave it out "
                    "(--trainer.fast_dev_run=true tries one batch of each half and keeps nothing)"
                )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the tracking group and, for the help text, the verb's own options."""
        # The data describes itself to a model that is built from it.
        parser.link_arguments("data", "model.init_args.data", compute_fn=self._describe, apply_on="instantiate")
        parser.add_class_arguments(Tracking, "tracking")
        for option, text in OPTIONS[self.verb].items():
            parser.add_argument(
                f"--{option}",
                **({"action": "store_true"} if option in FLAGS else {"type": str | None, "default": None}),
                help=text,
            )
        if self.verb == "fit":
            parser.add_argument(
                "--save_every_n_steps", type=int, default=50, help="a killed run loses at most this many training steps"
            )

    def _explain(self, message: str) -> str:
        """A parser's message, with the flag that may have been meant."""
        said = _plain(message)
        flag = re.search(r"[Uu]nrecognized arguments: (--[\w.]+)", said)
        if flag:
            return said + closest(
                flag.group(1), (name for name in self.parser._option_string_actions if name[1] == "-")
            )
        named = re.search(r"(?:class_path '|import path string: )(?:([\w.]+)\.)?(\w+)", said)
        if named:
            modules = [named.group(1)] if named.group(1) else [*PLUGINS, *CLASSES]
            known = [name for module in modules if module in sys.modules for name in dir(sys.modules[module])]
            return said if named.group(2) in known else said + closest(named.group(2), known)
        if "${" in said:
            return f"{said}; only ${{NAME}} in a configuration file is replaced, by an environment variable"
        return f"{said}; {DEMO} is one with all of them" if "are required" in said else said

    def data(self) -> DeviceData:
        """The configured data module alone, not set up."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(LightningDataModule, "data")
        return parser.instantiate(Namespace(data=self.config.data)).data  # type: ignore[no-any-return]

    def _describe(self, data: DeviceData) -> dict[str, Any]:
        """Description of the data, for a model that is built from it: that of the checkpoint, or of training data."""
        if self._trained is not None:
            return self._trained
        data.setup("fit")
        return data.meta

    def _set_seed(self) -> None:
        """As Lightning does, where the seed is one."""
        if isinstance(self.config["seed_everything"], bool):  # which Lightning reads as 0
            raise UserError(
                f"seed_everything is {self.config['seed_everything']}; give a number, or leave it out for 0"
            )
        within("", 0, 2**32 - 1, seed_everything=self.config["seed_everything"])
        super()._set_seed()

    def instantiate_classes(self) -> None:
        """Nothing yet: which run goes on decides how the trainer is made."""

    def build(self, run: Run, trained: dict[str, Any] | None = None) -> None:
        """Make data, model and trainer, the model ready for what the verb says.

        Args:
            run: How the run is recorded.
            trained: Description of the data with which a checkpoint was trained; ``None`` where a training begins.

        Raises:
            UserError: If Lightning refuses the trainer's settings.
        """
        self.run, self._trained = run, trained
        seed_everything(self.config["seed_everything"], workers=True, verbose=False)
        with _refusals():
            super().instantiate_classes()
        if trained is not None:
            self.datamodule.use_meta(trained)
        if isinstance(self.datamodule, DeviceData):
            self.datamodule.bring(getattr(self.model, "needs_context", True), getattr(self.model, "needs_clean", False))
        if trained is None and isinstance(self.model, AnsweringModule):
            self.model.prepare(self.datamodule)

    def try_model(self, device_half: CLI) -> None:
        """Make the configured model once, on a device half of this package that is built and not trained yet.

        Raises:
            UserError: If the model's settings do not fit.
        """
        data = device_half.datamodule
        if not isinstance(device_half.model, AnsweringModule):
            return  # what somebody else's module keeps in a checkpoint may need a training
        with in_memory(device_half.model) as checkpoint, torch.random.fork_rng(), _refusals():
            parser = ArgumentParser(exit_on_error=False)
            parser.add_subclass_arguments(LightningModule, "model")
            config = self.config.model.clone()
            config.init_args.update(Namespace(data=data.meta, device_ckpt=checkpoint))
            model = parser.instantiate(Namespace(model=config)).model
            if isinstance(model, AnsweringModule) and self.record["data"] == device_half.record["data"]:
                model.start(data, fresh=True)

    def start(self, **arguments: Any) -> Any:
        """Let the trainer do what the verb says with model and data.

        Raises:
            UserError: If Lightning refuses the settings.
            KeyboardInterrupt: If it was interrupted; Lightning itself would end the process.
        """
        handler = signal.getsignal(signal.SIGINT)
        with _refusals():
            try:
                return getattr(self.trainer, self.verb)(self.model, datamodule=self.datamodule, **arguments)
            except SystemExit:
                if self.trainer.state.status != "interrupted":
                    raise
                signal.signal(signal.SIGINT, handler)  # Lightning has had it ignored
                raise KeyboardInterrupt(self._go_on()) from None

    def _go_on(self) -> str:
        """How to go on after an interruption."""
        if self.verb != "fit":
            return ""
        last = next((callback for callback in self.trainer.callbacks if isinstance(callback, Last)), None)  # type: ignore[attr-defined]
        if last is not None and Path(last.best_model_path).is_file():
            if self.config["trainer"]["logger"] is False:
                return f"the same command with --ckpt_path {last.best_model_path} goes on"
            return f"the same command with --ckpt_path last goes on (saved in {last.dirpath})"
        return "nothing was saved yet (--save_every_n_steps): the same command starts anew"

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
        callbacks += [Watch(), RunRecord(self.record, self.run.tags)]
        trainer = super().instantiate_trainer(
            logger=self._loggers(config["logger"]),
            callbacks=callbacks,
            enable_progress_bar=bar,
            enable_model_summary=config["enable_model_summary"] is True,
            **kwargs,
        )
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeFiles()
        return trainer

    def _checkpoints(self) -> list[ModelCheckpoint]:
        monitor, mode = self.model.monitor
        # Runs that nothing records share a folder: none may write over the files of another.
        shared = self.config["trainer"]["logger"] is False
        every = self.config["save_every_n_steps"]
        return [
            Best(filename="best", monitor=monitor, mode=mode, enable_version_counter=shared),
            Last(filename="last", every_n_train_steps=every, enable_version_counter=shared),
        ]

    def _loggers(self, configured: Any) -> Any:
        if configured is False or self.config["trainer"]["fast_dev_run"]:
            return False
        if not first_process():
            ours: Any = DummyLogger()
        else:
            half = getattr(self.model, "half_name", type(self.model).__name__)
            name = (
                self.tracking.run_name or self.run.name or f"{self.name} {half} seed {self.config['seed_everything']}"
            )
            ours = MLflowLogger(
                self.run.experiment or self.experiment,
                self.run.uri or self.tracking.uri,
                self.run.run_id,
                name,
                self.run.tags,
                verb=self.verb,
                folder=self.config["trainer"]["default_root_dir"] or "outputs",
                system_metrics=self.tracking.system_metrics,
            )
        others = [] if configured in (None, True) else configured
        return [ours, *(others if isinstance(others, list) else [others])]


def _check_settings(part: str, kind: type, settings: Mapping[str, Any]) -> None:
    """Refuse, before anything long, what the parser lets pass: a null that a setting does not take.

    And make the dataclasses among the settings of a model, which refuse what is out of range.
    """
    taken: dict[str, tuple[Any, Any]] = {}
    for base in reversed(kind.__mro__):  # which may hand its settings on
        made_with = base.__init__  # type: ignore[misc]
        with suppress(NameError):  # of somebody's own class; it is made later all the same
            hints = get_type_hints(made_with)
            taken |= {
                name: (hints[name], p.default) for name, p in signature(made_with).parameters.items() if name in hints
            }
    for name, value in settings.items():
        hint, default = taken.get(name, (Any, None))
        kinds = (hint, *get_args(hint))
        if value is None and default is not None and not any(one in (Any, type(None)) for one in kinds):
            raise UserError(f"{part}.{name} is null, which it cannot be; leave it out for its default")
        made = next((one for one in kinds if is_dataclass(one)), None)
        numbers = part == "model" and isinstance(value, Mapping) and "class_path" not in value
        if isinstance(made, type) and numbers:
            from_plain(made, value, f"model.{name}.")


def first_process() -> bool:
    """Whether this is the process of rank 0, as far as is known before the trainer starts."""
    return not getattr(rank_zero_only, "rank", 0)


@contextmanager
def _refusals() -> Iterator[None]:
    """What Lightning and the parser refuse is one line for people; errors of anybody's code are left as they are."""
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError, RuntimeError, TypeError, ValueError) as error:
        if find_user_error(error) is not None:
            raise
        first: BaseException = error
        while first.__cause__ is not None:  # the parser wraps what a class that it makes raises
            first = first.__cause__
        frames = traceback.extract_tb((error if _missing(error) else first).__traceback__)
        where = Path(frames[-1].filename).parts if frames else ()
        if not {"lightning", "lightning_utilities", "jsonargparse"} & set(where):
            if first is error:
                raise
            raise first from None
        said = _missing(error) or _plain(str(error))
        wanted = re.search(r"[`']([\w/.@-]+)[`'] which is not available|monitor='([^']+)'\)", said)
        if wanted:
            name = wanted.group(1) or wanted.group(2)
            said += closest(name, [known for known in re.findall(r"[`']([\w/.@-]+)[`']", said) if known != name])
        raise UserError(f"Lightning refuses this: {said}") from error


def _missing(error: BaseException) -> str | None:
    """The word of a missing package among the causes of an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError):
            return f"{_plain(str(cause))} (pip install it, or leave it out)"
        cause = cause.__cause__ or cause.__context__
    return None


def _plain(message: str) -> str:
    """What a parser's message says, without the types of each alternative that it tried."""
    lines = [_CALLABLE.sub("", line.strip().removeprefix("- ")) for line in message.splitlines()]
    return "; ".join(line.rstrip(":") for line in lines if line and not line.startswith(_TYPES))


def _silence() -> None:
    """Leave out what Lightning warns of that nobody can act on."""
    for message in _UNHELPFUL:
        warnings.filterwarnings("ignore", message)


@atexit.register
def _leave_group() -> None:
    """Leave the group of processes; threads of gloo that are alive at the very end abort a run that has succeeded."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
