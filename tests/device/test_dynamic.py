"""Dynamic layers against NumPy, batched against unbatched, and generated parameters that change nothing at first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lit_mmpg import adaptable
from lit_mmpg.cloud.adaptor import FastDomainAdaptor
from lit_mmpg.device.contract import DynamicConfig, Shapes, build_network
from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.errors import UserError
from lit_mmpg.forms.base import Form, Part, Zero, entries
from lit_mmpg.forms.registry import FORMS as KNOWN

FORMS = ["full", "low_rank", "core", "basis", "film", "shift"]


def random_parameters(layer: DynamicLinear, devices: int) -> list[torch.Tensor]:
    return [torch.randn(devices, *entry.shape) for entry in entries("layer", layer.parts())]


def numpy_reference(layer: DynamicLinear, x: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """One device, from the table in the module's docstring."""
    weight, bias = layer.weight.detach().numpy().astype(np.float64), layer.bias.detach().numpy().astype(np.float64)
    x = x.astype(np.float64)
    if layer.form.name == "full":
        return x @ parts[0].T + parts[1]
    if layer.form.name == "low_rank":
        u, v, c = parts
        return x @ (weight + u @ v.T).T + bias + c
    if layer.form.name == "film":
        return (1 + parts[0]) * (x @ weight.T + bias) + parts[1]
    if layer.form.name == "shift":
        return x @ weight.T + bias + parts[0]
    fixed_in, fixed_out = layer.fixed_in.detach().numpy(), layer.fixed_out.detach().numpy()
    if layer.form.name == "core":
        core, c = parts
        return x @ (weight + fixed_out @ core @ fixed_in.T).T + bias + c
    (coefficients,) = parts
    delta = fixed_out @ np.diag(coefficients) @ fixed_in.T
    return x @ (weight + delta).T + bias + layer.fixed_bias.detach().numpy() @ coefficients


@pytest.mark.parametrize("form", FORMS)
def test_every_form_computes_what_its_table_says(form: str) -> None:
    torch.manual_seed(0)
    layer = DynamicLinear(7, 5, form, rank=3)
    parameters = random_parameters(layer, 4)
    x = torch.randn(4, 2, 6, 7)
    y = layer(x, parameters).detach().numpy()
    assert y.shape == (4, 2, 6, 5)
    for g in range(4):
        expected = numpy_reference(layer, x[g].numpy(), [p[g].double().numpy() for p in parameters])
        np.testing.assert_allclose(y[g], expected, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_of_devices_equals_one_device_at_a_time(form: str) -> None:
    torch.manual_seed(1)
    layer = DynamicLinear(7, 5, form, rank=3)
    parameters = random_parameters(layer, 3)
    x = torch.randn(3, 6, 7)
    together = layer(x, parameters)
    for g in range(3):
        torch.testing.assert_close(together[g], layer(x[g], [p[g] for p in parameters]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_an_untrained_adaptor_equals_the_static_layer(form: str) -> None:
    torch.manual_seed(2)
    layer = DynamicLinear(7, 5, form, rank=3)
    adaptor = FastDomainAdaptor({"layer": layer}, context=9)
    parameters = adaptor(torch.randn(4, 9))
    x = torch.randn(4, 6, 7)
    torch.testing.assert_close(layer(x, parameters), layer(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_every_generator_is_registered_and_learns(form: str) -> None:
    torch.manual_seed(3)
    layer = DynamicLinear(7, 5, form, rank=3)
    adaptor = FastDomainAdaptor({"layer": layer}, context=9)
    optimiser = torch.optim.SGD(adaptor.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in adaptor.named_parameters() if "generators" in name}
    assert before
    for _ in range(3):  # the first step moves the zero-initialised parts, only then does v receive a gradient
        optimiser.zero_grad()
        layer(torch.randn(4, 6, 7), adaptor(torch.randn(4, 9))).square().sum().backward()
        optimiser.step()
    for name, value in adaptor.named_parameters():
        if name in before:
            assert not torch.equal(value, before[name]), name


def test_full_refuses_layers_that_are_too_large() -> None:
    with pytest.raises(UserError, match=r"1280 x 256.*low_rank"):
        DynamicLinear(1280, 256, "full")


def test_a_generated_shift_is_a_concatenated_context() -> None:
    """What the control ``concat_context_on_device`` computes, written as the concatenation that it is."""
    torch.manual_seed(2)
    layer = DynamicLinear(7, 5, "shift")
    code, weight = torch.randn(3, 4), torch.randn(5, 4)
    x = torch.randn(3, 6, 7)
    joined = torch.cat([x, code.unsqueeze(1).expand(-1, 6, -1)], -1)
    concatenated = torch.nn.functional.linear(joined, torch.cat([layer.weight, weight], 1), layer.bias)
    torch.testing.assert_close(layer(x, [code @ weight.T]), concatenated, atol=1e-5, rtol=1e-5)


def foreign(parts: object = None, static: object = None, apply: object = None) -> type[Form]:
    """A form of somebody else's, of which a part is faulty."""

    class Foreign(Form):
        name, summary = "foreign", ""

        def parts(self, layer, rank):
            return parts(layer) if callable(parts) else (Part("gain", layer.channels, Zero()),)

        def static_parts(self, layer, rank):
            return static if static is not None else {}

        def apply(self, layer, x, static, own, devices):
            if callable(apply):
                return apply(layer, x, own, devices)
            return layer.over(torch.mul, layer.static(x), 1 + own[0], devices)

    return Foreign


@pytest.mark.parametrize(
    ("faulty", "said"),
    [
        (foreign(parts=lambda layer: None), r"form 'foreign' on a 7 x 5 layer: TypeError: .*; mend its parts"),
        (foreign(parts=lambda layer: ()), r"parts gives \(\); it is a Part or several"),
        (foreign(parts=lambda layer: 2 * (Part("u", (5,), Zero()),)), "each with a name of its own"),
        (foreign(parts=lambda layer: (Part("a.b", (5,), Zero()),)), "needs a name like 'u'"),
        (foreign(parts=lambda layer: (Part("u", (5.0,), Zero()),)), "a shape of whole numbers above 0"),
        (foreign(parts=lambda layer: (Part("u", (5,), Zero),)), "a Start as its start"),
        (foreign(static=[1]), r"form 'foreign' on a 7 x 5 layer: TypeError"),
    ],
)
def test_a_faulty_form_of_somebody_else_is_named(
    faulty: type[Form], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN._own, "foreign", faulty())
    with pytest.raises(UserError, match=said):
        DynamicLinear(7, 5, "foreign")
    with pytest.raises(UserError, match=said):
        adaptable(nn.Sequential(nn.Linear(7, 5)), ["0"], faulty())


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        (
            lambda layer, x, own, g: layer.static(x) + own[0].reshape(-1, 16).mean(0),
            "several devices otherwise than each alone",
        ),
        (lambda layer, x, own, g: layer.static(x)[..., :-1] + own[0].mean(), "fails with generated parameters"),
        (lambda layer, x, own, g: own[1], r"fails with generated parameters \(IndexError: .*form foreign"),
    ],
)
def test_a_form_that_mixes_devices_or_fails_is_refused_before_the_training(
    apply: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KNOWN._own, "foreign", foreign(apply=apply)())
    shapes = Shapes("open_ended", (12,), 30, 6, 8)
    build_network(DeviceModelConfig(width=16, heads=2), shapes, DynamicConfig(("head",), "low_rank", 2))
    with pytest.raises(UserError, match=said):
        build_network(DeviceModelConfig(width=16, heads=2), shapes, DynamicConfig(("frame_projection",), "foreign", 2))
