"""``lit-mmpg init-data``: from a folder of videos and one table to a data set that ``fit`` reads. No torch.

The table is checked against the videos, everything that is wrong with it is said at once, and what it leaves open
(splits, ids, sizes of batches, epochs) is decided by rules that are printed.
"""

from __future__ import annotations

import argparse
import csv
import difflib
import hashlib
import io
import itertools
import os
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from lit_mmpg.data.readers import Names
from lit_mmpg.data.readers.files import json_entries, read_annotations, read_rows, require_path, texts_of, told
from lit_mmpg.data.readers.identity import clip_files
from lit_mmpg.data.readers.qa_csv import OPTION_SEPARATOR, correct_option
from lit_mmpg.errors import UserError, collected, fault
from lit_mmpg.records import SPLITS, Place
from lit_mmpg.tasks import all_tasks, find_task
from lit_mmpg.writing import write_text

TABLES = (".csv", ".tsv", ".json", ".jsonl")
COLUMNS = ("video", "question", "answer", "options", "caption", "owner", "split", "qid", "type")
SPLIT_NAMES = {"training": "train", "testing": "test"} | dict.fromkeys(("validation", "valid", "dev"), "val")
HELD_OUT = 5
"""One in so many clips or owners is held out for validation, and again for test."""
SMALL = 500
"""With fewer training texts every word counts, and a closed-form start has too little to stand on."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        clip: Id of its clip.
        texts: Column -> text.
        captions: Captions of the clip.
        options: Candidate answers.
        place: Where it stands.
    """

    clip: str
    texts: Mapping[str, str]
    captions: tuple[str, ...]
    options: tuple[str, ...]
    place: Place

    def __getitem__(self, column: str) -> str:
        return self.texts.get(column, "")


@dataclass(frozen=True)
class OwnData:
    """The table, checked.

    Attributes:
        rows: Its rows.
        owner: Clip -> owner; empty where nobody says.
        split: Clip -> split.
        silent: Videos that no row names.
        notes: What was decided.
    """

    rows: list[Row]
    owner: dict[str, str]
    split: dict[str, str]
    silent: list[str]
    notes: list[str]

    def owners(self, split: str) -> list[str]:
        """Owners of the clips of a split, sorted."""
        return sorted({self.owner[clip] for clip, part in self.split.items() if part == split and clip in self.owner})

    def clips(self, split: str) -> list[str]:
        """Clips of a split, in the order of the table."""
        return [clip for clip, part in self.split.items() if part == split]

    @property
    def task(self) -> str:
        """What the table asks."""
        questions, options = (any(row["question"] for row in self.rows), any(row.options for row in self.rows))
        return next(task.name for task in all_tasks() if task.fits_table(questions, options))


def read_own(folder: str | Path, table: str | Path | None = None, owner: str = "owner") -> OwnData:
    """Read a table about the videos of a folder.

    Args:
        folder: Folder of videos; subfolders are looked into.
        table: CSV, TSV, JSON or JSON Lines; ``None``: the only such file in the folder.
        owner: Column that says whose device filmed a clip; without it, subfolders are owners.

    Raises:
        UserError: One report of everything that is wrong, or too few clips to train and validate.
    """
    folder = require_path(folder, "folder of videos")
    if not folder.is_dir():
        raise UserError(f"folder of videos: {folder} is a file, the folder that it lies in is needed")
    with collected() as faults:
        files = clip_files(folder)
        for file in files.values():
            try:
                size_bytes = file.stat().st_size
                if not file.is_file():
                    fault(f"{file}: is a folder, a pipe or a device, a video file is needed; rename it or move it away")
                elif not size_bytes:
                    fault(f"{file}: the video is empty; copy it again, or delete it")
            except OSError as error:
                fault(f"{file}: cannot be read ({error.strerror}); copy it again, or delete it")
        path = _find_table(folder, table)
        named: set[str] = set()
        rows = list(_read_rows(path, Names(files), files, folder, owner, named))
        if faults.broken:
            rows = []
        elif not rows and not faults:
            fault(f"{path}: no row below the header")
        owners = _of_clips(rows, owner) or _folders(files)
        splits = _of_clips(rows, "split")
        _check_ids(rows)
        _check_files(rows, files)
        silent = sorted(set(files) - named)
        if faults and silent and not faults.broken:
            fault(f"{folder}: no row names {len(silent)} of its videos, first {', '.join(silent[:5])} (they may stay)")
    notes: list[str] = []
    clips = list(dict.fromkeys(row.clip for row in rows))
    owned = {clip: owners[clip] for clip in clips if clip in owners}
    split = _decide_splits(clips, owned, splits, notes)
    if not {"train", "val"} <= set(split.values()):
        raise UserError(
            f"{path}: of {len(clips)} clips none is left for training or for validation; add clips (at least three), "
            "or give more of them the split 'train'"
        )
    return OwnData(rows, owned, split, silent, notes)


