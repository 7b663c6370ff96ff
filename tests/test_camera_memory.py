import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.cluster.hierarchy import fcluster, linkage

from lit_mmpg import camera_memory
from lit_mmpg.camera_memory import (
    DRAWS,
    REACH_PX,
    CameraMemory,
    Evidence,
    Recognition,
    _matched,
    _spectra,
    alike,
    gate_for,
    group,
    learn,
    own_residual,
    placed,
    related,
    shifted,
    squashed,
    trimmed_mean,
)
from lit_mmpg.data.artefacts import Instance, Placement, draw_model
from lit_mmpg.errors import UserError
from lit_mmpg.link.camera import CameraQuery
from lit_mmpg.maps import PixelMaps, Scene, gradients
from lit_mmpg.profiling.benchmarks import memory_rivals

H, W = 24, 32
RNG = np.random.default_rng(0)


def world(count: int, seed: int) -> np.ndarray:
    """Frames of flat patches: sparse gradients and dull colours, as natural frames have them."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, 3, H, W), 110.0)
    for frame in frames:
        for _ in range(5):
            y, x = rng.integers(-8, H), rng.integers(-8, W)
            frame[:, max(y, 0) : y + 14, max(x, 0) : x + 18] = rng.uniform(0, 255) + rng.normal(0, 20, (3, 1, 1))
    return np.rint(frames + rng.normal(0, 1, frames.shape)).clip(0, 255).astype(np.uint8)


SCENE = Scene.of(world(400, 1))
MODELS = [
    draw_model(f"m{i}", family, H, W, np.random.default_rng(i), world(1, 90 + i)[0])
    for i, family in enumerate(("glass", "overlay", "housing", "glass"))
]


def film(model: int, placement: Placement, count: int, seed: int) -> np.ndarray:
    return Instance(MODELS[model], placement, H, W).film(world(count, seed), f"clip{seed}")


def told() -> CameraMemory:
    values = [Instance(model, Placement(), H, W).maps() for model in MODELS]
    opacity = np.stack([o for o, _ in values])
    change = np.stack([255 * b - o * SCENE.mean for o, b in values])
    return CameraMemory.empty(SCENE).with_models(change, opacity, [1] * len(MODELS))


TOLD = told()


def fleet(per_model: int = 5, frames: int = 24) -> tuple[list[Evidence], list[Evidence], list[int]]:
    uploaded, paired, models = [], [], []
    rng = np.random.default_rng(5)
    for model in range(len(MODELS)):
        for i in range(per_model):
            placement = Placement(rng.uniform(0.7, 1.0), *np.rint(rng.uniform(-1, 1, 2)).tolist())
            clean = world(frames, 1000 + 50 * model + i)
            seen = Instance(MODELS[model], placement, H, W).film(clean, "a")
            uploaded.append(Evidence.uploaded(PixelMaps.of(seen), SCENE))
            paired.append(Evidence.paired(seen, clean))
            models.append(model)
    return uploaded, paired, models


def test_devices_are_recognised_and_placed():
    for model in range(len(MODELS)):
        placement = Placement(0.8, -2.5, 1.5, 1.01)
        found = TOLD.recognise(PixelMaps.of(film(model, placement, 64, 300 + model)).gradient)
        assert found is not None and found.model == model and abs(found.down + 2.5) <= 1.5
        if MODELS[model].family == "glass":
            assert abs(found.down + 2.5) < 0.4 and abs(found.right - 1.5) < 0.4
            assert abs(found.strength - 0.8) < 0.2 and abs(found.scale - 1.01) < 0.015


def test_an_answer_brings_frames_back_and_the_gate_keeps_clean_devices_as_they_are():
    gate = gate_for(TOLD, [PixelMaps.of(world(4, 500 + i)).gradient for i in range(20)], share=0.0)
    for model in (0, 3):
        _, correction = TOLD.correct(PixelMaps.of(film(model, Placement(0.9, 1, -1), 4, 700)).gradient, gate)
        clean = world(8, 800)
        seen = Instance(MODELS[model], Placement(0.9, 1, -1), H, W).film(clean, "b")
        assert correction is not None
        before, after = (abs(x.astype(float) - clean).mean() for x in (seen, correction(seen)))
        assert after < 0.35 * before
    assert all(TOLD.correct(PixelMaps.of(world(4, 600 + i)).gradient, gate) == (None, None) for i in range(5))
    assert CameraMemory.empty(SCENE).correct(PixelMaps.of(world(4, 600)).gradient) == (None, None)
    assert gate_for(CameraMemory.empty(SCENE), [PixelMaps.of(world(1, 1)).gradient]) == 0


def test_a_memory_is_learnt_from_uploads_and_from_paired_views():
    uploaded, paired, models = fleet()
    shifts = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    for evidence, most in ((paired, 0.15), (uploaded, 0.5)):
        memory, groups = learn(CameraMemory.empty(SCENE), evidence, least=0.4)
        assert sorted(tuple(models[i] for i in found) for found in groups) == [(m,) * 5 for m in range(4)]
        assert memory.devices.tolist() == [5] * 4
        for change, found in zip(memory.change, groups, strict=True):
            model = models[found[0]]
            inner = (slice(None), slice(4, -4), slice(4, -4))
            strengths = (1.0,) if MODELS[model].opaque else (0.8, 0.85, 0.9)
            wanted = [s * shifted(TOLD.change[model], *shift)[inner] for shift in shifts for s in strengths]
            error = min(abs(change[inner] - w).mean() for w in wanted)
            assert error < most * abs(TOLD.change[model]).mean(), model


def test_a_few_wrong_uploads_change_little():
    uploaded, _, models = fleet()
    one = [e for e, model in zip(uploaded, models, strict=True) if model == 0]
    memory, _ = learn(CameraMemory.empty(SCENE), one, least=0.4)
    wrong = Evidence(5 * one[0].gradient, one[0].change + 500, -one[0].passes)
    poisoned, groups = learn(CameraMemory.empty(SCENE), [*one, wrong], least=0.2)
    assert 5 in groups[0]
    assert abs(poisoned.change[0] - memory.change[0]).mean() < 0.35 * abs(memory.change[0]).mean()
    mean = np.mean([e.change for e in [*one, wrong]], 0)  # what no trimming would do
    assert abs(mean - memory.change[0]).mean() > abs(memory.change[0]).mean()


def test_it_grows_without_changing_what_it_knew():
    first = TOLD.with_models(TOLD.change[:1] + 1, TOLD.opacity[:1], [7])
    assert len(first) == 5 and first.version == TOLD.version + 1 and len(TOLD) == 4
    np.testing.assert_array_equal(first.change[:4], TOLD.change)
    with pytest.raises(ValueError, match="expected"):
        TOLD.with_models(TOLD.change[:1, :, 1:], TOLD.opacity[:1], [1])
    with pytest.raises(ValueError, match="NaN"):
        TOLD.with_models(TOLD.change[:1] * np.nan, TOLD.opacity[:1], [1])
    unchanged, groups = learn(TOLD, [], least=0.4)
    assert unchanged is TOLD and groups == []


def test_a_saved_memory_comes_back_and_other_files_are_refused(tmp_path: Path):
    TOLD.save(tmp_path / "memory.safetensors")
    back = CameraMemory.load(tmp_path / "memory.safetensors")
    assert back.version == TOLD.version and back.devices.tolist() == TOLD.devices.tolist()
    np.testing.assert_allclose(back.change, TOLD.change, atol=0.07)
    np.testing.assert_allclose(back.opacity, TOLD.opacity, atol=1e-3)
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "damaged").write_bytes((tmp_path / "memory.safetensors").read_bytes()[:-9])
    with safe_open(str(tmp_path / "memory.safetensors"), "numpy") as file:
        told = json.loads(file.metadata()["camera_memory"])
    kept = load_file(tmp_path / "memory.safetensors")
    nothing = np.full_like(kept["scene.mean"], np.nan)
    for name, tensors, more in (
        ("nan", {"scene.mean": nothing}, {}),
        ("size", {"scene.deviation": kept["scene.deviation"][..., 1:]}, {}),
        ("gate", {}, {"gates": {"1": float("nan")}}),
        ("gates", {}, {"gates": [1]}),
    ):
        save_file(kept | tensors, tmp_path / name, {"camera_memory": json.dumps(told | more)})
    for name in ("other.safetensors", "damaged", "missing", "nan", "size", "gate", "gates"):
        with pytest.raises(UserError, match=f"{name} is not a readable camera memory"):
            CameraMemory.load(tmp_path / name)


def test_controls_have_other_values():
    shuffled = memory_rivals.shuffled(TOLD, np.random.default_rng(0))
    assert sorted(map(float, shuffled.change.mean((1, 2, 3)))) == sorted(map(float, TOLD.change.mean((1, 2, 3))))
    assert not any(np.array_equal(a, b) for a, b in zip(shuffled.change, TOLD.change, strict=True))
    np.testing.assert_allclose(memory_rivals.mean_model(TOLD).change[0], TOLD.change.mean(0))
    with pytest.raises(ValueError, match="no other"):
        memory_rivals.shuffled(memory_rivals.mean_model(TOLD), np.random.default_rng(0))


def test_a_query_is_recognised_by_the_bytes_that_arrive():
    for count in (1, 4, 64):
        maps = PixelMaps.of(film(0, Placement(), count, 40))
        arrived = CameraQuery.from_bytes(CameraQuery.encode(maps.gradient, count, "kitchen").to_bytes())
        assert arrived.frames == count and arrived.device_id == "kitchen"
        found = TOLD.recognise(arrived.gradient())
        assert found is not None and found.model == 0


def test_the_posterior_is_wide_where_few_frames_say_little():
    spread = {}
    for count in (1, 64):
        gradient = PixelMaps.of(film(0, Placement(0.9, 1, -1), count, 41)).gradient
        found = TOLD.recognise(gradient)
        assert found is not None
        draws = TOLD.posterior(gradient, found)
        assert {draw.model for draw in draws} == {found.model} and len(draws) == DRAWS
        spread[count] = np.std([draw.strength for draw in draws])
        assert abs(np.mean([draw.down for draw in draws]) - found.down) < 1
    assert spread[1] > spread[64]


def test_the_residual_adds_what_the_memory_does_not_know():
    mark = np.zeros((3, H, W), np.float32)
    mark[:, 4:9, 5:12] = 60
    clean = world(64, 77)
    own = np.rint(np.clip(0.7 * clean + mark, 0, 255)).astype(np.uint8)
    maps = PixelMaps.of(own)
    found, nothing = CameraMemory.empty(SCENE).correct(maps.gradient, maps=maps, residual=own_residual(prior=4))
    assert found is None and nothing is not None
    inside, outside = (nothing.bias[..., 5:8, 6:11].mean(), nothing.bias[..., 14:20, 18:28].mean())
    assert -90 < inside - outside < -25
    assert own_residual(1e9)(maps, mark * 0, mark * 0, SCENE)[1] == pytest.approx(0, abs=1e-4)


def test_the_matched_filter_is_the_direct_sum_over_shifts():
    query, keys = RNG.normal(size=(2, 6, 7)), RNG.normal(size=(3, 2, 6, 7))
    scores, shifts = _matched(query, *_spectra(keys, 2), 2)
    for key, score, shift in zip(keys, scores, shifts, strict=True):
        sums = {}
        for down in range(-2, 3):
            for right in range(-2, 3):
                sums[down, right] = sum(
                    query[i, y, x] * key[i, y - down, x - right]
                    for i, y, x in np.ndindex(query.shape)
                    if 0 <= y - down < 6 and 0 <= x - right < 7
                )
        assert shift == max(sums, key=lambda place: sums[place])
        assert score == pytest.approx(sums[shift] / np.linalg.norm(query) / np.linalg.norm(key))


def test_likeness_is_symmetric_and_tells_the_shift():
    picture = 3 * RNG.normal(size=(3, H, W)) ** 3
    moved = np.zeros_like(picture)
    moved[:, 2:, :-1] = picture[:, :-2, 1:]
    values, shifts = alike([squashed(picture), squashed(moved), squashed(RNG.normal(size=picture.shape))], 3)
    assert values[0, 1] > 0.85 and values[0, 1] == values[1, 0] and values[0, 2] < 0.2
    assert shifts[0, 1].tolist() == [2, -1] and shifts[1, 0].tolist() == [-2, 1]


def test_devices_of_one_model_are_never_parted_before_they_are_grouped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(camera_memory, "TOGETHER", 7)  # so that devices of one model are compared in several turns
    uploaded, _, models = fleet()
    strange = [Evidence.uploaded(PixelMaps.of(world(8, 900 + i)), SCENE) for i in range(3)]
    devices = [*uploaded, *strange]
    order = np.random.default_rng(1).permutation(len(devices))
    parts = related([devices[i] for i in order], 0.4, 4)
    correlation, _ = alike([squashed(devices[i].gradient) for i in order], 4)
    label = np.zeros(len(devices), int)
    for number, part in enumerate(parts):
        label[part] = number
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(devices)))
    assert not (correlation[label[:, None] != label] >= 0.4).any()
    found = {tuple(sorted(order[part])) for part in parts}
    assert found >= {tuple(i for i, m in enumerate(models) if m == model) for model in range(4)}


def test_groups_are_those_of_average_linkage():
    points = np.concatenate([RNG.normal(c, 0.4, (6, 2)) for c in (0, 2, 5)])
    likeness = np.exp(-np.linalg.norm(points[:, None] - points, axis=-1))
    pairs = np.triu_indices(len(points), 1)
    labels = fcluster(linkage(1 - likeness[pairs], "average"), 1 - 0.3, "distance")
    wanted = {tuple(np.flatnonzero(labels == label)) for label in set(labels)}
    assert {tuple(found) for found in group(likeness, 0.3)} == wanted and len(wanted) > 1


def test_pooling_divides_by_strength_and_leaves_the_outermost_out():
    values = np.array([[1.0], [0.5], [2.0], [1.5], [400.0]])
    assert trimmed_mean(values, np.array([1.0, 0.5, 2.0, 1.5, 1.0]))[0] == pytest.approx(1)
    small = trimmed_mean(np.array([[2.0], [6.0]]), np.array([1.0, 2.0]))
    assert small[0] == pytest.approx((1 * 2 + 4 * 3) / 5)


def test_a_picture_is_placed_as_devices_place_it():
    picture = RNG.normal(size=(3, H, W)).astype(np.float32)
    there = Recognition(0, 1.0, 1.0, 2.0, -1.0)
    np.testing.assert_allclose(placed(picture, there), shifted(picture, 2, -1), atol=1e-6)
    assert replace(there, down=-REACH_PX).scale == 1
    assert gradients(placed(picture, there)).shape == (2, 3, H, W)
