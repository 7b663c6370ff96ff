"""Dealing: which device holds which clip.

Clips are dealt by a column of the clip list, by clusters of their features, or by a Dirichlet mixture over either. No
clip counts twice in a group. With Dirichlet mixtures every clip of a split is dealt in each group of that split; with
one device per value, clips whose value belongs to the unseen devices of another split are left out, and named.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from lit_mmpg.data.corpus import Device, DeviceTable
from lit_mmpg.errors import UserError
from lit_mmpg.records import SPLITS, Clip
from lit_mmpg.settings import within

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dealing:
    """Recipe of a device table.

    Attributes:
        kind: ``column``: one device per value of ``column``, with the splits of its clips. ``clusters``: the
            same with k-means clusters of the clips' mean features as values. ``dirichlet``: each device draws a mixture
            over the values of ``column`` (or over clusters, where ``column`` is ``clusters``).
        column: Column of the clip list. Clips with a blank value are dealt evenly.
        clusters: Number of clusters.
        concentration: Concentration of the Dirichlet mixtures: small values make devices one-sided.
        train_devices: Number of training devices (``dirichlet``).
        val_devices: Number of unseen validation devices (``dirichlet``).
        test_devices: Number of unseen test devices (``dirichlet``).
        unseen_share: Share of the values held out for validation, and again for test (``column``, ``clusters``), where
            every value has training clips; 0: none. Values that have clips in validation or test alone are unseen as
            they are, and nothing else is held out.
        seed: Seed of the dealing, apart from the seed of the training.
    """

    kind: Literal["column", "clusters", "dirichlet"] = "dirichlet"
    column: str = "category"
    clusters: int = 20
    concentration: float = 0.3
    train_devices: int = 64
    val_devices: int = 16
    test_devices: int = 24
    unseen_share: float = 0.2
    seed: int = 0


def cluster_centres(features: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Centres of k-means clusters of mean frame features ``[clips, D]``: ``[clusters, D]`` float32.

    There are fewer where there are fewer clips.
    """
    from sklearn.cluster import KMeans

    model = KMeans(min(clusters, len(features)), n_init=3, random_state=seed).fit(features.astype(np.float32))
    centres: np.ndarray = model.cluster_centers_.astype(np.float32)
    return centres


def cluster_values(features: np.ndarray, centres: np.ndarray) -> list[str]:
    """Name of the cluster whose centre is nearest to each clip: ``cluster00`` and so on.

    Mean frame features are ``[clips, D]``, centres ``[clusters, D]``.
    """
    own = centres.astype(np.float64)
    distance = np.square(own).sum(1) - 2 * features.astype(np.float64) @ own.T  # but for the clip's own square
    return [f"cluster{label:02d}" for label in distance.argmin(1)]


