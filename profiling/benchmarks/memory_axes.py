"""What a memory of camera models wins in other fleets than that of the main benchmark, and on clips as they are.

    python -m lit_mmpg.profiling.benchmarks.memory_axes --settings profiling/benchmarks/memory_test.yaml

Each axis changes settings of the fleet (:class:`.memory_fleet.FleetConfig`) and computes some rows of
:mod:`lit_mmpg.profiling.benchmarks.memory`, with the cells of that benchmark: what one of both has computed, the other
need not. The last rows are clips as they are, without any artefact: a memory is learnt from what stays in several
frames of one clip, such as bars, logos and captions.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_mmpg import camera_memory as memory
from lit_mmpg.camera_memory import CameraMemory, Evidence
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.device.closed_form import fit_tfidf
from lit_mmpg.files import find_config, read_yaml
from lit_mmpg.heartbeat import tell, working
from lit_mmpg.maps import PixelMaps
from lit_mmpg.metrics.statistics import clustered_mean
from lit_mmpg.profiling.benchmarks.memory import (
    GATE_SHARE,
    LEARNT,
    LEAST,
    PSEUDO_DEVICES,
    Data,
    Settings,
    Share,
    cells_of,
    run_seed,
    summarise,
)
from lit_mmpg.profiling.benchmarks.memory_models import log_ranks, train_head
from lit_mmpg.profiling.meters.network import LinkModel, cost
from lit_mmpg.results import result, write_result
from lit_mmpg.tracking.address import git_commit
from lit_mmpg.writing import write_text

EVERY = ("told", "uploads")
ALONE = ("median_gradients", "own_statistics")


@dataclass(frozen=True)
class Axis:
    """Another fleet.

    Attributes:
        fleet: Settings that differ.
        rows: How the names of the rows that are computed begin.
    """

    fleet: Mapping[str, Any]
    rows: tuple[str, ...] = ("uploads 1",)


AXES = {
    "100 models": Axis({"models": 100}, EVERY),
    "300 models": Axis({"models": 300}, ("uploads 1", "uploads 4", "uploads_coded")),
    "1,000 models": Axis({"models": 1000}, EVERY),
    "60 devices a model": Axis({"devices_per_model": 60}, ("uploads",)),
    "histories of 4 clips": Axis({"places": 4}, (*EVERY, *ALONE)),
    "no clip filmed by two models": Axis({"disjoint": True}),
    "models that changed by a quarter": Axis({"drift": 0.25}, ("uploads 1", "uploads_added 1")),
    "models that changed by a half": Axis({"drift": 0.5}, ("uploads 1", "uploads_added 1")),
    "models by Zipf's law": Axis({"zipf": 1.0}),
    "a camera of each device's own, severity 3": Axis({"camera_severity": 3}, (*ALONE, "told 1", "uploads 1")),
}
MOST_SEEDS = {"300 models": 1, "1,000 models": 1}
"""Axes that run on the first seeds alone."""
SHOWN = (
    *(
        f"{name}{form}"
        for name in LEARNT
        for form in ("", "_added", "_coded", "_scenes", "_held_64kib", "_held_256kib", "_held_1024kib", "_held_4096kib")
    ),
    *ALONE,
)
"""Rows of the table; the values hold all of them."""
NATURAL_FRAMES = 8
"""Frames of a clip as it is, at most."""


def natural(data: Data, seed: int, folder: Path, finished: bool = False) -> dict[str, Any]:
    """What a memory of clips as they are does for test clips, each of which is a device of its own.

    It is learnt from uploads of the training clips, and its gates are those of frames of different clips, in whose
    medians nothing stays. The static model is the one that never saw an artefact.

    Returns:
        ``models``, ``devices`` of these, and for 1 frame and all frames of a clip ``recognised`` and the log-rank that
        is ``won``, with its interval and ``bound``, the one-sided 95 % bound of the loss; nothing where only what is
        ``finished`` is wanted, and this is not.
    """
    path = folder / f"natural-{seed}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text())
        return kept
    if finished:
        return {}
    images = ImageFrames(data.images.path, NATURAL_FRAMES)
    tell("clips as they are")
    evidence = [Evidence.uploaded(PixelMaps.of(images.pixels(clip)), data.scene) for clip in data.train]
    learnt, groups = memory.learn(CameraMemory.empty(data.scene), evidence, LEAST)
    tfidf, held = fit_tfidf([data.captions[clip] for clip in data.train]), len(data.train) // 8
    targets = tfidf.transform([data.captions[clip] for clip in data.train]).toarray()
    head, _ = train_head(data.clean, data.clean, targets, held, seed)
    texts = tfidf.transform([data.captions[clip] for clip in data.asked]).toarray()
    shots, rng = data.stack(data.asked), np.random.default_rng(seed)
    plain = data.encode(shots)
    before = log_ranks(head, plain, plain, texts)
    found: dict[str, Any] = {"models": len(groups), "devices": sum(map(len, groups)), "rows": []}
    for count in (1, NATURAL_FRAMES):
        mixed = [
            PixelMaps.of(data.stack(rng.choice(data.train, count, replace=False).tolist())).gradient
            for _ in range(PSEUDO_DEVICES)
        ]
        gate = memory.gate_for(learnt, mixed, GATE_SHARE)
        features, recognised = plain.copy(), np.zeros(len(shots), bool)
        for i, clip in enumerate(data.asked):
            place, correction = learnt.correct(PixelMaps.of(images.pixels(clip)[:count]).gradient, gate)
            if place is not None and correction is not None:
                recognised[i] = True
                features[i] = data.encoder(correction(shots[i : i + 1]))[0]
        won = before - log_ranks(head, features, plain, texts)
        mean = clustered_mean(won, np.array(data.asked))
        found["rows"].append({
            "frames": count, "recognised": float(recognised.mean()), "won": mean.value,
            "low": mean.interval().low, "high": mean.interval().high, "bound": -mean.interval(0.9).low,
        })  # fmt: skip
    write_text(path, json.dumps(found))
    return found


def pays_above(spent: Mapping[str, float], payload_bytes: int) -> str:
    """Power of the processor from which asking a cloud takes less energy than looking up, on each link of the model.

    Args:
        spent: Processor time of an adaptation (:func:`lit_mmpg.profiling.benchmarks.memory.costs`), milliseconds.
        payload_bytes: Bytes of the query, and of the answer.
    """
    saved_s = 1e-3 * (spent["alone"] - spent["query"] - spent["answer"])
    links = [
        cost(LinkModel(**link), payload_bytes, payload_bytes)
        for link in read_yaml(find_config("configs/profile/links.yaml"))
    ]
    energies = {link.link: link.energy_j for link in links if link.energy_j is not None}
    if saved_s <= 0:
        return "asking saves the processor no time"
    return ", ".join(f"{energy / saved_s:.3g} W over {name}" for name, energy in energies.items())


def line(axis: str, entry: Mapping[str, Any]) -> list[str]:
    """One line of the table."""
    losses = [
        f"{entry[part]['loss']:+.3f} (<= {entry[part]['bound']:+.3f})" if part in entry else ""
        for part in ("clean", "unseen")
    ]
    shares = [str(Share(**entry[name])) for name in ("share", "headline", "features")]
    recognised = [entry["recognised"][key] for key in ("right", "wrong", "clean", "unseen")]
    rates = " / ".join("-" if share is None else f"{100 * share:.0f}" for share in recognised)
    learnt = entry["row"].startswith(LEARNT)
    return [axis, entry["row"], str(entry["frames"] or ""), *shares, *losses, rates if learnt else ""]


@working("memory of camera models, other fleets", bar=False)
def main(args: Sequence[str] | None = None) -> None:
    """Run all axes and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m lit_mmpg.profiling.benchmarks.memory_axes", description=__doc__)
    parser.add_argument("--settings", default="profiling/benchmarks/memory_test.yaml", metavar="FILE.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds above 0")
    parser.add_argument("--axes", nargs="+", default=list(AXES), choices=list(AXES), metavar="AXIS", help="fewer axes")
    parser.add_argument("--finished", action="store_true", help="rows that are finished, nothing is computed")
    parser.add_argument("--folder", type=Path, default=Path("outputs/memory"), help="where cells are kept")
    parser.add_argument("--output", type=Path, default=Path("outputs/memory_axes.json"), metavar="FILE.json")
    options = parser.parse_args(args)
    settings, commit, begun = Settings.read(options.settings), git_commit(), time.monotonic()
    data = Data(settings, options.folder)
    rows, values, fleets, spent, tuned = [], {}, {}, {}, {}
    for name in options.axes:
        axis, seeds = AXES[name], options.seeds[: MOST_SEEDS.get(name)]
        other = replace(settings, fleet={**settings.fleet, **axis.fleet})
        folder = cells_of(data, other, options.folder)
        runs = [run_seed(data, other, seed, folder, axis.rows, options.finished) for seed in seeds]
        if not any(run["rows"] for run in runs):
            continue  # nothing is finished
        values[name], fleets[name] = summarise(runs), [run["describe"] for run in runs]
        rows += [line(name, entry) for entry in values[name] if entry["row"] in SHOWN]
        measured = [run["facts"]["costs"] for run in runs if "costs" in run["facts"]]
        spent[name] = {key: float(np.mean([one[key] for one in measured])) for key in (measured or [{}])[0]}
        tuned[name] = len(seeds)
    own = natural(data, options.seeds[0], cells_of(data, settings, options.folder), options.finished)
    for entry in own["rows"] if own else ():
        won = f"{entry['won']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}] log-rank"
        named = f"clips as they are, {own['models']} models of {own['devices']} training clips"
        rows.append([
            named, "uploads", str(entry["frames"]), won, "", "",
            f"{-entry['won']:+.3f} (<= {entry['bound']:+.3f})", "", f"- / - / {100 * entry['recognised']:.0f} / -",
        ])  # fmt: skip
    reads = int(settings.asked == "test") * len(options.seeds)
    timed = "; ".join(
        f"{name}: {one['query'] + one['answer']:.0f} ms through the link (and {one['cloud']:.0f} ms in the cloud), "
        f"{one['alone']:.0f} ms alone; asking takes less energy where the processor draws more than "
        f"{pays_above(one, 3000)}"
        for name, one in spent.items()
        if one
    )
    notes = [
        "Fleets as in the main benchmark but for what is named. Share of the gap to the exact correction in per cent, "
        "its 95 % interval over camera models and clips; the same on families that models share; the same of the "
        "squared distance of features; loss in log-rank on clean devices and on devices of unseen models with its "
        "one-sided 95 % bound; recognitions in per cent of devices (right, wrong, clean, unseen models). Seeds: "
        + "; ".join(f"{name}: {count}" for name, count in tuned.items()) + ".",
        *(["Clips as they are: every test clip is a device, its own frames are its query, and the log-rank that is won "
           "stands in the place of the share; the static model never saw an artefact."] if own else []),
        f"Processor time of an adaptation on the device, one thread, by one frame: {timed}. Energies of links are "
        "those of the model in `configs/profile/links.yaml`, a radio that is awake only for this.",
    ]  # fmt: skip
    command = f"python -m lit_mmpg.profiling.benchmarks.memory_axes --settings {options.settings}"
    command += f" --seeds {' '.join(map(str, options.seeds))}"
    if options.axes != list(AXES):
        command += f" --axes {shlex.join(options.axes)}"
    command += " --finished" if options.finished else ""
    columns = ["fleet", "row", "C", "share of the gap", "on families that models share", "of the features' distance"]
    columns += ["loss: clean", "loss: unseen models", "recognised: right / wrong / clean / unseen"]
    found = result(
        "A memory of camera models, other fleets" + (", on test clips" if reads else ""), command, columns, rows,
        commit, notes, seeds=options.seeds, test_reads=reads, values=values, fleets=fleets, costs=spent, natural=own,
    )  # fmt: skip
    write_result(options.output, found)
    print(f"Written: {options.output} ({time.monotonic() - begun:.0f} s)")


if __name__ == "__main__":
    main()
