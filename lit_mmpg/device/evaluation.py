"""Evaluation of several methods on several groups of devices: metrics, intervals, result rows, single answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lit_mmpg.batch import Batch, Outputs
from lit_mmpg.metrics.accuracy import metric_names
from lit_mmpg.metrics.statistics import Interval, clustered_mean
from lit_mmpg.report import FRACTIONS
from lit_mmpg.tasks import ItemResults, find_task

if TYPE_CHECKING:
    from lit_mmpg.data.batches import Group


@dataclass(frozen=True)
class Cost:
    """Bytes of one adaptation, counted on the serialised messages; 0 for a method that sends nothing."""

    upload_bytes: float = 0.0
    download_bytes: float = 0.0


class Evaluation(nn.Module):
    """Collects the answers of methods on groups of devices.

    Args:
        groups: Groups of one split, which say where a text's gallery ends; as :meth:`DeviceData.group
            <lit_mmpg.data.datamodule.DeviceData.group>` describes them.
        methods: Names of the methods.
    """

    def __init__(self, groups: Sequence[Group], methods: Sequence[str]) -> None:
        super().__init__()
        first = groups[0]
        self.task, self.item_clip = find_task(first.task), first.item_clip
        self.groups, self.methods = [group.name for group in groups], list(methods)
        names = metric_names(first.kinds)
        renamed = {name: kind for name, kind in zip(names, first.kinds, strict=True) if kind not in ("", name)}
        self._kind_of = {f"accuracy_kind/{name}": kind for name, kind in renamed.items()}

        self.metrics = nn.ModuleList(
            self.task.new_metric(names, first.gallery) for _ in self.groups for _ in self.methods
        )
        self._items: dict[tuple[str, str], ItemResults] = {}

    def _metric(self, group: str, method: str) -> Any:
        return self.metrics[self.groups.index(group) * len(self.methods) + self.methods.index(method)]

    def update(self, group: str, method: str, batch: Batch, outputs: Outputs) -> None:
        """Add one batch."""
        self._items.pop((group, method), None)
        self.task.update_metric(self._metric(group, method), batch, outputs)

    def compute(self, group: str, method: str) -> dict[str, float]:
        """All metrics of one method on one group."""
        return {name: float(value) for name, value in self._metric(group, method).compute().items()}

    def items(self, group: str, method: str) -> ItemResults:
        """Results of single items; under several processes all of them have to call this."""
        # Rows, figures and comparisons all ask, and ranking every gallery is the costly part.
        if (group, method) not in self._items:
            self._items[group, method] = self.task.item_results(self._metric(group, method), self.item_clip)
        return self._items[group, method]

    def rows(self, costs: Mapping[str, Cost], baseline: str | None = None) -> list[dict[str, object]]:
        """Result rows: every metric of every method and group, with an interval where single items have values.

        Args:
            costs: Cost of each method.
            baseline: Method against which the paired difference of the primary metric is reported.

        Returns:
            Rows with ``method, split, metric, value, low, high, clusters, seeds, upload_bytes, download_bytes``, and
            ``kind``, the question type itself, where the metric is that of a type that is no name of a metric.
        """
        rows: list[dict[str, object]] = []
        for group in self.groups:
            reference = self.items(group, baseline) if baseline else None
            for method in self.methods:
                items = self.items(group, method)
                identity = {"method": method, "split": group}
                sent = asdict(costs.get(method, Cost()))
                for name, value in self.compute(group, method).items():
                    known = items.values.get(name)
                    interval = (
                        Interval(value, np.nan, np.nan)
                        if known is None
                        else clustered_mean(known, items.device, items.clip).interval()
                    )
                    kind = {"kind": self._kind_of[name]} if name in self._kind_of else {}
                    rows.append(
                        identity | {"metric": name} | kind | interval_fields(interval, name) | {"seeds": 1} | sent
                    )
                if reference is not None and method != baseline:
                    name = self.task.primary.name
                    difference = items.values[name] - reference.values[name]
                    gain = clustered_mean(difference, items.device, items.clip).interval()
                    rows.append(
                        identity | {"metric": f"{name}_minus_{baseline}"} | interval_fields(gain) | {"seeds": 1} | sent
                    )
        return rows


def interval_fields(interval: Interval, metric: str = "") -> dict[str, float | int | None]:
    """``value``, ``low``, ``high`` and ``clusters`` of a row; bounds are ``None`` where there are none.

    Args:
        interval: The interval.
        metric: Name of the metric: bounds of a share do not leave 0 to 1, those of a rank are not below 0.
    """
    low, high = interval.low, interval.high
    if "_minus_" not in metric:
        if metric.startswith(FRACTIONS):
            low, high = max(0.0, low), min(1.0, high)
        elif "rank" in metric:
            low = max(0.0, low)
    return {
        "value": interval.value,
        "low": low if np.isfinite(interval.low) else None,
        "high": high if np.isfinite(interval.high) else None,
        "clusters": interval.clusters,
    }


def predictions(group: Group, batch: Batch, outputs: Outputs) -> list[dict[str, object]]:
    """Rows for the items of a batch.

    Questions: the answer with its probability. Captions: the best clips among those that the same device was asked
    about in this batch, best first, and the rank of the right one.

    Args:
        group: Whom the batch asks what.
        batch: An evaluation batch.
        outputs: What the device model said about it.
    """
    task = find_task(group.task)
    rows: list[dict[str, object]] = []
    for b in range(len(batch)):
        clips = [group.clips[c] if c >= 0 else "" for c in batch.clip[b].tolist()]
        for n in torch.nonzero(batch.text_mask[b]).flatten().tolist():
            text = group.texts[int(batch.item[b, n])]
            row: dict[str, object] = {"device": group.devices[int(batch.device[b])], "clip": text.clip}
            row |= task.prediction(text, batch, outputs, (b, n), group.answers.answers, clips)
            rows.append(row)
    return rows
