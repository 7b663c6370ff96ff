"""Controls on a cloud half: what they must equal, and what they must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lit_mmpg.methods.adapted import evaluate_adapted
from lit_mmpg.methods.base import Episode, own_parameters, rows
from lit_mmpg.methods.controls import GeneratorOnDevice, MeanDevice, SameNormNoise, fixed_layers, materialised
from lit_mmpg.methods.episodes import Episodes
from lit_mmpg.tasks import find_task
from tests.methods.conftest import World, make_data

FORMS = ["full", "low_rank", "core", "film"]


def first_group(world: World, form: str):
    loaded = world(form)
    group = next(iter(Episodes(loaded.data, "test_unseen")))
    parameters = loaded.subject.personal(group.support.context, group.support.device)
    batch, index = group.queries[0]
    own = tuple(tensor[index] for tensor in parameters)
    return loaded, Episode(group.support, parameters), Episode(find_task("open_ended").query_view(batch), own), index


@pytest.mark.parametrize("form", FORMS)
def test_materialised_layers_compute_what_the_parameters_do(cloud_world: World, form: str) -> None:
    loaded, support, _, _ = first_group(cloud_world, form)
    network = loaded.subject.network
    for name, layer in network.dynamic_layers().items():
        own = own_parameters(network, name, support.parameters)
        weight, bias = materialised(layer, own)
        x = torch.randn(len(support.batch), 5, layer.in_features)
        wanted = torch.einsum("gni,goi->gno", x, weight) + bias.unsqueeze(1)
        torch.testing.assert_close(layer(x, own), wanted, atol=1e-4, rtol=1e-4)
        if form == "low_rank":
            u, v, _c = own
            torch.testing.assert_close(weight, layer.weight + u @ v.transpose(1, 2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_device_is_the_mean_of_the_layers(cloud_world: World, form: str) -> None:
    loaded, _support, query, _index = first_group(cloud_world, form)
    subject = loaded.subject
    before = {name: tensor.clone() for name, tensor in subject.network.state_dict().items()}
    method = MeanDevice(subject, loaded.data)
    layers: dict[str, list[torch.Tensor]] = {}
    for group in Episodes(loaded.data, "train", at_once=1):
        parameters = subject.personal(group.support.context, group.support.device)
        for name, layer in subject.network.dynamic_layers().items():
            layers.setdefault(name, []).append(
                materialised(layer, own_parameters(subject.network, name, parameters))[0]
            )
    for name, weights in layers.items():
        torch.testing.assert_close(method.layers[name][0], torch.cat(weights).mean(0), atol=1e-5, rtol=1e-4)
    found = method.respond(query, {}, {}).logits
    assert not torch.allclose(found, subject.answer(query).logits, atol=1e-4)
    # With each layer fixed to one device's own, the fixed layers answer as that device.
    own = {
        n: materialised(lay, own_parameters(subject.network, n, query.parameters))
        for n, lay in subject.network.dynamic_layers().items()
    }
    first = {name: (weight[0], bias[0]) for name, (weight, bias) in own.items()}
    with fixed_layers(subject.network.dynamic_layers(), first):
        alone = subject.answer(Episode(query.batch)).logits[0]
    torch.testing.assert_close(alone, subject.answer(query).logits[0], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.network.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_noise_changes_a_layer_by_as_much_as_the_own_parameters(cloud_world: World, form: str) -> None:
    loaded, support, _query, _index = first_group(cloud_world, form)
    network = loaded.subject.network
    state = SameNormNoise(loaded.subject, loaded.data).adapt(support, {})
    noise = tuple(state[entry.name] for entry in network.spec)
    for name, layer in network.dynamic_layers().items():
        own = own_parameters(network, name, support.parameters)
        other = own_parameters(network, name, noise)
        if form in ("full", "low_rank"):
            sizes = [(materialised(layer, p)[0] - layer.weight).flatten(1).norm(dim=1) for p in (own, other)]
            np.testing.assert_allclose(*sizes, rtol=1e-3)
        else:
            for a, b in zip(own, other, strict=True):
                np.testing.assert_allclose(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1), rtol=1e-4)
    assert not torch.allclose(
        loaded.subject.answer(Episode(support.batch, noise)).logits, loaded.subject.answer(support).logits, atol=1e-4
    )


def test_the_generator_on_the_device_generates_what_the_cloud_does(cloud_world: World) -> None:
    """From the same anchors through a lossless link the parameters are the same, for zero bytes."""
    loaded, support, query, index = first_group(cloud_world, "low_rank")
    method = GeneratorOnDevice(loaded.subject, loaded.data)
    anchors = method.adapt(support, {"frames": "anchors"})
    for entry, own in zip(loaded.subject.network.spec, support.parameters, strict=True):
        torch.testing.assert_close(anchors[entry.name], own, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        method.respond(query, rows(anchors, index), {}).logits,
        loaded.subject.answer(query).logits,
        atol=1e-4,
        rtol=1e-4,
    )
    everything = method.adapt(support, {"frames": "all"})
    assert not torch.allclose(everything["head.u"], anchors["head.u"], atol=1e-5)
    result = evaluate_adapted(loaded, "fda_on_device")
    assert result.cost is not None and result.cost.upload_bytes == result.cost.download_bytes == 0
    assert result.cost.adapt_flops > 0
    assert evaluate_adapted(loaded, "unadapted").rows[0]["upload_bytes"] > 0


def test_the_generator_on_the_device_sees_the_context_as_it_is(cloud_world: World) -> None:
    """Query frames may be standardised by the device's own statistics; the generator gets what the cloud gets."""
    loaded = cloud_world("low_rank")
    data = make_data(Path(loaded.data.root), "open_ended", own_statistics=4)
    plain = next(iter(Episodes(loaded.data, "test_unseen")))
    group = next(iter(Episodes(data, "test_unseen")))
    assert not torch.allclose(group.support.frames.values, plain.support.frames.values, atol=0.05)
    parameters = loaded.subject.personal(group.support.context, group.support.device)
    generated = GeneratorOnDevice(loaded.subject, data).adapt(Episode(group.support, parameters), {"frames": "anchors"})
    for entry, own in zip(loaded.subject.network.spec, parameters, strict=True):
        torch.testing.assert_close(generated[entry.name], own, atol=1e-5, rtol=1e-4)


