"""Pictures, their number and their times are those that ffmpeg shows; files that were cut off are refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.containers import missing_bytes
from lit_mmpg.runtime.video import picture_at, sample_video, video_digest

SIZE = (24, 40)
SOUND = ["-f", "lavfi", "-i", "sine=duration=4"]


@lru_cache
def ffmpeg_program() -> str:
    """The system's; or the one of a package that brings it, for machines without."""
    found = shutil.which("ffmpeg")
    if found is None:
        found = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    return found


def run(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    command = [ffmpeg_program(), "-hide_banner", "-nostdin", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done


@lru_cache
def every_frame() -> tuple[str, str]:
    """The option by which no frame is repeated or left out."""
    version = re.search(rb"version n?(\d+)\.(\d+)", run("-version").stdout)
    old = version is not None and (int(version[1]), int(version[2])) < (5, 1)
    return ("-vsync", "0") if old else ("-fps_mode", "passthrough")


def shown(path: Path, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, list[float]]:
    """What ffmpeg shows: ``[T, 3, H, W]`` and the times of the frames."""
    height, width = size
    filters = ["-vf", f"showinfo,scale={width}:{height}:flags=bilinear", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    done = run("-i", f"file:{path}", "-map", "0:V:0", *filters, *every_frame(), "-")
    times = [float(text) for text in re.findall(rb"Parsed_showinfo_0.*? pts_time:\s*(-?[\d.]+)", done.stderr)]
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3).transpose(0, 3, 1, 2), times


def turned(data: bytes, matrix: tuple[float, float, float, float]) -> bytes:
    """An MP4 file with another display matrix."""
    a, b, c, d = (round(value * 65536) for value in matrix)
    start = data.index(b"tkhd") + 4 + 40
    numbers = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    return data[:start] + numbers.tobytes() + data[start + 36 :]


def pictures(count: int) -> np.ndarray:
    """``[count, 48, 64, 3]``: a soft pattern without symmetry that moves to the right and gets brighter."""
    small = Image.fromarray(np.random.default_rng(5).integers(0, 160, (6, 8, 3), np.uint8))
    pattern = np.asarray(small.resize((64, 48), Image.Resampling.BICUBIC))
    return np.stack([np.roll(pattern, 3 * t, 1) + np.uint8(2 * t) for t in range(count)])


def with_hidden_frames(path: Path) -> None:
    """A WebM file with packets that only later frames refer to."""
    with av.open(str(path), "w") as container:
        options = {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "30"}
        stream = container.add_stream("libvpx", rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for picture in pictures(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short film in many kinds of file."""
    folder = tmp_path_factory.mktemp("films")
    base = folder / "plain.mp4"
    (folder / "odd").mkdir()
    (folder / "odd/film.rgb").write_bytes(pictures(30).tobytes())
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", "64x48", "-framerate", "10"]
    source = [*raw, "-i", folder / "odd/film.rgb"]
    run(*source, "-c:v", "mpeg4", "-bf", "2", "-g", "10", "-q:v", "2", base)
    cover = folder / "odd/cover.png"
    coded = ["-map", "0", "-c:v"]
    mpeg2 = [*coded, "mpeg2video", "-threads", "1", "-r", "25"]  # with threads, now and then two frames of one time
    run(
        *source,
        *(*coded, "mpeg4", "-vf", "select=not(mod(n\\,4))", "-bf", "0", folder / "repeats.avi"),
        *(*coded, "mpeg4", "-bf", "2", folder / "b_frames.avi"),
        *(*coded, "mpeg4", "-vf", "select=lt(n\\,9)+gt(n\\,20)", folder / "gap.mkv"),
        *(*mpeg2, "-bf", "2", "-flags", "+ildct+ilme", folder / "interlaced.mpg"),
        *(*mpeg2, "-bf", "2", "-g", "10", folder / "plain.ts"),
        *(*mpeg2, "-output_ts_offset", "3600", folder / "late.ts"),
        *(*coded, "ffv1", "-pix_fmt", "yuv420p10le", "-colorspace", "bt2020nc", folder / "ten_bits.mkv"),
        *(*coded, "ffv1", "-colorspace", "bt709", folder / "bt709.mkv"),
        *(*coded, "mjpeg", "-pix_fmt", "yuvj420p", folder / "full_range.mov"),
        *(*coded, "ffv1", "-pix_fmt", "gray", "-vf", "scale=63:47", folder / "grey_odd.mkv"),
        *(*coded, "qtrle", "-pix_fmt", "argb", folder / "alpha.mov"),
        *(*coded, "mpeg4", "-frames:v", "1", folder / "one.mp4"),
        *(*coded, "png", "-frames:v", "1", "-f", "image2", cover),
    )
    copied = ["-map", "0:v", "-c", "copy"]
    run(
        *("-i", base),
        *(*copied, "-output_ts_offset", "3600", folder / "late.mkv"),
        *(*copied, "-output_ts_offset", "3600", folder / "late.mov"),
        *(*copied, "-movflags", "faststart", folder / "index_first.mp4"),
        *(*copied, "-movflags", "frag_keyframe+empty_moov", folder / "fragments.mp4"),
        *(*copied, "-live", "1", folder / "live.mkv"),
        *(*copied, "-ss", "1.25", folder / "from_middle.mkv"),
    )
    run(
        *("-ss", "1.25", "-i", base),
        *(*copied, folder / "trim.mp4"),
        *(*copied, folder / "trim.mov"),
        *(*copied, folder / "trim.mkv"),
        *(*copied, "-t", "0.9", folder / "piece.mp4"),
    )
    both = ["-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", "aac"]
    run("-i", base, *SOUND, *both, folder / "sound_longer.mkv", *both, folder / "sound_longer.mp4")
    run("-itsoffset", "0.5", "-i", base, *SOUND, *both, folder / "picture_later.mkv")
    covered = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"]
    run("-i", cover, "-i", base, *covered, folder / "cover_first.mp4")
    run("-i", cover, *SOUND, *covered, "-c:a", "aac", folder / "odd/song.mp4")
    data = (folder / "plain.ts").read_bytes()
    (folder / "recorded.ts").write_bytes(data[188 * (len(data) // 188 // 3) :])  # begins between two key frames
    with_hidden_frames(folder / "hidden_frames.webm")
    return folder


def names(films: Path) -> list[Path]:
    return sorted(path for path in films.iterdir() if path.is_file())


def assert_as_shown(path: Path) -> int:
    ours = sample_video(path, 1000, SIZE)
    theirs, times = shown(path)
    assert (path.name, ours.total) == (path.name, len(theirs))
    apart = np.abs(ours.pixels.astype(int) - theirs).mean((1, 2, 3))
    assert apart.max() < 1, f"{path.name}: frame {apart.argmax()} differs by {apart.max():.1f} levels"
    np.testing.assert_allclose(ours.times_s, times, atol=2e-3, err_msg=path.name)
    return ours.total


def test_pictures_their_number_and_their_times_are_those_that_ffmpeg_shows(films: Path) -> None:
    totals = {path.name: assert_as_shown(path) for path in names(films)}
    assert totals["plain.mp4"] == totals["late.mkv"] == totals["cover_first.mp4"] == 30 and totals["one.mp4"] == 1
    assert totals["trim.mp4"] == 17 and totals["repeats.avi"] == 8 and totals["hidden_frames.webm"] == 40
    frames = sample_video(films / "plain.mp4", 99, SIZE).pixels.astype(int)
    assert np.abs(np.diff(frames, axis=0)).mean((1, 2, 3)).min() > 5  # so that neighbours are told apart


TURNS = {
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "90 mirrored": (0, 1, 1, 0),
    "270 mirrored": (0, -1, -1, 0),
    "30": (0.8660, 0.5, -0.5, 0.8660),
    "none": (0, 0, 0, 0),
}


@pytest.mark.parametrize("turn", TURNS)
def test_the_display_matrix_turns_frames_thumbnails_and_the_pictures_for_people(
    films: Path, tmp_path: Path, turn: str
) -> None:
    path = tmp_path / "turned.mp4"
    path.write_bytes(turned((films / "piece.mp4").read_bytes(), TURNS[turn]))
    total = assert_as_shown(path)
    size = (64, 48) if turn.startswith(("90", "270")) else (48, 64)
    picture = picture_at(path, total - 1, size[1])
    assert picture.shape == (3, *size)
    assert np.abs(picture.astype(int) - shown(path, size)[0][-1]).mean() < 1
    shots = sample_video(path, 3, SIZE, "shots")
    np.testing.assert_array_equal(shots.pixels, sample_video(path, 3, SIZE).pixels)
    assert sample_video(path, 1).pixels.shape == (1, 3, *size)


def test_pictures_for_people_have_the_shape_of_the_screen(films: Path, tmp_path: Path) -> None:
    run("-i", films / "plain.mp4", "-c:v", "mpeg4", "-vf", "setsar=2", tmp_path / "wide.mp4")
    (tmp_path / "high.mp4").write_bytes(turned((tmp_path / "wide.mp4").read_bytes(), TURNS["90"]))
    assert picture_at(tmp_path / "wide.mp4", 0, 64).shape == (3, 24, 64)
    assert picture_at(tmp_path / "high.mp4", 0, 24).shape == (3, 64, 24)


def test_a_cover_is_no_film(films: Path) -> None:
    with pytest.raises(UserError, match=r"song\.mp4: holds no video stream, only a cover picture"):
        sample_video(films / "odd/song.mp4", 2)


def test_joined_recordings_go_on_in_time(films: Path, tmp_path: Path) -> None:
    data = (films / "live.mkv").read_bytes()
    (tmp_path / "twice.mkv").write_bytes(data + data)
    twice = sample_video(tmp_path / "twice.mkv", 99, SIZE)
    assert twice.total == 60
    np.testing.assert_allclose(twice.times_s, np.arange(60) / 10, atol=2e-3)


def test_recordings_whose_times_jump_go_on_as_ffmpeg_lets_them(films: Path, tmp_path: Path) -> None:
    first, second = ((films / name).read_bytes() for name in ("plain.ts", "late.ts"))
    for name, data in (("forward.ts", first + second), ("backward.ts", second + first)):
        (tmp_path / name).write_bytes(data)
        found = sample_video(tmp_path / name, 1000, SIZE)
        assert found.times_s[-1] < 8 and np.diff(found.times_s).max() < 0.5
        assert found.total == len(shown(tmp_path / name)[0])


def test_sound_that_begins_before_the_picture_is_no_time_of_the_film(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "sound_first.ts"
    both = ["-map", "0:v", "-map", "1:a", "-c:v", "mpeg2video", "-c:a", "aac"]
    run("-itsoffset", "1.5", "-i", films / "plain.mp4", *SOUND, *both, path)
    times = shown(path)[1]
    np.testing.assert_allclose(sample_video(path, 1000, SIZE).times_s, times, atol=2e-3)


def test_colour_matrices_that_no_filter_knows_are_shown(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "ycgco.mkv"
    run("-i", films / "plain.mp4", "-c:v", "ffv1", "-pix_fmt", "yuv420p", "-colorspace", "ycgco", path)
    plain = sample_video(films / "plain.mp4", 30, SIZE).pixels.astype(int)
    assert abs(sample_video(path, 30, SIZE).pixels - plain).mean() < 5


def test_constant_luminance_is_shown_as_the_other_bt2020(films: Path, tmp_path: Path) -> None:
    for kind in ("c", "nc"):
        coded = ["-c:v", "ffv1", "-pix_fmt", "yuv420p", "-colorspace", f"bt2020{kind}"]
        run("-i", films / "plain.mp4", *coded, tmp_path / f"{kind}.mkv")
    one, other = (sample_video(tmp_path / name, 30, SIZE).pixels for name in ("c.mkv", "nc.mkv"))
    np.testing.assert_array_equal(one, other)


def test_titles_in_another_encoding_do_not_matter(films: Path, tmp_path: Path) -> None:
    run("-i", films / "b_frames.avi", "-c", "copy", "-metadata", "title=Tuer zum Hof", tmp_path / "t.avi")
    data = (tmp_path / "t.avi").read_bytes()
    assert b"Tuer" in data
    (tmp_path / "t.avi").write_bytes(data.replace(b"Tuer", b"T\xfcr "))
    assert sample_video(tmp_path / "t.avi", 99, SIZE).total == 30


def test_files_that_were_cut_off_are_refused_and_no_others(films: Path, tmp_path: Path) -> None:
    with open(tmp_path / "unfinished.avi", "wb") as file:
        file.write(run("-i", films / "b_frames.avi", "-c", "copy", "-f", "avi", "pipe:1").stdout)
    kinds = set()
    for path in [*names(films), tmp_path / "unfinished.avi"]:
        assert missing_bytes(path) == 0, path
        data, kept = path.read_bytes(), 0
        for share in (0.35, 0.5, 0.777, 0.95):
            # Off all boundaries: between two fragments, chunks or packets a recording may end.
            torn = tmp_path / f"torn{path.suffix}"
            torn.write_bytes(data[: int(len(data) * share) // 16 * 16 + 7])
            kept += missing_bytes(torn) == 0
        assert kept == 0 or (path.name == "unfinished.avi" and kept < 3), f"{path.name}: {kept} of 4 pass"
        kinds.add(path.suffix)
        with pytest.raises(UserError, match=rf"torn\{path.suffix}: is cut off, at least \d+ bytes are missing"):
            sample_video(torn, 2)
    assert kinds == {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".ts"}


def test_bytes_behind_a_film_do_not_matter(films: Path, tmp_path: Path) -> None:
    for name in ("plain.mp4", "sound_longer.mkv", "b_frames.avi", "interlaced.mpg"):
        (tmp_path / name).write_bytes((films / name).read_bytes() + b"\0" * 700 + b"a note of the camera")
        assert sample_video(tmp_path / name, 99, SIZE).total == sample_video(films / name, 99, SIZE).total


def test_videos_that_differ_in_the_middle_are_two(tmp_path: Path) -> None:
    data = bytearray(1 << 20)
    (tmp_path / "a.mp4").write_bytes(data)
    data[1 << 19] = 1
    (tmp_path / "b.mp4").write_bytes(data)
    assert video_digest(tmp_path / "a.mp4") != video_digest(tmp_path / "b.mp4")
