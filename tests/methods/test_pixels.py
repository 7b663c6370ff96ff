"""Controls on pixels: colours that are aligned, and JPEG files that are really written and read."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lit_mmpg.batch import Frames
from lit_mmpg.methods.adapted import Loaded, evaluate_adapted
from lit_mmpg.methods.base import Episode, rows
from lit_mmpg.methods.episodes import Episodes
from lit_mmpg.methods.finetune import FineTuneAll
from lit_mmpg.methods.pixels import AnchorJpegUpload, PixelColourAlignment, channel_moments
from lit_mmpg.tasks import find_task
from tests.methods.conftest import World


def first_group(loaded: Loaded):
    group = next(iter(Episodes(loaded.data, "test_unseen")))
    batch, index = group.queries[0]
    return Episode(group.support), Episode(find_task("open_ended").query_view(batch)), index


def dimmed(episode: Episode, gain: tuple[float, float, float], offset: float) -> Episode:
    frames = episode.batch.frames
    channel = torch.tensor(gain).reshape(3, 1, 1)
    values = (frames.values.float() * channel + offset).round().clamp(0, 255).to(torch.uint8)
    return Episode(replace(episode.batch, frames=Frames(values, frames.mask)))


def test_channel_moments_are_those_of_the_real_frames(pixel_world: Loaded) -> None:
    support, _, _ = first_group(pixel_world)
    frames = support.batch.frames
    mean, deviation = channel_moments(frames)
    for b in range(len(mean)):
        real = frames.values[b][frames.mask[b]].numpy().astype(float)
        np.testing.assert_allclose(mean[b], real.mean((0, 2, 3)), rtol=1e-4)
        np.testing.assert_allclose(deviation[b], real.std((0, 2, 3)), rtol=1e-3)


def test_a_colour_cast_is_undone(pixel_world: Loaded) -> None:
    support, query, index = first_group(pixel_world)
    method = PixelColourAlignment(pixel_world.subject, pixel_world.data)
    options = {"rule": "moments", "strength": 1.0}
    clean = method.respond(query, rows(method.adapt(support, options), index), options).logits
    cast = ((0.5, 0.6, 0.8), 20.0)
    shifted_support, shifted_query = dimmed(support, *cast), dimmed(query, *cast)
    state = method.adapt(shifted_support, options)
    restored = method.respond(shifted_query, rows(state, index), options).logits
    plain = pixel_world.subject.answer(query).logits
    harm = (pixel_world.subject.answer(shifted_query).logits - plain).abs().mean()
    assert (restored - clean).abs().mean() < 0.5 * harm
    mean, _ = channel_moments(shifted_support.batch.frames)  # afterwards they are those of training
    torch.testing.assert_close(state["gain"] * mean + state["offset"], method.mean.expand_as(mean), atol=0.1, rtol=0)


def test_grey_world_restores_the_balance_of_the_channels_and_keeps_the_brightness(pixel_world: Loaded) -> None:
    support, _, _ = first_group(pixel_world)
    method = PixelColourAlignment(pixel_world.subject, pixel_world.data)
    shifted = dimmed(support, (0.6, 0.8, 1.0), 0.0)
    state = method.adapt(shifted, {"rule": "grey_world", "strength": 1.0})
    mean, _ = channel_moments(shifted.batch.frames)
    after = state["gain"] * mean + state["offset"]
    torch.testing.assert_close(after.mean(1), mean.mean(1))
    balance = method.mean / method.mean.mean()
    torch.testing.assert_close(after / after.mean(1, keepdim=True), balance.expand_as(after))


@pytest.mark.parametrize("rule", ["moments", "grey_world"])
def test_no_strength_is_the_checkpoint(pixel_world: Loaded, rule: str) -> None:
    support, query, index = first_group(pixel_world)
    method = PixelColourAlignment(pixel_world.subject, pixel_world.data)
    none = {"rule": rule, "strength": 0.0}
    same = method.respond(query, rows(method.adapt(support, none), index), none).logits
    assert torch.equal(same, pixel_world.subject.answer(query).logits)


def test_bytes_are_those_of_the_files(pixel_world: Loaded) -> None:
    _, query, _ = first_group(pixel_world)
    method = AnchorJpegUpload(pixel_world.subject, pixel_world.data)
    options = {"anchors": 1, "quality": 60}
    found = method.respond(query, {}, options)
    frames = query.batch.frames
    sizes = []
    for b, m in np.argwhere(frames.mask.any(-1).numpy()):
        length = int(frames.mask[b, m].sum())
        pixels = frames.values[b, m, length // 2].numpy()
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "JPEG", quality=60)
        sizes.append(len(file.getvalue()))
    assert method.sent_bytes().upload_bytes == pytest.approx(np.mean(sizes))
    assert min(sizes) > 100 and found.logits is not None and bool(torch.isfinite(found.logits).all())
    best = AnchorJpegUpload(pixel_world.subject, pixel_world.data)
    every = best.respond(query, {}, {"anchors": 0, "quality": 95}).logits
    plain = pixel_world.subject.answer(query).logits
    assert (every - plain).abs().mean() < (found.logits - plain).abs().mean()


def test_costs_say_who_answers_and_per_what(pixel_world: Loaded, world: World) -> None:
    cost = evaluate_adapted(pixel_world, "anchor_jpeg_upload").cost
    assert cost is not None and cost.per == "clip" and cost.answers_in == "cloud" and cost.upload_bytes > 100
    for name in ("anchor_jpeg_upload", "pixel_colour_alignment"):
        assert evaluate_adapted(world("open_ended"), name).reason == "the data has frame features, no pixels"


def test_fine_tuning_of_all_weights_reaches_the_pixel_encoder(pixel_world: Loaded) -> None:
    options = {"labels": 2, "steps": 1, "learning_rate": 1e-2}
    result = evaluate_adapted(pixel_world, "finetune_all", options=options, groups=["test_unseen"])
    assert result.cost is not None and result.cost.adapt_flops > 0
    method = FineTuneAll(pixel_world.subject, pixel_world.data)
    labelled = next(iter(Episodes(pixel_world.data, "test_unseen", labelled=True, support_clips=2)))
    start, end = method.adapt_all(Episode(labelled.support), [{**options, "steps": step} for step in (0, 1)])
    name = "network.encoder.stages.0.weight"
    assert not torch.equal(start[name], end[name])
