"""A folder of videos and one table: what is decided, what is said, and all that is wrong in one report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from lit_mmpg.cli import main
from lit_mmpg.data import own
from lit_mmpg.data.own import OwnData, read_own, write_own
from lit_mmpg.data.readers import read_captions, read_clips, read_questions
from lit_mmpg.errors import UserError

ROOT = Path(__file__).parents[2]
OWNERS = ("ann", "bob", "cem", "dee")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight files that are called videos."""
    videos = tmp_path / "clips"
    videos.mkdir()
    for i in range(8):
        (videos / f"video{i}.mp4").write_bytes(b"x")
    return videos


def table(folder: Path, header: str, rows: Sequence[str], name: str = "t.csv", end: str = "\n") -> Path:
    path = folder / name
    path.write_bytes(end.join([header, *rows, ""]).encode())
    return path


def eight(folder: Path) -> OwnData:
    table(folder, "video,question,answer,owner", [f"video{i}.mp4,what,a{i},{OWNERS[i // 2]}" for i in range(8)])
    return read_own(folder)


def wrong(folder: Path, header: str, rows: Sequence[str], name: str = "t.csv") -> str:
    table(folder, header, rows, name)
    with pytest.raises(UserError) as caught:
        read_own(folder)
    (folder / name).unlink()
    return str(caught.value)


def test_whole_owners_are_held_out(folder: Path, tmp_path: Path) -> None:
    data = eight(folder)
    assert [len(data.clips(s)) for s in ("train", "val", "test")] == [4, 2, 2]
    assert sorted(o for s in ("train", "val", "test") for o in data.owners(s)) == list(OWNERS)
    config = write_own(data, tmp_path / "set", "set")
    assert [c.id for c in read_clips(tmp_path / "set/clips.csv")] == [f"video{i}" for i in range(8)]
    questions = read_questions("qa_csv", tmp_path / "set/qa")
    assert {s: len(q) for s, q in questions.items()} == {"train": 4, "val": 2, "test": 2}
    batch = yaml.safe_load(config.read_text())["data"]["init_args"]["batch"]
    assert batch["clips"] + batch["context_clips"] <= 2  # a device has two clips: one is asked, one is its context
    write_own(data, tmp_path / "set", "set")
    config.unlink()
    with pytest.raises(UserError, match="holds another data set"):
        write_own(data, tmp_path / "set", "set")


def test_splits_that_are_given_stay(folder: Path) -> None:
    splits = ["Training", "train", "train", "train", "dev", "dev", "test", "test"]
    header = "video,question,answer,owner,split"
    table(folder, header, [f"video{i},q,a,{OWNERS[i // 2]},{s}" for i, s in enumerate(splits)])
    data = read_own(folder)
    assert data.owners("train") == ["ann", "bob"] and data.owners("val") == ["cem"] and data.owners("test") == ["dee"]
    assert not data.notes
    rows = [f"video{i},q,a,{OWNERS[i // 2]},{'test' if i > 5 else 'train'}" for i in range(8)]
    table(folder, header, rows)
    data = read_own(folder)
    assert data.owners("train") == ["ann", "bob", "cem"]
    assert len(data.clips("val")) == 1 and len(data.clips("test")) == 2
    assert "1 of 6 training clips become val" in data.notes[0]


def test_too_few_clips_to_train(folder: Path) -> None:
    assert "of 2 clips none is left" in wrong(folder, "video,question,answer", ["video0,q,a", "video1,q,a"])
    rows = [f"video{i},q,a,test" for i in range(8)]
    assert "of 8 clips none is left" in wrong(folder, "video,question,answer,split", rows)


