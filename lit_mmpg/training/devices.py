"""``lit-mmpg devices``: who holds which clips, what sets the devices apart, and how much there is to adapt to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lit_mmpg.data.observer import accuracy_on, room
from lit_mmpg.heartbeat import working
from lit_mmpg.report import check_output, escape, json_alone, rows_text, wide_console, write_rows
from lit_mmpg.tasks import find_task
from lit_mmpg.training.config import DEMO, read_request
from lit_mmpg.training.run import check_data

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

HISTORIES = (1, 4, 8, 16)
"""Numbers of earlier clips of which an ideal observer's gain is told."""

SHOWN = 6
"""Devices of each group on the screen; all of them are in the output file."""


def main(argv: Sequence[str]) -> int:
    """Print the device table of a configuration.

    Raises:
        UserError: If the configuration or its data is wrong.
    """
    request = read_request("devices", argv)
    if not request.config and not {"data", "model"} & request.overridden():
        request = read_request("devices", ["--config", DEMO, *argv])
    output = request.options["output"]
    check_output(output)
    check_data(request)
    with json_alone(request.options["json"]) as write:
        from lit_mmpg.training.lightning_cli import CLI

        data = CLI(request).data()
        with working("reading or rendering the clips"):
            data.setup("devices")
        rows = device_rows(data)
        _print(rows, data)
        if output:
            write_rows(rows, output)
            print(f"rows: {Path(output)}")
        write(rows_text(rows))
    return 0


def device_rows(data: DeviceData) -> list[dict[str, Any]]:
    """One row per group and device: number of clips, of frames and of text items, and its shift."""
    corpus = data.corpus
    index = {name: i for i, name in enumerate(data.clip_ids)}
    rows = []
    for group, timelines in corpus.devices.timelines.items():
        by_clip = data.items(group.split("_")[0]).by_clip
        for device, clips in timelines.items():
            entry = corpus.devices.devices[device]
            rows.append(
                {
                    "group": group,
                    "device": entry.id,
                    "clips": len(clips),
                    "frames": sum(corpus.frames.num_frames(clip) for clip in clips),
                    "items": sum(len(by_clip.get(index[clip], ())) for clip in clips),
                    "shift": dict(entry.shift),
                }
            )
    return rows


def _print(rows: list[dict[str, Any]], data: DeviceData) -> None:
    table = Table(title=f"{type(data).__name__}, task {data.task}, data {data.fingerprint[:12]}")
    for name in ("group", "device"):
        table.add_column(name, no_wrap=True)
    for name in ("clips", "frames", find_task(data.task).items):
        table.add_column(name, justify="right")
    table.add_column("shift")
    groups = {group: [row for row in rows if row["group"] == group] for group in data.device_table.timelines}
    for group, own in groups.items():
        for row in own[:SHOWN]:
            shift = "; ".join(f"{name} {value}" for name, value in row["shift"].items())
            counts = (str(row[n]) for n in ("clips", "frames", "items"))
            table.add_row(group, escape(row["device"]), *counts, escape(shift))
        if len(own) > SHOWN:
            table.add_row(group, f"... {len(own) - SHOWN} more")
        table.add_section()
    wide_console().print(table)
    for group, own in groups.items():
        print(f"{group}: {len(own)} devices, {sum(row['clips'] for row in own)} clips")
    if any(len(own) > SHOWN for own in groups.values()):
        print("All devices: --output FILE.json")
    lines, points = room_lines(data)
    for line in (*lines, *(_gains_there(data) if points else ())):
        print(line)


def room_lines(data: DeviceData) -> tuple[list[str], float | None]:
    """The computed room for adaptation, where the data's generative model is known: text, and points of accuracy."""
    from lit_mmpg.data.datamodule import PersonalClipsData

    if not isinstance(data, PersonalClipsData) or not find_task(data.task).answer_list:
        return [], None
    result = room(data.clips, histories=HISTORIES)
    accuracy = {name: 100 * values["overall"] for name, values in result["accuracy"].items()}
    points = float(result["room_points"]["overall"])
    history = ", ".join(f"{c}: {accuracy[f'history_{c}']:.1f} %" for c in HISTORIES)
    lines = [
        f"Ideal observers of the open-ended questions ({result['samples']:,} sampled devices, perfect perception):",
        f"  knows the clip alone (device-blind): {accuracy['blind']:.1f} %",
        f"  knows so many earlier clips too: {history}",
        f"  knows the device: {accuracy['knows']:.1f} %",
        f"  room for adaptation: {points:.1f} points (standard error {result['room_se_points']['overall']:.1f})",
    ]
    return lines, points


def _gains_there(data: DeviceData) -> Iterator[str]:
    """What earlier clips gain an ideal observer on the test devices of data that is set up."""
    from lit_mmpg.data.datamodule import PersonalClipsData

    devices = len(data.device_table.timelines["test_unseen"])
    if not isinstance(data, PersonalClipsData) or not devices or data.batch.context == "clip":
        return
    clips, columns = data.clips, {clip.id: clip.columns for clip in data.corpus.clips}
    queries = [
        ([data.clip_ids[c] for c in query.context], [data.clip_ids[c] for c in query.clips])
        for query in data.eval_batches("test_unseen", context_clips=max(HISTORIES)).queries
    ]

    def there(earlier: int) -> float:
        return 100 * accuracy_on(clips, columns, [(seen[len(seen) - earlier :], asked) for seen, asked in queries])

    alone = there(0)
    gains = ", ".join(f"{earlier}: +{there(earlier) - alone:.1f}" for earlier in HISTORIES)
    yield f"On the {devices} unseen test devices: {alone:.1f} % by the clip alone; points by earlier clips: {gains}"
