from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lit_mmpg.data import features as module
from lit_mmpg.data.features import FeatureFile, check_coverage, finite
from lit_mmpg.data.readers import recording
from lit_mmpg.errors import UserError
from lit_mmpg.records import FrameSource

LENGTHS = {"video7": 3, "video10": 1, "video2": 5}
DIM = 4


def make_videos(dtype: type = np.float16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(t, DIM)).astype(dtype) for name, t in LENGTHS.items()}


def write_per_video(path: Path, videos: dict[str, np.ndarray], **options: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in videos.items():
            file.create_dataset(name, data=values, **options)
    return path


def write_folder(path: Path, videos: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    for name, values in videos.items():
        np.save(path / f"{name}.npy", values)
    return path


def fails(match: str, path: Path) -> str:
    with pytest.raises(UserError, match=match) as caught:
        FeatureFile(path).load()
    return str(caught.value)


def assert_holds(store: FrameSource, videos: dict[str, np.ndarray]) -> None:
    assert sorted(store.ids()) == sorted(videos)
    for name, values in videos.items():
        assert store.num_frames(name) == len(values)
        np.testing.assert_array_equal(store.frames(name), values)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (1, DIM)}])
def test_hdf5_per_video(tmp_path: Path, dtype: type, options: dict) -> None:
    videos = make_videos(dtype)
    store = FeatureFile(write_per_video(tmp_path / "f.h5", videos, **options)).load()
    assert_holds(store, videos)
    assert store.values.dtype == dtype
    assert store.frame_shape == (DIM,)
    with pytest.raises(KeyError):
        store.frames("absent")


def test_float64_and_mixed_types_become_float32(tmp_path: Path) -> None:
    videos = make_videos(np.float64)
    store = FeatureFile(write_per_video(tmp_path / "f.h5", videos)).load()
    assert store.values.dtype == np.float32
    np.testing.assert_array_equal(store.frames("video2"), videos["video2"].astype(np.float32))
    videos = make_videos(np.float16)
    videos["video2"] = videos["video2"].astype(np.float32) + np.float32(1e-6)
    assert_holds(FeatureFile(write_folder(tmp_path / "npy", videos)).load(), videos)


def test_folder_of_npy(tmp_path: Path) -> None:
    videos = make_videos()
    assert_holds(FeatureFile(write_folder(tmp_path / "npy", videos)).load(), videos)


