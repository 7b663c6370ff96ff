"""Opening annotation files so that every fault is one message that names the file, the place and the remedy."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from lit_mmpg.errors import UserError, collected, fault, path_of
from lit_mmpg.texts import printable

CHUNK_BYTES = 1 << 20
DELIMITERS = (",", ";", "\t")
_FOREIGN = ("@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that systems and other programs put beside everybody's files: previews, deleted files."""

Record = TypeVar("Record")


def foreign(name: str) -> bool:
    """Whether a folder or file is hidden, or what systems and other programs put beside everybody's files."""
    return name.startswith(".") or name in _FOREIGN


_SEPARATOR = re.compile(r'"?sep=([,;\t])"?\r?\n', re.IGNORECASE)

_recorded: ContextVar[set[Path] | None] = ContextVar("_recorded", default=None)


def require_path(path: str | Path, what: str) -> Path:
    """The path, if something is there.

    Args:
        path: File or folder; ``~`` is expanded.
        what: What it is, for the message (for example ``"clip list"``).

    Raises:
        UserError: If nothing is there; suggests the closest name that exists.
    """
    path = path_of(path, f"{what}:")
    if path.exists():
        return path
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    message = f"{what}: {path} does not exist"
    if missing.is_symlink():
        raise UserError(f"{message} ({missing} is a link to something that does not exist)")
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
    """Those split files of a layout that exist, of file names by split.

    Raises:
        UserError: If the folder does not exist or holds none of the files; ``what`` names the layout.
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


def read_splits(files: Mapping[str, Path], read: Callable[[Path], list[Record]]) -> dict[str, list[Record]]:
    """Records of each split's file; one that cannot be used is a fault and left out, and the others are read."""
    records: dict[str, list[Record]] = {}
    for split, file in files.items():
        with collected():
            records[split] = read(file)
    return records


@contextmanager
def recording() -> Iterator[set[Path]]:
    """Collect the files that are read inside: what a fingerprint has to cover, and nothing beside it."""
    files: set[Path] = set()
    token = _recorded.set(files)
    try:
        yield files
    finally:
        _recorded.reset(token)


def note_read(path: Path) -> None:
    """Tell :func:`recording` that a file is read.

    Raises:
        UserError: If it is a pipe, a socket or a device, on which reading would wait, perhaps for ever.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: is a pipe, a socket or a device, a file is needed; name one, or move it away")
    files = _recorded.get()
    if files is not None:
        files.add(path)


def read_text(path: Path) -> str:
    """A text file as it is, without its byte order mark.

    Raises:
        UserError: If it cannot be read, is not UTF-8 (names the line and what it says in Latin-1) or holds NUL.
    """
    note_read(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); look at its permissions") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: not UTF-8 text but UTF-16; save it as UTF-8")
    if (nul := data.find(b"\0")) >= 0:
        line = data.count(b"\n", 0, nul) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text (it holds NUL); save it as UTF-8, or fetch it again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        start = data.rfind(b"\n", 0, error.start) + 1
        said = data[max(start, error.start - 30) : error.start + 30].split(b"\n")[0].decode("latin-1").strip()
        raise UserError(
            f"{path}, line {line}: not UTF-8 text ({error.reason}; in Latin-1 it says '{said}'); save it as UTF-8"
        ) from error


def read_lines(path: Path) -> list[str]:
    """Lines of a text file, which end with a newline or a carriage return and with nothing else.

    Raises:
        UserError: See :func:`read_text`.
    """
    return read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_rows(
    path: Path, required: Sequence[str], delimiter: str | None = None, known: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with a header, as ``(line number, {column: stripped text})``; faulty rows are left out.

    Args:
        path: The file, UTF-8; JSON (a list of objects) and JSON Lines do as well, and then entries are counted.
        required: Columns that must be there, with a value in every row; further columns may be blank.
        delimiter: A tab: no quoting. ``None``: comma, semicolon or tab, as the header has it, with double quotes.
        known: Further columns that are read: the delimiter is told by them, and in JSON they hold texts or nothing.

    Raises:
        UserError: If a column is missing, the file is not UTF-8 text, or (outside ``collected``) a row is malformed.
    """
    if path.suffix.lower() in (".json", ".jsonl"):
        for number, entry in json_entries(path, read_annotations(path), required):
            unread = [key for key in known if not _is_text(entry.get(key)) and not _texts(entry[key])]
            for key in unread:
                fault(f"{path}, entry {number}: field '{key}' is no text and no list of texts; mend it")
            if not unread:
                yield number, {str(k): _cell(v) for k, v in entry.items()}
        return
    reader, line = _table(read_text(path), [*required, *known], delimiter), 1
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, required)
        while True:
            line = reader.line_num + 1
            values = next(reader, None)
            if values is None:
                return
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                fault(
                    f"{path}, line {line}: {len(values)} fields where the header has {len(header)} "
                    f"({', '.join(header)}); mend the line or fetch the file again"
                )
                continue
            row = {name: value.strip() for name, value in zip(header, values, strict=True) if name}
            blank = [name for name in required if not row[name]]
            for name in blank:
                fault(f"{path}, line {line}: column '{name}' is blank; fill it in or delete the line")
            if not blank:
                yield line, row
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: malformed row ({error}); mend it or fetch the file again") from error


