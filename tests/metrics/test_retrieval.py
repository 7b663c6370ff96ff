from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from lit_mmpg.metrics import retrieval
from lit_mmpg.metrics.retrieval import (
    RankBounds,
    RetrievalMetrics,
    mean_ranks,
    rank_bounds,
    ranks,
    recall_probability,
    retrieval_metrics,
)


def shuffled_first_ranks(scores: list[float], correct: list[bool]) -> list[int]:
    """Rank of the first correct item for every order of the gallery: all ways to break ties."""
    result = []
    for order in itertools.permutations(range(len(scores))):
        placed = sorted(order, key=lambda item: -scores[item])  # stable: ties stay in the order of the permutation
        result.append(1 + next(place for place, item in enumerate(placed) if correct[item]))
    return result


@pytest.mark.parametrize("levels", [3, 10**6])
def test_ranks_equal_scipy_mean_ranks(levels: int) -> None:
    rng = np.random.default_rng(levels)
    similarity = rng.integers(levels, size=(50, 31)).astype(np.float32)
    target = rng.integers(31, size=50)
    expected = rankdata(-similarity, method="average", axis=1)[np.arange(50), target]
    np.testing.assert_allclose(ranks(torch.from_numpy(similarity), torch.from_numpy(target)), expected)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rank_and_recall_are_expectations_over_shuffled_ties(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6))
    scores = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=size, max_size=size))
    correct = data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
    bounds = rank_bounds(torch.tensor([scores]), torch.tensor([correct]))
    outcomes = np.array(shuffled_first_ranks(scores, correct))
    assert float(mean_ranks(bounds)) == pytest.approx(outcomes.mean())
    for k in range(1, size + 2):
        assert float(recall_probability(bounds, k)) == pytest.approx((outcomes <= k).mean())


@given(st.integers(0, 12), st.integers(0, 30), st.integers(1, 12))
def test_recall_of_one_correct_item_has_a_closed_form(better: int, ties: int, k: int) -> None:
    bounds = RankBounds(torch.tensor([better]), torch.tensor([ties]), torch.tensor([1]))
    expected = min(max((k - better) / (ties + 1), 0), 1)
    assert float(recall_probability(bounds, k)) == pytest.approx(expected, abs=1e-12)


def test_constant_scores_are_chance() -> None:
    size = 40
    bounds = rank_bounds(torch.zeros(size, size), torch.arange(size))
    assert mean_ranks(bounds).tolist() == [(size + 1) / 2] * size
    result = retrieval_metrics(bounds)
    assert [result[f"R@{k}"] for k in (1, 5, 10)] == pytest.approx([1 / size, 5 / size, 10 / size])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    similarity = torch.eye(4)
    similarity[2, 1] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        ranks(similarity, torch.arange(4))


def test_summary_equals_numpy() -> None:
    rng = np.random.default_rng(3)
    similarity = rng.normal(size=(60, 60))
    similarity[np.arange(60), np.arange(60)] += 1.5
    rank = rankdata(-similarity, axis=1)[np.arange(60), np.arange(60)]
    expected = {f"R@{k}": (rank <= k).mean() for k in (1, 5, 10)}
    expected |= {"MedR": np.median(rank), "MnR": rank.mean(), "mean_log_rank": np.log(rank).mean()}
    assert retrieval_metrics(rank_bounds(torch.from_numpy(similarity), torch.arange(60))) == pytest.approx(expected)


def test_faults_of_targets() -> None:
    scores = torch.eye(3)
    with pytest.raises(ValueError, match="no correct item"):
        rank_bounds(scores, torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="no correct item"):
        rank_bounds(scores, torch.tensor([[True, False, False], [False] * 3, [True] * 3]))
    with pytest.raises(ValueError, match="shape"):
        rank_bounds(scores, torch.tensor([0]))
    with pytest.raises(ValueError, match="shape"):
        rank_bounds(scores, torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="without queries"):
        retrieval_metrics(rank_bounds(scores[:0], torch.zeros(0, dtype=torch.long)))


