"""Accuracy of answers: over all items, over devices, over the worst devices and per question type."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_mmpg.metrics.states import GatheredMetric, first_of_each, require_same_length

WORST_SHARE = 10
"""One in how many devices counts as the worst: the worst decile."""


_PLAIN = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9_. -]{0,58}[A-Za-z0-9_-])?")


def metric_names(kinds: Sequence[str]) -> list[str]:
    """A name of its own for each question type, made of what trackers allow in names of metrics.

    A short type in ASCII letters, digits, ``_``, ``-``, ``.`` and single blanks keeps its name. Any other becomes what
    is left of it and a digest, and so do types that differ in case alone, which some stores do not tell apart. A blank
    type is ``unknown``.

    Args:
        kinds: Distinct question types.
    """
    folded = Counter((kind or "unknown").casefold() for kind in kinds)
    names = []
    for kind in kinds:
        plain = not kind or (_PLAIN.fullmatch(kind) and "  " not in kind and folded[kind.casefold()] == 1)
        if plain:
            names.append(kind or "unknown")
        else:
            left = "-".join(re.findall(r"[A-Za-z0-9_]+", kind))[:40] or "type"
            names.append(f"{left}-{hashlib.sha256(kind.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}")
    return names


class GroupAccuracy(NamedTuple):
    """Accuracy within each group of items.

    Attributes:
        group: ``[g]`` int64, the groups that occur, ascending.
        accuracy: ``[g]`` float64 on the CPU, fraction of correct items.
        items: ``[g]`` int64, number of items.
    """

    group: Tensor
    accuracy: Tensor
    items: Tensor


class Items(NamedTuple):
    """Distinct items with their results, all ``[n]``: bool, int64, int64, int64."""

    correct: Tensor
    device: Tensor
    kind: Tensor
    item: Tensor


def group_accuracy(correct: Tensor, group: Tensor) -> GroupAccuracy:
    """Accuracy within each group.

    Args:
        correct: ``[n]`` bool.
        group: ``[n]`` integers, for example devices.

    Returns:
        The groups that occur, with accuracy and number of items.
    """
    groups, inverse, count = torch.unique(group, return_inverse=True, return_counts=True)
    hits = torch.zeros_like(count).index_add_(0, inverse, correct.to(count.dtype))
    return GroupAccuracy(groups, hits.cpu().double() / count.cpu(), count)


def accuracy_metrics(
    correct: Tensor, device: Tensor, kind: Tensor | None = None, kind_names: Sequence[str] | None = None
) -> dict[str, float]:
    """All accuracies of one split.

    Args:
        correct: ``[n]`` bool; an answer outside the answer list is passed as False.
        device: ``[n]`` integers.
        kind: ``[n]`` integers, index of the question type; needed when ``kind_names`` are given.
        kind_names: Names of the question types. A blank name is reported as ``unknown``, a type without items is left
            out.

    Returns:
        ``accuracy`` (over items), ``accuracy_macro`` (mean over devices), ``accuracy_worst_decile`` (mean over the
        worst tenth of the devices, rounded down but at least one) and ``accuracy_kind/<name>``, as fractions.

    Raises:
        ValueError: If there are no items, or a question type has no name.
    """
    if correct.numel() == 0:
        raise ValueError("accuracy of no items is undefined")
    devices = group_accuracy(correct, device)
    worst_first = devices.accuracy.sort().values
    result = {
        "accuracy": float(correct.sum().item()) / correct.numel(),
        "accuracy_macro": float(devices.accuracy.mean()),
        "accuracy_worst_decile": float(worst_first[: max(1, len(worst_first) // WORST_SHARE)].mean()),
    }
    if kind_names is not None:
        if kind is None:
            raise ValueError("kind is needed when kind_names are given")
        kinds = group_accuracy(correct, kind)
        for index, accuracy in zip(kinds.group.tolist(), kinds.accuracy.tolist(), strict=True):
            if not 0 <= index < len(kind_names):
                raise ValueError(f"question type {index} has no name, there are {len(kind_names)} names")
            result[f"accuracy_kind/{kind_names[index] or 'unknown'}"] = accuracy
    return result


class DeviceAccuracy(GatheredMetric):
    """Accuracy over items, devices, worst devices and question types, equal under any number of processes.

    A distributed sampler gives every process the same number of batches by repeating items, and the repeats would
    count twice. So every item carries its index, and of the results with the same device and index only the first is
    kept (the lowest process first). Use one instance per split and group: indices start anew in each.

    Args:
        kind_names: Names of the question types, for ``accuracy_kind/<name>``.
        kwargs: Passed to ``torchmetrics.Metric``.
    """

    higher_is_better = True

    def __init__(self, kind_names: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(
            {"correct": torch.bool, "device_index": torch.long, "kind": torch.long, "item": torch.long}, **kwargs
        )
        self.kind_names = None if kind_names is None else tuple(kind_names)

    def update(self, correct: Tensor, device: Tensor, kind: Tensor, item: Tensor) -> None:
        """Add the answers of one batch (real items only, padding removed).

        Args:
            correct: ``[n]`` bool.
            device: ``[n]`` index of the device.
            kind: ``[n]`` index of the question type.
            item: ``[n]`` index of the item in the item list of the split.

        Raises:
            ValueError: If the lengths differ.
        """
        require_same_length(correct=correct, device=device, kind=kind, item=item)
        self.append(correct=correct, device_index=device, kind=kind, item=item)

    def compute(self) -> dict[str, Tensor]:
        """Result of :func:`accuracy_metrics` over the distinct items, as float32 scalars."""
        items = self._distinct()
        values = accuracy_metrics(items.correct, items.device, items.kind, self.kind_names)
        return {name: torch.tensor(value, device=self.device) for name, value in values.items()}

    def per_device(self) -> dict[int, tuple[float, int]]:
        """Accuracy and number of items of each device, over all processes (all of which have to call this)."""
        items = self.items()
        devices = group_accuracy(items.correct, items.device)
        rows = zip(devices.group.tolist(), devices.accuracy.tolist(), devices.items.tolist(), strict=True)
        return {device: (accuracy, count) for device, accuracy, count in rows}

    def items(self) -> Items:
        """The distinct items of all processes, for intervals over devices and clips.

        All processes have to call this.
        """
        with self.gathered():
            return self._distinct()

    def _distinct(self) -> Items:
        device, item = self.state("device_index"), self.state("item")
        keep = first_of_each(device, item)
        return Items(self.state("correct")[keep], device[keep], self.state("kind")[keep], item[keep])
