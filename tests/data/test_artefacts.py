import numpy as np
import pytest

from lit_mmpg.data.artefacts import FAMILIES, MOST_OPACITY, CameraModel, Clock, Instance, Placement, draw_model, drifted
from lit_mmpg.data.cameras import Camera
from lit_mmpg.errors import UserError

HEIGHT, WIDTH = 36, 48
SCENE = np.random.default_rng(9).integers(0, 256, (3, HEIGHT, WIDTH), dtype=np.uint8)


def model(family: str, seed: int = 0) -> CameraModel:
    return draw_model("m", family, HEIGHT, WIDTH, np.random.default_rng(seed), SCENE)


def frames(count: int = 2, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, HEIGHT, WIDTH), dtype=np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_is_what_its_maps_say_and_a_model_is_drawn_again_the_same(family: str):
    for seed in range(4):
        device = Instance(model(family, seed), Placement(0.7, 1, -2), HEIGHT, WIDTH)
        opacity, light = device.maps()
        assert opacity.min() >= 0.0 and opacity.max() <= 1 + 1e-6 and opacity.max() > 0.05
        x = frames()
        seen = device.film(x, "clip")
        expected = (1 - opacity) * x + 255 * light
        changed = abs(seen - expected) > 0.51
        if device.model.clock is None:
            assert not changed.any()
        else:  # the digits alone
            assert 0 < changed.any(1).mean() < 0.15
        again = Instance(model(family, seed), Placement(0.7, 1, -2), HEIGHT, WIDTH)
        np.testing.assert_array_equal(again.film(x, "clip"), seen)


def test_devices_of_a_model_have_the_same_artefact_up_to_their_placement():
    translucent = model("dirt")
    plain = Instance(translucent, Placement(), HEIGHT, WIDTH).maps()
    moved = Instance(translucent, Placement(0.5, 3, -2), HEIGHT, WIDTH).maps()
    for whole, part in zip(plain, moved, strict=True):
        np.testing.assert_allclose(part[:, 3:, :-2], 0.5 * whole[:, :-3, 2:], atol=1e-6)
    # Half a pixel is the mean of two, and scaling leaves the middle where it was.
    half = Instance(translucent, Placement(1, 0.5), HEIGHT, WIDTH).maps()[0]
    np.testing.assert_allclose(half[:, 1:], (plain[0][:, 1:] + plain[0][:, :-1]) / 2, atol=1e-6)
    spot = CameraModel("m", "dirt", np.zeros((3, 44, 56), np.float32), np.zeros((3, 44, 56), np.float32))
    spot.veil[:, 12, 18] = 1  # ten rows and ten columns from the middle of the canvas, as good as
    scaled = Instance(spot, Placement(scale=1.2), HEIGHT, WIDTH).maps()[0][0]
    weight = scaled / scaled.sum()
    rows, columns = np.indices(scaled.shape)
    wanted = (HEIGHT - 1) / 2 + 1.2 * (12 - 43 / 2), (WIDTH - 1) / 2 + 1.2 * (18 - 55 / 2)
    assert ((weight * rows).sum(), (weight * columns).sum()) == pytest.approx(wanted, abs=0.3)


def test_opaque_things_stay_opaque_and_others_never_become_it():
    housing = model("housing")
    weak, strong = (Instance(housing, Placement(s), HEIGHT, WIDTH).maps() for s in (0.4, 1.1))
    np.testing.assert_array_equal(weak, strong)
    assert weak[0].max() == pytest.approx(1)
    most = Instance(model("dirt", 3), Placement(2.0), HEIGHT, WIDTH)
    opacity, light = most.maps()
    assert opacity.max() <= MOST_OPACITY + 1e-6
    shown = opacity > 0.1
    colour = np.broadcast_to(most.model.light[:, :1, :1], opacity.shape)
    np.testing.assert_allclose((light / np.maximum(opacity, 1e-6))[shown], colour[shown], rtol=1e-3)


