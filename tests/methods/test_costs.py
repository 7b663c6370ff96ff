"""Costs on modules whose operations, bytes and frames can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_mmpg.batch import Frames
from lit_mmpg.cloud.module import CloudConfig, CloudModule
from lit_mmpg.device.evaluation import Evaluation
from lit_mmpg.device.model import DeviceModelConfig, DynamicConfig
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.methods import costs
from lit_mmpg.methods.adapted import Loaded, evaluate_adapted, load
from lit_mmpg.methods.base import Subject
from lit_mmpg.methods.costs import (
    FrameEncoder,
    PeakMemory,
    adapted_costs,
    device_costs,
    frame_encoder,
    measured,
    power_model,
    single_clip,
)
from tests.integration.conftest import PIXEL_NETWORK, Trained
from tests.methods.conftest import World, make_data


def test_operations_are_those_of_the_matrix_products() -> None:
    layer, x = nn.Linear(7, 5), torch.randn(3, 7)
    assert measured(lambda: layer(x)).flops == 2 * 3 * 7 * 5

    def train() -> None:
        layer.zero_grad()
        layer(x).sum().backward()

    # Backward adds the product for the weights; the input needs no gradient.
    assert measured(train).flops == 2 * 2 * 3 * 7 * 5


def test_peak_memory_is_what_lives_at_once() -> None:
    x = torch.zeros(1000)
    with PeakMemory() as memory:
        y = x + 1  # 4000 bytes
        view = y.view(10, 100)
        del y  # the view keeps it alive
        z = view * 2  # 8000
        del view  # 4000
        w = z + 1  # 8000
        u = w + 1  # 12000
        del z, w
        x.view(-1)  # a view of what was there before costs nothing
    assert (memory.peak, memory.live) == (12000, 4000)
    assert u.numel() == 1000


def test_seconds_are_a_median_and_slow_work_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 5.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(ticks))
    assert measured(lambda: None).seconds == 5.0
    steps = iter([0.0, 1.0, 0.0, 0.1, 0.0, 0.3, 0.0, 0.2, 0.0, 0.25])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(steps))
    assert measured(lambda: None).seconds == 0.25


def test_the_thread_count_is_restored() -> None:
    before = torch.get_num_threads()
    with costs.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_an_encoder_is_counted_per_frame_and_an_unknown_one_refused() -> None:
    small = frame_encoder({"name": "mobilenet_v2", "size": 64})
    assert small is not None and frame_encoder(None) is None
    # 300 million multiply-adds at 224 pixels (Sandler et al., 2018); operations go with the area.
    assert small.flops == pytest.approx(2 * 300e6 * (64 / 224) ** 2, rel=0.05)
    assert small.bytes > 4 * 2.2e6  # 2.2 million weights without the classifier
    with pytest.raises(UserError, match="mobilenet_v2"):
        frame_encoder({"name": "resnet"})


def test_power_is_a_model_and_says_so() -> None:
    watts, text = power_model()
    assert watts is not None and 0 < watts < 2000
    assert "estimate" in text and "codecarbon" in text


def test_costs_of_a_checkpoint(trained: Callable[[str], Trained]) -> None:
    loaded = load(trained("open_ended").cloud)
    module, data = loaded.subject.module, loaded.data
    found = device_costs(module, data)
    assert set(found) == {"cdc_mmpg", "static", "shuffled_device"}
    ours, static = found["cdc_mmpg"], found["static"]
    assert static["adapt_flops"] == 0 and static["cloud_s"] is None
    assert ours["cloud_s"] > 0 and ours["adapt_flops"] > 0
    assert ours["answer_flops"] > static["answer_flops"] > 0  # the generated factors are multiplied, too
    assert ours["answer_j"] == pytest.approx(ours["answer_s"] * power_model()[0])
    weights = sum(p.numel() for p in module.network.parameters()) * 4  # type: ignore[union-attr]
    assert static["peak_memory_bytes"] > weights
    assert "NOT included" in static["how"][0]
    encoder = FrameEncoder("toy", 1000.0, 0.5, 7)
    with_encoder = device_costs(module, data, encoder)
    extra = with_encoder["static"]["answer_flops"] - static["answer_flops"]
    batch = costs.single_clip(next(iter(data.eval_batches("test_unseen"))))
    assert extra == 1000 * int(batch.frames.mask.sum())
    # Two anchors of each clip of the context: uniform anchors need no other frame.
    clips = int(batch.context.mask.any(-1).sum())
    assert with_encoder["cdc_mmpg"]["adapt_flops"] - ours["adapt_flops"] == 1000 * 2 * clips
    assert with_encoder["static"]["answer_s"] > 0.5 and "toy" in with_encoder["static"]["how"][0]


def test_the_frames_that_the_device_needs_give_the_same_anchors(trained: Callable[[str], Trained]) -> None:
    loaded = load(trained("open_ended").cloud)
    module = loaded.subject.cloud
    assert module is not None
    context = next(iter(loaded.data.eval_batches("test_unseen"))).context
    needed, _ = costs.device_part(module, context)
    whole, _ = module.select(context)
    part, _ = module.select(Frames(needed.values, needed.mask))
    torch.testing.assert_close(part.features, whole.features)
    assert torch.equal(part.mask, whole.mask)


def test_a_personal_encoder_is_run_with_the_parameters_and_billed(pixel_world: Loaded) -> None:
    torch.manual_seed(1)
    data, small = pixel_world.data, CloudConfig(latent=4, reasoner_hidden=16, embedding=8, adaptor_hidden=16)
    layers = DynamicConfig(("encoder.stages.0", "head"), "low_rank", 2)
    cloud = CloudModule(data.meta, network=DeviceModelConfig(**PIXEL_NETWORK), dynamic=layers, cloud=small)
    for layer in cloud.adaptor.layers.values():
        for part in layer.get_submodule("generators").children():
            torch.nn.init.normal_(part.get_parameter("weight"))
    loaded = Loaded(Subject(cloud, [device.id for device in data.device_table.devices]), data, "none.ckpt")
    found = evaluate_adapted(loaded, "unadapted", groups=["test_unseen"])
    assert found.cost is not None and found.evaluation is not None
    expected = device_costs(cloud, data)
    billed = adapted_costs(found.cost, loaded, None)
    assert billed["answer_flops"] == expected["cdc_mmpg"]["answer_flops"] > expected["static"]["answer_flops"]
    evaluation, network = Evaluation([data.group("test_unseen")], ["by hand"]), cloud.network
    for batch in data.eval_batches("test_unseen"):
        own = loaded.subject.personal(batch.context, batch.device)
        with torch.no_grad():
            outputs = answer_batch(network, batch, network.encode(batch.frames.values, own), own)
        evaluation.update("test_unseen", "by hand", batch, outputs)
    values = [e.compute("test_unseen", m) for e, m in ((found.evaluation, "unadapted"), (evaluation, "by hand"))]
    assert values[0] == values[1]
    with pytest.raises(UserError, match="give pixels"):
        network.encode(network.encode(batch.frames.values), own)


def test_own_statistics_have_every_frame_of_the_context_encoded(world: World) -> None:
    """Nobody adapts anything here: the device still encodes its earlier clips to standardise its features."""
    plain, encoder = world("open_ended"), FrameEncoder("named", 1000.0, 0.0, 0)
    for prior in (0, 4):
        data = make_data(Path(plain.data.root), "open_ended", own_statistics=prior)
        frames = int(single_clip(next(iter(data.eval_batches("test_unseen")))).context.mask.sum())
        loaded, paid = Loaded(plain.subject, data, "none.ckpt"), 1000.0 * frames if prior else 0.0
        assert frames > 3
        assert device_costs(plain.subject.module, data, encoder)["static"]["adapt_flops"] == paid
        cost = evaluate_adapted(loaded, "unadapted").cost
        assert cost is not None and adapted_costs(cost, loaded, encoder)["adapt_flops"] == paid