def _cell(value: Any) -> str:
    """A JSON value as a table has it: nothing for null and NaN, ``a|b`` for a list of texts."""
    if _texts(value):
        return "|".join(texts_of(value))
    return str(value).strip() if told(value) else json.dumps(value) if isinstance(value, list | dict) else ""


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(told, value))


def header_of(path: Path, wanted: Sequence[str]) -> list[str]:
    """Names of the columns of a table, with the delimiter that finds most of the wanted ones."""
    with suppress(csv.Error):  # who reads the rows is told of it
        return [name.strip() for name in next(_table(read_text(path), wanted), [])]
    return []


def _table(text: str, wanted: Sequence[str], delimiter: str | None = None) -> Any:
    """A reader that stands before the header of a table: behind the line ``sep=;`` that Excel writes."""
    quoting: Any = csv.QUOTE_NONE if delimiter else csv.QUOTE_MINIMAL
    sign = delimiter or _delimiter(text, wanted)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, quoting=quoting, strict=not delimiter)
    if not delimiter and _SEPARATOR.match(text):
        next(reader)
    return reader


def _delimiter(text: str, wanted: Sequence[str]) -> str:
    """The delimiter with which the header has most of the wanted columns; a comma unless another one has more.

    A first line ``sep=;``, which Excel writes, names it.
    """
    if excel := _SEPARATOR.match(text):
        return excel[1]
    first = text[: 1 << 16].lstrip("\r\n").replace("\r", "\n").partition("\n")[0]

    def count(sign: str) -> int:
        names = {name.strip().strip('"').strip().casefold() for name in first.split(sign)}
        return len(names & {name.casefold() for name in wanted})

    return max(DELIMITERS, key=count)


def read_annotations(path: Path) -> Any:
    """Content of a JSON file; a file of JSON Lines is the list of its lines, also of one.

    Raises:
        UserError: If it is not (or no longer completely) JSON, gives a key twice, or holds half a character; names the
            line where it can.
    """
    text = read_text(path)
    try:
        content = _parsed(path, text)
        return [content] if path.suffix.lower() == ".jsonl" and isinstance(content, dict) else content
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        try:
            if len(lines) > 1 and isinstance(json.loads(lines[0][1]), dict):
                return [_json_line(path, number, line) for number, line in lines]
        except json.JSONDecodeError:
            pass
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); the file may be truncated, fetch it again"
        ) from error


def _json_line(path: Path, number: int, line: str) -> Any:
    try:
        return _parsed(path, line, f", line {number}")
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not valid JSON ({error.msg}); the file may be truncated, fetch it again"
        ) from error


_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def _parsed(path: Path, text: str, where: str = "") -> Any:
    """JSON, every key once and every character whole.

    Raises:
        UserError: If it is not so, or nested or a number too long to be read.
        json.JSONDecodeError: If it is no JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}{where}: key '{twice}' is given twice in one object; delete one of them")
        return found

    try:
        content = json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
        raise UserError(f"{path}{where}: no annotation looks like this ({error}); fetch the file again") from error
    if _HALF.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half, around = error.object[error.start], error.object[max(0, error.start - 20) : error.start]
            raise UserError(
                f"{path}{where}: behind {around!r} stands half a character ({half!r}); write the text anew"
            ) from error
    return content


def option_number(text: str, count: int) -> int | None:
    """The index, from 0, that a text is among so many options; ``None`` where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < count else None


