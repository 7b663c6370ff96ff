"""``profile.json``: building it, its digest, writing it so that no finished row is lost, and reading it back."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.files import read_json
from lit_mmpg.profiling.schema import KIND, VERSION, problems
from lit_mmpg.writing import write_text

Document = dict[str, Any]


def digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the content without the digest itself, hexadecimal: the same measurement, wherever its file lies."""
    content = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(_dumps(content, None).encode()).hexdigest()


def save(document: Document, path: Path) -> Path:
    """Write the document in one step; an older file stays whole when that fails.

    Args:
        document: The document; its ``digest`` is set.
        path: Where to.

    Returns:
        Where it is: ``path``, or a file in the folder for temporary files where ``path`` cannot be written.

    Raises:
        OSError: If neither can be written.
    """
    document["digest"] = digest(document)
    text = _dumps(document, 1) + "\n"
    try:
        write_text(path, text, synced=True)
        return path
    except OSError as error:
        spare = Path(tempfile.gettempdir()) / f"{path.stem}-{document['digest'][:12]}{path.suffix}"
        try:
            write_text(spare, text, synced=True)
        except OSError:
            raise error from None
        return spare


def load(path: Path) -> Document:
    """Read and check a document.

    Raises:
        UserError: If the file is missing, truncated, edited, of a newer version or not a profile.
    """
    data = read_json(path, "copy it again")
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise UserError(f"{path} is no profile; 'lit-mmpg profile run' writes one")
    version = data.get("schema_version")
    if not isinstance(version, int) or version > VERSION:
        raise UserError(f"{path} has schema version {version}, this program reads up to {VERSION}; update lit-mmpg")
    found = problems(data)
    if found:
        raise UserError(f"{path} does not follow the schema: {found[0]}")
    if data["digest"] != digest(data):
        raise UserError(f"{path} was edited or damaged: its digest differs; copy it again")
    return data


@contextmanager
def telling(*files: Path) -> Iterator[None]:
    """What follows shows profiles that the schema let pass; a field that it does not know so well is told as a mistake.

    Raises:
        UserError: Instead of the errors that a missing field, or one of another kind, makes.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        names, told = ", ".join(map(str, files)), f"{type(error).__name__}: {error}"
        raise UserError(
            f"{names}: a field of a row is missing or of another kind ({told}); measure it again"
        ) from error


def _dumps(value: Any, indent: int | None) -> str:
    separators = (",", ":") if indent is None else None
    return json.dumps(value, sort_keys=indent is None, indent=indent, separators=separators, allow_nan=False)