class Split:
    """Random test split: 3 devices, several captions per clip, two clips without any."""

    def __init__(self, seed: int, clips: int = 23, texts: int = 61, width: int = 6) -> None:
        rng = np.random.default_rng(seed)
        self.clip_device = rng.integers(3, size=clips) + 10
        self.text_clip = rng.integers(clips - 2, size=texts)
        self.text_device = self.clip_device[self.text_clip]
        self.text = rng.normal(size=(texts, width)).astype(np.float32)
        self.video = rng.normal(size=(clips, width)).astype(np.float32)
        # Copies make exact ties; the correct clips are made easier than chance.
        self.text += 0.6 * self.video[self.text_clip]
        self.video[5:8] = self.video[4]
        self.text[30:33] = self.text[29]

    def metric(self, texts: np.ndarray | None = None, clips: np.ndarray | None = None, size: int = 9):
        texts = np.arange(len(self.text)) if texts is None else texts
        clips = np.arange(len(self.video)) if clips is None else clips
        metric = RetrievalMetrics()
        for start in range(0, max(len(texts), len(clips)), size):
            t, c = texts[start : start + size], clips[start : start + size]
            arrays = (
                self.text[t],
                self.video[c],
                self.text_clip[t],
                c,
                self.text_device[t],
                self.clip_device[c],
                t,
            )
            metric.update(*map(torch.from_numpy, arrays))
        return metric

    def reference(self) -> dict[str, float]:
        """Plain loops in float64, rounded so that copies tie."""
        scores = np.round(self.text.astype(np.float64) @ self.video.T.astype(np.float64), 9)
        result = {}
        for prefix, local in (("", False), ("local_", True)):
            rows: dict[str, list[tuple[int, int, int, int]]] = {"t2v": [], "v2t": []}
            for t in range(len(self.text)):
                pool = [c for c in range(len(self.video)) if not local or self.clip_device[c] == self.text_device[t]]
                target = self.text_clip[t]
                better = sum(scores[t, c] > scores[t, target] for c in pool)
                same = sum(scores[t, c] == scores[t, target] for c in pool) - 1
                rows["t2v"].append((better, same, 1, len(pool)))
            for c in sorted(set(self.text_clip.tolist())):
                pool = [t for t in range(len(self.text)) if not local or self.text_device[t] == self.clip_device[c]]
                own = [t for t in pool if self.text_clip[t] == c]
                best = max(scores[t, c] for t in own)
                better = sum(scores[t, c] > best for t in pool)
                same = sum(scores[t, c] == best for t in pool if t not in own)
                rows["v2t"].append((better, same, sum(scores[t, c] == best for t in own), len(pool)))
            for way, entries in rows.items():
                rank = np.array([1 + b + s / (p + 1) for b, s, p, _ in entries])
                for k in (1, 5, 10):
                    hits = []
                    for b, s, p, _ in entries:
                        m = min(max(k - b, 0), s + p)
                        hits.append(1 - math.comb(s, m) / math.comb(s + p, m))
                    result[f"{prefix}{way}/R@{k}"] = float(np.mean(hits))
                result[f"{prefix}{way}/MedR"] = float(np.median(rank))
                result[f"{prefix}{way}/MnR"] = float(rank.mean())
                result[f"{prefix}{way}/mean_log_rank"] = float(np.log(rank).mean())
                result[f"{prefix}{way}/gallery_size"] = float(np.mean([entry[3] for entry in entries]))
        return result


def numbers(metric: RetrievalMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("seed", range(4))
def test_class_equals_plain_loops(seed: int) -> None:
    split = Split(seed)
    assert numbers(split.metric()) == pytest.approx(split.reference(), rel=1e-6)


def test_order_repeats_and_slices_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(9)
    expected = numbers(split.metric())
    rng = np.random.default_rng(0)
    texts, clips = rng.permutation(len(split.text)), rng.permutation(len(split.video))
    shuffled = split.metric(np.append(texts, texts[:5]), np.append(clips, clips[:4]), size=4)
    monkeypatch.setattr(retrieval, "SCORES_AT_ONCE", 100)
    assert numbers(shuffled) == expected


def test_of_repeated_clips_the_first_counts() -> None:
    ids = torch.arange(3)
    zero = torch.zeros(3, dtype=torch.long)
    metric = RetrievalMetrics()
    metric.update(torch.eye(3), torch.eye(3), ids, ids, zero, zero, ids)
    metric.update(-torch.eye(3), -torch.eye(3), ids, ids, zero, zero, ids)
    assert numbers(metric)["t2v/R@1"] == 1.0


@pytest.mark.parametrize("size", [7, 64, 301])
@pytest.mark.parametrize("width", [5, 64])
def test_collapsed_embeddings_are_chance(size: int, width: int) -> None:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(size))
    same = (vector / vector.norm()).expand(size, width)
    ids, device = torch.arange(size), torch.zeros(size, dtype=torch.long)
    metric = RetrievalMetrics()
    metric.update(same, same, ids, ids, device, device, ids)
    result = numbers(metric)
    for way in ("t2v", "v2t", "local_t2v", "local_v2t"):
        assert result[f"{way}/MnR"] == result[f"{way}/MedR"] == (size + 1) / 2
        assert result[f"{way}/R@1"] == pytest.approx(1 / size)


