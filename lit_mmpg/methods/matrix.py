"""``lit-mmpg methods``: which methods can adapt a finished checkpoint, and to which tasks each applies."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from lit_mmpg.report import check_output, json_alone, rows_text, wide_console, write_rows


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
    parser.add_argument("--json", action="store_true", help="print the rows as JSON to stdout, and no table")
    options = parser.parse_args(list(argv))
    check_output(options.output)
    # Torch is imported only now, so that help and mistakes are answered at once.
    from rich.table import Table

    from lit_mmpg.methods.registry import applicability, find_method
    from lit_mmpg.tasks import all_tasks

    with json_alone(options.json) as write:
        matrix = applicability(options.names)
        if not options.json:
            table = Table(title="Methods that adapt a finished checkpoint", show_lines=True, pad_edge=False)
            for title in ("method", "tasks", "what"):
                table.add_column(title, overflow="fold")
            for row in matrix:
                method = find_method(row["method"])
                names = [task.name for task in all_tasks()]
                said = {task: row[task] if row[task] == "yes" else f"n/a: {row[task]}" for task in names}
                tasks = [f"{task.replace('_', ' ')} {text}" for task, text in said.items()]
                what = [f"{row['setting']}{', backward pass' if method.backward else ''}; is given: {row['knows']}"]
                what += [f"options: {', '.join(method.grid)}"] if method.grid else []
                what += [row["paper"]] if row["paper"] else []
                table.add_row(row["method"], "\n".join(tasks), "\n".join(what))
            wide_console(80).print(table)
        if options.output:
            write_rows(matrix, options.output)
        write(rows_text(matrix))
    return 0
