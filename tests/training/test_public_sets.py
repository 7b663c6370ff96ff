"""The shipped configurations of public data sets, on roots in the layouts in which these sets are published."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.training.config import read_request
from lit_mmpg.training.lightning_cli import CLI
from tests.integration.tiny import cut_root, write_features
from tests.training.test_other_roots import assert_same_test

COUNTS = {"train": 60, "val": 30, "test": 30}
COLOURS = ("red", "green", "blue")


def clips() -> list[tuple[str, str, str]]:
    """Number from 0, split and colour of each clip."""
    splits = [split for split, count in COUNTS.items() for _ in range(count)]
    return [(str(i), split, COLOURS[i % 3]) for i, split in enumerate(splits)]


def features(path: Path, names: Sequence[str]) -> None:
    rng = np.random.default_rng(0)
    write_features(path, {name: rng.normal(size=(4, 12)).astype(np.float32) for name in names})


def qa_json(folder: Path, categories: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in COUNTS:
        entries = [
            {"id": int(i), "video_id": int(i) + 1, "question": "what colour is it?", "answer": colour}
            | ({"category_id": int(i) % 20} if categories else {})
            for i, own, colour in clips()
            if own == split
        ]
        (folder / f"{split}_qa.json").write_text(json.dumps(entries))


def msvd(folder: Path) -> None:
    qa_json(folder, False)
    (folder / "youtube_mapping.txt").write_text("".join(f"tube{i}_0_9 vid{int(i) + 1}\n" for i, _, _ in clips()))


def msvd_qa(root: Path) -> None:
    msvd(root)
    features(root / "frames_mobilenet_v2.h5", [f"tube{i}_0_9" for i, _, _ in clips()])


def msvd_retrieval(root: Path) -> None:
    msvd(root / "qa")
    lines = [f"tube{i}_0_9 a {colour} thing moves" for i, _, colour in clips()]
    (root / "AllVideoDescriptions.txt").write_text("# sentences\n" + "\n".join(lines) + "\n")
    features(root / "frames_mobilenet_v2.h5", [f"tube{i}_0_9" for i, _, _ in clips()])


def msrvtt_qa(root: Path) -> None:
    qa_json(root, True)
    features(root / "frames_mobilenet_v2.h5", [f"video{int(i) + 1}" for i, _, _ in clips()])


def msrvtt_retrieval(root: Path) -> None:
    qa_json(root / "qa", True)
    names = {"train": "train", "val": "validate", "test": "test"}
    for file, splits in (("train_val_videodatainfo.json", ("train", "val")), ("test_videodatainfo.json", ("test",))):
        own = [entry for entry in clips() if entry[1] in splits]
        videos = [{"video_id": f"video{int(i) + 1}", "split": names[s], "category": 3} for i, s, _ in own]
        sentences = [{"video_id": f"video{int(i) + 1}", "caption": f"a {c} thing", "sen_id": int(i)} for i, _, c in own]
        (root / file).write_text(json.dumps({"videos": videos, "sentences": sentences}))
    features(root / "frames_mobilenet_v2.h5", [f"video{int(i) + 1}" for i, _, _ in clips()])


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], delimiter: str = ",") -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def nextqa(root: Path) -> None:
    root.mkdir(parents=True)
    header = (
        "video",
        "frame_count",
        "width",
        "height",
        "question",
        "answer",
        "qid",
        "type",
        "a0",
        "a1",
        "a2",
        "a3",
        "a4",
    )
    for split in COUNTS:
        rows = [
            (f"7{i}", "300", "640", "480", "why is it so", str(int(i) % 5), "0", "CW", "a", "b", "c", "d", "e")
            for i, own, _ in clips()
            if own == split
        ]
        table(root / f"{split}.csv", header, rows)
    features(root / "frames_mobilenet_v2.h5", [f"7{i}" for i, _, _ in clips()])


def tgif(task: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        root.mkdir(parents=True)
        many = [(f"tumblr_{i}", "train" if int(i) < 300 else "test", COLOURS[int(i) % 3]) for i in map(str, range(360))]
        for split in ("train", "test"):
            own = [(name, colour) for name, s, colour in many if s == split]
            if task == "frameqa":
                header: tuple[str, ...] = ("gif_name", "question", "answer", "type", "vid_id", "key", "description")
                rows = [(n, "what colour", c, "2", f"F{i}", str(i), "text") for i, (n, c) in enumerate(own)]
            else:
                header = ("gif_name", "question", "a1", "a2", "a3", "a4", "a5", "answer", "vid_id", "key")
                rows = [(n, "what happens", *"vwxyz", str(i % 5), f"A{i}", str(i)) for i, (n, _) in enumerate(own)]
            table(root / f"{split.capitalize()}_{task}_question.csv", header, rows, "\t")
        features(root / "frames_mobilenet_v2.h5", [name for name, _, _ in many])

    return build


SETS: dict[str, Callable[[Path], None]] = {
    "msvd.yaml#qa": msvd_qa,
    "msrvtt_full.yaml#qa": msrvtt_qa,
    "nextqa.yaml": nextqa,
    "tgif_qa.yaml#frameqa": tgif("frameqa"),
    "tgif_qa.yaml#action": tgif("action"),
    "tgif_qa.yaml#transition": tgif("transition"),
    "msrvtt_full.yaml#retrieval": msrvtt_retrieval,
    "msvd.yaml#retrieval": msvd_retrieval,
}


@pytest.mark.parametrize("name", SETS)
def test_a_public_set_runs_unchanged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MMPG_DATA", str(tmp_path))
    request = read_request("fit", ["--config", f"configs/experiment/{name}"])
    root = Path(request.config["data"]["init_args"]["root"]).name
    SETS[name](tmp_path / root)
    data = CLI(request).data()
    data.setup("fit")
    assert {len(data.texts(split)) > 0 for split in COUNTS} == {True}
    assert data.test_groups == ["test_unseen", "test_seen"]
    test_clips = [clip.id for clip in data.corpus.clips if clip.split == "test"]
    assert_same_test(data, cut_root(tmp_path / root, tmp_path / "cut", test_clips))
    batches = list(data.eval_batches("test_unseen"))
    assert all(batch.frames.mask.any() and batch.text_mask.any() for batch in batches)
    assert any(batch.context.mask.any() for batch in batches)  # so few clips that some devices have but one