def _check_files(rows: Sequence[Row], files: Mapping[str, Path]) -> None:
    """Two names of one file, by links, would be two clips: one of them trained on, the other tested on."""
    known: dict[tuple[int, int], Path] = {}
    for file in dict.fromkeys(files[row.clip] for row in rows):
        with suppress(OSError):  # which is told
            found = file.stat()
            other = known.setdefault((found.st_dev, found.st_ino), file)
            if other is not file:
                fault(f"{file}: is the same file as {other}, by a link; name one of them in the table")


def _find_table(folder: Path, table: str | Path | None) -> Path:
    if table is not None:
        path = require_path(table, "--table")
    else:
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in TABLES and not p.name.startswith("."))
        if len(found) != 1:
            what = f"{len(found)} tables ({', '.join(p.name for p in found[:5])})" if found else "no table"
            raise UserError(f"{folder}: holds {what}; name the one of your questions with --table FILE.csv")
        path = found[0]
    if path.suffix.lower() not in TABLES:
        raise UserError(f"--table {path}: the table must be {', '.join(TABLES[:-1])} or {TABLES[-1]}")
    return path


def _read_rows(
    path: Path, names: Names, files: Mapping[str, Path], folder: Path, owner: str, named: set[str]
) -> Iterator[Row]:
    """Rows that name a video of the folder and say something about it; the others are faults.

    ``named`` collects the videos that any row names.
    """
    header_checked = False
    for place, values in _entries(path, owner):
        if not header_checked:
            _check_columns(path, values, owner)
            header_checked = True
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        captions = tuple(filter(None, texts_of(values.get("caption") or "")))
        given = values.get("options") or ""
        options = tuple(o.strip() for o in (given if isinstance(given, list) else given.split(OPTION_SEPARATOR)))
        row = Row(names.find(texts["video"]), texts, captions, tuple(filter(None, options)), place)
        named.add(row.clip)
        if row.clip not in files:
            close = difflib.get_close_matches(texts["video"], [p.name for p in files.values()], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else "; mend the name or delete the row"
            fault(f"{place}: video '{texts['video']}' is not in {folder}{hint}")
        elif None in values.values():
            pass  # a list where one text is needed, which is told already
        elif not row["question"] and not captions:
            fault(f"{place}: neither a question nor a caption; fill one in or delete the row")
        elif row["question"] and not row["answer"]:
            fault(f"{place}: column 'answer' is blank; fill it in or delete the row")
        elif bad := [option for option in row.options if OPTION_SEPARATOR in option]:
            fault(f"{place}: option '{bad[0]}' holds '{OPTION_SEPARATOR}', which separates options; write it otherwise")
        elif row.options and correct_option(row.options, row["answer"]) is None:
            fault(f"{place}: the answer '{row['answer']}' is none of the options {', '.join(row.options)}")
        else:
            yield row


def _entries(path: Path, owner: str) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Rows of the table as they are, by columns in lower case; lists stay where a column may have several texts.

    A value that is a fault is ``None``.
    """
    if path.suffix.lower() in (".csv", ".tsv"):
        for line, row in read_rows(path, (), known=(*COLUMNS, owner)):
            cells = {name if name == owner else name.lower(): text for name, text in row.items()}
            if len(cells) < len(row):
                raise UserError(
                    f"{path}: two columns differ in case alone (found: {', '.join(row)}); rename one of them"
                )
            yield Place(path, line), cells
        return
    lists = ("caption", "options")
    for number, entry in json_entries(path, read_annotations(path), ("video",), lists=lists):
        values: dict[str, Any] = {}
        for name, value in entry.items():
            key = name if name == owner else str(name).lower()
            if key in values:
                fault(f"{path}, entry {number}: field '{key}' is given twice, also as '{name}'; delete one of them")
            if isinstance(value, list | dict) and not (isinstance(value, list) and key in lists):
                if key in (*COLUMNS, owner):
                    fault(f"{path}, entry {number}: field '{name}' is a list or an object, one text is needed")
                    values[key] = None
            elif isinstance(value, list):
                if not all(map(told, value)):
                    what = f"field '{name}' is not a list of texts; fill in or delete what is none"
                    fault(f"{path}, entry {number}: {what}")
                values[key] = texts_of(value)
            else:
                values[key] = "" if value is None or value != value else str(value).strip()
        yield Place(path, number, "entry"), values


def _check_columns(path: Path, values: Mapping[str, Any], owner: str) -> None:
    """Whether the columns are there.

    Raises:
        UserError: If not.
    """
    missing = [name for name in ("video",) if name not in values]
    if "question" in values and "answer" not in values:
        missing.append("answer")
    if "question" not in values and "caption" not in values:
        missing.append("question (with answer) or caption")
    if owner != "owner" and owner not in values:
        missing.append(owner)
    hints = [close for name in missing for close in difflib.get_close_matches(name, values, n=1)]
    if missing:
        raise UserError(
            f"{path}: column {' and column '.join(missing)} is missing (found: {', '.join(values)})"
            + (f"; rename '{hints[0]}'?" if hints else "")
        )


def _of_clips(rows: Sequence[Row], column: str) -> dict[str, str]:
    """What a column says of each clip; two values for one clip are a fault, and so are some that are blank."""
    said: dict[str, tuple[str, Place]] = {}
    known = any(row[column] for row in rows)
    for row in rows:
        value = unicodedata.normalize("NFC", row[column])
        if column == "split":
            value = SPLIT_NAMES.get(value.lower(), value.lower())
            if value and value not in SPLITS:
                fault(f"{row.place}: split '{row[column]}' is unknown; one of {', '.join(SPLITS)} is needed")
                continue
        if known and not value:
            fault(f"{row.place}: column '{column}' is blank, other rows have it; fill it in")
        elif known:
            before, place = said.setdefault(row.clip, (value, row.place))
            if before != value:
                fault(
                    f"{row.place}: '{row['video']}' has {column} '{value}', but '{before}' in {place.unit} "
                    f"{place.line}; a clip has one"
                )
    return {clip: value for clip, (value, _) in said.items()}


def _folders(files: Mapping[str, Path]) -> dict[str, str]:
    """Subfolders as owners, where every video is in one of several."""
    folders = {clip: clip.partition("/")[0] for clip in files if "/" in clip}
    return folders if len(folders) == len(files) and len(set(folders.values())) > 1 else {}


def _check_ids(rows: Iterable[Row]) -> None:
    first: dict[str, Place] = {}
    for row in rows:
        if row["qid"] and first.setdefault(row["qid"], row.place) != row.place:
            place = first[row["qid"]]
            fault(f"{row.place}: qid '{row['qid']}' is given a second time, after {place.unit} {place.line}")


def _shuffled(names: Iterable[str]) -> list[str]:
    """An order that does not depend on the machine, on other names, or on what the names mean."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def _decide_splits(
    clips: Sequence[str], owner: Mapping[str, str], given: Mapping[str, str], notes: list[str]
) -> dict[str, str]:
    """Split of each clip: as given; else whole owners are held out; else clips."""
    if given:
        split = {clip: given[clip] for clip in clips}
        if "val" not in split.values():
            train = [clip for clip in clips if split[clip] == "train"]
            taken = _some(train, owner)
            split |= dict.fromkeys(taken, "val")
            first = ", ".join(taken[:5]) + (", ..." if len(taken) > 5 else "")
            notes.append(f"no row says 'val': {len(taken)} of {len(train)} training clips become val ({first})")
        return split
    owners = _shuffled(set(owner.values()))
    if len(owners) >= 3:
        share = max(1, len(owners) // HELD_OUT)
        part_of = {name: ("val", "test", "train")[min(i // share, 2)] for i, name in enumerate(owners)}
        split = {clip: part_of[owner[clip]] for clip in clips}
        large = Counter(owner[clip] for clip in clips if split[clip] == "train")
        again = _some([c for c in clips if split[c] == "train" and large[owner[c]] >= HELD_OUT], owner)
        split |= dict.fromkeys(again, "test")
        notes.append(
            "splits by owner: those of val and test are new to the model"
            + (f"; {len(again)} clips of training owners are tested, too" if again else "")
        )
        return split
    order = _shuffled(clips)
    share = max(1, len(order) // HELD_OUT)
    notes.append(
        "splits by clip, since no three owners are named: no device is new to the model"
        if owners
        else "splits by clip, since no column names owners"
    )
    part_of = {clip: ("val", "test", "train")[min(i // share, 2)] for i, clip in enumerate(order)}
    return {clip: part_of[clip] for clip in clips}


def _some(clips: Sequence[str], owner: Mapping[str, str]) -> list[str]:
    """One in :data:`HELD_OUT` clips, at least one, spread over owners, none of whom loses all."""
    by_owner: dict[str, list[str]] = defaultdict(list)
    for clip in _shuffled(clips):
        by_owner[owner.get(clip, "")].append(clip)
    turns = itertools.zip_longest(*(own[:-1] for own in by_owner.values()))
    spare = [clip for turn in turns for clip in turn if clip is not None]
    return spare[: max(1, len(clips) // HELD_OUT)]


def configurations(data: OwnData, root: str, name: str) -> dict[str, dict[str, Any]]:
    """The experiment files of both halves, by file name; ``root`` is the folder as a configuration names it."""
    train, task = data.clips("train"), find_task(data.task)
    counts = Counter(data.owner[clip] for clip in train if clip in data.owner)
    texts = sum(1 + len(row.captions) for row in data.rows if data.split[row.clip] == "train")
    if data.owner:
        dealing: dict[str, Any] = {"kind": "column", "column": "owner", "unseen_share": 0.0}
        devices, each = len(counts), median(counts.values())
    else:
        devices, each = _within(len(train) // 8, 2, 64), 8
        dealing = {
            "kind": "dirichlet",
            "column": "clusters",
            "clusters": _within(len(train) // 2, 1, 20),
            "train_devices": devices,
            "val_devices": _within(len(data.clips("val")) // 4, 1, 12),
            "test_devices": _within(len(data.clips("test")) // 4, 1, 20),
        }
    clips = _within(int(each) // 2, 1, 4)  # of a device with few clips, some must be left for the context
    batch = {
        "devices": _within(devices, 1, 16),
        "clips": clips,
        "context_clips": _within(int(each) - clips, 1, 16),
        "max_words": task.max_words,
        "eval_devices": 4,
        "eval_clips": 16,
    }
    arguments: dict[str, Any] = {"task": task.name, "root": root, "features": "features.h5", "clips": "clips.csv"}
    if not task.searches:
        arguments["questions"] = [{"layout": "qa_csv", "path": "qa"}]
    if any(row.captions for row in data.rows):
        arguments["captions"] = [{"layout": "captions_csv", "path": "captions.csv"}]
    arguments |= {"dealing": dealing, "min_count": 1 if texts < SMALL else 2, "batch": batch}
    steps = max(1, len(train) // (clips * batch["devices"]))
    epochs = _within(400 // steps, 10, 60)
    section = {"class_path": "VideoData", "init_args": arguments}
    return {
        f"{name}_device.yaml": {
            "data": section,
            "model": task.device_model(texts, SMALL),
            "trainer": _trainer(epochs),
        },
        f"{name}.yaml": {
            "data": section,
            "model": "configs/model/cloud_video.yaml",
            "trainer": _trainer(max(5, epochs // 2)),
            "device_stage": f"{name}_device.yaml",
        },
    }


def _trainer(epochs: int) -> list[Any]:
    return ["configs/trainer/default.yaml", {"max_epochs": epochs, "check_val_every_n_epoch": max(1, epochs // 10)}]


def _within(value: int, least: int, most: int) -> int:
    return max(least, min(most, value))


def write_own(data: OwnData, output: Path, root: str) -> Path:
    """Write the data set: clip list, questions, captions and the experiment files of both halves.

    The folder is ``output``, which the configuration names ``root``.

    Returns:
        The experiment file of both halves.

    Raises:
        UserError: If the folder holds another data set.
    """
    main_file = output / f"{output.name}.yaml"
    if (output / "clips.csv").exists() and not main_file.exists():
        raise UserError(f"--output {output}: holds another data set (clips.csv); name another folder")
    numbered = [(row, row["qid"] or f"q{i}") for i, row in enumerate(data.rows, 1)]
    _write_table(
        output / "clips.csv",
        ("video", "split", *(["owner"] if data.owner else [])),
        [(c, s, *([data.owner[c]] if data.owner else [])) for c, s in data.split.items()],
    )
    choice = find_task(data.task).takes_options
    if not find_task(data.task).searches:
        for split in SPLITS:
            asked = [(r, qid) for r, qid in numbered if r["question"] and data.split[r.clip] == split]
            _write_table(
                output / "qa" / f"{split}.csv",
                ("video", "question", "answer", "qid", "type", *(["options"] if choice else [])),
                [
                    (
                        row.clip,
                        row["question"],
                        row.options[correct_option(row.options, row["answer"]) or 0] if row.options else row["answer"],
                        qid,
                        row["type"],
                        *([OPTION_SEPARATOR.join(row.options)] if choice else []),
                    )
                    for row, qid in asked
                ],
            )
    captions = [(row.clip, caption) for row in data.rows for caption in row.captions]
    if captions:
        _write_table(output / "captions.csv", ("video", "caption"), captions)
    for name, config in configurations(data, root, output.name).items():
        write_text(output / name, yaml.safe_dump(config, sort_keys=False, allow_unicode=True, default_flow_style=None))
    return main_file


def _write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([str(cell).replace("\r\n", "\n").replace("\r", "\n") for cell in row] for row in rows)
    write_text(path, text.getvalue())


def main(argv: Sequence[str]) -> int:
    """Make the data set.

    Raises:
        UserError: If something is wrong with the videos or the table: one report.
    """
    options = _parser().parse_args(list(argv))
    folder = Path(options.folder)
    root = options.output or f"{folder.absolute().name}-data"
    if os.path.realpath(root) == os.path.realpath(folder) or (os.path.lexists(root) and not os.path.isdir(root)):
        raise UserError(f"--output {root}: is the folder of videos, or no folder; name another folder")
    data = read_own(folder, options.table, options.owner)
    written = write_own(data, Path(root), root)
    print(f"{len(data.split)} clips, {len(data.rows)} rows, task {data.task.replace('_', '-')}")
    for split in SPLITS:
        names = data.owners(split)
        said = f" of {len(names)} owners ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
        print(f"  {split:<5} {len(data.clips(split))} clips{said}")
    for note in data.notes:
        print(f"  {note}")
    if data.silent:
        print(f"  no row names {len(data.silent)} of the videos, which are not used: {', '.join(data.silent[:5])}")
    print(
        f"written: {root}/clips.csv and {written}, yours to change. Next (ENCODER: a folder or hub name of a vision "
        "encoder, for example google/mobilenet_v2_1.0_224):\n"
        f"  lit-mmpg extract --videos {shlex.quote(str(folder))} --encoder ENCODER "
        f"--output {shlex.quote(f'{root}/features.h5')}\n"
        f"  lit-mmpg fit --config {shlex.quote(str(written))}\n"
        "  lit-mmpg test --ckpt_path CKPT    (the checkpoint that fit names at its end)"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lit-mmpg init-data",
        description="Make a data set of a folder of videos and one table about them, for extract and fit.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="columns of the table (CSV with comma, semicolon or tab; JSON or JSON Lines):\n"
        "  video     file in the folder, with or without its suffix (needed)\n"
        "  question  and answer: what is asked, one row each\n"
        "  options   candidate answers, separated by |: multiple choice\n"
        "  caption   a sentence about the video: text-video retrieval, where there are no questions\n"
        "  owner     whose device filmed it: one device for each owner (else subfolders, else clusters of features)\n"
        "  split     train, val or test; else a fifth of the owners is held out for val, and again for test\n"
        "  qid, type id and type of the question\n\n"
        "All problems are reported at once, with their lines. Exit status: 0 written, 2 something is wrong.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="folder of video files, with subfolders")
    parser.add_argument("--table", metavar="FILE", help="the table (default: the only one in FOLDER)")
    parser.add_argument(
        "--owner", default="owner", metavar="COLUMN", help="column that names the owner (default: owner)"
    )
    parser.add_argument(
        "--output", metavar="FOLDER", help="the data set (default: NAME-data here, NAME that of FOLDER)"
    )
    return parser