def _values(
    clips: Sequence[Clip], dealing: Dealing, mean_features: Callable[[], np.ndarray], learnt: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Value of each clip, and what was learnt to tell it; as it was learnt before, where something was."""
    if dealing.kind == "clusters" or dealing.column == "clusters":
        features = mean_features()
        if "centres" in learnt:
            centres = np.asarray(learnt["centres"], np.float32)
            if centres.shape[1] != features.shape[1]:
                raise UserError(
                    f"the features have dimension {features.shape[1]}, the checkpoint was trained on "
                    f"{centres.shape[1]}; extract features with the same encoder (data.features)"
                )
        else:
            train = np.array([clip.split == "train" for clip in clips])
            centres = cluster_centres(features[train] if train.any() else features, dealing.clusters, dealing.seed)
        return cluster_values(features, centres), {"centres": centres.tolist()}
    known = sorted({name for clip in clips for name in clip.columns})
    if dealing.column not in known:
        raise UserError(
            f"data.dealing.column: the clip list has no column '{dealing.column}' (it has {', '.join(known) or 'none'}"
            f"); {'add it: the checkpoint deals by it' if learnt else 'name one of them, or deal by clusters'}"
        )
    return [clip.columns.get(dealing.column, "") for clip in clips], {}


def _check(dealing: Dealing) -> None:
    devices = ("train_devices", "val_devices", "test_devices")
    within("data.dealing.", 1, clusters=dealing.clusters)
    within("data.dealing.", 1, 1_000_000, **{name: getattr(dealing, name) for name in devices})
    within("data.dealing.", 0, seed=dealing.seed)
    if not 0 < dealing.concentration < float("inf"):
        raise UserError(f"data.dealing.concentration is {dealing.concentration}; it must be above 0")
    if not 0 <= dealing.unseen_share < 0.5:
        raise UserError(f"data.dealing.unseen_share is {dealing.unseen_share}; it must be at least 0 and below 0.5")


def _draw(rng: np.random.Generator, weights: np.ndarray) -> int:
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def _describe(mixture: np.ndarray, values: Sequence[str]) -> dict[str, str]:
    if not values:
        return {"mixture": "even"}
    top = [i for i in np.argsort(-mixture)[:3] if mixture[i] >= 0.05]
    return {"mixture": ", ".join(f"{values[i]} {mixture[i]:.0%}" for i in top) or "even"}


def _deal_dirichlet(
    clips: Sequence[Clip], values: Sequence[str], names: Sequence[str], dealing: Dealing, splits: set[str]
) -> DeviceTable:
    column = {name: i for i, name in enumerate(names)}
    groups = [
        ("train", "train", "train", dealing.train_devices),
        ("val", "val", "val", dealing.val_devices),
        ("test_unseen", "test", "test", dealing.test_devices),
    ]
    devices: list[Device] = []
    mixtures: dict[str, np.ndarray] = {}
    first: dict[str, int] = {}
    for group, split, prefix, count in groups:
        if split not in splits:
            continue
        # Each group has its own stream, so that the number of training devices does not change the test devices.
        rng = np.random.default_rng([dealing.seed, zlib.crc32(group.encode())])
        mixtures[group] = rng.dirichlet(np.full(max(len(names), 1), dealing.concentration), size=count)
        first[group] = len(devices)
        devices += [Device(f"{prefix}{i:03d}", _describe(m, names)) for i, m in enumerate(mixtures[group])]
    if "train" in mixtures and "test" in splits:
        mixtures["test_seen"], first["test_seen"] = mixtures["train"], first["train"]
    split_of = {"train": "train", "val": "val", "test_seen": "test", "test_unseen": "test"}
    timelines: dict[str, dict[int, tuple[str, ...]]] = {}
    for group, mixture in mixtures.items():
        rng = np.random.default_rng([dealing.seed, 1, zlib.crc32(group.encode())])
        rows: dict[int, list[str]] = defaultdict(list)
        for clip, value in zip(clips, values, strict=True):
            if clip.split != split_of[group]:
                continue
            weights = mixture[:, column[value]] + 1e-9 if value in column else np.ones(len(mixture))
            rows[first[group] + _draw(rng, weights)].append(clip.id)
        # The timeline's order must not follow the clip list, whose order may say something about the content.
        timelines[group] = {d: tuple(rng.permutation(rows[d]).tolist()) for d in sorted(rows)}
    return DeviceTable(tuple(devices), timelines, {})


def _deal_column(clips: Sequence[Clip], values: Sequence[str], dealing: Dealing, splits: set[str]) -> DeviceTable:
    own: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(SPLITS, 0))
    for clip, value in zip(clips, values, strict=True):
        if value:
            own[value][clip.split] += 1
    held = _owners(own, dealing, splits)
    known = dict.fromkeys(name for part in SPLITS for name in held[part])
    devices = tuple(Device(device_name(name), {"value": name}) for name in known)
    index = {name: i for i, name in enumerate(known)}
    seen_val = not held["val"]  # nobody is held out for validation: new clips of the training devices do
    plan = [
        ("train", "train", "train"),
        ("val", "val", "train" if seen_val else "val"),
        ("test_seen", "test", "train"),
        ("test_unseen", "test", "test"),
    ]
    timelines: dict[str, dict[int, tuple[str, ...]]] = {}
    for group, split, owner in plan:
        owners = held[owner]
        if not owners or split not in splits:
            continue
        rng = np.random.default_rng([dealing.seed, 3, zlib.crc32(group.encode())])
        rows: dict[int, list[str]] = defaultdict(list)
        for clip, value in zip(clips, values, strict=True):
            if clip.split != split:
                continue
            if value in owners:
                rows[index[value]].append(clip.id)
            elif value == "":
                rows[index[owners[int(rng.integers(len(owners)))]]].append(clip.id)
        timelines[group] = {d: tuple(rng.permutation(rows[d]).tolist()) for d in sorted(rows)}
    _tell_unused(clips, timelines)
    histories = {"val": timelines["train"]} if seen_val and "val" in timelines else {}
    return DeviceTable(devices, timelines, {}, histories)


def device_name(value: str) -> str:
    """A value as the id of a device: printable text of at most 128 bytes, as messages carry it; each has its own."""
    printable = "".join(sign if sign.isprintable() else "_" for sign in value)
    if printable == value and len(value.encode()) <= 128:
        return value
    return f"{printable.encode()[:100].decode(errors='ignore')}-{hashlib.sha256(value.encode()).hexdigest()[:12]}"


def _owners(own: Mapping[str, Mapping[str, int]], dealing: Dealing, splits: set[str]) -> dict[str, list[str]]:
    """Part -> its devices, sorted: as the splits of their clips say, or with some held out where those say nothing."""
    names = sorted(own)
    new = {part: [name for name in names if own[name][part] and not own[name]["train"]] for part in ("val", "test")}
    training = [name for name in names if own[name]["train"]]
    given = dealing.kind == "column" and bool(new["val"] or new["test"])  # a cluster in one split is chance
    if "train" not in splits or given or not dealing.unseen_share:
        return {"train": training, **new}
    order = np.random.default_rng([dealing.seed, 2]).permutation(len(names))
    share = max(1, round(dealing.unseen_share * len(names)))
    if len(names) < 2 * share + 1:
        dealt_by = "clusters" if dealing.kind == "clusters" else dealing.column
        raise UserError(
            f"data.dealing: {len(names)} values of '{dealt_by}' are too few to hold out {share} for validation "
            f"and {share} for test; lower data.dealing.unseen_share (0: none is held out) or deal by 'dirichlet'"
        )
    held = {part: sorted(names[i] for i in order[k * share :][:share]) for k, part in enumerate(("val", "test"))}
    for name in (n for n in (*held["val"], *held["test"]) if own[n]["train"]):
        _log.warning(
            "device '%s' is held out for %s and loses its %d training clips; give its clips one split, or set "
            "data.dealing.unseen_share to 0",
            name,
            "validation" if name in held["val"] else "test",
            own[name]["train"],
        )
    return {"train": sorted(names[i] for i in order[2 * share :]), **held}


def _tell_unused(clips: Sequence[Clip], timelines: Mapping[str, Mapping[int, Sequence[str]]]) -> None:
    used = {clip for rows in timelines.values() for row in rows.values() for clip in row}
    for split in SPLITS:
        idle = [clip.id for clip in clips if clip.split == split and clip.id not in used]
        if idle:
            _log.warning(
                "%d clips of split '%s' belong to no device of its groups and are not used, first %s",
                len(idle),
                split,
                ", ".join(idle[:3]),
            )


def deal(
    clips: Sequence[Clip],
    dealing: Dealing,
    mean_features: Callable[[], np.ndarray],
    learnt: Mapping[str, Any] | None = None,
) -> DeviceTable:
    """Deal clips to devices.

    Args:
        clips: All clips.
        dealing: The recipe.
        mean_features: Returns ``[clips, D]`` mean frame features; called only where clusters are needed.
        learnt: ``learnt`` of the table that a checkpoint was trained with: the same test clips are then dealt to the
            same unseen devices, with or without training clips beside them.

    Returns:
        The device table, with the recipe inside. The same clips and recipe always give the same table.

    Raises:
        UserError: If a setting is out of range, the column does not exist, or too few values are left to hold some out.
    """
    _check(dealing)
    splits = {clip.split for clip in clips} & set(SPLITS)
    values, found = _values(clips, dealing, mean_features, learnt or {})
    before = list((learnt or {}).get("values", ()))
    names = [*before, *sorted(set(values) - {"", *before})]
    if dealing.kind == "dirichlet":
        table = _deal_dirichlet(clips, values, names, dealing, splits)
    else:
        table = _deal_column(clips, values, dealing, splits)
    return DeviceTable(table.devices, table.timelines, asdict(dealing), table.histories, {"values": names, **found})
