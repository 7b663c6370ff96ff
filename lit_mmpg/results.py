"""Results as files: one small JSON for each table, from which Markdown is made, so that no number is typed by hand.

``python -m lit_mmpg.results`` writes ``docs/results/README.md`` from ``docs/results/*.json`` and fills every part of
``README.md`` and of the pages of ``docs`` between ``<!-- results: NAME -->`` and ``<!-- end of results -->`` with the
table of ``NAME.json``. The name ``main`` is that of :func:`main_results`, which picks its rows from several files.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from lit_mmpg import sysfs
from lit_mmpg.errors import UserError
from lit_mmpg.writing import write_text

FOLDER = Path("docs/results")
TABLE = re.compile(r"^\|.*\n\|[ :|-]+\|\n(?:\|.*\n)+", re.MULTILINE)
INTERVAL = re.compile(r"\[[+-]?\d*\.\d+, ?[+-]?\d*\.\d+\]")
MEASURED = re.compile(  # an interval, or a cell that is a decimal number or a percentage
    r"\[[+-]?\d[\d.]*, ?[+-]?\d[\d.]*\]|\| *\**[+-]?(?:[\d,]*\.\d+(?: ?[%A-Za-z]+)?|[\d.]+ ?%)\** *(?=\|)"
)
PART = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end of results -->)", re.DOTALL)

MAIN = "main"
"""Name of the table of main results."""


class Headline(NamedTuple):
    """A row of the table of main results: one cell of a result.

    Attributes:
        name: The result.
        data: What was adapted to.
        measure: What is measured.
        row: Its row, by how the first cell begins, without emphasis.
        column: Its column, by how the heading begins; holds a difference from the static model with its interval.
        lower_is_better: Whether a negative difference is a gain.
    """

    name: str
    data: str
    measure: str
    row: str
    column: str
    lower_is_better: bool = False


ACCURACY, LOG_RANK = "accuracy, points", "mean log-rank (lower is better)"
HEADLINES = (
    Headline("compare_demo", "rendered clips of personal things", ACCURACY, "cdc_mmpg", "minus static"),
    Headline("compare_msrvtt_qa", "MSR-VTT, questions, clean frames", ACCURACY, "cdc_mmpg", "minus static"),
    Headline("compare_msrvtt_retrieval", "MSR-VTT, retrieval, clean", LOG_RANK, "cdc_mmpg", "minus static", True),
    Headline("compare_msrvtt_dmma", "through simulated cameras", LOG_RANK, "CDC-MMPG on static", "minus static", True),
    Headline("compare_msrvtt_glass", "behind window glass", LOG_RANK, "CDC-MMPG", "log-rank minus static", True),
    Headline(
        "compare_msrvtt_glass_own",
        "the same, standardised by own statistics, which do most of it",
        LOG_RANK,
        "cdc_mmpg_own",
        "minus static",
        True,
    ),
)

GROUPS = {
    "Embedded data": r"compare_demo",
    "MSR-VTT": r"compare_msrvtt|own_statistics",
    "A memory of camera models": r"memory",
    "What crosses the link": r"code(c|book)s|polic|privacy|guard",
    "How it is measured": r"interval|verdict|gate|agreement|soak",
    "Speed, engines and the service": r"",
}
"""Heading of the page's contents -> how the names of its tables begin; a table is in the first group that fits."""


def machine() -> str:
    """Processor, cores and system of this machine, in one line."""
    processor = sysfs.processor_name() or platform.machine()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def result(
    title: str,
    command: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    commit: str | None,
    notes: Sequence[str] = (),
    **fields: Any,
) -> dict[str, Any]:
    """Make a result: a table with its provenance.

    Args:
        title: Heading of the table.
        command: Command that computes it, as a user types it.
        columns: Column headings.
        rows: Cells of each row, as shown.
        commit: Commit of the code.
        notes: Sentences shown below the table.
        fields: Further fields of the file, such as seeds, exact values and readings of the test split.

    Example:
        >>> found = result("Costs", "lit-mmpg x", ["row", "ms"], [["ours", 1.5]], "c0ffee", seeds=[0])
        >>> print(markdown_table(found["columns"], found["rows"]))
        | row | ms |
        | --- | --- |
        | ours | 1.5 |
    """
    return {
        "title": title,
        "command": command,
        "commit": commit,
        "machine": machine(),
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "notes": list(notes),
        **fields,
    }


