import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import lsqr

from lit_mmpg.forms.input_layer import InputLayer
from lit_mmpg.maps import Correction, PixelMaps, Scene, gradients, guided, integrate, resized, smooth, undo
from lit_mmpg.profiling.benchmarks import memory_rivals

H, W = 12, 16
RNG = np.random.default_rng(0)
OPACITY = np.clip(RNG.uniform(-0.2, 0.6, (3, H, W)), 0, 1).astype(np.float32)
LIGHT = 255 * OPACITY * RNG.uniform(0, 1, (3, 1, 1)).astype(np.float32)


def world(count: int, seed: int = 1) -> np.ndarray:
    """Frames of flat patches at random places: sparse gradients, as natural frames have them."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, 3, H, W), 120.0)
    for frame in frames:
        for _ in range(4):
            y, x = rng.integers(-4, H), rng.integers(-4, W)
            frame[:, max(y, 0) : y + 7, max(x, 0) : x + 9] = rng.uniform(0, 255, (3, 1, 1))
    return np.rint(frames).astype(np.uint8)


def seen(frames: np.ndarray) -> np.ndarray:
    return np.rint((1 - OPACITY) * frames + LIGHT).clip(0, 255).astype(np.uint8)


def test_maps_are_those_of_an_independent_reference_and_do_not_grow():
    frames = world(6)
    found = PixelMaps.of(frames)
    for c, y, x in [(0, 0, 0), (1, 5, 7), (2, H - 1, W - 1), (0, 3, W - 1)]:
        values = [float(frame[c, y, x]) for frame in frames]
        down = [float(f[c, y + 1, x]) - float(f[c, y, x]) if y + 1 < H else 0.0 for f in frames]
        right = [float(f[c, y, x + 1]) - float(f[c, y, x]) if x + 1 < W else 0.0 for f in frames]
        assert found.mean[c, y, x] == pytest.approx(np.mean(values), abs=1e-3)
        assert found.deviation[c, y, x] == pytest.approx(np.std(values), abs=1e-3)
        assert (found.low[c, y, x], found.high[c, y, x]) == (min(values), max(values))
        assert found.gradient[:, c, y, x].tolist() == [np.median(down), np.median(right)]
    one = PixelMaps.of(frames[:1])
    assert one.gradient.shape == found.gradient.shape and one.count == 1
    np.testing.assert_array_equal(one.gradient, gradients(frames[0].astype(np.float32)))


def test_integration_solves_the_least_squares_problem():
    picture = RNG.normal(size=(3, H, W)).astype(np.float32)
    np.testing.assert_allclose(integrate(gradients(picture)), picture - picture.mean((1, 2), keepdims=True), atol=1e-4)
    field = RNG.normal(size=(2, H, W))  # not the gradients of any picture
    rows, index = [], np.arange(H * W).reshape(H, W)
    for value, one, other in [
        *((field[0, y, x], index[y, x], index[y + 1, x]) for y in range(H - 1) for x in range(W)),
        *((field[1, y, x], index[y, x], index[y, x + 1]) for y in range(H) for x in range(W - 1)),
    ]:
        rows.append((value, one, other))
    matrix = lil_matrix((len(rows), H * W))
    for i, (_, one, other) in enumerate(rows):
        matrix[i, one], matrix[i, other] = -1, 1
    wanted = lsqr(matrix.tocsr(), np.array([row[0] for row in rows]), atol=1e-12, btol=1e-12)[0].reshape(H, W)
    np.testing.assert_allclose(integrate(field), wanted - wanted.mean(), atol=1e-6)


def test_a_guided_filter_is_the_guides_linear_function_in_each_window():
    guide, picture = RNG.normal(size=(H, W)), RNG.normal(size=(1, H, W))
    np.testing.assert_allclose(guided(3 * guide[None] + 2, guide, 2.0, 1e-6), 3 * guide[None] + 2, atol=1e-4)
    np.testing.assert_allclose(guided(picture, guide, 2.0, 1e6), smooth(smooth(picture, 2.0), 2.0), atol=1e-5)
    assert smooth(np.ones((2, H, W)), 3.0) == pytest.approx(1)


def test_the_undoing_is_exact_without_noise_and_shows_what_surrounds_it_where_nothing_passes():
    frames = world(40)
    scene = Scene.of(frames)
    exact = undo(OPACITY, LIGHT, scene, 0)
    assert abs(exact(seen(frames)).astype(int) - frames).max() <= 2
    blind = undo(np.ones_like(OPACITY), np.full_like(OPACITY, 80), scene)
    assert (blind(seen(frames)) == 118).all()
    opacity, ramp = np.zeros_like(OPACITY), np.rint(np.linspace(40, 200, W))[None, None, None] * np.ones((1, 3, H, W))
    opacity[:, 4:7, 6:10] = 1
    holed = np.where(opacity, 255, ramp).astype(np.uint8)
    filled = undo(opacity, 255 * opacity, scene, 1e-3)(holed)
    assert abs(filled.astype(float) - ramp).max() < 12
    larger = undo(opacity, 255 * opacity, scene, 1e-3)(resized(holed.astype(np.float32), (3 * H, 3 * W)))
    assert abs(larger - resized(ramp, (3 * H, 3 * W)))[..., 14:19, 22:26].max() < 14


def test_the_undoing_has_the_least_error_of_all_linear_ones():
    frames = world(400).astype(np.float64)
    scene, noise = Scene.of(frames), 20.0
    arrived = (1 - OPACITY) * frames + LIGHT + np.random.default_rng(3).normal(0, noise, frames.shape)
    chosen = undo(OPACITY, LIGHT, scene, noise)
    apart = arrived - arrived.mean(0)
    slope = (apart * (frames - frames.mean(0))).mean(0) / np.square(apart).mean(0)
    fitted = frames.mean(0) + slope * apart
    shown = chosen.gain * arrived + chosen.bias + (1 - chosen.trust) * scene.mean  # the mean is what surrounds it
    error = np.square(shown - frames).mean()
    assert np.square(fitted - frames).mean() <= error <= 1.02 * np.square(fitted - frames).mean()


def test_parameters_are_those_of_the_input_layer():
    frames = world(3)
    correction = undo(OPACITY, LIGHT, Scene.of(world(40)))
    given = correction.parameters((H, W), mean=100.0, std=60.0)
    layer = InputLayer(grid=(H, W), use=("gain", "bias"))
    x = torch.from_numpy((frames - 100.0) / 60.0)
    adapted = layer.apply(x, [torch.from_numpy(given[p.name]).double() for p in layer.parts()], None)
    bias = correction.bias + (1 - correction.trust) * 100.0
    np.testing.assert_allclose(100 + 60 * adapted.numpy(), correction.gain * frames + bias, atol=1e-3)
    back = Correction.of(given, H, W, mean=100.0, std=60.0)
    np.testing.assert_allclose(back.bias, bias, atol=1e-3)
    small = undo(np.zeros_like(OPACITY), np.zeros_like(LIGHT), Scene.of(world(40)), 0).parameters((4, 5))
    assert all(abs(value).max() < 1e-5 for value in small.values())


def test_resizing_averages_and_interpolates_as_torch_does():
    picture = RNG.normal(size=(2, H, W)).astype(np.float32)
    one = torch.from_numpy(picture)[None]
    large = torch.nn.functional.interpolate(one, (30, 20), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resized(picture, (30, 20)), large, atol=1e-5)
    small = torch.nn.functional.adaptive_avg_pool2d(one, (4, 8))[0]
    np.testing.assert_allclose(resized(picture, (4, 8)), small, atol=1e-5)


@pytest.mark.parametrize("name", ["median_gradients", "attenuation_scatter", "extremes"])
def test_what_a_device_estimates_alone_comes_nearer_to_the_clean_frames(name: str):
    opacity, light = np.zeros((2, 3, H, W), np.float32)
    opacity[:, 3:8, 4:11], light[:, 3:8, 4:11] = 0.3, 76

    def marked(frames: np.ndarray) -> np.ndarray:
        return np.rint((1 - opacity) * frames + light).astype(np.uint8)

    clean, test = world(400, 5), world(30, 7)
    scene, known = Scene.of(clean), PixelMaps.of(marked(world(60, 6)))
    parts = clean[:360].reshape(6, 60, 3, H, W)
    more = {"extremes": {"usual": (parts.min(1).mean(0), parts.max(1).mean(0)), "prior": 1.0}}
    more["attenuation_scatter"] = {"prior": 1.0, "sigma": 0.5}
    correction = getattr(memory_rivals, name)(known, scene, **more.get(name, {}))
    inside = (..., slice(3, 8), slice(4, 11))
    before = abs(marked(test).astype(float) - test)[inside].mean()
    assert abs(correction(marked(test)).astype(float) - test)[inside].mean() < 0.7 * before


def test_a_share_of_the_minimum_is_subtracted():
    own = PixelMaps.of(world(6) // 2 + 60)
    darker = memory_rivals.minimum(own, Scene.of(world(40)), 0.5)(world(2) // 2 + 60)
    np.testing.assert_allclose(darker, world(2) // 2 + 60 - own.low / 2, atol=0.51)


def test_a_cautious_correction_trusts_no_place_more_than_its_neighbours():
    correction = undo(OPACITY, LIGHT, Scene.of(world(40)))
    careful = correction.cautious()
    wide = np.pad(correction.trust, ((0, 0), (1, 1), (1, 1)), "edge")
    wanted = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), (1, 2)).min((-1, -2)).min(0)
    np.testing.assert_allclose(careful.trust, wanted[None].repeat(3, 0), rtol=1e-6)
    np.testing.assert_allclose(careful.gain / correction.gain, wanted / correction.trust, rtol=1e-5)
