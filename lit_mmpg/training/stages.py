"""Training: one stage, or the device half and then the cloud half, each a run of its own; resuming either."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from lit_mmpg.checkpoint import hand_on, read_checkpoint
from lit_mmpg.errors import UserError, find_user_error
from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import portable, store_uri
from lit_mmpg.tracking.logger import MLflowLogger
from lit_mmpg.tracking.store import CHECKPOINTS_TAG, DIGEST_TAG, runs_of
from lit_mmpg.training.callbacks import hold, product_of
from lit_mmpg.training.config import Request
from lit_mmpg.training.lightning_cli import CLI, Run, first_process

_log = logging.getLogger(__name__)


def train(
    request: Request,
    tags: Mapping[str, str] | None = None,
    since_ms: int | None = None,
    following: Mapping[str, CLI] = MappingProxyType({}),
) -> str:
    """Run the stages that a request asks for.

    Args:
        request: What was asked.
        tags: Further tags of the MLflow runs.
        since_ms: With ``--ckpt_path last``: only runs started since then count (milliseconds since 1970), a finished
            one of them does instead of training, and where there is none a new one starts.
        following: What will begin with the checkpoint: how errors call it, and its parsed configuration.

    Returns:
        The best checkpoint of the last stage, relative to the current folder if it lies there; the last one where no
        validation chose a best one; '' after ``fast_dev_run``, which keeps nothing.

    Raises:
        UserError: If the configuration is wrong, or there is nothing to resume.
    """
    device_stage, resume = request.options["device_stage"], request.options["ckpt_path"]
    stage = _Stage(request, "stage", tags, since_ms)
    # As the parser reads it, whichever way it is given; and a mistake in the cloud half's settings is answered now.
    if device_stage is None or _device_ckpt(stage.cli.record["model"]) is not None:
        if request.device_flags:
            raise UserError(
                f"--device_stage.{request.device_flags[0][2:]} has no effect, as model.device_ckpt names the device "
                "half; leave one of them out"
            )
        again = since_ms is not None
        return _ended(stage, stage.run(resume, reuse=again, begin=again, following=following))
    device = _Stage(request.derive(device_stage), "device", tags, since_ms)
    if resume not in (None, "last"):
        raise UserError(f"--ckpt_path {resume} resumes one stage; name its device half with --model.device_ckpt too")
    checkpoint = device.run(resume, reuse=True, begin=since_ms is not None, following={"": stage.cli})
    request.flags.append(f"--model.device_ckpt={checkpoint}")
    source = {"lit_mmpg.device_run_id": str(read_checkpoint(checkpoint)["lit_mmpg"].get("run_id"))}
    # Without an interrupted device stage the cloud stage may not have begun: then it starts.
    cloud = _Stage(request, "cloud", {**(tags or {}), **source}, since_ms)
    return _ended(cloud, cloud.run(resume, reuse=since_ms is not None, begin=True))


def _device_ckpt(model: Mapping[str, Any]) -> Any:
    """The device half that a model names, None where the device stage makes it.

    Raises:
        UserError: If the model takes none, or there is no such form of parameters; parsing asks no other packages.
    """
    settings = model.get("init_args", {})
    if "device_ckpt" not in settings:
        raise UserError(
            f"model {model['class_path']} has no device_ckpt, which the configuration's device_stage would train; "
            "leave one of them out (--stage device trains the device half alone)"
        )
    form = (settings.get("dynamic") or {}).get("form")
    if form is not None:
        from lit_mmpg.forms.registry import find_form

        for name in form.values() if isinstance(form, Mapping) else [form]:
            find_form(name, "model.dynamic.form")
    return settings["device_ckpt"]


def _ended(stage: _Stage, checkpoint: str) -> str:
    """The checkpoint of the last stage; a comparison tests it, people are told where the runs are."""
    if stage.since_ms is None:
        stage.show_runs()
    elif not checkpoint.endswith(".ckpt"):
        raise UserError("trainer.fast_dev_run keeps no checkpoint, which a comparison has to test; leave it out")
    return checkpoint


class _Stage:
    """One training run."""

    def __init__(
        self, request: Request, name: str, tags: Mapping[str, str] | None = None, since_ms: int | None = None
    ) -> None:
        self.name, self.since_ms = name, since_ms
        self.cli = CLI(request)
        self.digest = _digest(self.cli.record)
        self.tags = {**(tags or {}), DIGEST_TAG: self.digest}

    def run(
        self,
        resume: str | None,
        reuse: bool = False,
        begin: bool = False,
        following: Mapping[str, CLI] = MappingProxyType({}),
    ) -> str:
        """Train, and return the checkpoint that is left; after ``fast_dev_run`` the name of one in memory.

        Args:
            resume: None, ``last`` or a checkpoint file.
            reuse: A finished run of the same configuration does instead of training.
            begin: Start anew where there is nothing to resume.
            following: See :func:`train`; the models of these are made once before, so that a mistake in one does not
                wait for the end of this training.
        """
        checkpoint, run_id = resume, None
        if resume == "last":
            found = _agree(f"LIT_MMPG_RESUME_{self.name.upper()}", self._find)
            if found is None and not begin:
                store = f"experiment '{self.cli.experiment}' of {masked(store_uri(self.cli.tracking.uri))}"
                raise UserError(
                    f"--ckpt_path last: no interrupted run of this configuration has a checkpoint in {store}; "
                    "leave --ckpt_path out to start anew"
                )
            if found is not None and found["finished"]:
                if reuse:
                    return str(found["checkpoint"])
                raise UserError(f"--ckpt_path last: run {found['run_id']} of this configuration is already finished")
            checkpoint, run_id = (found["checkpoint"], found["run_id"]) if found else (None, None)
        if checkpoint is not None:
            read_checkpoint(checkpoint)
        _log.info("%s half: preparing the data", self.cli.half)
        self.cli.build(Run(tags=self.tags, run_id=run_id))
        for name, cli in following.items():
            try:
                cli.try_model(self.cli)
            except Exception as error:
                if (said := find_user_error(error)) is None:
                    raise
                raise UserError(f"{name}{said}") from error
        trainer = self.cli.trainer
        self.cli.start(ckpt_path=checkpoint, weights_only=True)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            if trainer.is_global_zero:
                print(f"fast_dev_run: the {self.cli.half} half has trained; nothing is kept", flush=True)
            return hand_on(self.cli.model) if self.name == "device" else ""
        found = product_of(trainer)
        product = str(trainer.strategy.broadcast(portable(found) if found else ""))
        if not product:
            raise UserError(
                "not one step was trained, so there is no checkpoint; see trainer.max_time, max_epochs and max_steps"
            )
        if trainer.is_global_zero:
            chosen = getattr(trainer.checkpoint_callback, "best_model_path", "")
            why = "" if chosen else " (the last weights: no validation ran; see trainer.limit_val_batches, max_steps, "
            why += "" if chosen else "val_check_interval and check_val_every_n_epoch)"
            print(f"{'best' if chosen else 'last'} checkpoint: {product}{why}", flush=True)
        return product

    def show_runs(self) -> None:
        """Say where the runs are shown."""
        logger = next((one for one in self.cli.trainer.loggers if isinstance(one, MLflowLogger)), None)
        if logger is not None and self.cli.trainer.is_global_zero:
            print(f"runs: {logger.page}", flush=True)

    def _find(self) -> dict[str, Any] | None:
        """Newest run of this configuration that is finished or left a checkpoint to go on from."""
        for run in runs_of(store_uri(self.cli.tracking.uri), self.cli.experiment, self.digest):
            if run.info.start_time < (self.since_ms or 0):
                continue
            folder = Path(run.data.tags.get(CHECKPOINTS_TAG, ""))
            finished = run.info.status == "FINISHED"
            names = ("best.ckpt", "last.ckpt") if finished else ("last.ckpt",)
            there = [folder / name for name in names if (folder / name).is_file()]
            if CHECKPOINTS_TAG in run.data.tags and there:
                if not finished and first_process():
                    hold(folder.parent).close()
                return {"run_id": run.info.run_id, "finished": finished, "checkpoint": str(there[0])}
        return None


def _agree(key: str, find: Callable[[], Any]) -> Any:
    """Value that the first process finds and all processes of a distributed run use.

    The processes that the first one starts inherit its environment; once they are connected they are told.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        box = [find() if first_process() else None]
        torch.distributed.broadcast_object_list(box)
        return box[0]
    if not first_process() and key in os.environ:
        return json.loads(os.environ[key])
    value = find()
    os.environ[key] = json.dumps(value)
    return value


def _digest(record: dict[str, Any]) -> str:
    relevant = {key: value for key, value in record.items() if key not in ("tracking", "save_every_n_steps")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