def test_captions_options_and_folders(folder: Path, tmp_path: Path) -> None:
    for i in range(8):
        (folder / OWNERS[i // 2]).mkdir(exist_ok=True)
        (folder / f"video{i}.mp4").rename(folder / OWNERS[i // 2] / f"video{i}.MP4")
    rows = [f'{{"video": "video{i}", "caption": ["a b", "c\u2028d"]}}' for i in range(8)]
    table(folder, rows[0], rows[1:], "t.jsonl")
    data = read_own(folder)
    assert data.task == "retrieval" and data.owner["ann/video0"] == "ann" and len(data.rows[0].captions) == 2
    write_own(data, tmp_path / "set", "set")
    captions = read_captions("captions_csv", tmp_path / "set/captions.csv")
    assert [c.text for c in captions[:2]] == ["a b", "c\u2028d"] and captions[0].clip == "ann/video0"
    (folder / "t.jsonl").unlink()
    table(folder, "video;question;answer;options", [f"video{i};q;{i % 2};yes|no" for i in range(8)])
    data = read_own(folder)
    assert data.task == "multiple_choice"
    write_own(data, tmp_path / "mc", "mc")
    asked = [q for qs in read_questions("qa_csv", tmp_path / "mc/qa").values() for q in qs]
    assert {(q.options, q.correct, q.answer) for q in asked} == {(("yes", "no"), 0, "yes"), (("yes", "no"), 1, "no")}


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_as_programs_write_them(folder: Path, sign: str, end: str) -> None:
    rows = [sign.join([f"video{i}", f'"what{sign} {i}"', "yes\u0085no"]) for i in range(8)]
    table(folder, "\ufeff" + sign.join(["Video", "Question", "Answer"]), rows, end=end)
    data = read_own(folder)
    assert data.rows[3]["question"] == f"what{sign} 3" and data.rows[3]["answer"] == "yes\u0085no"


def test_one_report_says_it_all(folder: Path) -> None:
    (folder / "video5.mp4").write_bytes(b"")
    said = wrong(
        folder,
        "video,question,answer,owner,split,qid",
        [
            "video0,q,a,ann,train,1",
            "vidoe1.mp4,q,a,ann,train,2",
            "video2,q,,ann,train,3",
            "video3,q,a,ann,train,1",
            "video3.mp4,q,a,ann,test,4",
            "video4,q,a,,tain,5",
            "video4,q,a,ann",
            "video6,,a,ann,val,6",
        ],
    )
    for part in (
        "line 3: video 'vidoe1.mp4' is not in",
        "did you mean 'video1.mp4'",
        "line 4: column 'answer' is blank",
        "line 5: qid '1' is given a second time, after line 2",
        "line 6: 'video3.mp4' has split 'test', but 'train' in line 5",
        "line 7: column 'owner' is blank",
        "line 7: split 'tain' is unknown",
        "line 8: 4 fields where the header has 6",
        "line 9: neither a question nor a caption",
        "video5.mp4: the video is empty",
        "no row names 3 of its videos, first video1, video5, video7",
    ):
        assert part in said, said
    assert said.startswith("10 problems:")


def test_what_cannot_be_read_at_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "column answer is missing (found: video, question)" in wrong(folder, "video,question", ["video0,q"])
    assert "column video" in wrong(folder, "vidoe,question,answer", ["video0,q,a"])
    (folder / "t.csv").write_bytes("video,question,answer\nvideo0,caf\xe9,a\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.csv, line 2: not UTF-8 text .*in Latin-1 it says 'video0,café,a'"):
        read_own(folder)
    (folder / "t.csv").unlink()
    assert "field 'answer' is a list" in wrong(
        folder, '{"video": "video0", "question": "q", "answer": ["a"]}', [], "t.jsonl"
    )
    several = "\n".join(json.dumps({"video": f"video{i}", "question": "q", "answer": ["a"]}) for i in range(2))
    said = wrong(folder, several, [], "t.jsonl")
    assert "entry 2: field 'answer' is a list" in said and "missing" not in said and "blank" not in said
    assert "t.csv: the file is empty; a header is needed" in wrong(folder, "", [])
    with pytest.raises(UserError, match=r"video0\.mp4 is a file, the folder that it lies in is needed"):
        read_own(folder / "video0.mp4")
    (folder / "video0.mkv").write_bytes(b"x")
    assert "would both be clip 'video0'" in wrong(folder, "video,question,answer", ["video1,q,a"])
    (folder / "video0").mkdir()
    (folder / "video0/x.mp4").write_bytes(b"x")
    assert "its folder is called as another clip is, 'video0'" in wrong(folder, "video,caption", ["video1,q"])
    assert main(["init-data", str(folder)]) == 2
    assert "holds no table" in capsys.readouterr().err


def test_faults_are_said_before_anything_heavy_is_imported(folder: Path, tmp_path: Path) -> None:
    """One process for both verbs: ``init-data`` on a bad table, and ``fit`` on a data set that was spoilt later."""
    data = eight(folder)
    write_own(data, tmp_path / "set", "set")
    lines = (tmp_path / "set/clips.csv").read_text().splitlines()
    (tmp_path / "set/clips.csv").write_text("\n".join([*lines, "video1.mp4,test,ann", "video9,trian,ann"]))
    table(folder, "video,question", ["video0,q"])
    code = (
        "import sys; from lit_mmpg.cli import main\n"
        "assert main(['init-data', 'clips']) == 2\n"
        "assert main(['fit', '--config', 'set/set.yaml']) == 2\n"
        "assert main(['devices', '--config', 'set/set.yaml']) == 2\n"
        "print(sorted({'torch', 'lightning', 'mlflow', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stderr
    assert "features.h5 does not exist" in done.stderr and "'video1.mp4' (test) is the clip that line 3" in done.stderr
    assert "split 'trian' is unknown" in done.stderr and "Traceback" not in done.stderr


def test_help_documents_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["init-data", "--help"])
    said = capsys.readouterr().out
    assert all(f"  {name}" in said or f", {name}" in said or f"and {name}" in said for name in own.COLUMNS)


def rows_of(folder: Path, **fields: object) -> str:
    (folder / "t.json").write_text(json.dumps([{"video": f"video{i}", **fields} for i in range(8)]))
    with pytest.raises(UserError) as caught:
        read_own(folder)
    return str(caught.value)


@pytest.mark.parametrize("value", [["x", None], ["x", ["y"]], [{"t": "z"}], ["x", " "]])
@pytest.mark.parametrize("field", ["caption", "options"])
def test_a_list_in_json_is_a_list_of_texts(folder: Path, field: str, value: object) -> None:
    said = rows_of(folder, **{"question": "q", "answer": "x", field: value})
    assert f"t.json, entry 1: field '{field}' is not a list of texts" in said


def test_options_captions_and_names_that_would_become_others(folder: Path, tmp_path: Path) -> None:
    assert "option 'a|b' holds '|'" in rows_of(folder, question="q", answer="c", options=["a|b", "c"])
    assert "'answer' is given twice, also as 'Answer'" in rows_of(folder, question="q", answer="c", Answer="d")
    (folder / "t.json").write_text('[{"video": "video0", "caption": "a", "caption": "b"}]')
    with pytest.raises(UserError, match=r"t\.json: key 'caption' is given twice"):
        read_own(folder)
    (folder / "t.json").unlink()
    assert "differ in case alone" in wrong(folder, "video,question,answer,Answer", ["video0,q,a,b"])
    (folder / "t.json").write_text(json.dumps([{"video": f"video{i}", "caption": f"a\rb{i}"} for i in range(8)]))
    write_own(read_own(folder), tmp_path / "set", "set")
    assert next(c.text for c in read_captions("captions_csv", tmp_path / "set/captions.csv")) == "a\nb0"
    (folder / "t.json").unlink()
    (folder / "ann").mkdir()
    (folder / "video7.mp4").rename(folder / "ann/video7.mp4")
    said = wrong(folder, "video,caption", [f"{'bob/' * (i == 7)}video{i},c" for i in range(8)])
    assert "'bob/video7' is not in" in said
    table(folder, "video,question,answer,options", [f"video{i},q,cafe\u0301,café|blue" for i in range(7)])
    assert read_own(folder).rows[0].options == ("café", "blue")


def test_two_names_of_one_file_and_outputs_that_are_in_the_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, link in (("day1.mp4", Path.symlink_to), ("day2.mp4", Path.hardlink_to)):
        link(folder / name, folder / "video0.mp4")
        said = wrong(folder, "video,caption", [*(f"video{i},c" for i in range(8)), f"{name},c"])
        assert f"{name}: is the same file as {folder / 'video0.mp4'}" in said
    table(folder, "video,caption", [f"video{i},c" for i in range(8)])
    assert read_own(folder).silent == ["day1", "day2"]  # what no row names may be there
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for output in ("clips", "clips/../clips", "file"):
        assert main(["init-data", "clips", "--output", output]) == 2
        assert f"--output {output}: is the folder of videos, or no folder; name another" in capsys.readouterr().err
    assert not (folder / "clips.csv").exists()


def test_files_that_are_not_what_they_are_called(folder: Path) -> None:
    header, rows = "video,caption", [f"video{i},c" for i in range(8)]
    (folder / "old.mp4").symlink_to("nowhere")
    (folder / "more.wmv").write_bytes(b"x")
    (folder / "cat.GIF").write_bytes(b"x")
    (folder / "trip.mp4").mkdir()
    (folder / "video0.mov.mp4").write_bytes(b"x")
    said = wrong(folder, header, rows)
    assert "old.mp4: cannot be read (No such file" in said and "would both be clip 'video0'" in said
    assert "more.wmv: videos of this kind are not read" in said
    assert "cat.GIF: videos of this kind are not read" in said and "trip.mp4: is a folder" in said
    (folder / "trip.mp4").rmdir()
    (folder / "cat.GIF").unlink()
    for name in ("old.mp4", "more.wmv", "video0.mov.mp4"):
        (folder / name).unlink()
    (folder / "day").mkdir()
    (folder / "day/again").symlink_to(folder)  # a loop
    (folder / ".trashed-1700000000-old.mp4").write_bytes(b"x")
    (folder / "@eaDir/video0.mp4").mkdir(parents=True)  # previews
    (folder / "lost+found").mkdir()
    (folder / "lost+found/more.mp4").write_bytes(b"")
    (folder / "other").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere/more.m2ts").write_bytes(b"x")
    table(folder, header, [*rows, "other/more,c"])
    data = read_own(folder)
    assert "other/more" in [clip for split in ("train", "val", "test") for clip in data.clips(split)]
    assert not data.silent


def test_accents_may_be_composed_or_not(folder: Path) -> None:
    composed, apart = "Zo\u00eb", "Zoe\u0308"
    for name in (composed, "new"):
        (folder / f"{name}.mp4").write_bytes(b"x")
    rows = [f"video{i},c,{(composed, apart, 'ann')[i % 3]}" for i in range(8)]
    table(folder, "video,caption,owner", [*rows, f"{apart}.mp4,c,{apart}", f"{composed},c,{composed}", "new,c,dee"])
    data = read_own(folder)
    assert set(data.owner.values()) == {composed, "ann", "dee"} and data.owner[composed] == composed
    (folder / f"{apart}.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=f"would both be clip '{composed}'"):
        read_own(folder)
