"""``lit-mmpg methods``: which methods can adapt a finished checkpoint, and to which tasks each applies."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from lit_mmpg.report import check_output


def main(argv: Sequence[str]) -> int:
    """Print the matrix of methods and tasks.

    Raises:
        UserError: If the output file or a method's name is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="lit-mmpg methods",
        description="List the methods that adapt a finished checkpoint, as 'adapted' of a comparison file names them: "
        "their setting, what they are given of a device's earlier clips, and the tasks they apply to.",
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", help="methods to list; all when not given")
    parser.add_argument("--output", help="JSON file for the rows of the table")
    options = parser.parse_args(list(argv))
    check_output(options.output)
    # Torch is imported only now, so that help and mistakes are answered at once.
    from rich.table import Table

    from lit_mmpg.methods.registry import TASKS, applicability, find_method
    from lit_mmpg.report import wide_console

    matrix = applicability(options.names)
    table = Table(title="Methods that adapt a finished checkpoint", show_lines=True)
    for title in ("method", "setting", "given", "backward", *TASKS, "options", "source"):
        table.add_column(title.replace("_", " "), overflow="fold")
    for row in matrix:
        method = find_method(row["method"])
        tasks = [row[task] if row[task] == "yes" else f"n/a: {row[task]}" for task in TASKS]
        backward = "yes" if method.backward else "no"
        table.add_row(
            row["method"], row["setting"], row["knows"], backward, *tasks, ", ".join(method.grid), row["paper"]
        )
    wide_console().print(table)
    if options.output:
        Path(options.output).write_text(json.dumps({"rows": matrix}, indent=2) + "\n", encoding="utf-8")
    return 0
