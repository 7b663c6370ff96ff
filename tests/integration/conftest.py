"""Shared runs: each pair of halves is trained once per test session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from lit_mmpg.cli import main
from tests.integration import tiny
from tests.shared import made_once


@dataclass(frozen=True)
class Trained:
    """A finished two-stage fit in a folder of its own."""

    folder: Path
    root: Path
    config: Path
    device: Path
    cloud: Path


def best_checkpoint(folder: Path, half: str) -> Path:
    """The best checkpoint of the only run of one half in a folder."""
    from lit_mmpg.checkpoint import read_checkpoint

    found = [p for p in folder.glob("outputs/*/*/checkpoints/best.ckpt") if _half(read_checkpoint(p)) == half]
    assert len(found) == 1, found
    return found[0]


def _half(checkpoint: dict) -> str:
    return str(checkpoint["lit_mmpg"]["half"])


def write_experiment(
    folder: Path, root: Path, task: str, epochs: int = 1, data: Mapping[str, object] | None = None, **cloud: object
) -> Path:
    """Device and cloud configuration for a task; returns the cloud half's, which names the other as its first stage."""
    settings = tiny.data_config(root, task, **(data or {}))
    layers = {"dynamic": {"layers": ["frame_projection", "head"], "form": "low_rank", "rank": 2}}
    trainer = tiny.trainer_config(max_epochs=epochs)
    tiny.write_config(folder / "device.yaml", data=settings, model=tiny.device_config(), trainer=trainer)
    return tiny.write_config(
        folder / "both.yaml",
        data=settings,
        model=tiny.cloud_config(**(layers | cloud)),
        trainer=trainer,
        device_stage="device.yaml",
    )


def fit_both(folder: Path, task: str, **options: object) -> None:
    """Build tiny data in a folder, and train both halves there; options as for :func:`write_experiment`."""
    config = write_experiment(folder, tiny.build_root(folder / "data"), task, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(config)]) == 0


def pixel_data(task: str = "open_ended") -> dict:
    """Data of very few, very small rendered clips."""
    clips = {
        "train_devices": 4,
        "val_devices": 2,
        "test_devices": 2,
        "train_clips": 6,
        "seen_clips": 2,
        "unseen_clips": 4,
        "image_size": 24,
    }
    batch = {"devices": 2, "clips": 2, "items_per_clip": 3, "context_clips": 2}
    return {"class_path": "PersonalClipsData", "init_args": {"task": task, "clips": clips, "batch": batch}}


PIXEL_NETWORK = {"width": 16, "heads": 2, "encoder_features": 8, "encoder_channels": 4}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Train both halves for a task on the tiny data, once; the data are those of all processes."""
    done: dict[str, Trained] = {}

    def train(task: str) -> Trained:
        if task not in done:
            template = made_once(f"trained_{task}", lambda folder: fit_both(folder, task))
            folder = shutil.copytree(template, tmp_path_factory.mktemp(task) / "project")
            device, cloud = (best_checkpoint(folder, half) for half in ("device", "cloud"))
            done[task] = Trained(folder, template / "data", folder / "both.yaml", device, cloud)
        return done[task]

    return train
