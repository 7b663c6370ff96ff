"""``lit-mmpg log-model``: a checkpoint as an MLflow model, from code and safetensors, without pickle."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lit_mmpg
from lit_mmpg.checkpoint import read_checkpoint, rebuild
from lit_mmpg.errors import UserError
from lit_mmpg.pretrained import find_trained
from lit_mmpg.tracking.address import address, project, reason, store_uri, stores
from lit_mmpg.tracking.store import find_run, open_store


def main(argv: Sequence[str]) -> int:
    """Log a model and print its address.

    Raises:
        UserError: If the checkpoint or the store is not usable.
    """
    parser = argparse.ArgumentParser(prog="lit-mmpg log-model", description="Log a checkpoint as an MLflow model.")
    parser.add_argument("--ckpt", required=True, help="checkpoint that 'lit-mmpg fit' wrote; of the cloud half: both")
    parser.add_argument("--register", metavar="NAME", help="also make it a version of this registered model")
    parser.add_argument("--uri", help="store (default: the one that holds the run that trained the checkpoint)")
    options = parser.parse_args(list(argv))
    print(log_model(options.ckpt, options.register, options.uri))
    return 0


def log_model(checkpoint: str | Path, register: str | None = None, uri: str | None = None) -> str:
    """Log a checkpoint as an MLflow model of the run that trained it.

    Args:
        checkpoint: Checkpoint of either half; that of the cloud half holds both.
        register: Name of a registered model that it becomes a version of.
        uri: Store; ``None``: the one that holds the run.

    Returns:
        Address of the model, for ``mlflow.pyfunc.load_model`` and ``mlflow models serve``.

    Raises:
        UserError: If the checkpoint is not usable, answers no questions, or its run is nowhere.
    """
    path = find_trained(checkpoint).absolute()
    stored = read_checkpoint(path)
    ours = stored["lit_mmpg"]
    run_id = ours.get("run_id")
    if run_id is None:
        raise UserError(f"{path} does not name the run that trained it; name a checkpoint that 'lit-mmpg fit' wrote")
    asked = [store_uri(uri)] if uri else stores(ours.get("tracking_uri"), path)
    found = next((each for each in asked if find_run(each, run_id)), None)
    if found is None:
        raise UserError(f"the run that trained {path} is in none of {', '.join(asked)}; name its store with --uri")
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model, ModelSignature

    from lit_mmpg.device.base import AnsweringModule

    with tempfile.TemporaryDirectory() as folder:
        rebuild(stored, str(path), AnsweringModule).save_pretrained(folder)  # type: ignore[type-abstract]
        example = _example(folder)
        open_store(found)
        with _in_project(found):
            try:
                info = Model.log(
                    artifact_path=None,
                    name="system",
                    flavor=mlflow.pyfunc,
                    run_id=run_id,  # a finished run stays as it is
                    registered_model_name=register,
                    python_model=str(Path(__file__).with_name("model_code.py")),
                    artifacts={"system": folder},
                    signature=ModelSignature(*_columns()),
                    input_example=example,
                    pip_requirements=[f"lit-mmpg[train]=={lit_mmpg.__version__}"],
                )
            except MlflowException as error:
                raise UserError(f"MLflow does not take the model: {reason(error)}") from error
    return str(info.model_uri)


def _columns() -> tuple[Any, Any]:
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType, Array

    inputs: list[Any] = [
        ColSpec(AnyType(), "clip"),
        ColSpec(DataType.string, "question"),
        ColSpec(Array(DataType.string), "options", required=False),
        ColSpec(AnyType(), "context", required=False),
    ]
    outputs: list[Any] = [
        ColSpec(DataType.string, "text"),
        ColSpec(DataType.double, "confidence"),
        ColSpec(DataType.string, "parameters"),
    ]
    return Schema(inputs), Schema(outputs)


def _example(folder: str) -> Any:
    """One row that the model answers: a clip of two frames as the training saw them on average."""
    import pandas as pd

    from lit_mmpg.tasks import find_task

    manifest = lit_mmpg.load(folder).bundle.manifest  # what is logged can be loaded
    task = find_task(manifest.task)
    if task.searches:
        raise UserError("a retrieval model answers no questions; log a model of a task with questions")
    row: dict[str, Any] = {"clip": [[0.0] * manifest.frames.features] * 2, "question": "what is it doing"}
    if task.takes_options:
        row["options"] = ["sitting", "running"]
    return pd.DataFrame([row])


@contextmanager
def _in_project(uri: str) -> Iterator[None]:
    """MLflow resolves the paths of a local store from the current folder; see :func:`~.store.project`."""
    import mlflow

    before, tracked = Path.cwd(), os.environ.get("MLFLOW_TRACKING_URI")
    known = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else ""
    os.chdir(project(uri))
    mlflow.set_tracking_uri(address(uri))
    try:
        yield
    finally:
        os.chdir(before)
        mlflow.set_tracking_uri(known)
        if tracked is None:
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it for children
        else:
            os.environ["MLFLOW_TRACKING_URI"] = tracked
