"""Who wins where: share of the gap over what a device holds, for each number of frames, as a picture of the results.

    python -m lit_mmpg.profiling.benchmarks.memory_map

It is drawn from ``docs/results/memory_*.json`` to ``docs/images/memory_map.svg``, which names what it was drawn from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_mmpg.profiling.benchmarks.memory import OPTIONS, RESTORERS
from lit_mmpg.results import FOLDER, load

TARGET = Path("docs/images/memory_map.svg")
SOURCES = {"memory_test": "#0969da", "100 models": "#bc4c00", "1,000 models": "#8250df"}
"""The main result and axes of ``memory_axes``, and their colours, which are read on white and on black."""
PLACES = ("nothing", "64 KiB", "256 KiB", "1 MiB", "4 MiB", "asks")
INK = "#7d8590"


def shares(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is drawn: name and C -> place -> share and its interval, in per cent.

    Args:
        results: All results; those that are not there are left out.
    """
    found: dict[str, Any] = {}
    main, others = results["memory_test"], results.get("memory_axes", {"values": {}})
    values = {"memory_test": main["values"]} | {
        name: others["values"][name] for name in SOURCES if name in others["values"]
    }
    for name, entries in values.items():
        models = sum(main["fleets"][0]["models"].values()) if name == "memory_test" else name.removesuffix(" models")
        for count in sorted({entry["frames"] for entry in entries} - {0}):
            at = {entry["row"]: entry["share"] for entry in entries if entry["frames"] in (0, count)}
            first = "uploads" if "uploads" in at else "told"
            way = "" if first == "uploads" else ", true maps"
            placed = {_place(row): share for row, share in at.items() if row.startswith(f"{first}_held_")}
            placed["asks"] = at[f"{first}_coded"]
            found.setdefault(str(count), {})[f"{models} models{way}"] = {"source": name, **_told(placed)}
            if name == "memory_test":
                best = max((at[row] for row in OPTIONS if row in at), key=lambda share: share["value"])
                static = {_place(row): at[row] for row in RESTORERS if row in at}
                found[str(count)]["own frames alone, the best row"] = {"source": "", **_told({"nothing": best})}
                found[str(count)]["static restoration network"] = {"source": "", **_told(static)}
    return found


def _place(row: str) -> str:
    """Place of a row whose name ends in what it takes, such as ``64kib`` or ``4mib``."""
    size = row.rpartition("_")[2]
    kib = int(size.removesuffix("mib")) * 1024 if size.endswith("mib") else int(size.removesuffix("kib"))
    return f"{kib} KiB" if kib < 1024 else f"{kib // 1024} MiB"


def _told(placed: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    return {place: [round(100 * share[end], 1) for end in ("value", "low", "high")] for place, share in placed.items()}


def digest(drawn: Mapping[str, Any]) -> str:
    """What tells whether a picture shows these values."""
    return hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()[:16]


def draw(drawn: Mapping[str, Any], target: Path) -> None:
    """Draw the picture."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    style: Any = {
        "svg.hashsalt": "memory", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure, axes = pyplot.subplots(len(drawn), 1, figsize=(4.6, 2.3 * len(drawn)), sharex=True, sharey=True)
        for panel, (count, lines) in zip(axes, drawn.items(), strict=True):
            for i, (label, line) in enumerate(lines.items()):
                places = [place for place in PLACES if place in line]
                x = [PLACES.index(place) + 0.08 * (i - 1.5) for place in places]
                value, low, high = zip(*(line[place] for place in places), strict=True)
                colour = SOURCES.get(line["source"], INK)
                style_of = {"color": colour, "marker": "o" if line["source"] else "sD"[i % 2], "markersize": 4}
                bars = [
                    [v - end for v, end in zip(value, low, strict=True)],
                    [h - v for v, h in zip(value, high, strict=True)],
                ]
                panel.errorbar(x, value, bars, label=label, linewidth=1.3, elinewidth=0.6, **style_of)
            panel.axhline(0, color=INK, linewidth=0.6)
            panel.set_yticks(range(0, 101, 25))
            panel.set_title(f"C = {count} frame{'s' * (count != '1')}", fontsize=9, loc="left", color=INK)
            panel.spines[["top", "right"]].set_visible(False)
        axes[-1].set_xticks(range(len(PLACES)), PLACES)
        axes[-1].set_xlabel("what the device holds, or that it asks a cloud (3 KB each way)")
        figure.supylabel("share of the gap that is closed, per cent", fontsize=9, color=INK)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", frameon=False, fontsize=8, ncols=1)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.017 * 4 * len(labels) / len(drawn)))
        figure.savefig(target, transparent=True, metadata={"Date": None, "Description": f"drawn from {digest(drawn)}"})
        pyplot.close(figure)


def main() -> None:
    """Draw what the results hold."""
    draw(shares(load(FOLDER)), TARGET)
    print(f"Written: {TARGET}")


if __name__ == "__main__":
    main()
