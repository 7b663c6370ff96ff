"""Training: one stage, or the device half and then the cloud half, each a run of its own; resuming either."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.errors import UserError
from lit_mmpg.texts import masked
from lit_mmpg.tracking.store import CHECKPOINTS_TAG, DIGEST_TAG, runs_of, store_uri
from lit_mmpg.training.config import Request
from lit_mmpg.training.lightning_cli import CLI, Run, first_process

_log = logging.getLogger(__name__)


def train(request: Request, tags: Mapping[str, str] | None = None, since_ms: int | None = None) -> str:
    """Run the stages that a request asks for.

    Args:
        request: What was asked.
        tags: Further tags of the MLflow runs.
        since_ms: With ``--ckpt_path last``: only runs started since then count (milliseconds since 1970), a finished
            one of them does instead of training, and where there is none a new one starts.

    Returns:
        The best checkpoint of the last stage.

    Raises:
        UserError: If the configuration is wrong, or there is nothing to resume.
    """
    device_stage, resume = request.options["device_stage"], request.options["ckpt_path"]
    if device_stage is None or "model.device_ckpt" in request.overridden() or _device_ckpt(request.config):
        again = since_ms is not None
        return _Stage(request, "stage", tags, since_ms).run(resume, reuse=again, begin=again)
    CLI(request)  # a mistake in the cloud half's settings is answered before the device half trains
    device = _Stage(request.derive(Path(device_stage)), "device", tags, since_ms)
    if resume not in (None, "last"):
        raise UserError(f"--ckpt_path {resume} resumes one stage; name its device half with --model.device_ckpt too")
    checkpoint = device.run(resume, reuse=True, begin=since_ms is not None)
    if not checkpoint:
        raise UserError(
            "the device half ended without a validation, so it has no best checkpoint for the cloud half; train for at "
            "least one epoch (--trainer.max_epochs), or validate more often (--trainer.val_check_interval)"
        )
    request.flags.append(f"--model.device_ckpt={checkpoint}")
    source = {"lit_mmpg.device_run_id": str(read_checkpoint(checkpoint)["lit_mmpg"].get("run_id"))}
    # Without an interrupted device stage the cloud stage may not have begun: then it starts.
    cloud = _Stage(request, "cloud", {**(tags or {}), **source}, since_ms)
    return cloud.run(resume, reuse=since_ms is not None, begin=True)


class _Stage:
    """One training run."""

    def __init__(
        self, request: Request, name: str, tags: Mapping[str, str] | None = None, since_ms: int | None = None
    ) -> None:
        self.name, self.since_ms = name, since_ms
        self.cli = CLI(request)
        self.digest = _digest(self.cli.record)
        self.tags = {**(tags or {}), DIGEST_TAG: self.digest}

    def run(self, resume: str | None, reuse: bool = False, begin: bool = False) -> str:
        """Train, and return the best checkpoint.

        Args:
            resume: None, ``last`` or a checkpoint file.
            reuse: A finished run of the same configuration does instead of training.
            begin: Start anew where there is nothing to resume.
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
        self.cli.build(Run(tags=self.tags, run_id=run_id))
        trainer = self.cli.trainer
        _log.info("%s half: preparing the data", getattr(self.cli.model, "half_name", self.name))
        trainer.fit(self.cli.model, self.cli.datamodule, ckpt_path=checkpoint, weights_only=True)
        callback = trainer.checkpoint_callback
        found_best = getattr(callback, "best_model_path", "")
        best = str(trainer.strategy.broadcast(os.path.abspath(found_best) if found_best else ""))
        if trainer.is_global_zero and best:
            print(f"best checkpoint: {_shown(best)}", flush=True)
        return best

    def _find(self) -> dict[str, Any] | None:
        """Newest run of this configuration that is finished or left a checkpoint to go on from."""
        for run in runs_of(store_uri(self.cli.tracking.uri), self.cli.experiment, self.digest):
            if run.info.start_time < (self.since_ms or 0):
                continue
            folder = Path(run.data.tags.get(CHECKPOINTS_TAG, ""))
            finished = run.info.status == "FINISHED"
            checkpoint = folder / ("best.ckpt" if finished else "last.ckpt")
            if CHECKPOINTS_TAG in run.data.tags and checkpoint.is_file():
                return {"run_id": run.info.run_id, "finished": finished, "checkpoint": str(checkpoint)}
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


def _device_ckpt(config: dict[str, Any]) -> Any:
    model = config.get("model") or {}
    return (model.get("init_args") or {}).get("device_ckpt")


def _shown(path: str) -> str:
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
