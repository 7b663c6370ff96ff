"""Measuring a checkpoint, and answering with it: what is not said on the command line comes from the checkpoint."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any

import torch

from lit_mmpg.checkpoint import read_checkpoint, section_of, trained_config
from lit_mmpg.errors import UserError
from lit_mmpg.report import print_rows, write_rows
from lit_mmpg.texts import masked
from lit_mmpg.tracking.address import portable, project, store_uri, stores
from lit_mmpg.tracking.logger import flatten
from lit_mmpg.tracking.store import find_run, open_store
from lit_mmpg.training.config import Request, merge, read_request
from lit_mmpg.training.lightning_cli import CLI, Run
from lit_mmpg.writing import write_text

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData
    from lit_mmpg.device.base import AnsweringModule


def measure(request: Request, tags: Mapping[str, str] | None = None, show: bool = True) -> AnsweringModule:
    """Validate or test a checkpoint in a child run of the one that trained it.

    Returns:
        The module, which holds the result rows.

    Raises:
        UserError: If the checkpoint is not usable or contradicts what was asked.
    """
    cli, path = _restore(request, tags)
    cli.start(ckpt_path=path, weights_only=True, verbose=False)
    if cli.trainer.is_global_zero:
        rows = list(cli.model.result_rows)
        if show:
            print_rows(rows)
        if request.options["output"]:
            write_rows(rows, request.options["output"])
    return cli.model


def answer(request: Request) -> None:
    """Write the answers of a checkpoint: the dicts that the module's predict_step returns, one per line.

    Raises:
        UserError: If the checkpoint is not usable or contradicts what was asked.
    """
    cli, path = _restore(request)
    cli.datamodule.predict_device = request.options["device"]
    batches = cli.start(ckpt_path=path, weights_only=True)
    rows = [row for batch in _flat(batches) for row in batch]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list[Any] = [None] * cli.trainer.world_size
        torch.distributed.all_gather_object(parts, rows)
        # Processes repeat queries so that all take the same number of steps.
        rows = list({json.dumps(row): row for part in parts for row in part}.values())
    if cli.trainer.is_global_zero:
        target = Path(str(request.options["output"]))
        _write(rows, target)
        print(f"{len(rows)} answers: {target}")


def restore(checkpoint: str | Path, flags: Sequence[str] = ()) -> tuple[AnsweringModule, DeviceData]:
    """A checkpoint's module with its weights, and its data, set up: for work outside a trainer; nothing is recorded.

    ``flags`` are those of ``lit-mmpg test``.

    Raises:
        UserError: If the checkpoint is not usable or contradicts a flag.
    """
    request = read_request("test", ["--ckpt_path", str(checkpoint), *flags, "--trainer.logger=false"])
    cli, path = _restore(request)
    cli.datamodule.setup(None)
    stored = read_checkpoint(path)
    cli.model.on_load_checkpoint(stored)
    cli.model.load_state_dict(stored["state_dict"])
    return cli.model.eval(), cli.datamodule


def _restore(request: Request, tags: Mapping[str, str] | None = None) -> tuple[CLI, str]:
    """Data, model and trainer for a checkpoint, and its path."""
    path = str(request.options["ckpt_path"])
    checkpoint = read_checkpoint(path)
    ours = checkpoint["lit_mmpg"]
    kept = trained_config(path, checkpoint)
    request.config = merge(kept, {key: value for key, value in request.config.items() if value is not None})
    cli = CLI(request)
    _check_model(cli.record["model"], kept["model"], path)
    cli.build(_run(request, cli, ours, tags or {}), trained=ours["data"])
    # A null has become what the module takes for it.
    _check_model(section_of(cli.model.hparams) or cli.record["model"], kept["model"], path)
    return cli, path


FREE = frozenset({"device_ckpt", "link.upload_codec", "link.download_codec"})
"""Settings of the model that a measurement may choose anew: they change no weight."""


def _written(name: str, value: str) -> set[str]:
    """A setting as a checkpoint may hold it: classes go by where they stand, or by where they were found."""
    if name.rpartition(".")[2] != "class_path":
        return {value}
    found = locate(value)
    return {value, f"{found.__module__}.{found.__qualname__}"} if isinstance(found, type) else {value}


def _check_model(asked: dict[str, Any], trained: dict[str, Any], path: str) -> None:
    if asked["class_path"].split(".")[-1] != trained["class_path"].split(".")[-1]:
        raise UserError(f"{path} holds a {trained['class_path']}, not a {asked['class_path']}; leave --model out")
    asked_values, trained_values = flatten(asked), flatten(trained)
    for name, value in trained_values.items():
        # What the checkpoint does not mention is newer than it, and at its default.
        if name not in FREE and name in asked_values and value not in _written(name, asked_values[name]):
            raise UserError(
                f"--model.{name} is {asked_values[name]}, but {path} was trained with {value}; leave --model.{name} out"
            )


def _run(request: Request, cli: CLI, ours: dict[str, Any], tags: Mapping[str, str]) -> Run:
    """A child of the run that trained the checkpoint, where that run can be found."""
    path, run_id = str(request.options["ckpt_path"]), ours.get("run_id")
    name = f"{request.verb} {Path(path).absolute().parent.parent.name[:8]}"
    if run_id and cli.config["trainer"]["logger"] is not False:
        asked = [store_uri(cli.tracking.uri)] if cli.tracking.uri else stores(ours.get("tracking_uri"), path)
        for uri in asked:
            parent = find_run(uri, run_id)
            if parent is not None:
                experiment = open_store(uri).get_experiment(parent.info.experiment_id).name
                tags = {**tags, "lit_mmpg.checkpoint": portable(path, project(uri)), "mlflow.parentRunId": str(run_id)}
                return Run(tags, uri, experiment, name=f"{request.verb} {parent.info.run_name}")
    note = f"the training run {run_id} was not found in {masked(str(cli.tracking.uri or ours.get('tracking_uri')))}"
    return Run({"lit_mmpg.note": note, "lit_mmpg.checkpoint": portable(path), **tags}, name=name)


def _flat(batches: Any) -> list[Any]:
    """Predictions of all loaders in one list (with several loaders Lightning nests one list per loader)."""
    if batches and batches[0] and isinstance(batches[0][0], list):
        return [batch for loader in batches for batch in loader]
    return list(batches or [])


def _write(rows: list[dict[str, Any]], target: Path) -> None:
    file = io.StringIO(newline="")
    if target.suffix == ".jsonl":
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["item"])
        writer.writeheader()
        writer.writerows(rows)
    write_text(target, file.getvalue())