def test_collapsed_captions_rank_as_random_ones_would() -> None:
    """With p captions per clip the best of p random ranks among n is (n + 1) / (p + 1) on average."""
    clips, per_clip = 6, 3
    texts = torch.arange(clips * per_clip)
    metric = RetrievalMetrics()
    metric.update(
        torch.ones(len(texts), 4),
        torch.ones(clips, 4),
        texts // per_clip,
        torch.arange(clips),
        torch.zeros_like(texts),
        torch.zeros(clips, dtype=torch.long),
        texts,
    )
    assert numbers(metric)["v2t/MnR"] == pytest.approx((len(texts) + 1) / (per_clip + 1))


def test_local_gallery_sees_only_its_device() -> None:
    """Clips 0 and 1 score alike on every text, but belong to different devices."""
    ids, device = torch.arange(2), torch.tensor([3, 8])
    metric = RetrievalMetrics()
    metric.update(torch.ones(2, 2), torch.ones(2, 2), ids, ids, device, device, ids)
    result = numbers(metric)
    assert (result["t2v/R@1"], result["local_t2v/R@1"]) == (0.5, 1.0)
    assert (result["t2v/gallery_size"], result["local_t2v/gallery_size"]) == (2.0, 1.0)


def test_per_query_names_text_clip_and_device() -> None:
    split = Split(2)
    rows = split.metric().per_query()
    for name in ("t2v", "local_t2v"):
        assert sorted(rows[name].query.tolist()) == list(range(len(split.text)))
        np.testing.assert_array_equal(split.text_clip[rows[name].query], rows[name].clip)
        np.testing.assert_array_equal(split.text_device[rows[name].query], rows[name].device)
    assert rows["v2t"].query.tolist() == rows["v2t"].clip.tolist()
    assert rows["t2v"].rank.mean() == pytest.approx(split.reference()["t2v/MnR"])


def test_faults_of_updates() -> None:
    ids, device = torch.arange(2), torch.zeros(2, dtype=torch.long)
    good = {
        "text_embedding": torch.eye(2),
        "video_embedding": torch.eye(2),
        "text_clip_id": ids,
        "clip_id": ids,
        "device_text": device,
        "device_clip": device,
        "text_id": ids,
    }

    def updated(**changes: torch.Tensor) -> RetrievalMetrics:
        metric = RetrievalMetrics()
        metric.update(**{**good, **changes})
        return metric

    assert numbers(updated())["t2v/R@1"] == 1.0
    with pytest.raises(ValueError, match="items do not match"):
        updated(text_clip_id=ids[:1])
    with pytest.raises(ValueError, match="embeddings must be"):
        updated(video_embedding=torch.ones(2, 3))
    with pytest.raises(ValueError, match="NaN or infinity"):
        updated(video_embedding=torch.full((2, 2), math.nan)).compute()
    with pytest.raises(ValueError, match="no correct item"):
        updated(text_clip_id=torch.tensor([0, 5])).compute()
    with pytest.raises(ValueError, match="no correct item"):
        updated(device_text=torch.tensor([0, 1])).compute()
    with pytest.raises(ValueError, match="without texts"):
        updated(text_embedding=torch.ones(0, 2), text_clip_id=ids[:0], device_text=ids[:0], text_id=ids[:0]).compute()