def write_result(path: Path, found: Mapping[str, Any]) -> None:
    """Write a result in one step."""
    write_text(path, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    shown = [["" if cell is None else str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in shown)


def markdown(found: Mapping[str, Any]) -> str:
    """A result in Markdown: its table, its notes, and where it comes from."""
    source = f"`{found['command']}`, commit {str(found['commit'] or 'unknown')[:12]}, {found['machine']}"
    parts = [markdown_table(found["columns"], found["rows"]), *found["notes"], f"*{source}*"]
    return "\n\n".join(parts)


def main_results(results: Mapping[str, Mapping[str, Any]], page: str = "") -> str:
    """The table of main results in Markdown: what generated parameters gain over the static model, won or not.

    A row is won where the 95 % interval of the difference lies on the better side of 0, as a whole.

    Args:
        results: All results.
        page: Path of the page of all results, from the document that the table is for.

    Raises:
        UserError: If a result, row or column is not there.
    """
    rows = []
    for line in HEADLINES:
        found = results.get(line.name)
        cell = None if found is None else _cell(found, line.row, line.column)
        interval = INTERVAL.search(cell or "")
        if cell is None or interval is None:
            raise UserError(f"{FOLDER}/{line.name}.json lacks the row '{line.row}' or the column '{line.column}'")
        low, high = sorted(float(end) * (-1 if line.lower_is_better else 1) for end in interval[0][1:-1].split(","))
        verdict = "**won**" if low > 0 else "lost" if high < 0 else "not won"
        rows.append([f"[{line.data}]({page}#{line.name})", line.measure, cell, verdict])
    return markdown_table(["unseen devices, data", "measure", "minus the static model", "verdict"], rows)


def _cell(found: Mapping[str, Any], row: str, column: str) -> str | None:
    columns = [i for i, heading in enumerate(found["columns"]) if str(heading).startswith(column)]
    names = [str(cells[0]).replace("*", "") for cells in found["rows"]]
    # The row itself where it is there, else the first that begins so.
    numbers = [i for i, name in enumerate(names) if name == row] + [
        i for i, name in enumerate(names) if name.startswith(row)
    ]
    return str(found["rows"][numbers[0]][columns[0]]).replace("*", "") if columns and numbers else None


def load(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Name -> result.

    Raises:
        UserError: If a file is not one.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            markdown(found)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a file of results ({error!r})") from error
        results[path.stem] = found
    return results


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of all results: the main ones, a list of all tables by group, and the tables in that order."""
    parts = ["# Results", "Made from the files beside this page by `make results`."]
    if all(line.name in results for line in HEADLINES):
        parts += ["## Main results", main_results(results), "In brackets: 95 % interval."]
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name in results:
        groups[next(group for group, pattern in GROUPS.items() if re.match(pattern, name))].append(name)
    parts.append("## All tables")
    for group, names in groups.items():
        if names:
            parts += [f"**{group}**", "\n".join(f"- [{results[name]['title']}](#{name})" for name in names)]
    for name in chain.from_iterable(groups.values()):
        found = results[name]
        parts += [f'<a id="{name}"></a>\n\n## {found["title"]}', f"[{name}.json]({name}.json)", markdown(found)]
    return "\n\n".join(parts) + "\n"


def fill(text: str, results: Mapping[str, Mapping[str, Any]], where: str = "README.md") -> str:
    """A document whose parts with results are made anew.

    Raises:
        UserError: If a part names a result that has no file.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        if name == MAIN:
            return f"{match[1]}\n{main_results(results, str(FOLDER / 'README.md'))}\n\n{match[4]}"
        if name not in results:
            raise UserError(f"{where}: there is no {FOLDER}/{name}.json behind the results '{name}'")
        return f"{match[1]}\n{markdown(results[name])}\n\n{match[4]}"

    return PART.sub(replace, text)


def typed_results(text: str) -> list[str]:
    """Lines of a document that hold results and are made from no file: sentences with an interval, headings of tables.

    A table holds results when a cell has an interval, or is a decimal number or a percentage.
    """
    text = PART.sub("", text)
    tables = [match[0] for match in TABLE.finditer(text) if MEASURED.search(match[0])]
    sentences = [line for line in TABLE.sub("", text).splitlines() if INTERVAL.search(line)]
    return [table.partition("\n")[0] for table in tables] + sentences


def main() -> int:
    """Make the Markdown of all results anew."""
    try:
        results = load()
        write_text(FOLDER / "README.md", page(results))
        for path in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
            text = path.read_text(encoding="utf-8")
            filled = fill(text, results, str(path))
            if filled != text:
                write_text(path, filled)
            for line in typed_results(filled):
                raise UserError(f"{path}: the results in '{line}' are made from no file; put them into {FOLDER}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
