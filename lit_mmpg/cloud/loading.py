"""The cloud half of a checkpoint without its data: what a service needs."""

from __future__ import annotations

from pathlib import Path

import jsonargparse

from lit_mmpg.checkpoint import read_checkpoint, trained_config
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.errors import UserError


def load_cloud_module(path: str | Path) -> tuple[CloudModule, str | None]:
    """The cloud module of a checkpoint with its weights, in evaluation mode, and the MLflow run that trained it.

    Raises:
        UserError: If the file is not a checkpoint of the cloud half that ``lit-mmpg fit`` wrote.
    """
    checkpoint = read_checkpoint(path, half="cloud")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CloudModule, "model")
    try:
        model: CloudModule = parser.instantiate(
            parser.parse_object({"model": trained_config(path, checkpoint)["model"]})
        ).model
    except (jsonargparse.ArgumentError, KeyError, TypeError) as error:
        raise UserError(f"{path} was written by another version of lit-mmpg ({error}); train again") from error
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval().requires_grad_(False), checkpoint["lit_mmpg"].get("run_id")
