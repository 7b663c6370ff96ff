"""One bundle on several boards and power modes: answers by latency and energy, from the profiles of the boards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.tables import absent_lines, primary_energy, row_name, start_of
from lit_mmpg.report import json_ready

KIND = "lit-mmpg-profile-boards"
VERSION = 1

Row = Mapping[str, Any]


def compare_boards(profiles: Sequence[tuple[Path, Mapping[str, Any]]]) -> dict[str, Any]:
    """Put the profiles of one bundle side by side.

    Args:
        profiles: Files with their documents.

    Returns:
        A document of :data:`KIND`: the boards, each with its rows of the scenario ``answer``. ``energy_j`` is gross and
        of one answered clip; None where nothing was measured.

    Raises:
        UserError: If the profiles are of different bundles, one is given twice, or none has an answer that was timed.
    """
    (first, one), *others = profiles
    for file, profile in others:
        for key in ("checkpoint_digest", "task"):
            a, b = one["bundle"][key], profile["bundle"][key]
            if a != b:
                told = f"{key.replace('_', ' ')} {a[:12]} and {b[:12]}"
                raise UserError(f"{first} and {file} are of different bundles ({told}); give profiles of one bundle")
    known: dict[str, Path] = {}
    for file, profile in profiles:
        if profile["digest"] in known:
            raise UserError(f"{known[profile['digest']]} and {file} are the same profile; give it once")
        known[profile["digest"]] = file
    boards = [_board(profile) for _, profile in profiles]
    if not any(board["rows"] for board in boards):
        files = ", ".join(str(file) for file, _ in profiles)
        raise UserError(f"{files}: no answer was timed; measure the scenario 'answer' with 'lit-mmpg profile run'")
    names = [board["name"] for board in boards]
    for board in boards:
        if names.count(board["name"]) > 1:
            board["name"] += f", {board['created']}"
    kept = {key: one["bundle"][key] for key in ("task", "checkpoint_digest")}
    found = {"kind": KIND, "schema_version": VERSION, "bundle": one["bundle"]["path"], **kept, "boards": boards}
    return json_ready(found)


def _board(profile: Mapping[str, Any]) -> dict[str, Any]:
    environment = profile["environment"]
    board = environment.get("board")
    mode = (environment.get("power_mode") or {}).get("nvpmodel")
    answers = [row for row in profile["rows"] if row["scenario"] == "answer"]
    return {
        "name": ", ".join(part for part in (board or profile["name"], mode) if part),
        "machine": environment.get("module") or board or environment.get("cpu") or "unknown machine",
        "power_mode": mode,
        **{key: profile[key] for key in ("created", "digest", "state")},
        "rows": [_answer(row) for row in answers if row["status"] == "ok" and row["latency"]],
        "absent": absent_lines(answers),
    }


def _answer(row: Row) -> dict[str, Any]:
    wall, reading = row["latency"]["wall"], primary_energy(row)
    found = {
        "title": row_name(row),
        "path": start_of(row),
        "p50_ms": wall["p50_ms"],
        "p95_ms": wall["p95_ms"],
        "energy_j": None,
        "scope": None,
        "source": "; ".join(dict.fromkeys(r["reason"] for r in row["energy"] if r["reason"])) or "not measured",
        "estimate": False,
    }
    if reading is not None and reading["gross_j_per_unit"] > 0:
        found |= {
            "energy_j": reading["gross_j_per_unit"] / row["batch"],
            "scope": f"{reading['scope']}{', an ESTIMATE' if reading['estimate'] else ''}",
            "source": reading["source"],
            "estimate": reading["estimate"],
        }
    return found