@pytest.mark.parametrize("ids", [np.array([7, 10, 2]), np.array([b"7", b"10", b"2"]), ["7", "10", "2"]])
@pytest.mark.parametrize(("name", "shape"), [("feat", (3, 5, DIM)), ("resnet_features", (3, 2, 6, DIM))])
def test_hdf5_stacked(tmp_path: Path, ids: object, name: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset("ids", data=ids)
        file.create_dataset(name, data=values)
    store = FeatureFile(tmp_path / "f.h5").load()
    assert store.ids() == ["7", "10", "2"]
    expected = {i: np.stack([values[(k, *at)] for at in np.ndindex(shape[1:-1])]) for k, i in enumerate(store.ids())}
    assert_holds(store, expected)


def test_frames_are_views_and_the_store_survives_pickling(tmp_path: Path) -> None:
    videos = make_videos()
    store = FeatureFile(write_per_video(tmp_path / "f.h5", videos)).load()
    assert np.shares_memory(store.frames("video2"), store.values)
    assert_holds(pickle.loads(pickle.dumps(store)), videos)


def test_names_of_files_and_what_is_passed_over(tmp_path: Path) -> None:
    """AppleDouble notes and hidden folders are no features; subfolders and endings in capitals are."""
    videos = make_videos(np.float32)
    folder = write_folder(tmp_path / "npy", {f"{name}.mp4": values for name, values in videos.items()})
    (folder / "._video7.mp4.npy").write_bytes(b"\x00\x05\x16\x07")
    (folder / ".trash").mkdir()
    (folder / ".trash/x.npy").write_bytes(b"")
    (folder / "day").mkdir()
    np.save(folder / "day/x.npy", videos["video2"])
    (folder / "day/x.npy").rename(folder / "day/x.NPY")
    source = FeatureFile(folder)
    assert sorted(source.ids()) == ["day/x", *sorted(f"{name}.mp4" for name in videos)]
    np.testing.assert_array_equal(source.load().frames("day/x"), videos["video2"])
    path = write_per_video(tmp_path / "f.h5", {"day/x": videos["video2"], **videos})
    assert_holds(FeatureFile(path).load(), {"day/x": videos["video2"], **videos})


def test_links_in_files_and_folders(tmp_path: Path) -> None:
    values = np.ones((2, 3), np.float32)
    with h5py.File(tmp_path / "part.h5", "w") as file:
        file["x"] = values
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["video0"] = h5py.ExternalLink("part.h5", "x")
        file["gone"] = h5py.ExternalLink("nowhere.h5", "x")
        file["day/video1"] = values
        file["video2"] = file["day/video1"]
        file["video3"] = h5py.SoftLink("/day/video1")
        file["day/loop"] = file["/"]
    found = FeatureFile(tmp_path / "all.h5")
    assert set(found.ids()) == {"video0", "day/video1", "video2", "video3"}
    assert found.load().frames("video0").shape == (2, 3)
    folder = tmp_path / "npy"
    folder.mkdir()
    np.save(folder / "video0.npy", values)
    (folder / "old.npy").symlink_to("nowhere")
    (folder / ".#video0.npy").symlink_to("user@host.1")
    files = FeatureFile(folder)
    assert files.size_bytes({"video0"}) > 24 and files.load({"video0"}).frames("video0").shape == (2, 3)
    with pytest.raises(UserError, match=r"old\.npy: cannot be read"):
        files.load({"old"})


def test_what_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", a=np.ones((2, 3)))
    (tmp_path / "npy").mkdir()
    (tmp_path / "v.npz").rename(tmp_path / "npy/v.npy")
    with pytest.raises(UserError, match=r"v\.npy: is an \.npz archive"):
        FeatureFile(tmp_path / "npy").load()
    (tmp_path / "npy/v.npy").write_bytes((tmp_path / "npy/v.npy").read_bytes()[:100])
    fails(r"v\.npy: not a complete \.npy file of numbers", tmp_path / "npy")
    (tmp_path / "npy/v.npy").unlink()
    os.mknod(tmp_path / "npy/v.npy", stat.S_IFSOCK | 0o600)
    fails(r"v\.npy: is a pipe, a socket or a device", tmp_path / "npy")
    fails(r"v\.npy: is a pipe, a socket or a device", tmp_path / "npy/v.npy")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["v"] = h5py.Empty("f4")
    with pytest.raises(UserError, match="v"):
        FeatureFile(tmp_path / "empty.h5").load()


@pytest.mark.parametrize("layout", [write_per_video, write_folder])
def test_clips_that_nobody_uses_stop_nothing(tmp_path: Path, layout: Callable) -> None:
    videos = make_videos(np.float32)
    broken = {"nan": np.full((2, DIM), np.nan, np.float32), "wide": np.ones((2, DIM + 1), np.float32)}
    path = layout(tmp_path / "f", {**broken, "flat": np.ones(DIM), "whole": np.ones((2, DIM), int), **videos})
    with recording() as read:
        store = FeatureFile(path).load(set(videos))
    assert_holds(store, videos)
    assert read == ({path} if path.is_file() else {path / f"{name}.npy" for name in videos})


def test_stacked_features_of_some_clips(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(3, 5, DIM)).astype(np.float32)
    values[1] = np.nan
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["ids"], file["x"] = [7, 8, 9], values
    assert_holds(FeatureFile(tmp_path / "f.h5").load({"9", "7"}), {"7": values[0], "9": values[2]})


def test_many_files_need_few_descriptors(tmp_path: Path) -> None:
    """No file stays open, and none stays mapped."""
    resource = pytest.importorskip("resource")
    videos = {f"v{i:03d}": np.full((1, DIM), i, np.float16) for i in range(300)}
    folder = write_folder(tmp_path / "npy", videos)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        assert_holds(FeatureFile(folder).load(), videos)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- faults ------------------------------------------------------------------------------------------------------


def test_missing_path_suggests(tmp_path: Path) -> None:
    write_per_video(tmp_path / "frames_mobilenet.h5", make_videos())
    assert "did you mean" in fails("does not exist", tmp_path / "frame_mobilenet.h5")


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = write_per_video(tmp_path / "f.h5", {f"v{i}": np.ones((50, 64), np.float32) for i in range(20)})
    content = path.read_bytes()
    for keep in (len(content) // 2, 600, 3, 0):
        path.write_bytes(content[:keep])
        assert str(path) in fails("not a complete HDF5 file", path)
    path.write_text("video,split\n" * 100)
    fails("not a complete HDF5 file", path)


def test_damaged_chunk(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    path = write_per_video(tmp_path / "f.h5", {"v": noise}, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["v"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + 64] = bytes(64)
    path.write_bytes(content)
    fails("not a complete HDF5 file", path)


def test_no_datasets(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_group("train")
    assert "train" in fails("no datasets", tmp_path / "f.h5")
    write_per_video(tmp_path / "g.h5", {})
    fails("no datasets", tmp_path / "g.h5")


def test_folder_without_npy(tmp_path: Path) -> None:
    path = write_per_video(tmp_path / "f.h5", make_videos())
    assert str(path) in fails(r"contains no \.npy files", tmp_path)


@pytest.mark.parametrize("layout", [write_per_video, write_folder])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (np.ones((2, DIM + 1), np.float16), f"dimension {DIM + 1}, those of"),
        (np.ones(DIM, np.float16), "have the shape"),
        (np.ones((2, 2, DIM), np.float16), "have the shape"),
        (np.ones((0, DIM), np.float16), "have the shape"),
        (np.ones((2, DIM), np.int32), "are int32; float16 or float32 is needed"),
    ],
)
def test_wrong_arrays(tmp_path: Path, layout: Callable, broken: np.ndarray, message: str) -> None:
    path = layout(tmp_path / "f", {**make_videos(), "video9": broken})
    assert "'video9'" in fails(message, path)


@pytest.mark.parametrize("layout", [write_per_video, write_folder])
def test_nan_and_infinite_values_name_the_videos(tmp_path: Path, layout: Callable) -> None:
    videos = {f"v{i}": np.ones((3, DIM), np.float32) for i in range(9)}
    videos["v2"][1, 0] = np.nan
    videos["v2"][2, 3] = np.nan
    videos["v7"][0, 1] = -np.inf
    message = fails(
        r"features of 2 videos \(3 frames\) are NaN or infinite, first v2, v7;", layout(tmp_path / "f", videos)
    )
    assert str(tmp_path / "f") in message


def test_non_finite_values_are_found_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_VALUES", 2 * DIM)
    for row in range(9):
        values = np.zeros((9, DIM), np.float16)
        values[row, row % DIM] = np.inf
        expected = ["a", "a", "a", "b", "c", "c", "c", "c", "c"][row]
        with pytest.raises(UserError, match=rf"1 videos \(1 frames\).*first {expected};"):
            finite(FrameSource(values, {"a": 3, "b": 1, "c": 5}), "somewhere")


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"ids": [1, 2], "feat": np.ones((2, DIM))}, "has the shape"),
        ({"ids": [1, 2], "feat": np.ones((3, 2, DIM))}, "2 entries in 'ids' but 3 in 'feat'"),
        ({"ids": [1, 2]}, "exactly one dataset"),
        ({"ids": [1, 2], "a": np.ones((2, 2, DIM)), "b": np.ones((2, 2, DIM))}, "exactly one dataset"),
        ({"ids": [0.5, 2], "feat": np.ones((2, 2, DIM))}, "a list of integers or texts"),
        ({"ids": [1, 1], "feat": np.ones((2, 2, DIM))}, "'1' occurs more than once"),
        ({"ids": [1, 2], "feat": np.ones((2, 2, DIM), int)}, "are int64"),
    ],
)
def test_stacked_faults(tmp_path: Path, datasets: dict, message: str) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
    fails(message, tmp_path / "f.h5")


