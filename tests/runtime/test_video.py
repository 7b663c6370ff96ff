"""Frames of video files: over shots, over damaged files."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.shots import LEAST_FRAMES, find_cuts, histogram, shot_indices
from lit_mmpg.runtime.video import sample_video, uniform_indices

LENGTHS = (20, 8, 32)


def write_shots(path: Path, lengths: tuple[int, ...] = LENGTHS, **options: str) -> Path:
    """Shots of textures, each moving and getting brighter, so that only the cuts are jumps."""
    rng = np.random.default_rng(3)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for length in lengths:
            low = int(rng.integers(0, 120))
            texture = rng.integers(low, low + 90, (6, 8, 3)).repeat(8, 0).repeat(8, 1)
            texture = (texture * rng.uniform(0.3, 1, 3)).astype(np.int64)
            for t in range(length):
                picture = np.clip(np.roll(texture, t, 1) + t // 2, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_every_shot_is_looked_at(tmp_path: Path) -> None:
    sample = sample_video(write_shots(tmp_path / "clip.mp4"), 4, (24, 32), "shots")
    assert (sample.total, sample.shots, sample.pixels.shape) == (60, 3, (4, 3, 24, 32))
    shot_of = np.searchsorted([20, 28], sample.indices, side="right")
    assert shot_of.tolist() == [0, 1, 2, 2]
    np.testing.assert_allclose(sample.times_s, sample.indices / 10, atol=0.01)
    uniform = sample_video(tmp_path / "clip.mp4", 4, (24, 32))
    assert uniform.indices.tolist() == uniform_indices(60, 4).tolist() and uniform.shots == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_with_exif_are_upright(tmp_path: Path, orientation: int) -> None:
    rows, columns = np.mgrid[:64, :128].astype(np.uint8)
    picture = Image.fromarray(np.stack([columns, 2 * rows, np.full_like(rows, 9)], -1))
    exif = Image.Exif()
    exif[0x0112] = orientation
    still, film = tmp_path / "still.jpg", tmp_path / "film.avi"
    picture.save(still, exif=exif, quality=95, subsampling=0)
    with av.open(str(still)) as source, av.open(str(film), "w") as target:  # as a digital camera films
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(p for p in source.demux() if p.size):
            packet.stream, packet.pts, packet.dts = stream, number, number
            target.mux(packet)
    with Image.open(still) as stored:
        upright = ImageOps.exif_transpose(stored).resize((16, 8), Image.Resampling.BILINEAR)
    expected = np.asarray(upright).transpose(2, 0, 1).astype(int)
    for file in (still, film):
        np.testing.assert_allclose(sample_video(file, 1, (8, 16)).pixels[0], expected, atol=3)


def test_with_fewer_frames_than_shots_the_longest_are_taken() -> None:
    assert shot_indices(np.array([20, 28]), 60, 1).tolist() == [44]
    assert shot_indices(np.array([20, 28]), 60, 2).tolist() == [10, 44]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 40))
def test_indices_are_distinct_ordered_and_as_many_as_can_be(lengths: list[int], count: int) -> None:
    total = sum(lengths)
    indices = shot_indices(np.cumsum(lengths)[:-1], total, count)
    assert len(indices) == min(count, total)
    assert (np.diff(indices) > 0).all() and indices[0] >= 0 and indices[-1] < total
    if count >= len(lengths):
        shots = np.searchsorted(np.cumsum(lengths), indices, side="right")
        assert len(set(shots.tolist())) == len(lengths)


def test_flicker_and_flashes_are_no_cuts() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 60, (40, 3, 8, 8))
    frames[::2] += 100  # every other frame is bright
    flicker = np.stack([histogram(frame.astype(np.uint8)) for frame in frames])
    assert not len(find_cuts(flicker))
    frames = np.repeat(rng.integers(0, 60, (1, 3, 8, 8)), 40, 0)
    frames[20:] += 150
    assert find_cuts(np.stack([histogram(f.astype(np.uint8)) for f in frames])).tolist() == [20]
    assert not len(find_cuts(np.stack([histogram(f.astype(np.uint8)) for f in frames[18:]]))), LEAST_FRAMES


@pytest.mark.parametrize("rule", ["uniform", "shots"])
def test_a_file_that_ends_early_is_named_even_where_its_index_is_whole(tmp_path: Path, rule: str) -> None:
    data = write_shots(tmp_path / "clip.mp4", movflags="faststart").read_bytes()
    (tmp_path / "torn.mp4").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match=r"torn\.mp4: is cut off"):
        sample_video(tmp_path / "torn.mp4", 4, (24, 32), rule)
    with pytest.raises(UserError, match="unknown; choose one of uniform, shots"):
        sample_video(tmp_path / "clip.mp4", 4, None, "random")