def json_entries(
    path: Path, entries: Any, required: Sequence[str], where: str = "", lists: Collection[str] = ()
) -> Iterator[tuple[int, dict]]:
    """Entries of a JSON list of objects, as ``(number from 1, object)``; faulty entries are left out.

    Args:
        path: The file they come from, for messages.
        entries: The list.
        required: Keys that each entry must have, with one value that is not blank.
        where: Name of the list inside the file, for messages.
        lists: Those of the keys that may have a list of texts.

    Raises:
        UserError: If it is not a list of objects, or (outside ``collected``) an entry lacks a key.
    """
    place = f"{path}, '{where}'" if where else str(path)
    if not isinstance(entries, list):
        raise UserError(f"{place}: a list of entries with {_listed(required)} is needed")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            fault(f"{place}, entry {number}: an object with {_listed(required)} is needed")
            continue
        found = [_entry_fault(entry, key, key in lists) for key in required]
        for message in filter(None, found):
            fault(f"{place}, entry {number}: {message}")
        if not any(found):
            yield number, entry


def _is_text(value: Any) -> bool:
    return not isinstance(value, list | dict)


def texts_of(value: Any) -> list[str]:
    """A JSON value as texts: several where it is a list."""
    return [str(item).strip() for item in (value if isinstance(value, list) else [value])]


def _entry_fault(entry: dict, key: str, may_be_list: bool) -> str:
    value = entry.get(key)
    if isinstance(value, dict) or (isinstance(value, list) and not may_be_list):
        kind = "a list" if isinstance(value, list) else "an object"
        return f"field '{key}' is {kind}, one text is needed"
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, list | dict) for item in values):
        return f"field '{key}' holds lists inside a list, a list of texts is needed"
    if not values or not all(map(told, values)):
        return f"field '{key}' is missing or blank (found: {', '.join(entry) or 'nothing'})"
    return ""


def fingerprint_files(paths: Iterable[str | Path]) -> str:
    """SHA-256 over names and content of files, hexadecimal.

    Names are relative to the deepest folder that contains all of them, so a data set keeps its fingerprint when it
    is moved; the order of ``paths`` does not matter. Files are streamed, never held in memory.

    Args:
        paths: Files, and folders that stand for all files below them but hidden ones; at least one.

    Raises:
        UserError: If one does not exist.
    """
    given = [require_path(path, "file to fingerprint").resolve() for path in paths]
    files = {f for p in given for f in ([p] if p.is_file() else _visible_files(p))}
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


def walk(
    folder: Path, refuse: Callable[[str], None] = fault, links: bool = False
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """A folder and those below it, each with its subfolders and files in order, as ``os.walk`` has them.

    :func:`foreign` folders are left out.

    Args:
        folder: The folder.
        refuse: Is told of each folder that cannot be read.
        links: Look into linked folders, too; into each folder once.
    """
    walked: set[str] = set()

    def unseen(error: OSError) -> None:
        name = printable(error.filename)
        refuse(f"{name}: the folder cannot be read ({error.strerror}); look at its permissions")

    for place, folders, names in os.walk(folder, onerror=unseen, followlinks=links):
        walked.add(os.path.realpath(place))
        kept = [name for name in folders if not foreign(name)]
        folders[:] = sorted(n for n in kept if not links or os.path.realpath(os.path.join(place, n)) not in walked)
        yield Path(place), folders, sorted(names)


def told(value: Any) -> bool:
    """Whether a JSON value says something: it is no list or object, and neither null, NaN nor blank."""
    return _is_text(value) and value is not None and value == value and bool(str(value).strip())


def _visible_files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and not any(n[0] == "." for n in p.relative_to(folder).parts)]


def _check_header(path: Path, header: Sequence[str], required: Sequence[str]) -> None:
    if not header:
        names = f" with {_listed(required)}" if required else ""
        raise UserError(f"{path}: the file is empty; a header{names} is needed")
    repeated = sorted({name for name in header if name and header.count(name) > 1})  # tables end in nameless columns
    if repeated:
        raise UserError(f"{path}: column '{repeated[0]}' occurs more than once; rename or delete one of them")
    missing = [name for name in required if name not in header]
    if missing:
        said = ", ".join(f"column '{name}' is missing" for name in missing)
        raise UserError(f"{path}: {said} (found: {', '.join(header)})")


def _listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
