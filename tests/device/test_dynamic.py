"""Dynamic layers against NumPy, batched against unbatched, and generated parameters that change nothing at first."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_mmpg.cloud.adaptor import FastDomainAdaptor
from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.errors import UserError
from lit_mmpg.forms.base import entries

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
