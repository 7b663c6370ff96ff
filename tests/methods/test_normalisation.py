"""AdaBN-style statistics and Tent on cases with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.methods.base import Episode, rows
from lit_mmpg.methods.episodes import Episodes
from lit_mmpg.methods.normalisation import FeatureStatistics, Tent, moments
from lit_mmpg.methods.objectives import entropy
from lit_mmpg.tasks import find_task
from tests.methods.conftest import World, take


def first_group(world: World, task: str):
    loaded = world(task)
    group = next(iter(Episodes(loaded.data, "test_unseen")))
    batch, index = group.queries[0]
    return loaded, Episode(group.support), Episode(find_task(task).query_view(batch)), index


def shifted(episode: Episode, gain: float, offset: float) -> Episode:
    frames = episode.batch.frames
    return Episode(replace(episode.batch, frames=Frames(frames.values * gain + offset, frames.mask)))


def test_moments_are_those_of_the_real_frames() -> None:
    rng = np.random.default_rng(0)
    values, mask = rng.standard_normal((2, 3, 4, 5)), rng.random((2, 3, 4)) > 0.4
    mean, variance, count = moments(torch.from_numpy(values), torch.from_numpy(mask))
    for b in range(2):
        np.testing.assert_allclose(mean[b], values[b][mask[b]].mean(0), atol=1e-12)
        np.testing.assert_allclose(variance[b], values[b][mask[b]].var(0), atol=1e-12)
        assert count[b, 0] == mask[b].sum()


def test_own_statistics_undo_a_gain_and_an_offset(world: World) -> None:
    """A camera that scales and shifts every feature is undone exactly by the device's own moments."""
    loaded, support, query, index = first_group(world, "open_ended")
    method = FeatureStatistics(loaded.subject, loaded.data)
    options = {"where": "features", "prior": 0.0}
    clean = method.respond(query, rows(method.adapt(support, options), index), options)
    state = method.adapt(shifted(support, 3.0, 5.0), options)
    restored = method.respond(shifted(query, 3.0, 5.0), rows(state, index), options)
    torch.testing.assert_close(restored.logits, clean.logits, atol=1e-3, rtol=1e-3)
    plain = loaded.subject.answer(shifted(query, 3.0, 5.0))
    assert not torch.allclose(plain.logits, clean.logits, atol=1e-2)


@pytest.mark.parametrize("where", ["features", "projected"])
def test_a_large_prior_is_the_static_model(world: World, where: str) -> None:
    loaded, support, query, index = first_group(world, "retrieval")
    method = FeatureStatistics(loaded.subject, loaded.data)
    options = {"where": where, "prior": 1e9}
    video = method.respond(query, rows(method.adapt(support, options), index), options).video
    torch.testing.assert_close(video, loaded.subject.answer(query).video, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(
        method.respond(query, rows(method.adapt(support, {**options, "prior": 0.0}), index), options).video,
        video,
        atol=1e-3,
    )


@pytest.mark.parametrize("task", ["open_ended", "retrieval"])
def test_tent_lowers_the_entropy_and_changes_the_norm_only(world: World, task: str) -> None:
    loaded, support, query, index = first_group(world, task)
    before = {name: tensor.clone() for name, tensor in loaded.subject.network.state_dict().items()}
    method = Tent(loaded.subject, loaded.data)
    points = [{"learning_rate": 1e-2, "steps": steps} for steps in (0, 8)]
    start, end = method.adapt_all(support, points)
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.subject.network.state_dict().items())
    assert set(end) == {"weight", "bias"} and end["weight"].shape == (len(support.batch), 16)

    def uncertainty(state: dict) -> torch.Tensor:
        outputs = method.respond(support, state, points[0])
        return entropy(loaded.subject.network, support.batch, outputs)

    assert bool((uncertainty(end) < uncertainty(start)).all())
    same = method.respond(query, rows(start, index), points[0])
    plain = loaded.subject.answer(query)
    for own, static in ((same.logits, plain.logits), (same.video, plain.video)):
        assert own is static is None or torch.allclose(own, static, atol=1e-6)


def test_tent_follows_the_gradient_of_one_device_alone(world: World) -> None:
    """The first step of Adam is the learning rate against the sign of the gradient; others' clips do not matter."""
    loaded, support, _, _ = first_group(world, "open_ended")
    method = Tent(loaded.subject, loaded.data)
    options = {"learning_rate": 1e-3, "steps": 1}
    together = method.adapt(support, options)
    alone = Episode(_row(support.batch, 0))
    torch.testing.assert_close(method.adapt(alone, options)["weight"][0], together["weight"][0], atol=1e-6, rtol=0)
    norm = loaded.subject.network.frame_norm
    norm.weight.requires_grad_(True)
    try:
        loss = entropy(loaded.subject.network, alone.batch, loaded.subject.answer(alone)).sum()
        (gradient,) = torch.autograd.grad(loss, norm.weight)
    finally:
        norm.weight.requires_grad_(False)
    big = gradient.abs() > 1e-5  # Adam divides by |g| + 1e-8
    step = together["weight"][0] - norm.weight
    torch.testing.assert_close(step[big], -1e-3 * gradient.sign()[big], atol=2e-6, rtol=0)


def _row(batch: Batch, b: int) -> Batch:
    return take(batch, torch.tensor([b]))
