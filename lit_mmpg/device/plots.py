"""Figures that are logged beside the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lit_mmpg.device.evaluation import ItemResults


def new_figure(width: float) -> tuple[Figure, Axes]:
    """A figure that no GUI holds on to, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.0), layout="constrained")
    return figure, figure.subplots()


def accuracy_per_device(results: Mapping[str, ItemResults], names: Sequence[str], metric: str) -> Figure:
    """One group of bars per device, one bar per method, sorted by the first method.

    Args:
        results: Method -> results of single items.
        names: Names of all devices.
        metric: Metric to show.
    """
    means = {
        method: {d: float(items.values[metric][items.device == d].mean()) for d in np.unique(items.device)}
        for method, items in results.items()
    }
    first = next(iter(means.values()))
    devices = sorted(first, key=lambda d: first[d])
    figure, axes = new_figure(max(6.0, 0.3 * len(devices) + 2))
    width = 0.8 / len(means)
    for i, (method, values) in enumerate(means.items()):
        places = np.arange(len(devices)) + (i - (len(means) - 1) / 2) * width
        axes.bar(places, [values[d] for d in devices], width, label=method)
    axes.set_xticks(np.arange(len(devices)), [names[d] for d in devices], rotation=90, fontsize=7, parse_math=False)
    axes.set_ylabel(metric)
    axes.set_xlabel("device")
    axes.legend(frameon=False)
    return figure


def reconstruction_curve(anchors: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Reconstruction error of clips against the number of anchor frames.

    Args:
        anchors: Numbers K of anchors.
        errors: What reconstructs -> mean squared error per K, in squared standard units of the features.
    """
    figure, axes = new_figure(6.0)
    for name, values in errors.items():
        axes.plot(anchors, values, marker="o", label=name)
    axes.set_xlabel("anchor frames K")
    axes.set_ylabel("mean squared error")
    axes.set_xticks(list(anchors))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure
