"""A tiny data set in public layouts, and a configuration small enough that both halves train on it in seconds."""

from __future__ import annotations

import csv
import shutil
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

FEATURES = 12
COLOURS = ("red", "green", "blue", "amber")
SHAPES = ("ball", "cube", "cone")
COUNTS = {"train": 24, "val": 8, "test": 8}


@dataclass(frozen=True)
class TinyClip:
    """One clip: what it shows is in its features, its questions and its captions."""

    id: str
    split: str
    colour: int
    shape: int

    @property
    def category(self) -> str:
        """Column by which clips can be dealt."""
        return COLOURS[self.colour]


def tiny_clips(counts: Mapping[str, int] = COUNTS, first: int = 0) -> list[TinyClip]:
    """Clips of all splits; every colour and every shape occurs in each split."""
    clips: list[TinyClip] = []
    for split, count in counts.items():
        for i in range(count):
            clips.append(TinyClip(f"clip{first + len(clips):03d}", split, i % len(COLOURS), i % len(SHAPES)))
    return clips


def write_rows(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def tiny_features(clips: Sequence[TinyClip], dim: int = FEATURES, seed: int = 0) -> dict[str, np.ndarray]:
    """Features ``[T, dim]`` with T from 3 to 6: noise, and a bump where colour and shape say."""
    rng = np.random.default_rng(seed)
    features = {}
    for clip in clips:
        frames = 0.3 * rng.standard_normal((int(rng.integers(3, 7)), dim))
        frames[:, clip.colour] += 2.0
        frames[:, len(COLOURS) + clip.shape] += 2.0
        features[clip.id] = frames.astype(np.float32)
    return features


def write_features(path: Path, features: Mapping[str, np.ndarray]) -> None:
    """Write HDF5 with one dataset per video."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, frames in features.items():
            file[name] = frames


def build_root(
    root: Path, counts: Mapping[str, int] = COUNTS, dim: int = FEATURES, seed: int = 0, first: int = 0
) -> Path:
    """Write a data root: ``clips.csv``, ``features.h5``, ``qa/{train,val,test}.csv``, ``captions.csv``, ``shots.csv``.

    Args:
        root: Folder to write.
        counts: Clips per split.
        dim: Dimension of the features.
        seed: Seed of the features.
        first: Number of the first clip, so that two roots can have different clips.
    """
    clips = tiny_clips(counts, first)
    write_rows(root / "clips.csv", ("video", "split", "category"), [(c.id, c.split, c.category) for c in clips])
    write_features(root / "features.h5", tiny_features(clips, dim, seed))
    for split in counts:
        rows = []
        for clip in (c for c in clips if c.split == split):
            rows.append((clip.id, "which paint covers the toy", COLOURS[clip.colour], f"{clip.id}-a", "paint"))
            rows.append((clip.id, "what form does the toy have", SHAPES[clip.shape], f"{clip.id}-b", "form"))
        write_rows(root / "qa" / f"{split}.csv", ("video", "question", "answer", "qid", "type"), rows)
    captions = [
        (c.id, f"{article} {COLOURS[c.colour]} {SHAPES[c.shape]} rests upon the shelf")
        for c in clips
        for article in ("a", "some")
    ]
    write_rows(root / "captions.csv", ("video", "caption"), captions)
    shots = [(c.id, n, f"close view number {n} of the {SHAPES[c.shape]}") for c in clips for n in range(2)]
    write_rows(root / "shots.csv", ("video", "shot", "description"), shots)
    return root


def cut_root(root: Path, target: Path, clips: Collection[str]) -> Path:
    """A root with some clips alone: no file and no row of others, and nothing that only teaches.

    Args:
        root: A data set in any of the public layouts.
        target: Folder to write.
        clips: Names of the clips that stay; what other files call them is not looked at.
    """
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        out = target / path.relative_to(root)
        if path.name.lower().startswith(("train", "val", "shot")):
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                write_features(out, {name: file[name][()] for name in file if name in clips})
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive, zipfile.ZipFile(out, "w") as kept:
                for name in archive.namelist():
                    if name.split("/")[0] in clips:
                        kept.writestr(name, archive.read(name))
        elif path.suffix == ".csv" and path.parent == root and path.read_text().startswith("video,"):
            with path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            write_rows(out, header, [row for row in rows if row[0] in clips])
        else:
            shutil.copy(path, out)
    return target


def data_config(root: str | Path, task: str = "open_ended", **over: Any) -> dict[str, Any]:
    """Configuration of the data; ``over`` replaces entries of its ``init_args``."""
    arguments = {
        "task": task,
        "root": str(root),
        "clips": "clips.csv",
        "features": "features.h5",
        "questions": [{"layout": "qa_csv", "path": "qa"}],
        "captions": [
            {"layout": "captions_csv", "path": "captions.csv"},
            {"layout": "captions_csv", "path": "shots.csv"},
        ],
        "dealing": {
            "kind": "dirichlet",
            "column": "category",
            "train_devices": 4,
            "val_devices": 2,
            "test_devices": 2,
        },
        "min_count": 1,
        "batch": {
            "devices": 2,
            "clips": 2,
            "items_per_clip": 2,
            "context_clips": 3,
            "max_frames": 4,
            "max_words": 8,
            "eval_devices": 2,
            "eval_clips": 4,
        },
    }
    return {"class_path": "VideoData", "init_args": arguments | over}


def device_config(**over: Any) -> dict[str, Any]:
    """Configuration of a small device half."""
    arguments = {"network": {"width": 16, "heads": 2}, "optimiser": {"learning_rate": 0.005}}
    return {"class_path": "DeviceModule", "init_args": arguments | over}


def cloud_config(device_ckpt: str | Path | None = None, **over: Any) -> dict[str, Any]:
    """Configuration of a small cloud half."""
    arguments: dict[str, Any] = {
        "dynamic": {"layers": ["frame_projection", "head"], "form": "low_rank", "rank": 2},
        "cloud": {"latent": 4, "reasoner_hidden": 16, "embedding": 8, "adaptor_hidden": 16},
        "optimiser": {"learning_rate": 0.005},
    }
    if device_ckpt is not None:
        arguments["device_ckpt"] = str(device_ckpt)
    return {"class_path": "CloudModule", "init_args": arguments | over}


def trainer_config(**over: Any) -> dict[str, Any]:
    """Configuration of a trainer: one epoch on the CPU."""
    return {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "log_every_n_steps": 1} | over


def write_config(path: Path, **sections: Any) -> Path:
    """Write an experiment file with the sections ``data``, ``model``, ``trainer`` and any further keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
    return path
