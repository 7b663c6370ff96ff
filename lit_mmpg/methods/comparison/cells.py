"""Cells of a comparison: the result of one row and seed, kept on disk so that it is never computed twice.

A cell is two files, ``NAME-seedS.safetensors`` (values of single items) and ``NAME-seedS.json``, which is written last
and in one step: a cell exists when it is whole, whatever kills the process. ``NAME-seedS.started`` says since when the
cell has been in work, so that a training that was cut short goes on from its last checkpoint. The process that computes
the cell holds ``NAME-seedS.lock``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lit_mmpg.writing import tensors_as_bytes, write_bytes, write_text

if TYPE_CHECKING:
    from lit_mmpg.device.evaluation import Evaluation

CELL_VERSION = 3
"""Raise it when cells of an older version must not be reused."""
ADAPTED_VERSION = 4
"""The same for cells of methods that adapt a checkpoint, which are cheap to compute again."""


@dataclass
class Cell:
    """Results of one row and seed.

    Attributes:
        rows: Result rows of the test; ``own`` marks those of the row itself, the others belong to its controls.
        items: ``method|split|metric`` -> ``[n]`` values; ``method|split|device`` and ``method|split|clip`` -> ``[n]``.
        checkpoint: Best checkpoint; empty where nothing was trained.
        seed: The seed.
        data: Fingerprint of the data and of the dealing: items of cells with the same one are the same items.
        corpus: Fingerprint of the data alone: clips of cells with the same one are the same clips.
        devices: Names of the devices, by index.
        run_id: MLflow run of the training (or of the adaptation).
        test_run_id: MLflow run of the test.
        uri: MLflow store of these runs.
        seconds: Wall time of the whole cell.
        costs: What one device pays (:mod:`lit_mmpg.methods.costs`), by method of the test.
        notes: How the model was selected, and whatever else the report should say.
        code: ``commit`` and ``digest`` of the code that made the cell; nothing where that was not noted.
    """

    rows: list[dict[str, Any]]
    items: dict[str, np.ndarray] = field(default_factory=dict)
    checkpoint: str = ""
    seed: int = 0
    data: str = ""
    corpus: str = ""
    devices: list[str] = field(default_factory=list)
    run_id: str | None = None
    test_run_id: str | None = None
    uri: str | None = None
    seconds: float = 0.0
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)

    def method(self, wanted: str | None) -> str | None:
        """Name within the cell of a control, or (``None``) of the row's own method."""
        for row in self.rows:
            if row["own"] if wanted is None else row["method"] == wanted:
                return str(row["method"])
        return None

    def add(
        self, rows: Sequence[Mapping[str, Any]], evaluation: Evaluation, methods: Sequence[str], further: str = ""
    ) -> None:
        """Add what a reading of the test split found.

        Args:
            rows: Its result rows.
            evaluation: Its items.
            methods: Its methods; the first is the cell's own.
            further: Name of a further reading: ``test_unseen`` is ``test_NAME`` then, ``test_seen`` is
                ``test_NAME_seen``.
        """

        def named(group: str) -> str:
            rest = group.removeprefix("test_")
            return "_".join(["test", further, *([] if rest == "unseen" else [rest])]) if further else group

        self.rows += [{**row, "own": row["method"] == methods[0], "split": named(row["split"])} for row in rows]
        for group in evaluation.groups:
            for method in methods:
                items = evaluation.items(group, method)
                for name, values in {"device": items.device, "clip": items.clip, **items.values}.items():
                    self.items[f"{method}|{named(group)}|{name}"] = np.ascontiguousarray(values)


class CellStore:
    """The cells of one comparison, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str, seed: int) -> Path:
        """Path of a cell, without a suffix."""
        return self.folder / f"{name}-seed{seed}"

    def read(self, name: str, seed: int) -> tuple[str, Cell] | None:
        """Digest and values of a finished cell, whatever its settings; None where there is none."""
        path = self.path(name, seed)
        known = {entry.name for entry in fields(Cell)} - {"items"}
        try:
            stored = json.loads(_suffixed(path, "json").read_text(encoding="utf-8"))
            cell = Cell(**{key: value for key, value in stored.items() if key in known})
            cell.items = load_file(_suffixed(path, "safetensors"))
            return str(stored["digest"]), cell
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def load(self, name: str, seed: int, digest: str) -> Cell | None:
        """A finished cell with the same settings and data, whose checkpoint is still there, or None."""
        found = self.read(name, seed)
        if found is None or found[0] != digest:
            return None
        cell = found[1]
        return None if cell.checkpoint and not Path(cell.checkpoint).is_file() else cell

    def save(self, name: str, digest: str, cell: Cell) -> None:
        """Write a finished cell."""
        path = self.path(name, cell.seed)
        partial = _suffixed(path, "safetensors.part")
        write_bytes(partial, tensors_as_bytes(cell.items))
        _suffixed(path, "json").unlink(missing_ok=True)  # of an older cell, which must not vouch for these values
        partial.replace(_suffixed(path, "safetensors"))
        values = {key: value for key, value in asdict(cell).items() if key != "items"}
        write_text(_suffixed(path, "json"), json.dumps({"digest": digest, **values}))
        _suffixed(path, "started").unlink(missing_ok=True)

    def begin(self, name: str, seed: int, digest: str, fresh: bool = False) -> int:
        """Note that a cell is in work; ``fresh`` forgets that it was begun before.

        Returns:
            Since when it has been in work with these settings (``digest``), milliseconds since 1970.
        """
        path = _suffixed(self.path(name, seed), "started")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not fresh:
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                if stored["digest"] == digest:
                    return int(stored["since_ms"])
            except (OSError, ValueError, KeyError):
                pass
        since = int(time.time() * 1000)
        write_text(path, json.dumps({"digest": digest, "since_ms": since}))
        return since

    @contextmanager
    def locked(self, name: str, seed: int) -> Iterator[None]:
        """Hold a cell while it is computed: a process that wants the same one waits, and finds it finished.

        The lock is ``flock``, which network file systems hold across hosts (NFS from version 4 on); it is gone with
        the process that holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with _suffixed(self.path(name, seed), "lock").open("w") as file, _exclusive(file):
            yield

    def forget(self, name: str, seed: int) -> None:
        """Let a cell be computed anew."""
        for suffix in ("json", "started"):
            _suffixed(self.path(name, seed), suffix).unlink(missing_ok=True)

    def count_read(self, name: str, seed: int, digest: str, split: str) -> None:
        """Note, before it happens, that the test split is read; the file is only ever appended to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entry = {"row": name, "seed": seed, "digest": digest, "split": split, "time": round(time.time(), 1)}
        with (self.folder / "test_reads.jsonl").open("a", encoding="utf-8") as file, _exclusive(file):
            file.write(json.dumps(entry) + "\n")
            file.flush()

    def reads(self) -> list[dict[str, Any]]:
        """All readings of the test split so far."""
        try:
            lines = (self.folder / "test_reads.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:  # the process was killed in the middle of the line
                continue
        return found

    def parent(self, uri: str) -> str | None:
        """MLflow run id of the comparison in a store, if it has one already."""
        try:
            return dict(json.loads((self.folder / "parent.json").read_text(encoding="utf-8"))).get(uri)
        except (OSError, ValueError):
            return None

    def keep_parent(self, uri: str, run_id: str) -> None:
        """Remember the MLflow run of the comparison."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "parent.json", json.dumps({uri: run_id}))


@contextmanager
def _exclusive(file: IO[str]) -> Iterator[None]:
    with suppress(ImportError, OSError):  # a system or file system without locks
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _suffixed(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")
