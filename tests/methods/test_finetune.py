"""Fine-tuning: zero steps are the checkpoint, devices do not mix, and labels are learnt."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from lit_mmpg.data.datamodule import VideoData
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.methods import adapted
from lit_mmpg.methods.adapted import Loaded, evaluate_adapted
from lit_mmpg.methods.base import Episode, rows
from lit_mmpg.methods.episodes import Episodes
from lit_mmpg.methods.finetune import CleanTwins, FineTuneAll, FineTuneHead, FineTuneLowRank, FineTuning, Sampler
from lit_mmpg.tasks import find_task
from tests.methods.conftest import World, take

KINDS = [FineTuneAll, FineTuneHead, FineTuneLowRank]
TASKS = ["open_ended", "retrieval"]


def options(kind: type[FineTuning], steps: int) -> dict:
    return kind.points({"learning_rate": 1e-2, "steps": steps})[0]


def first_group(world: World, task: str):
    loaded = world(task)
    group = next(iter(Episodes(loaded.data, "test_unseen", labelled=True)))
    batch, index = group.queries[0]
    return loaded, Episode(group.support), Episode(find_task(task).query_view(batch)), index


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_zero_steps_are_exactly_the_checkpoint(world: World, task: str, kind: type[FineTuning]) -> None:
    loaded, support, query, index = first_group(world, task)
    method = kind(loaded.subject, loaded.data)
    found = method.respond(query, rows(method.adapt(support, options(kind, 0)), index), options(kind, 0))
    plain = loaded.subject.answer(query)
    for own, static in ((found.logits, plain.logits), (found.video, plain.video), (found.text, plain.text)):
        if static is None:
            assert own is None
        elif kind is FineTuneAll:  # batched matrix products may round differently
            torch.testing.assert_close(own, static, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(own, static)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_labelled_clips_are_learnt_and_the_checkpoint_is_not_touched(
    world: World, task: str, kind: type[FineTuning]
) -> None:
    loaded, support, _, _ = first_group(world, task)
    network = loaded.subject.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    method = kind(loaded.subject, loaded.data)
    start, end = method.adapt_all(support, [options(kind, 0), options(kind, 12)])

    def loss(state: dict) -> torch.Tensor:
        return network.task.device_loss(network, support.batch, method.respond(support, state, {}))

    assert bool((loss(end) < 0.9 * loss(start)).all())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    if kind is FineTuneAll and task == "retrieval":
        assert not any("text_encoder" in name for name in end)
    if kind is FineTuneHead:
        assert set(end) == {"weight", "bias"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_alone_is_tuned_as_it_is_among_others(world: World, kind: type[FineTuning]) -> None:
    loaded, support, _, _ = first_group(world, "open_ended")
    method = kind(loaded.subject, loaded.data)
    together = method.adapt(support, options(kind, 3))
    alone = method.adapt(Episode(take(support.batch, torch.tensor([1]))), options(kind, 3))
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor[0], together[name][1], atol=1e-5, rtol=1e-4)


def test_all_weights_follow_plain_adam_on_one_model(world: World) -> None:
    """Stacked weights under vmap take the steps that an ordinary training of one model takes."""
    loaded, support, _, _ = first_group(world, "open_ended")
    alone = Episode(take(support.batch, torch.tensor([0])))
    method = FineTuneAll(loaded.subject, loaded.data)
    tuned = method.adapt(alone, options(FineTuneAll, 3))
    model = copy.deepcopy(loaded.subject.network).requires_grad_(True)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    sampler = Sampler(alone.batch, method.clips, method.items, 3, 0)
    for step in range(3):
        batch = sampler.batch(step, alone.batch.frames.values)
        loss = model.task.device_loss(model, batch, answer_batch(model, batch, model.encode(batch.frames.values))).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # Not the weights one by one: where the gradient is nothing but rounding, Adam still takes a step.
    with torch.no_grad():
        wanted = answer_batch(model, alone.batch, model.encode(alone.batch.frames.values)).logits
        found = method.respond(alone, tuned, {}).logits
    torch.testing.assert_close(found, wanted, atol=1e-2, rtol=1e-2)
    assert float((wanted - loaded.subject.answer(alone).logits).abs().max()) > 0.1


def test_points_in_any_order_get_their_own_states(world: World) -> None:
    loaded, support, _, _ = first_group(world, "open_ended")
    method = FineTuneHead(loaded.subject, loaded.data)
    wanted = [(1e-2, 2), (1e-2, 0), (1e-3, 1), (1e-2, 2)]
    states = list(method.adapt_all(support, [{"learning_rate": r, "steps": s} for r, s in wanted]))
    for (rate, steps), state in zip(wanted, states, strict=True):
        alone = method.adapt(support, {"learning_rate": rate, "steps": steps})
        assert all(torch.equal(state[name], alone[name]) for name in alone)


@pytest.mark.parametrize("task", TASKS)
def test_each_step_draws_own_clips_with_their_own_texts(world: World, task: str) -> None:
    _, support, _, _ = first_group(world, task)
    batch = support.batch
    sampler = Sampler(batch, clips=2, items=2, steps=4, seed=0)
    seen: set[int] = set()
    for step in range(4):
        drawn = sampler.batch(step, batch.frames.values)
        for g in range(len(batch)):
            for n in torch.nonzero(drawn.text_mask[g]).flatten().tolist():
                clip = int(drawn.clip[g, drawn.text_clip[g, n]])
                seen.add(clip)
                own = [m for m in range(batch.text.shape[1]) if torch.equal(batch.text[g, m], drawn.text[g, n])]
                about = {int(batch.clip[g, batch.text_clip[g, m]]) for m in own if batch.text_mask[g, m]}
                assert clip in about
                if task == "open_ended":
                    assert any(
                        batch.answer[g, m] == drawn.answer[g, n] and batch.clip[g, batch.text_clip[g, m]] == clip
                        for m in own
                    )
    assert len(seen) > 4


def test_too_few_labelled_clips_are_a_reason_and_pairs_are_counted(world: World) -> None:
    loaded = world("open_ended")
    result = evaluate_adapted(loaded, "finetune_head", options={"labels": 64, "steps": 1, "learning_rate": 1e-3})
    assert result.evaluation is None and "not 64" in str(result.reason)
    result = evaluate_adapted(loaded, "finetune_head", options={"labels": 2, "steps": 1, "learning_rate": 1e-3})
    assert result.cost is not None and result.cost.backward
    assert result.cost.support_clips == 2 and result.cost.labelled_items == 4  # two questions about each clip
    assert result.setting == "supervised"


def test_groups_with_too_few_labelled_clips_are_left_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training devices that have filmed little do not keep a method from unseen ones that have filmed enough."""
    loaded = world("open_ended")

    def short(data: VideoData, group: str, *rest: object) -> Episodes:
        episodes = Episodes(data, group, *rest)  # type: ignore[arg-type]
        if group == "test_seen":
            episodes._keys = {(device, clips[:1]): rows for (device, clips), rows in episodes._keys.items()}
        return episodes

    monkeypatch.setattr(adapted, "Episodes", short)
    options = {"labels": 3, "steps": 1, "learning_rate": 1e-3}
    result = evaluate_adapted(loaded, "finetune_head", options=options)
    assert loaded.data.test_groups == ["test_unseen", "test_seen"]
    assert result.evaluation is not None and result.evaluation.groups == ["test_unseen"]
    assert {row["split"] for row in result.rows} == {"test_unseen"}
    first = evaluate_adapted(loaded, "finetune_head", options=options, groups=["test_seen"])
    assert first.evaluation is None and "group test_seen have 1 earlier clips" in str(first.reason)


