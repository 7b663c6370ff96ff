"""Which code made a cell: the commit, and a digest of the sources that decide what a cell holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import lit_mmpg
from lit_mmpg.data.readers.files import fingerprint_files
from lit_mmpg.tracking.address import git_commit

FOLDERS = ("cloud", "data", "device", "link", "methods", "metrics", "training")
"""Packages that decide the numbers of a cell, beside the modules at the top."""
REPORT = "methods/comparison"
"""How a table looks is no part of it; the two modules below make the cells."""
MAKING = ("cells.py", "work.py")


def sources(package: Path) -> list[Path]:
    """The source files that decide what a cell holds."""
    files = [*package.glob("*.py"), *(file for folder in FOLDERS for file in (package / folder).rglob("*.py"))]
    report = package / REPORT
    return sorted(file for file in files if report not in file.parents or file.name in MAKING)


@lru_cache(maxsize=1)
def code_here() -> dict[str, str]:
    """``commit`` (empty outside a checkout) and ``digest`` of the code that this process runs, as it was at first."""
    return {"commit": git_commit() or "", "digest": fingerprint_files(sources(Path(lit_mmpg.__file__).parent))}


def code_lines(cells: Mapping[str, Mapping[int, Mapping[str, str]]], always: bool = False) -> list[str]:
    """A sentence that says so where the cells of a table were made by different code.

    Args:
        cells: Row -> seed -> ``commit`` and ``digest``; nothing for a cell that did not keep them.
        always: Name the code where all cells were made by the same, too.
    """
    made: dict[str, dict[str, list[int]]] = {}
    commits: dict[str, set[str]] = {}
    for row, by_seed in cells.items():
        for seed, code in by_seed.items():
            digest = code.get("digest", "")
            made.setdefault(digest, {}).setdefault(row, []).append(seed)
            commits.setdefault(digest, set()).add(code.get("commit", ""))
    names = {digest: _name(digest, commits[digest]) for digest in made}
    if len(made) < 2:
        return [f"All cells were made by {name}." for name in names.values() if always]
    rows = [
        f"{name}: " + ", ".join(f"{row} ({' '.join(map(str, seeds))})" for row, seeds in made[digest].items())
        for digest, name in names.items()
    ]
    made_by = "; by ".join(rows)
    return [f"Cells of this table were made by different code; --fresh makes them anew. Rows (seeds) by {made_by}."]


def _name(digest: str, commits: set[str]) -> str:
    if not digest:
        return "code that was not noted"
    known = ", ".join(
        sorted(commit[:12] + ("-dirty" if commit.endswith("-dirty") else "") for commit in commits if commit)
    )
    return f"code {digest[:12]}" + (f" (commit {known})" if known else "")
