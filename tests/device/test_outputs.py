"""Losses of the tasks against plain NumPy, and the frames that training draws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.device.model import DeviceModelConfig, DeviceNetwork, Shapes
from lit_mmpg.device.module import random_frames
from lit_mmpg.device.outputs import Outputs, alignment_loss, answer_batch
from lit_mmpg.errors import UserError

WORDS, ANSWERS, D, WIDTH = 20, 7, 5, 8


def make_model(task: str) -> DeviceNetwork:
    torch.manual_seed(0)
    return DeviceNetwork(Shapes(task, (D,), WORDS, ANSWERS, 6), DeviceModelConfig(WIDTH, heads=2)).eval()


def make_batch(clip: list[list[int]], text_clip: list[list[int]], answer: list[list[int]], options: int = 1) -> Batch:
    """A batch with these clip indices (-1: padding), and texts about these places (-1: padding)."""
    rng = torch.Generator().manual_seed(1)
    clips, about = torch.tensor(clip), torch.tensor(text_clip)
    mask = (clips >= 0).unsqueeze(-1) & (torch.arange(4) < torch.randint(1, 5, (*clips.shape, 1), generator=rng))
    frames = Frames(torch.randn(*mask.shape, D, generator=rng) * mask.unsqueeze(-1), mask)
    real = about >= 0
    text = torch.randint(2, WORDS, (*about.shape, options, 6), generator=rng) * real[..., None, None]
    return Batch(
        frames=frames,
        context=frames,
        text=text,
        text_mask=real,
        text_clip=about.clamp(min=0),
        answer=torch.tensor(answer),
        item=torch.arange(about.numel()).view(about.shape),
        clip=clips,
        device=torch.arange(len(clips)),
        kind=torch.zeros_like(about),
    )


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


# -- questions ---------------------------------------------------------------------------------------------------

QUESTIONS = make_batch([[3, 5], [9, -1]], [[0, 1, 1], [0, 0, -1]], [[2, -1, 6], [0, 4, 5]])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_ignores_padding_and_unknown_answers(smoothing: float) -> None:
    logits = torch.randn(2, 3, ANSWERS)
    losses = []
    for b, n in ((0, 0), (0, 2), (1, 0), (1, 1)):  # (0, 1) is not in the answer list, (1, 2) is padding
        probability = log_softmax(logits[b, n].double().numpy())
        target = np.full(ANSWERS, smoothing / ANSWERS)
        target[int(QUESTIONS.answer[b, n])] += 1 - smoothing
        losses.append(-(target * probability).sum())
    model = make_model("open_ended")
    loss = model.task.loss(model, QUESTIONS, Outputs(logits), smoothing)
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("task", ["open_ended", "multiple_choice"])
def test_questions_without_a_usable_answer_teach_nothing(task: str) -> None:
    batch = make_batch([[3]], [[0, 0]], [[-1, -1]])
    logits = torch.randn(1, 2, ANSWERS, requires_grad=True)
    model = make_model(task)
    loss = model.task.loss(model, batch, Outputs(logits), 0.1)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_absent_options_are_never_chosen_and_cost_nothing() -> None:
    model = make_model("multiple_choice")
    batch = make_batch([[3, 5]], [[0, 1]], [[1, 0]], options=4)
    batch.text[0, 1, 2:] = 0  # the second question has two options
    with torch.no_grad():
        logits = answer_batch(model, batch, batch.frames.values).logits
        # Label smoothing would spread over options that are not there: it is for open-ended questions.
        losses = [float(model.task.loss(model, batch, Outputs(logits), smoothing)) for smoothing in (0.0, 0.3)]
    assert logits is not None and logits.shape == (1, 2, 4)
    assert (logits[0, 1, 2:] < -1e3).all() and (logits[0, 1, :2].abs() < 1e3).all()
    first, second = logits[0, 0].double().numpy(), logits[0, 1, :2].double().numpy()
    expected = -(log_softmax(first)[1] + log_softmax(second)[0]) / 2
    assert losses == pytest.approx([expected, expected], rel=1e-5)


@pytest.mark.parametrize(("task", "options"), [("open_ended", 1), ("multiple_choice", 3)])
def test_questions_are_asked_about_their_own_clip(task: str, options: int) -> None:
    model = make_model(task)
    batch = make_batch([[3, 5], [9, 7]], [[1, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]], options)
    with torch.no_grad():
        logits = answer_batch(model, batch, batch.frames.values).logits
        assert logits is not None
        for b in range(2):
            for n in range(3):
                m = batch.text_clip[b, n]
                alone = model(batch.frames.values[b, m], batch.frames.mask[b, m], batch.text[b, n])
                torch.testing.assert_close(logits[b, n], alone, rtol=1e-4, atol=1e-5)


# -- retrieval ---------------------------------------------------------------------------------------------------


def reference_infonce(
    video: np.ndarray, video_clip: list[int], text: np.ndarray, text_clip: list[int], temperature: float
) -> float:
    """Symmetric InfoNCE in which all copies of the right clip, and all its texts, count as right."""

    def direction(queries: np.ndarray, own: list[int], keys: np.ndarray, of: list[int]) -> float:
        losses = []
        for query, clip in zip(queries, own, strict=True):
            weight = {j: np.exp(temperature * float(query @ key)) for j, key in enumerate(keys)}
            right = sum(w for j, w in weight.items() if of[j] == clip)
            if right:
                losses.append(-np.log(right / sum(weight.values())))
        return float(np.mean(losses))

    return 0.5 * (direction(text, text_clip, video, video_clip) + direction(video, video_clip, text, text_clip))


CASES = {
    "plain": ([[3, 5], [9, 7]], [[0, 1], [0, 1]]),
    "several texts": ([[3, 5]], [[0, 0, 1]]),
    "a clip without a text": ([[3, 5], [9, 7]], [[0, 0], [1, -1]]),
    "padded clips and texts": ([[3, -1], [9, 7]], [[0, -1], [0, 1]]),
    "a clip that is there twice": ([[3, 5], [3, 7]], [[0, 1], [0, 1]]),
}


def retrieval_case(name: str) -> tuple[DeviceNetwork, Batch, Outputs, float]:
    model = make_model("retrieval")
    clip, text_clip = CASES[name]
    batch = make_batch(clip, text_clip, np.zeros_like(text_clip).tolist())
    rng = np.random.default_rng(2)
    video = rng.standard_normal((*batch.clip.shape, WIDTH))
    text = rng.standard_normal((*batch.text_mask.shape, WIDTH))
    video, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (video, text))
    real_video, real_text = batch.clip.numpy() >= 0, batch.text_mask.numpy()
    about = [clip[b][m] for b, row in enumerate(text_clip) for m in row if m >= 0]
    expected = reference_infonce(
        video[real_video], [c for row in clip for c in row if c >= 0], text[real_text], about, 10.0
    )
    outputs = Outputs(video=torch.from_numpy(video), text=torch.from_numpy(text))
    return model, batch, outputs, expected


@pytest.mark.parametrize("name", CASES)
def test_infonce(name: str) -> None:
    model, batch, outputs, expected = retrieval_case(name)
    assert float(model.task.loss(model, batch, outputs).detach()) == pytest.approx(expected, rel=1e-5)


def test_infonce_ignores_what_padding_holds() -> None:
    model, batch, outputs, expected = retrieval_case("padded clips and texts")
    assert outputs.video is not None and outputs.text is not None
    outputs.video[0, 1], outputs.text[0, 1] = outputs.text[0, 0], outputs.video[0, 0]
    assert float(model.task.loss(model, batch, outputs).detach()) == pytest.approx(expected, rel=1e-5)


def test_infonce_is_over_the_gathered_batch() -> None:
    """Each process sees the loss of the whole batch: gathering two halves gives what one process computes."""
    model, _, outputs, expected = retrieval_case("a clip that is there twice")

    def part(b: int) -> tuple[Batch, Outputs]:
        one = make_batch([CASES["a clip that is there twice"][0][b]], [[0, 1]], [[0, 0]])
        assert outputs.video is not None and outputs.text is not None
        return one, Outputs(video=outputs.video[b : b + 1], text=outputs.text[b : b + 1])

    sent: list[Tensor] = []
    model.task.loss(model, *part(1), gather=lambda x: (sent.append(x), x)[1])
    received = iter(sent)
    loss = model.task.loss(model, *part(0), gather=lambda x: torch.cat([x, next(received)]))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert next(received, None) is None


def test_a_batch_without_texts_has_no_loss_but_a_gradient() -> None:
    model = make_model("retrieval")
    batch = make_batch([[3, 5]], [[-1, -1]], [[0, 0]])
    loss = model.task.loss(model, batch, answer_batch(model, batch, batch.frames.values))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_retrieval_embeddings_have_unit_length() -> None:
    model, batch, *_ = retrieval_case("padded clips and texts")
    with torch.no_grad():
        outputs = answer_batch(model, batch, batch.frames.values)
    assert outputs.video is not None and outputs.text is not None
    torch.testing.assert_close(outputs.video.norm(dim=-1), torch.ones(2, 2))
    torch.testing.assert_close(outputs.text[batch.text_mask].norm(dim=-1), torch.ones(3))


# -- random frames -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 7), min_size=1, max_size=6), count=st.integers(1, 9), seed=st.integers(0, 1000))
def test_random_frames_are_real_first_and_in_order(lengths: list[int], count: int, seed: int) -> None:
    most = 7
    mask = torch.arange(most) < torch.tensor(lengths)[:, None]
    number = torch.where(mask, torch.arange(1, most + 1), 0)
    values = torch.stack([number, 100 * number], -1).float()
    torch.manual_seed(seed)
    drawn = random_frames(count, Frames(values[None], mask[None]))[0]
    assert drawn.values.shape == (1, len(lengths), min(count, most), 2)
    for length, row, real in zip(lengths, drawn.values[0, ..., 0].tolist(), drawn.mask[0].tolist(), strict=True):
        kept = min(length, count)
        assert real == [True] * kept + [False] * (len(real) - kept)
        chosen = row[:kept]
        assert sorted(set(chosen)) == chosen and all(1 <= value <= length for value in chosen)
    assert torch.equal(drawn.values[..., 1], 100 * drawn.values[..., 0])


def test_every_frame_is_drawn_as_often() -> None:
    torch.manual_seed(0)
    values = torch.arange(6.0).repeat(4000, 1)[None, ..., None]
    mask = (torch.arange(6) < 5).repeat(4000, 1)[None]
    drawn = random_frames(2, Frames(values, mask))[0].values.flatten().long()
    share = torch.bincount(drawn, minlength=6) / len(drawn)
    np.testing.assert_allclose(share.numpy(), [0.2] * 5 + [0], atol=0.02)


def test_random_frames_of_pixels() -> None:
    values = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1, 1, 1).expand(1, 1, 4, 3, 2, 2)
    drawn = random_frames(3, Frames(values, torch.ones(1, 1, 4, dtype=torch.bool)))[0]
    assert drawn.values.shape == (1, 1, 3, 3, 2, 2) and drawn.values.dtype == torch.uint8
    assert (drawn.values == drawn.values[..., :1, :1, :1]).all()


def test_alignment_pulls_real_frames_to_their_clean_twins() -> None:
    model = make_model("retrieval")
    batch = make_batch([[3, 5], [9, -1]], [[0, 1], [0, -1]], [[0, 0], [0, 0]])
    twins = dataclasses.replace(batch, clean=Frames(batch.frames.values + 1, batch.frames.mask))
    projected = model.project(model.encode(batch.frames.values))
    loss = alignment_loss(model, twins, projected)
    clean = model.project(model.encode(batch.frames.values + 1)).detach().numpy()
    error = np.square(projected.detach().numpy() - clean)[batch.frames.mask.numpy()]
    assert loss.item() == pytest.approx(error.mean(), rel=1e-4)
    loss.backward()
    assert model.frame_projection.weight.grad is not None
    with pytest.raises(UserError, match="clean twins"):
        alignment_loss(model, batch, projected)


def test_random_frames_of_twins_are_the_same_frames() -> None:
    values = torch.arange(24.0).view(1, 3, 8, 1)
    mask = torch.arange(8) < torch.tensor([8, 5, 2]).view(1, 3, 1)
    drawn, twin = random_frames(3, Frames(values, mask), Frames(values + 100, mask))
    torch.testing.assert_close(twin.values[twin.mask], drawn.values[drawn.mask] + 100)
    assert drawn.mask.sum(-1).tolist() == [[3, 3, 2]]