def test_a_method_on_a_cloud_half_goes_on_top_of_its_parameters(cloud_world: World, world: World) -> None:
    """Statistics that count for nothing leave the generated parameters; bytes and cloud time are the checkpoint's."""
    loaded = cloud_world("low_rank")
    nothing = {"where": "features", "prior": 1e12}
    own, same = evaluate_adapted(loaded, "unadapted"), evaluate_adapted(loaded, "adabn", options=nothing)
    assert own.evaluation is not None and same.evaluation is not None
    group = same.evaluation.groups[0]
    assert same.evaluation.compute(group, "adabn") == pytest.approx(own.evaluation.compute(group, "unadapted"))
    assert own.cost is not None and same.cost is not None
    # Each is a mean over the devices that it was measured on, whose contexts differ in length.
    assert same.cost.upload_bytes == pytest.approx(own.cost.upload_bytes, rel=0.02) and own.cost.upload_bytes > 100
    assert same.cost.download_bytes == pytest.approx(own.cost.download_bytes, abs=2) and own.cost.download_bytes > 500
    assert own.cost.cloud_s is not None and own.cost.adapt_flops > 0 and same.cost.adapt_flops > own.cost.adapt_flops
    on_static = evaluate_adapted(world("open_ended"), "adabn", options=nothing).cost
    assert on_static is not None and on_static.cloud_s is None
    assert on_static.adapt_flops + own.cost.adapt_flops <= same.cost.adapt_flops  # the delta is applied as well


def test_controls_of_a_generator_need_one(world: World) -> None:
    for name in ("mean_device", "same_norm_noise", "fda_on_device"):
        result = evaluate_adapted(world("open_ended"), name)
        assert result.reason == "the checkpoint holds no cloud half"
