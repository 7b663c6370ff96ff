"""Opening annotation files so that every fault is one message that names the file, the place and the remedy."""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError

CHUNK_BYTES = 1 << 20


def require_path(path: str | Path, what: str) -> Path:
    """The path, if something is there.

    Args:
        path: File or folder; ``~`` is expanded.
        what: What it is, for the message (for example ``"clip list"``).

    Raises:
        UserError: If nothing is there; suggests the closest name that exists.
    """
    path = Path(path).expanduser()
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    message = f"{what}: {path} does not exist"
    if missing != path:
        message += f" ({missing} is missing)"
    siblings = sorted(p.name for p in missing.parent.iterdir()) if missing.parent.is_dir() else []
    close = difflib.get_close_matches(missing.name, siblings, n=1, cutoff=0.5)
    if close:
        message += f"; did you mean {missing.parent / close[0]}?"
    elif siblings:
        message += f"; {missing.parent} contains {_listed(siblings)}"
    raise UserError(message)


def require_file(path: str | Path, what: str) -> Path:
    """Like :func:`require_path`, for a file."""
    path = require_path(path, what)
    if not path.is_file():
        raise UserError(f"{what}: {path} is a folder, a file is needed")
    return path


def split_files(folder: str | Path, names: dict[str, str], what: str) -> dict[str, Path]:
    """Those split files of a layout that exist.

    Args:
        folder: Folder of the layout.
        names: Split -> file name in the folder.
        what: Name of the layout, for the message.

    Raises:
        UserError: If the folder does not exist or holds none of the files.
    """
    folder = require_path(folder, what)
    if not folder.is_dir():
        raise UserError(f"{what}: {folder} is a file, the folder that contains {_listed(names.values())} is needed")
    present = {split: folder / name for split, name in names.items() if (folder / name).is_file()}
    if not present:
        there = sorted(p.name for p in folder.iterdir())
        close = [c for name in names.values() for c in difflib.get_close_matches(name, there, n=1, cutoff=0.6)]
        hint = f"; the closest there is {folder / close[0]}" if close else ""
        raise UserError(f"{what}: {folder} contains none of {_listed(names.values())}{hint}")
    return present


def read_rows(path: Path, required: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with a header, as ``(line number, {column: stripped text})``.

    Args:
        path: The file, UTF-8.
        required: Columns that must be there, with a value in every row; further columns may be blank.
        delimiter: ``","`` (with double quotes) or a tab (no quoting).

    Raises:
        UserError: If a column is missing, a row is malformed or the file is not UTF-8 text.
    """
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if delimiter == "\t":
                reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
            else:
                reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, required)
            while True:
                line = reader.line_num + 1
                values = next(reader, None)
                if values is None:
                    return
                if not values:
                    continue
                if len(values) != len(header):
                    raise UserError(
                        f"{path}, line {line}: {len(values)} fields where the header has {len(header)} "
                        f"({', '.join(header)}); mend the line or fetch the file again"
                    )
                row = {name: value.strip() for name, value in zip(header, values, strict=True)}
                for name in required:
                    if not row[name]:
                        raise UserError(f"{path}, line {line}: column '{name}' is blank; fill it in or delete the line")
                yield line, row
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: malformed row ({error}); mend it or fetch the file again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} after line {line}); save it as UTF-8") from error


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        UserError: If it is not (or no longer completely) JSON; names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); the file may be truncated, fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); fetch it again") from error


def json_entries(path: Path, entries: Any, required: Sequence[str], where: str = "") -> Iterator[tuple[int, dict]]:
    """Entries of a JSON list of objects, as ``(number from 1, object)``.

    Args:
        path: The file they come from, for messages.
        entries: The list.
        required: Keys that each entry must have, with a value that is not blank.
        where: Name of the list inside the file, for messages.

    Raises:
        UserError: If it is not a list of objects that have the keys.
    """
    place = f"{path}, '{where}'" if where else str(path)
    if not isinstance(entries, list):
        raise UserError(f"{place}: a list of entries with {_listed(required)} is needed")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise UserError(f"{place}, entry {number}: an object with {_listed(required)} is needed")
        for key in required:
            if entry.get(key) is None or not str(entry[key]).strip():
                found = ", ".join(entry) or "nothing"
                raise UserError(f"{place}, entry {number}: field '{key}' is missing or blank (found: {found})")
        yield number, entry


def fingerprint_files(paths: Iterable[str | Path]) -> str:
    """SHA-256 over names and content of files, hexadecimal.

    Names are relative to the deepest folder that contains all of them, so a data set keeps its fingerprint when it
    is moved; the order of ``paths`` does not matter. Files are streamed, never held in memory.

    Args:
        paths: Files, and folders that stand for all files below them; at least one.

    Raises:
        UserError: If one does not exist.
    """
    given = [require_path(path, "file to fingerprint").resolve() for path in paths]
    files = {f for p in given for f in ([p] if p.is_file() else (q for q in p.rglob("*") if q.is_file()))}
    base = os.path.commonpath([p if p.is_dir() else p.parent for p in given])
    digest = hashlib.sha256()
    for name, file in sorted((f.relative_to(base).as_posix(), f) for f in files):
        content = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                content.update(chunk)
        encoded = name.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded + content.digest())
    return digest.hexdigest()


def _check_header(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    if not header:
        raise UserError(f"{path}: the file is empty; a header with {_listed(required)} is needed")
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise UserError(f"{path}: column '{repeated[0]}' occurs more than once")
    for name in required:
        if name not in header:
            raise UserError(f"{path}: column '{name}' is missing (found: {', '.join(header)})")


def _listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
