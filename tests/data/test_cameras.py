"""Simulated cameras against direct calculations, and their promises."""

from __future__ import annotations

import colorsys
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lit_mmpg.data.cameras import FAMILIES, SEVERITIES, Camera, apply, noise_seed, sample_camera
from lit_mmpg.errors import UserError


def clip(size: int = 32, frames: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((frames, 3, 6, 6))
    smooth = ndimage.zoom(coarse, (1, 1, size / 6, size / 6), order=1)
    return (smooth * 255).astype(np.uint8)


@pytest.mark.parametrize("size", [24, 32, 97, 512])
def test_severity_zero_is_the_identity_bit_by_bit(size: int) -> None:
    camera = sample_camera(np.random.default_rng(3), 0)
    frames = clip(size, 2)
    assert camera.is_identity and camera.describe() == {}
    np.testing.assert_array_equal(apply(camera, frames, 5), frames)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_acts_alone_and_grows_with_severity(family: str) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    distances = []
    for severity in range(1, 6):
        camera = sample_camera(np.random.default_rng(7), severity, [family])
        assert list(camera.describe()) == [family]
        distances.append(np.abs(apply(camera, frames, 1).astype(float) - frames).mean())
    assert distances[0] > 0
    assert all(low < high for low, high in itertools.pairwise(distances))


def test_one_generator_state_gives_one_look_at_every_severity() -> None:
    mild, strong = (sample_camera(np.random.default_rng(11), severity) for severity in (1, 5))
    ratio = SEVERITIES["colour"][4] / SEVERITIES["colour"][0]
    np.testing.assert_allclose(np.log(strong.gains), ratio * np.log(mild.gains))
    assert strong.hue_deg == pytest.approx(ratio * mild.hue_deg)
    rng_all, rng_none = np.random.default_rng(2), np.random.default_rng(2)
    sample_camera(rng_all, 5)
    sample_camera(rng_none, 0, [])
    assert rng_all.random() == rng_none.random()


def test_sampled_cameras_stay_within_the_table() -> None:
    for severity in range(1, 6):
        limit = {family: SEVERITIES[family][severity - 1] for family in FAMILIES}
        cameras = [sample_camera(np.random.default_rng([severity, i]), severity) for i in range(200)]
        for camera in cameras:
            assert limit["blur"] / 2 <= camera.blur <= limit["blur"]
            assert limit["noise"] / 2 <= camera.noise <= limit["noise"]
            assert limit["resolution"] <= camera.resolution < 1
            assert limit["compression"] <= camera.jpeg_quality < 95
            assert abs(np.log(camera.gamma)) <= limit["gamma"] + 1e-12
            peak = max(*np.abs(np.log(camera.gains)), abs(np.log(camera.saturation)), abs(camera.hue_deg) / 60)
            assert limit["colour"] / 2 - 1e-9 <= peak <= limit["colour"] + 1e-9
        assert {camera.gamma > 1 for camera in cameras} == {True, False}


def test_colour_against_a_direct_calculation() -> None:
    frames = clip()
    gains = (1.2, 0.9, 1.05)
    expected = np.clip(frames / 255 * np.reshape(gains, (3, 1, 1)), 0, 1)
    assert_pixels(apply(Camera(gains=gains), frames, 0), expected)
    luma = (frames / 255 * np.reshape([0.299, 0.587, 0.114], (3, 1, 1))).sum(1, keepdims=True)
    assert_pixels(apply(Camera(saturation=0.6), frames, 0), luma + 0.6 * (frames / 255 - luma))
    assert_pixels(apply(Camera(gamma=1.7), frames, 0), (frames / 255) ** 1.7)


def test_hue_turns_red_to_green_to_blue_and_leaves_grey() -> None:
    turned = apply(Camera(hue_deg=120), solid(200, 40, 40), 0)
    np.testing.assert_array_equal(turned, solid(40, 200, 40))
    back = apply(Camera(hue_deg=-120), solid(200, 40, 40), 0)
    np.testing.assert_array_equal(back, solid(40, 40, 200))
    np.testing.assert_array_equal(apply(Camera(hue_deg=33), solid(90, 90, 90), 0), solid(90, 90, 90))
    r, g, b = apply(Camera(hue_deg=20), solid(180, 60, 60), 0)[0, :, 0, 0]
    assert colorsys.rgb_to_hsv(r, g, b)[0] * 360 == pytest.approx(20, abs=3)


@pytest.mark.parametrize("size", [24, 64, 200])
def test_blur_is_scipys_gaussian_at_any_size(size: int) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, 3, size, size), dtype=np.uint8)
    expected = ndimage.gaussian_filter(frames / 255, (0, 0, 0.03 * size, 0.03 * size), mode="nearest", truncate=6)
    assert_pixels(apply(Camera(blur=0.03), frames, 0), expected)