def test_an_oracle_undoes_a_translucent_artefact():
    device = Instance(model("glass"), Placement(0.9, 0.5, 0.25, 1.01), HEIGHT, WIDTH)
    opacity, light = device.maps()
    x = frames()
    back = (device.film(x, "clip") - 255 * light) / (1 - opacity)
    assert abs(back - x).max() <= 0.5 / (1 - opacity.max()) + 1e-2


def test_a_clock_changes_with_clip_and_frame_and_is_drawn_as_digits():
    clock = Clock(2, 3, 1, (1.0, 1.0, 1.0))
    picture = clock.draw(12 * 3600 + 34 * 60 + 57, (12, 50))
    shown = ["".join(".#"[int(v)] for v in row[3:34]) for row in picture[2:7]]
    assert shown == [
        ".#..###.....###.#.#.....###.###",
        "##....#..#....#.#.#..#..#.....#",
        ".#..###.....###.###.....###...#",
        ".#..#....#....#...#..#....#...#",
        "###.###.....###...#.....###...#",
    ]
    device = Instance(next(m for m in (model("overlay", s) for s in range(20)) if m.clock), Placement(), HEIGHT, WIDTH)
    still = np.zeros((2, 3, HEIGHT, WIDTH), np.uint8)
    one, other = device.film(still, "a"), device.film(still, "b")
    assert (one[0] != one[1]).any() and (one != other).any()
    assert ((one[0] != one[1]).any(0).mean()) < 0.1


def test_an_overlay_is_drawn_behind_the_camera_and_dirt_lies_in_front_of_it():
    camera = Camera(gains=(0.5, 1.0, 1.0))
    white = np.full((1, 3, HEIGHT, WIDTH), 255, np.uint8)
    opaque = next(m for m in (model("overlay", s) for s in range(20)) if m.opaque and not m.clock)
    veil, light = Instance(opaque, Placement(), HEIGHT, WIDTH).maps()
    covered = (veil == 1).all(0)
    seen = Instance(opaque, Placement(), HEIGHT, WIDTH).film(white, "a", camera=camera)[0, 0]
    assert covered.any() and abs(seen - 255 * light[0])[covered].max() <= 0.51 and (seen[~covered] <= 255).all()
    assert seen[veil[0] == 0].max() == 128
    device = Instance(model("dirt"), Placement(), HEIGHT, WIDTH)
    np.testing.assert_allclose(
        device.film(white, "a", camera=camera)[0, 0], device.film(white, "a")[0, 0] / 2, atol=1.01
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_drifts_becomes_another_in_part(family: str):
    before, after = model(family, 1), model(family, 5)
    for share in (0.0, 1.0):
        changed = drifted(before, after, share, np.random.default_rng(0))
        kept = after if share else before
        assert abs(changed.veil - kept.veil).max() < 1e-6
        assert abs(changed.veil * (changed.light - kept.light)).max() < 1e-6
    half = drifted(before, after, 0.5, np.random.default_rng(0))
    as_before, as_after = (abs(half.veil - kept.veil).max(0) < 1e-6 for kept in (before, after))
    if half.opaque:  # one side is the old one, the other the new one
        assert (as_before.all(0) | as_after.all(0)).all() and as_before.all(0).sum() >= half.veil.shape[-1] // 2
        assert as_after.all(0).sum() >= half.veil.shape[-1] // 2
    else:
        assert np.allclose(half.veil, (before.veil + after.veil) / 2, atol=1e-6)


def test_wrong_settings_are_refused_early():
    with pytest.raises(UserError, match="strength is 3"):
        Placement(3)
    with pytest.raises(UserError, match="scale is 0"):
        Placement(scale=0)
    with pytest.raises(UserError, match="finite"):
        Placement(down=float("nan"))
    with pytest.raises(UserError, match="family is 'fog'"):
        draw_model("m", "fog", 4, 4, np.random.default_rng(0))
    with pytest.raises(UserError, match="scene of 36 x 48"):
        draw_model("m", "glass", HEIGHT, WIDTH, np.random.default_rng(0), SCENE[:, :-1])
    with pytest.raises(UserError, match="are needed"):
        Instance(model("dirt"), Placement(), HEIGHT, WIDTH).film(frames()[:, :, 1:], "a")
