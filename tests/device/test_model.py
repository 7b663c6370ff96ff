"""The device model: parameters are arguments, padding says nothing, devices do not mix, all tasks answer."""

from __future__ import annotations

import pytest
import torch

from lit_mmpg.batch import frame_positions
from lit_mmpg.device.model import DeviceModelConfig, DeviceNetwork, DynamicConfig, Shapes
from lit_mmpg.errors import UserError

LAYERS = {
    "open_ended": ("frame_projection", "fusion", "head"),
    "multiple_choice": ("frame_projection", "fusion", "head"),
    "retrieval": ("frame_projection", "head"),
}
TASKS = list(LAYERS)


def build(task: str, form: str = "low_rank", frame: tuple[int, ...] = (6,)) -> DeviceNetwork:
    torch.manual_seed(0)
    shapes = Shapes(task, frame, words=11, answers=5)  # type: ignore[arg-type]
    config = DeviceModelConfig(width=16, encoder_features=8, encoder_channels=4, heads=2)
    return DeviceNetwork(shapes, config, DynamicConfig(LAYERS[task], form, rank=2)).eval()  # type: ignore[arg-type]


def inputs(task: str, lead: tuple[int, ...], frames: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    options = 3 if task == "multiple_choice" else 1
    mask = torch.ones(*lead, frames, dtype=torch.bool)
    mask[..., -2:] = False
    return torch.randn(*lead, frames, 6), mask, torch.randint(1, 11, (*lead, options, 4))


def parameters(model: DeviceNetwork, lead: tuple[int, ...] = ()) -> tuple[torch.Tensor, ...]:
    return tuple(0.5 * torch.randn(*lead, *entry.shape) for entry in model.spec)


@pytest.mark.parametrize("task", TASKS)
def test_shapes_of_the_answers(task: str) -> None:
    model = build(task)
    out = model(*inputs(task, (2, 3)))
    assert out.shape == {"open_ended": (2, 3, 5), "multiple_choice": (2, 3, 3), "retrieval": (2, 3)}[task]
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("form", ["full", "low_rank", "core", "basis"])
@pytest.mark.parametrize("task", TASKS)
def test_batched_devices_equal_single_devices(task: str, form: str) -> None:
    model = build(task, form)
    frames, mask, text = inputs(task, (3, 4))
    personal = parameters(model, (3,))
    together = model(frames, mask, text, personal)
    for g in range(3):
        alone = model(frames[g], mask[g], text[g], tuple(p[g] for p in personal))
        torch.testing.assert_close(together[g], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together, model(frames, mask, text), atol=1e-3)


@pytest.mark.parametrize("task", TASKS)
def test_padded_frames_say_nothing(task: str) -> None:
    model = build(task)
    frames, mask, text = inputs(task, (2,))
    changed = torch.where(mask.unsqueeze(-1), frames, 100 * torch.randn_like(frames))
    torch.testing.assert_close(model(frames, mask, text), model(changed, mask, text))
    torch.testing.assert_close(model(frames, mask, text), model(frames[:, :3], mask[:, :3], text), atol=1e-5, rtol=1e-5)


def test_padded_words_say_nothing() -> None:
    model = build("open_ended")
    frames, mask, text = inputs("open_ended", (2,))
    padded = torch.nn.functional.pad(text, (0, 3))
    torch.testing.assert_close(model(frames, mask, text), model(frames, mask, padded), atol=1e-5, rtol=1e-5)


def test_pixels_and_features_share_everything_behind_the_encoder() -> None:
    model = build("open_ended", frame=(3, 32, 32))
    pixels = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    mask = torch.ones(2, 4, dtype=torch.bool)
    assert model(pixels, mask, torch.randint(1, 11, (2, 1, 4))).shape == (2, 5)


def test_the_order_of_frames_matters() -> None:
    model = build("open_ended")
    torch.nn.init.normal_(model.time.weight)  # zero at first: time has to be learnt
    torch.nn.init.normal_(model.temporal[2].weight)  # type: ignore[index]
    frames, mask, text = inputs("open_ended", (2,))
    mask[:] = True
    assert not torch.allclose(model(frames, mask, text), model(frames.flip(1), mask, text), atol=1e-4)


def test_the_blind_model_ignores_the_frames() -> None:
    shapes = Shapes("open_ended", (6,), words=11, answers=5)
    model = DeviceNetwork(shapes, DeviceModelConfig(width=16, heads=2, blind=True)).eval()
    frames, mask, text = inputs("open_ended", (2,))
    torch.testing.assert_close(model(frames, mask, text), model(torch.randn_like(frames), mask, text))


def test_a_dynamic_layer_that_the_task_lacks_is_refused() -> None:
    with pytest.raises(UserError, match=r"fusion.*retrieval"):
        DeviceNetwork(Shapes("retrieval", (6,), 11), DeviceModelConfig(width=16), DynamicConfig(("fusion",)))


def test_positions_run_from_zero_to_one() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert frame_positions(mask).tolist() == [[0.0, 0.5, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]


def corrected(context_width: int = 0) -> DeviceNetwork:
    torch.manual_seed(0)
    config = DeviceModelConfig(width=16, heads=2, correction=7, context_width=context_width)
    layers = ("correction", "frame_projection")
    return DeviceNetwork(Shapes("retrieval", (6,), words=11), config, DynamicConfig(layers, "low_rank", rank=2)).eval()


def test_a_correction_starts_as_the_identity_and_then_changes_what_is_projected() -> None:
    model = corrected()
    features = torch.randn(2, 3, 5, 6)
    torch.testing.assert_close(model.project(features), model.project(features, corrected=False), rtol=0, atol=0)
    torch.nn.init.normal_(model.correction_output.weight)
    assert not torch.allclose(model.project(features), model.project(features, corrected=False), atol=1e-3)
    weight, bias = model.correction.weight, model.correction.bias
    by_hand = features + torch.nn.functional.gelu(features @ weight.T + bias) @ model.correction_output.weight.T
    torch.testing.assert_close(model.project(features), model.project(by_hand, corrected=False))


def test_a_dynamic_correction_takes_its_own_parameters_for_each_device() -> None:
    model = corrected()
    torch.nn.init.normal_(model.correction_output.weight)
    assert [e.name for e in model.spec][:3] == ["correction.u", "correction.v", "correction.c"]
    personal = parameters(model, (3,))
    features = torch.randn(3, 2, 5, 6)
    together = model.project(features, personal)
    for g in range(3):
        torch.testing.assert_close(together[g], model.project(features[g], tuple(p[g] for p in personal)))


def test_a_context_projection_decides_what_is_uploaded_and_is_trained_with_the_cloud_half() -> None:
    model, plain = corrected(context_width=9), corrected()
    features = torch.randn(2, 5, 6)
    uploaded = model.anchor_features(features)
    assert uploaded.shape == (2, 5, 9) and model.anchor_width == 9
    torch.testing.assert_close(uploaded.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.anchor_features(features), plain.project(features))
    ours = {id(p) for p in model.adapter_parameters()}
    assert all(id(p) in ours for p in model.context_projection.parameters())
