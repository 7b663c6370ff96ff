"""Results as files: one small JSON for each table, from which Markdown is made, so that no number is typed by hand.

``python -m lit_mmpg.results`` writes ``docs/results/README.md`` from ``docs/results/*.json`` and fills every part of
``README.md`` between ``<!-- results: NAME -->`` and ``<!-- end of results -->`` with the table of ``NAME.json``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """One table of results with where it comes from.

    Args:
        title: Heading of the table.
        command: Command that computes it, as a user types it.
        columns: Headings.
        rows: Cells of each row, as they are shown.
        commit: Commit of the code.
        notes: Sentences below the table.
        fields: What else is worth keeping: seeds, exact values, readings of the test split.
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
    """The page of all results."""
    parts = ["# Results", "Made from the files beside this page by `make results`."]
    for name, found in results.items():
        parts += [f'<a id="{name}"></a>\n\n## {found["title"]}', f"[{name}.json]({name}.json)", markdown(found)]
    return "\n\n".join(parts) + "\n"


def fill(text: str, results: Mapping[str, Mapping[str, Any]], where: str = "README.md") -> str:
    """A document whose parts with results are made anew.

    Raises:
        UserError: If a part names a result that has no file.
    """

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
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
        results, readme = load(), Path("README.md")
        text = fill(readme.read_text(encoding="utf-8"), results)
        write_text(FOLDER / "README.md", page(results))
        write_text(readme, text)
        for line in typed_results(text):
            raise UserError(f"{readme}: the results in '{line}' are made from no file; put them into {FOLDER}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
