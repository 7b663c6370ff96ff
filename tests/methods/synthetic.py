"""Cells of a comparison without any training: values of items are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lit_mmpg.methods.comparison.cells import Cell

DEVICES, CLIPS = 12, 10


def labels(devices: int = DEVICES, clips: int = CLIPS) -> tuple[np.ndarray, np.ndarray]:
    """Every device asks about every clip."""
    return np.repeat(np.arange(devices), clips), np.tile(np.arange(clips), devices)


def cell(
    methods: Mapping[str, np.ndarray],
    seed: int = 0,
    split: str = "test_unseen",
    metric: str = "accuracy",
    data: str = "data",
    **fields: object,
) -> Cell:
    """A cell whose first method is its own."""
    device, clip = labels()
    rows, items = [], {}
    for i, (method, values) in enumerate(methods.items()):
        row = {"method": method, "split": split, "metric": metric, "value": float(values.mean()), "own": i == 0}
        rows.append(row | {"low": None, "high": None, "upload_bytes": 100.0 * i, "download_bytes": 10.0 * i})
        arrays = {metric: values, "device": device[: len(values)], "clip": clip[: len(values)]}
        items |= {f"{method}|{split}|{name}": array for name, array in arrays.items()}
    names = [f"phone-{d}" for d in range(DEVICES)]
    return Cell(rows, items, seed=seed, data=data, corpus="corpus", devices=names, **fields)  # type: ignore[arg-type]


def merged(*cells: Cell) -> Cell:
    """One cell with the groups of devices of several."""
    first = cells[0]
    for other in cells[1:]:
        first.rows += other.rows
        first.items |= other.items
    return first


def answers(rate: float, seed: int, spread: float = 0.1) -> np.ndarray:
    """Right or wrong answers of devices that differ in how often they are right."""
    rng = np.random.default_rng(seed)
    device, _ = labels()
    own = np.clip(rate + spread * rng.normal(size=DEVICES), 0, 1)
    return (rng.random(len(device)) < own[device]).astype(np.float64)


def seeds(rate: float, count: int = 3, first: int = 0) -> Sequence[np.ndarray]:
    """Answers of several seeds."""
    return [answers(rate, first + s) for s in range(count)]
