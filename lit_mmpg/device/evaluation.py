"""Evaluation of several methods on several groups of devices: metrics, intervals and result rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lit_mmpg.batch import Batch
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.metrics.accuracy import DeviceAccuracy, metric_names
from lit_mmpg.metrics.retrieval import RECALL_AT, RetrievalMetrics, recall_probability
from lit_mmpg.metrics.statistics import Interval, clustered_mean
from lit_mmpg.report import FRACTIONS

if TYPE_CHECKING:
    from lit_mmpg.data.batches import Group

PRIMARY = {"open_ended": "accuracy", "multiple_choice": "accuracy", "retrieval": "t2v/mean_log_rank"}
"""The one metric of each task on which claims stand."""


@dataclass(frozen=True)
class ItemResults:
    """Results of single items, sorted by (device, item), so that methods can be compared pair by pair.

    Attributes:
        device: ``[n]`` device index.
        clip: ``[n]`` clip index.
        item: ``[n]`` index of the item in its split.
        values: Metric name -> ``[n]``, whose mean is the metric.
    """

    device: np.ndarray
    clip: np.ndarray
    item: np.ndarray
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class Cost:
    """Bytes of one adaptation, counted on the serialised messages; 0 for a method that sends nothing."""

    upload_bytes: float = 0.0
    download_bytes: float = 0.0


class Evaluation(nn.Module):
    """Collects the answers of methods on groups of devices.

    Args:
        task: The task.
        groups: Names of the groups of devices.
        methods: Names of the methods.
        kinds: Names of the question types.
        item_clip: ``[items]`` clip index of each item of the split.
        gallery: Where retrieval ranks (see :class:`~lit_mmpg.metrics.retrieval.RetrievalMetrics`).
    """

    def __init__(
        self,
        task: str,
        groups: Sequence[str],
        methods: Sequence[str],
        kinds: Sequence[str],
        item_clip: np.ndarray,
        gallery: Literal["mixed", "device"],
    ) -> None:
        super().__init__()
        self.task, self.groups, self.methods, self.item_clip = task, list(groups), list(methods), item_clip
        names = metric_names(kinds)
        renamed = {name: kind for name, kind in zip(names, kinds, strict=True) if kind not in ("", name)}
        self._kind_of = {f"accuracy_kind/{name}": kind for name, kind in renamed.items()}

        def metric() -> nn.Module:
            return RetrievalMetrics(gallery) if task == "retrieval" else DeviceAccuracy(names)

        self.metrics = nn.ModuleList(metric() for _ in self.groups for _ in self.methods)
        self._items: dict[tuple[str, str], ItemResults] = {}

    @classmethod
    def of(cls, groups: Sequence[Group], methods: Sequence[str]) -> Evaluation:
        """An empty evaluation of groups of one split, which say where a text's gallery ends.

        Args:
            groups: As :meth:`DeviceData.group <lit_mmpg.data.datamodule.DeviceData.group>` describes them.
            methods: Names of the methods.
        """
        first = groups[0]
        names = [group.name for group in groups]
        return cls(first.task, names, methods, first.kinds, first.item_clip, first.gallery)

    def _metric(self, group: str, method: str) -> DeviceAccuracy | RetrievalMetrics:
        metric = self.metrics[self.groups.index(group) * len(self.methods) + self.methods.index(method)]
        assert isinstance(metric, DeviceAccuracy | RetrievalMetrics)
        return metric

    def update(self, group: str, method: str, batch: Batch, outputs: Outputs) -> None:
        """Add one batch."""
        self._items.pop((group, method), None)
        metric = self._metric(group, method)
        mask = batch.text_mask
        device = batch.device.unsqueeze(1)
        if isinstance(metric, DeviceAccuracy):
            assert outputs.logits is not None
            correct = outputs.logits.argmax(-1) == batch.answer
            metric.update(correct[mask], device.expand_as(mask)[mask], batch.kind[mask], batch.item[mask])
            return
        assert outputs.video is not None and outputs.text is not None
        clip_mask = batch.clip >= 0
        rows = torch.arange(len(batch), device=mask.device).unsqueeze(1)
        metric.update(
            outputs.text[mask],
            outputs.video[clip_mask],
            batch.clip[rows, batch.text_clip][mask],
            batch.clip[clip_mask],
            device.expand_as(mask)[mask],
            device.expand_as(clip_mask)[clip_mask],
            batch.item[mask],
        )

    def compute(self, group: str, method: str) -> dict[str, float]:
        """All metrics of one method on one group."""
        return {name: float(value) for name, value in self._metric(group, method).compute().items()}

    def items(self, group: str, method: str) -> ItemResults:
        """Results of single items; under several processes all of them have to call this."""
        # Rows, figures and comparisons all ask, and ranking every gallery is the costly part.
        if (group, method) not in self._items:
            self._items[group, method] = self._collect(group, method)
        return self._items[group, method]

    def _collect(self, group: str, method: str) -> ItemResults:
        metric = self._metric(group, method)

        def array(tensor: Tensor) -> np.ndarray:
            return tensor.detach().cpu().numpy()

        if isinstance(metric, DeviceAccuracy):
            answered = metric.items()
            item = array(answered.item)
            return ItemResults(
                array(answered.device),
                self.item_clip[item],
                item,
                {"accuracy": array(answered.correct).astype(np.float64)},
            )
        ranked = metric.per_query()["t2v"]
        values = {"t2v/mean_log_rank": array(ranked.rank.log())}
        values |= {f"t2v/R@{k}": array(recall_probability(ranked.bounds, k)) for k in RECALL_AT}
        return ItemResults(array(ranked.device), array(ranked.clip), array(ranked.query), values)

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
                    name = PRIMARY[self.task]
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
