"""The state folder: full and read-only disks, one process at a time, whose it is."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.folder import FolderInUseError, StateFolder
from lit_mmpg.runtime.journal import Journal, Record
from lit_mmpg.runtime.policies import Always
from lit_mmpg.runtime.state import DeviceState
from tests.runtime.cloud_server import serving, write_video
from tests.runtime.test_device import Hands
from tests.runtime.test_device_side import filled


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_video(folder / f"c{i}.mp4", 3 + i) for i in range(6)]


@pytest.fixture
def bundle(made) -> Bundle:
    return Bundle.open(made("pixels").bundle)


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """No file can grow, whoever runs this: what a full disk is to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noted(folder: Path) -> list[tuple[int, str]]:
    lines = (folder / "answers.jsonl").read_text().splitlines()
    return [(record["number"], record["clip"]) for record in map(json.loads, lines)]


# -- full and read-only disks ------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_nothing_is_lost_once_there_is_room(bundle, clips, tmp_path) -> None:
    state = tmp_path / "state"
    with serving(bundle) as (url, told):
        hands = Hands(bundle, url, Always(), state)
        hands.device.take(clips[0])
        assert hands.device.storage_error is None
        with no_room():
            for clip in clips[1:3]:
                record = hands.device.take(clip)
                assert record.source == "cloud" and record.replies
                assert "cannot be written" in str(hands.device.storage_error)
        hands.device.take(clips[3])  # room again: what waited is written as well
        assert hands.device.storage_error is None
        assert noted(state) == [(n + 1, clips[n].name) for n in range(4)]
        (state / "answers.jsonl").rename(tmp_path / "kept")
        (state / "answers.jsonl").mkdir()  # the journal alone fails: the state keeps what is not noted yet
        hands.device.take(clips[4])
        hands.device.take(clips[5])
        hands.close()
        (state / "answers.jsonl").rmdir()
        (tmp_path / "kept").rename(state / "answers.jsonl")
        with no_room():  # started on a full disk
            hands = Hands(bundle, url, Always(), state)
            assert hands.device.source == "cached" and not hands.device.waiting(clips)
            assert hands.device.take(clips[0]).replies and hands.device.storage_error
            hands.close()
        hands = Hands(bundle, url, Always(), state)
        assert noted(state) == [(n + 1, clips[n].name) for n in range(6)]
        assert hands.device.take(clips[1]).number == 7
        hands.close()
    assert len(told["uploads"]) == 8