def test_halved_resolution_averages_pairs_and_interpolates() -> None:
    row = np.random.default_rng(2).random(32)
    frames = np.broadcast_to(np.rint(row * 255), (1, 3, 32, 32)).astype(np.uint8)
    means = (frames[0, 0, 0] / 255).reshape(16, 2).mean(1)
    expected = np.interp((np.arange(32) + 0.5) / 2 - 0.5, np.arange(16), means)
    assert_pixels(apply(Camera(resolution=0.5), frames, 0), np.broadcast_to(expected, (1, 3, 32, 32)))


@pytest.mark.parametrize("resolution", [0.02, 0.33, 0.61, 0.97])
def test_lens_keeps_flat_frames_of_any_shape(resolution: float) -> None:
    frames = np.full((2, 3, 40, 56), 77, np.uint8)
    np.testing.assert_array_equal(apply(Camera(resolution=resolution, blur=0.05), frames, 0), frames)


def test_noise_has_its_size_and_repeats_per_seed_and_frame() -> None:
    frames = np.full((6, 3, 64, 64), 128, np.uint8)
    camera = Camera(noise=0.05)
    noisy = apply(camera, frames, 4)
    assert (noisy / 255 - 128 / 255).std() == pytest.approx(0.05, rel=0.02)
    np.testing.assert_array_equal(noisy, apply(camera, frames, 4))
    np.testing.assert_array_equal(noisy[:2], apply(camera, frames[:2], 4))
    assert (noisy != apply(camera, frames, 5)).mean() > 0.9
    assert (noisy[0] != noisy[1]).mean() > 0.9


def test_noise_seed_depends_on_seed_and_clip_alone() -> None:
    assert noise_seed(1, "a") == noise_seed(1, "a")
    assert len({noise_seed(s, c) for s in range(5) for c in ("a", "b", "1/a")}) == 15


def test_compression_is_jpeg_frame_by_frame() -> None:
    frames = clip(41, 3)
    stored = apply(Camera(jpeg_quality=40), frames, 0)
    for before, after in zip(frames, stored, strict=True):
        file = io.BytesIO()
        Image.fromarray(before.transpose(1, 2, 0).copy()).save(file, "JPEG", quality=40)
        np.testing.assert_array_equal(after, np.asarray(Image.open(file)).transpose(2, 0, 1))


def test_frames_are_never_changed_in_place() -> None:
    frames = clip()
    before = frames.copy()
    apply(sample_camera(np.random.default_rng(0), 5), frames, 0)
    np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gains", (1.0, 0.0, 1.0)),
        ("gains", (1.0, 1.0)),
        ("saturation", -0.1),
        ("hue_deg", float("nan")),
        ("gamma", 0.0),
        ("blur", 0.6),
        ("resolution", 0.0),
        ("noise", 1.5),
        ("jpeg_quality", 96),
    ],
)
def test_settings_out_of_range_are_one_clear_error(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"camera: {field} is .*; set it to"):
        Camera(**{field: value})  # type: ignore[arg-type]


def test_bad_recipes_and_frames_are_one_clear_error() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="severity is 6"):
        sample_camera(rng, 6)
    with pytest.raises(UserError, match=r"'smell'.*choose"):
        sample_camera(rng, 1, ["blur", "smell"])
    with pytest.raises(UserError, match="'blur'"):
        sample_camera(rng, 1, "blur")
    for frames in (np.zeros((2, 3, 8, 8), np.float32), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 512), np.uint8)):
        with pytest.raises(UserError, match=r"uint8 pixels \[T, 3, H, W\]"):
            apply(Camera(noise=0.1), frames, 0)


def solid(*rgb: int) -> np.ndarray:
    return np.broadcast_to(np.reshape(rgb, (1, 3, 1, 1)), (1, 3, 24, 24)).astype(np.uint8)


def assert_pixels(pixels: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for single-precision rounding at half levels, and clipped."""
    assert np.abs(pixels - np.clip(expected, 0, 1) * 255).max() <= 0.5 + 1e-2