def test_clean_twins_teach_what_undoes_a_camera(pixel_world: Loaded) -> None:
    loaded = pixel_world
    episodes = Episodes(loaded.data, "test_unseen", labelled=True, clean=True)
    support = Episode(next(iter(episodes)).support)
    assert support.batch.clean is not None
    method = CleanTwins(loaded.subject, loaded.data)
    start, end = method.adapt_all(support, [options(CleanTwins, 0), options(CleanTwins, 60)])
    before, after = method.loss(support, start), method.loss(support, end)
    assert (before > 0).all() and (after < 0.8 * before).all()
    # The loss against an independent computation of one device: mean over real frames and dimensions.
    network, batch = loaded.subject.network, support.batch
    real = batch.frames.mask[0].numpy()
    shifted = network.project(network.encode(batch.frames.values[:1]))[0].numpy()[real]
    clean = network.project(network.encode(batch.clean.values[:1]), corrected=False)[0].numpy()[real]
    assert before[0].item() == pytest.approx(float(np.mean((shifted - clean) ** 2)), rel=1e-5)


def test_clean_twins_need_data_that_has_them(world: World, pixel_world: Loaded) -> None:
    bare = world("open_ended")
    assert "no clean twins" in str(CleanTwins.not_for(bare.subject, bare.data))
    assert CleanTwins.not_for(pixel_world.subject, pixel_world.data) is None