@pytest.mark.parametrize("there", [True, False])
def test_every_verb_answers_on_a_full_disk(bundle, clips, tmp_path, capsys, there: bool) -> None:
    state, where = tmp_path / "state", ["--bundle", str(bundle.path)]
    if there:
        filled(bundle).save(state)
    with no_room():
        assert main(["answer", str(clips[2]), "what is mine", *where, "--state", str(state)]) == 0
        out = capsys.readouterr().out
        assert "probability" in out and "it goes on without" in " ".join(out.split())
        store = ["--mlflow", f"sqlite:///{tmp_path}/store/m.db"]
        videos = [*where, "--clips", *map(str, clips[:2]), "--question", "what is mine"]
        assert main(["device", *videos, "--state-dir", str(state), *store]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "clips │ 2" in out and "state cannot be written" in out and "m.db cannot be opened" in out
    assert (DeviceState.load(bundle, state).parameters is not None) == there


def test_a_log_on_a_full_disk_ends_no_device(bundle, clips, tmp_path) -> None:
    command = [
        sys.executable,
        "-m",
        "lit_mmpg",
        "device",
        "--bundle",
        str(bundle.path),
        "--clips",
        *map(str, clips[:2]),
    ]
    command += ["--question", "what is mine", "--state-dir", str(tmp_path)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0 and "output cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert len(noted(tmp_path)) == 2


def test_real_disks_that_are_full_or_read_only(bundle, clips, tmp_path) -> None:
    """A small file system of its own, which only root can make."""
    answer = (
        f"{sys.executable} -m lit_mmpg answer {clips[0]} 'what is mine' --bundle {bundle.path} --state {tmp_path}/m/s"
    )
    script = f"""
mkdir -p {tmp_path}/m && mount -t tmpfs -o size=1m none {tmp_path}/m || exit 77
{answer} && head -c 2m /dev/zero > {tmp_path}/m/filler; {answer} || exit 1
mount -o remount,ro {tmp_path}/m && {answer} || exit 2
"""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=300)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    said = " ".join(done.stdout.split())
    assert done.returncode == 0 and said.count("probability") == 3, done.stderr
    assert "No space left" in said and "Read-only file system" in said


# -- one process at a time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, errno.ENOLCK, errno.EOPNOTSUPP, "no file"])
def test_one_folder_is_one_device_with_locks_and_without(tmp_path, monkeypatch, fault) -> None:
    def without(descriptor: object, operation: int) -> None:
        raise OSError(fault, os.strerror(fault))

    if fault == "no file":
        (tmp_path / "s" / "lock").mkdir(parents=True)
    elif fault:
        monkeypatch.setattr("fcntl.flock", without)
    first = StateFolder(tmp_path / "s")
    assert ("has no locks" in str(first.note)) == isinstance(fault, int)
    (tmp_path / "link").symlink_to(tmp_path / "s")
    for same in ("s", "link"):
        with pytest.raises(FolderInUseError, match="in use by another"):
            StateFolder(tmp_path / same)
    first.close()
    StateFolder(tmp_path / "s").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used as a state folder"):
        StateFolder(tmp_path / "file")


def test_beside_a_running_device_the_state_is_read_and_nothing_else(bundle, clips, tmp_path, capsys) -> None:
    state = tmp_path / "s"
    arguments = ["answer", str(clips[1]), "what is mine", "--bundle", str(bundle.path), "--state", str(state)]
    with serving(bundle) as (url, told):
        hands = Hands(bundle, url, Always(), state)
        hands.device.take(clips[0])
        before = {path.name: path.read_bytes() for path in state.iterdir()}
        assert main([*arguments, "--cloud", url]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "in use by another process" in out and "personal, of before" in out
        assert {path.name: path.read_bytes() for path in state.iterdir()} == before and len(told["uploads"]) == 1
        hands.close()
        assert main([*arguments, "--cloud", url]) == 0
        assert "in use" not in capsys.readouterr().out
        assert {upload.device_id for upload in told["uploads"]} == {"kitchen"}  # the state says whose it is


# -- whose state it is -------------------------------------------------------------------------------------------


def test_a_state_is_of_one_device(bundle, clips, tmp_path, capsys) -> None:
    state, where = tmp_path / "s", ["--bundle", str(bundle.path), "--device-id", "kitchen"]
    old = filled(bundle)
    old.save(state)  # as a version wrote it that noted no device
    assert main(["answer", str(clips[0]), "what is mine", *where, "--state", str(state)]) == 0
    assert DeviceState.load(bundle, state).device_id == "kitchen"
    where[-1] = "cellar"
    assert main(["answer", str(clips[0]), "what is mine", *where, "--state", str(state)]) == 2
    assert main(["device", *where, "--clips", str(clips[0]), "--question", "q", "--state-dir", str(state)]) == 2
    for error in capsys.readouterr().err.splitlines():
        assert "'kitchen'" in error and "'cellar'" in error and "--device-id kitchen" in error
    other = Bundle(bundle.path, dataclasses.replace(bundle.manifest, checkpoint_digest="0" * 64))
    with pytest.raises(UserError, match="'kitchen', not of 'cellar'"):
        DeviceState.load(other, state).check_device("cellar", state)


# -- the journal -------------------------------------------------------------------------------------------------


def record(number: int, clip: str = "c.mp4") -> Record:
    return Record(number, clip, f"d{number}", "static", times_ms={"total": 1.0})


def test_odd_names_and_long_lines_come_back_from_the_journal(tmp_path) -> None:
    names = ["\udcff.mp4", 'a"b\\c\n.mp4', "日本 🎬.mp4", "\x1b[31m.mp4", "x" * 2_000_000, "\u2028.mp4"]
    journal = Journal(tmp_path, None)
    for number, name in enumerate(names, 1):
        journal.add(record(number, name))
    again = Journal(tmp_path, None)
    assert again.records == journal.records and all(again.holds(n, f"d{i}") for i, n in enumerate(names, 1))
    assert (tmp_path / "answers.jsonl").read_bytes().count(b"\n") == len(names)


def test_bad_lines_are_said_and_kept_and_newer_ones_are_read(tmp_path) -> None:
    path, whole = tmp_path / "answers.jsonl", [json.dumps(record(n).to_json()) for n in range(1, 5)]
    newer = json.loads(whole[2]) | {
        "weather": "fine",
        "replies": [{"question": "q", "answer": "a", "confidence": 1, "x": 2}],
    }
    lines = [whole[0], whole[1][:40], "[" * 100_000, "7", "", json.dumps(newer), whole[3]]
    text = "\n".join(lines)
    path.write_text(text)  # and the last line lacks its end
    journal = Journal(tmp_path, {"number": "no record"}, [record(5).to_json()])
    assert [r.number for r in journal.records] == [1, 3, 4, 5] and journal.records[1].replies[0].answer == "a"
    assert path.read_text() == text + "\n" + json.dumps(record(5).to_json()) + "\n"
    journal.add(record(6))
    again = Journal(tmp_path, None)
    assert [r.number for r in again.records] == [1, 3, 4, 5, 6] and again.last == 6
    assert "line 2 (" in str(again.note) and "and 2 more" in str(again.note)
    path.rename(tmp_path / "rotated")
    again.add(record(7))
    assert [r.number for r in Journal(tmp_path, None).records] == [7]


def test_a_clip_that_is_named_twice_is_one_clip(bundle, clips, tmp_path) -> None:
    folder = tmp_path / "clips"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        shutil.copy(clips[0], folder / name / "a.mp4")  # the same video under the same name
    os.symlink(folder / "one" / "a.mp4", folder / "one" / "b.mp4")
    os.link(folder / "one" / "a.mp4", folder / "one" / "c.mp4")
    shutil.copy(clips[0], folder / "one" / "d.mp4")  # another recording, whatever it shows
    named = [str(folder / "one" / "a.mp4")] * 2 + [str(folder / "one"), str(folder / "two")]
    arguments = [
        "device",
        "--bundle",
        str(bundle.path),
        "--question",
        "what is mine",
        "--state-dir",
        str(tmp_path / "s"),
    ]
    for more, expected in (([], 2), ([], 2), (["--again"], 4)):
        assert main([*arguments, *more, "--clips", *named]) == 0
        assert [clip for _, clip in noted(tmp_path / "s")] == ["a.mp4", "d.mp4", "a.mp4", "d.mp4"][:expected]
