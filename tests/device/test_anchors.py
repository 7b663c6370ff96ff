"""Anchor selection: real frames only, in order, as many as asked, and never by the question."""

from __future__ import annotations

import pytest
import torch

from lit_mmpg.device.anchors import select_anchors

RULES = ["first", "uniform", "k_center", "random"]


def clips(lengths: list[int], frames: int = 9, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    mask = torch.arange(frames) < torch.tensor(lengths).unsqueeze(-1)
    return torch.randn(len(lengths), frames, width) * mask.unsqueeze(-1), mask


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 4, 9, 20])
def test_anchors_are_distinct_real_frames_in_order(rule: str, count: int) -> None:
    lengths = [9, 5, 3, 1]
    features, mask = clips(lengths)
    anchors, times, valid = select_anchors(features, mask, count, rule)  # type: ignore[arg-type]
    for b, length in enumerate(lengths):
        chosen = times[b, valid[b]]
        assert len(chosen) == min(count, length)
        assert (chosen.diff() > 0).all()
        index = (chosen * max(1, length - 1)).round().long()
        torch.testing.assert_close(anchors[b, valid[b]], features[b, index])
        assert (anchors[b, ~valid[b]] == 0).all()


def test_first_and_uniform_choose_the_expected_frames() -> None:
    features, mask = clips([9])
    _, first, _ = select_anchors(features, mask, 3, "first")
    _, uniform, _ = select_anchors(features, mask, 3, "uniform")
    assert (first * 8).round().long().tolist() == [[0, 1, 2]]
    assert (uniform * 8).round().long().tolist() == [[1, 4, 7]]


def test_k_center_takes_the_outlier() -> None:
    features = torch.zeros(1, 6, 2)
    features[0, 4] = 10.0
    mask = torch.ones(1, 6, dtype=torch.bool)
    _, times, _ = select_anchors(features, mask, 2, "k_center")
    assert 4 in (times[0] * 5).round().long().tolist()


def test_random_follows_its_generator() -> None:
    features, mask = clips([9, 9, 9])
    draws = [select_anchors(features, mask, 3, "random", torch.Generator().manual_seed(seed))[1] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_all_frames_when_zero_is_asked() -> None:
    features, mask = clips([9, 4])
    anchors, _, valid = select_anchors(features, mask, 0, "uniform")
    torch.testing.assert_close(anchors, features)
    assert torch.equal(valid, mask)


def test_a_clip_of_padding_only_has_no_anchor() -> None:
    features, mask = clips([0, 3])
    for rule in RULES:
        anchors, _, valid = select_anchors(features, mask, 2, rule)  # type: ignore[arg-type]
        assert not valid[0].any()
        assert (anchors[0] == 0).all()