def test_broken_npy_files_are_never_unpickled(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "npy", make_videos())
    np.save(folder / "video9.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    fails(r"video9\.npy: not a complete", folder)
    np.save(folder / "video9.npy", np.ones((100, DIM), np.float32))
    content = (folder / "video9.npy").read_bytes()
    (folder / "video9.npy").write_bytes(content[:-100])
    fails(r"video9\.npy: not a complete", folder)
    (folder / "video9.npy").write_bytes(b"")
    fails(r"video9\.npy: not a complete", folder)


def test_features_larger_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_available_bytes", lambda: 9 * DIM * 2 - 1)
    fails("GiB of memory", write_per_video(tmp_path / "f.h5", make_videos()))
    monkeypatch.undo()
    available = module._available_bytes()
    assert available is None or available > 1 << 20


def test_check_coverage(tmp_path: Path) -> None:
    store = FeatureFile(write_per_video(tmp_path / "f.h5", make_videos()))
    assert check_coverage(["video7", "video7", "video2"], store, drop_missing=False) == {"video7", "video2"}
    needed = ["video7", *(f"x{i}" for i in range(8))]
    with pytest.raises(UserError, match="8 of 9 videos") as caught:
        check_coverage(needed, store, drop_missing=False)
    assert "x0, x1, x2, x3, x4;" in str(caught.value)
    assert "--data.drop_missing true" in str(caught.value)
    assert "f.h5" in str(caught.value)
    assert check_coverage(needed, store, drop_missing=True) == {"video7"}
    with pytest.raises(UserError, match="none of the 2 videos"):
        check_coverage(["7", "2"], store, drop_missing=True)


def test_what_the_system_refuses_is_not_called_damaged(tmp_path: Path) -> None:
    path = write_per_video(tmp_path / "f.h5", make_videos())
    # Another process, as locks within one are granted.
    writer = "import h5py, sys; f = h5py.File(sys.argv[1], 'r+'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", writer, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        assert held.stdout is not None and held.stdout.readline()
        message = fails("is open in another program that writes to it", path)
        held.communicate()
    assert "damaged" not in message and "again" not in message
    for number, said in ((errno.EMFILE, "ulimit -n"), (errno.EACCES, "permissions"), (errno.EIO, "disk")):
        message = str(module.hdf5_error(path, OSError(number, f"unable to open file: errno = {number}")))
        assert said in message and "extract" not in message and "complete" not in message
    assert "copy or extract it again" in str(module.hdf5_error(path, OSError("truncated file: eof = 96")))


def test_ids_that_are_not_utf8(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["ids"], file["x"] = np.array(["vid\xe9o".encode("latin-1")]), np.ones((1, 2, DIM), np.float32)
    assert "in Latin-1 it says 'vid\xe9o'" in fails("is not UTF-8 text", tmp_path / "f.h5")
    folder = write_folder(tmp_path / "npy", make_videos())
    os.rename(folder / "video2.npy", os.fsencode(folder) + b"/vid\xe9o.npy")
    fails("is not UTF-8 text", folder)


def test_other_spellings_are_shown(tmp_path: Path) -> None:
    source = FeatureFile(write_per_video(tmp_path / "f.h5", {"clip_7": np.ones((2, 3)), "b": np.ones((2, 3))}))
    with pytest.raises(UserError, match=r"'clip7': the features have 'clip_7'"):
        check_coverage(["clip7", "b"], source, drop_missing=False)


@pytest.mark.skipif("LIT_MMPG_DATA" not in os.environ, reason="LIT_MMPG_DATA does not name the folder of real data")
def test_real_msrvtt_features() -> None:
    path = Path(os.environ["LIT_MMPG_DATA"]) / "msrvtt" / "frames_mobilenet_v2.h5"
    store = FeatureFile(path).load()
    assert (len(store.ids()), store.frame_shape, store.values.dtype) == (3862, (1280,), np.float16)
    with h5py.File(path) as file:
        for name in store.ids()[::500]:
            np.testing.assert_array_equal(store.frames(name), file[name][()])
    lengths = np.array([store.num_frames(name) for name in store.ids()])
    assert (lengths.min(), lengths.max(), int(np.median(lengths))) == (2, 46, 4)
