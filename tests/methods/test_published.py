"""Each peer against the formulas of its paper or published code, written out here in NumPy for one device at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import Episode
from lit_mmpg.methods.episodes import Episodes
from lit_mmpg.methods.evolution import SeparableCmaEs
from lit_mmpg.methods.finetune import FineTuneLowRank
from lit_mmpg.methods.forward_only import ForwardOnly
from lit_mmpg.methods.laplacian import laplacian_assignment, neighbours
from lit_mmpg.methods.normalisation import FeatureStatistics, OnlineTent, Tent
from lit_mmpg.methods.prototypes import T3A, DynamicCache, OnlineCache, OnlineT3A, OpenEndedMethod
from lit_mmpg.tasks import find_task
from tests.methods.conftest import World

DEVICES, ITEMS, ANSWERS, WIDTH = 3, 40, 5, 6


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(scores: np.ndarray) -> np.ndarray:
    p = softmax(scores)
    return -(p * np.log(p)).sum(-1)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@dataclass
class ToyBatch:
    """What these methods read of a batch."""

    features: torch.Tensor
    logits: torch.Tensor
    text_mask: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)


class Toy:
    """A linear head on random features: ``[DEVICES, ITEMS, WIDTH]``, of which the first ten items are the support."""

    support = 10

    def __init__(self, sharpness: float = 1.0) -> None:
        rng = np.random.default_rng(3)
        self.features = rng.normal(size=(DEVICES, ITEMS, WIDTH))
        self.weight = sharpness * rng.normal(size=(ANSWERS, WIDTH))
        # Rows that are not their own argmax, so that the paper's first examples are not those of the published code.
        self.weight[1] = 0.5 * self.weight[0]
        self.bias = 0.3 * rng.normal(size=ANSWERS)
        self.mask = rng.random((DEVICES, ITEMS)) < 0.85
        self.mask[:, 0] = True

    @property
    def logits(self) -> np.ndarray:
        return self.features @ self.weight.T + self.bias

    def episode(self, start: int, stop: int) -> Any:
        parts = (torch.from_numpy(a[:, start:stop]) for a in (self.features, self.logits, self.mask))
        return Episode(ToyBatch(*parts))  # type: ignore[arg-type]

    def method(self, kind: type[OpenEndedMethod]) -> Any:
        """The method on this head: what it reads from the device model comes from here, all else is its own."""
        method = kind.__new__(kind)
        method.look = lambda episode: (episode.batch.features, episode.batch.logits)  # type: ignore[method-assign]
        weight, bias = torch.from_numpy(self.weight), torch.from_numpy(self.bias)
        method.head = lambda _: (weight.expand(DEVICES, -1, -1), bias.expand(DEVICES, -1))  # type: ignore[method-assign]
        return method

    def answers(self, kind: type[OpenEndedMethod], options: dict[str, Any], cuts: Sequence[int] = ()) -> np.ndarray:
        """Scores of the items after the support, which come in parts that end at the cuts."""
        method = self.method(kind)
        state = method.adapt(self.episode(0, self.support), options)
        bounds = [self.support, *cuts, ITEMS]
        found = [method.respond(self.episode(a, b), state, options).logits for a, b in pairwise(bounds)]
        return torch.cat(found, 1).numpy()

    def compare(self, found: np.ndarray, reference: Callable[[int], dict[int, np.ndarray]]) -> None:
        for g in range(DEVICES):
            for n, wanted in reference(g).items():
                np.testing.assert_allclose(found[g, n - self.support], wanted, atol=1e-9)


def stream(toy: Toy, g: int, online: bool) -> list[tuple[int, bool, bool]]:
    """Items of a device in order: (item, whether it is learnt from, whether it is asked)."""
    real = np.flatnonzero(toy.mask[g]).tolist()
    return [(n, n < toy.support or online, n >= toy.support) for n in real]


@pytest.mark.parametrize("scale", ["paper", "head"])
@pytest.mark.parametrize("keep", [1, 3, 100])
@pytest.mark.parametrize("online", [False, True])
def test_t3a(online: bool, keep: int, scale: str) -> None:
    """c_k: sum of z / |z| over the ``keep`` examples of lowest entropy that were given answer k; score z . c_k / |c_k|.

    The first example of class k is row k of the head. Online, an item is an example before it is answered.
    """
    toy = Toy()
    own = entropy(toy.weight @ toy.weight.T + toy.bias)
    assert ((toy.weight @ toy.weight.T + toy.bias).argmax(1) != np.arange(ANSWERS)).any()

    def reference(g: int) -> dict[int, np.ndarray]:
        kept = {k: [(own[k], unit(toy.weight[k]))] for k in range(ANSWERS)}
        answers = {}
        for n, learnt, asked in stream(toy, g, online):
            z, logits = toy.features[g, n], toy.logits[g, n]
            if learnt:
                mates = kept[int(logits.argmax())]
                mates.append((entropy(logits), unit(z)))
                mates.sort(key=lambda example: example[0])
                del mates[keep:]
            if asked:
                centres = unit(np.stack([np.sum([z for _, z in kept[k]], 0) for k in range(ANSWERS)]))
                answers[n] = centres @ z
                if scale == "head":
                    answers[n] = answers[n] * np.linalg.norm(toy.weight, axis=1) + toy.bias
        return answers

    kind = OnlineT3A if online else T3A
    toy.compare(toy.answers(kind, {"keep": keep, "scale": scale}, (15, 16, 30)), reference)


@pytest.mark.parametrize("negative", [0.0, 0.117])
@pytest.mark.parametrize("online", [False, True])
def test_tda(online: bool, negative: float) -> None:
    """Logits + sum of alpha exp(-beta (1 - cos)) onehot(answer) over the positive cache, minus the same for the
    negative one with alpha = negative, beta = 1 and [0.03 < p < 1] in place of the one-hot answer.

    Each class has 3 places in the positive and 2 in the negative cache; a full one takes a more certain item in place
    of its least certain. For the negative cache: 0.2 < entropy in nats / log2 C < 0.5, so 29 to 72 % of the largest.
    """
    toy = Toy(0.8)
    level = entropy(toy.logits) / np.log(ANSWERS)
    assert ((level > 0.2) & (level < 0.2 / np.log(2))).any() and ((level > 0.5) & (level < 0.5 / np.log(2))).any()
    alpha, beta = 2.0, 5.0

    def reference(g: int) -> dict[int, np.ndarray]:
        caches: dict[str, dict[int, list]] = {"positive": {}, "negative": {}}
        answers = {}
        for n, learnt, asked in stream(toy, g, online):
            z, logits = unit(toy.features[g, n]), toy.logits[g, n]
            p, h = softmax(logits), entropy(logits)
            into = [("positive", 3)] + ([("negative", 2)] if 0.2 < h / math.log2(ANSWERS) < 0.5 else [])
            for name, places in into if learnt else []:
                mates = caches[name].setdefault(int(logits.argmax()), [])
                mates.append((h, z, (p > 0.03) & (p < 1)))
                mates.sort(key=lambda example: example[0])
                del mates[places:]
            if asked:
                answers[n] = logits.copy()
                for k, mates in caches["positive"].items():
                    answers[n][k] += sum(alpha * np.exp(-beta * (1 - z @ key)) for _, key, _ in mates)
                for mates in caches["negative"].values():
                    for _, key, possible in mates:
                        answers[n] -= negative * np.exp(-(1 - z @ key)) * possible
        return answers

    options = {"alpha": alpha, "beta": beta, "shots": 3, "negative": negative}
    toy.compare(toy.answers(OnlineCache if online else DynamicCache, options, (11, 25)), reference)


@pytest.mark.parametrize(("online", "offline", "options"), [
    (OnlineT3A, T3A, {"keep": 3, "scale": "head"}),
    (OnlineCache, DynamicCache, {"alpha": 2.0, "beta": 5.0, "shots": 3, "negative": 0.117}),
])  # fmt: skip
def test_an_answer_without_a_number_is_no_example(online: type, offline: type, options: dict) -> None:
    """Broken features of one item reach its own answer and no other."""
    for kind in (online, offline):
        toy = Toy()
        toy.mask[:, 4] = toy.mask[:, 12] = False
        wanted = toy.answers(kind, options)
        toy.features[:, [4, 12]] = np.nan
        toy.mask[:, 4] = toy.mask[:, 12] = True
        found = toy.answers(kind, options)
        others = np.arange(ITEMS - toy.support) != 2
        np.testing.assert_allclose(found[:, others], wanted[:, others], atol=1e-12)


def test_tent_by_hand() -> None:
    """Adam on mean entropy H over scale and shift of a norm, whose output x g + b enters a linear head W.

    dH / d logits = -p (log p + H), so dH / dg = mean of x (W' that), dH / db = mean of W' that;
    m = 0.9 m + 0.1 d, v = 0.999 v + 0.001 d^2, step -rate m / (1 - 0.9^t) / (sqrt(v / (1 - 0.999^t)) + 1e-8).
    Online, a batch is answered before its own step; the support is the first batch.
    """
    toy, rate = Toy(), 0.05
    norm = torch.nn.LayerNorm(WIDTH).double()

    def method(kind: type[Tent]) -> Any:
        tent: Any = kind.__new__(kind)
        tent.network = SimpleNamespace(frame_norm=norm, task=find_task("open_ended"))
        tent.subject = SimpleNamespace(features=lambda episode: episode.batch.features)
        head = torch.from_numpy(toy.weight)

        def answer(_: Any, features: torch.Tensor, state: dict[str, torch.Tensor]) -> Outputs:
            return Outputs(logits=(features * state["weight"][:, None] + state["bias"][:, None]) @ head.T)

        tent._answer = answer
        return tent

    class Reference:
        def __init__(self) -> None:
            self.g, self.b = np.ones(WIDTH), np.zeros(WIDTH)
            self.m, self.v, self.t = np.zeros(2 * WIDTH), np.zeros(2 * WIDTH), 0

        def answer(self, x: np.ndarray) -> np.ndarray:
            return (x * self.g + self.b) @ toy.weight.T

        def step(self, x: np.ndarray) -> None:
            p, h = softmax(self.answer(x)), entropy(self.answer(x))
            back = -p * (np.log(p) + h[:, None]) @ toy.weight
            d = np.concatenate([(x * back).mean(0), back.mean(0)])
            self.t += 1
            self.m, self.v = 0.9 * self.m + 0.1 * d, 0.999 * self.v + 0.001 * d**2
            change = rate * self.m / (1 - 0.9**self.t) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
            self.g, self.b = self.g - change[:WIDTH], self.b - change[WIDTH:]

    bounds = [toy.support, 18, 30, ITEMS]
    parts = list(pairwise(bounds))
    offline, online = method(Tent), method(OnlineTent)
    points = [{"learning_rate": rate, "steps": steps} for steps in (1, 3)]
    one, three = offline.adapt_all(toy.episode(0, toy.support), points)
    state = online.adapt(toy.episode(0, toy.support), points[0])
    answers = [online.respond(toy.episode(a, b), state, points[0]).logits.numpy() for a, b in parts]
    for g in range(DEVICES):
        wanted, x = Reference(), toy.features[g]
        support = x[: toy.support][toy.mask[g, : toy.support]]
        for steps, found in ((1, one), (3, three)):
            while wanted.t < steps:
                wanted.step(support)
            np.testing.assert_allclose(found["weight"][g], wanted.g, atol=1e-9)
            np.testing.assert_allclose(found["bias"][g], wanted.b, atol=1e-9)
        wanted = Reference()
        wanted.step(support)
        for (a, b), answered in zip(parts, answers, strict=True):
            real = toy.mask[g, a:b]
            np.testing.assert_allclose(answered[g][real], wanted.answer(x[a:b][real]), atol=1e-9)
            wanted.step(x[a:b][real])
        np.testing.assert_allclose(state["weight"][g], wanted.g, atol=1e-9)
    twice = {"learning_rate": rate, "steps": 2}
    state = online.adapt(toy.episode(0, toy.support), twice)
    answered = online.respond(toy.episode(*parts[0]), state, twice).logits.numpy()
    wanted, real = Reference(), toy.mask[0, slice(*parts[0])]
    for batch in (toy.features[0, : toy.support][toy.mask[0, : toy.support]],) * 2:
        wanted.step(batch)
    wanted.step(toy.features[0, slice(*parts[0])][real])
    np.testing.assert_allclose(answered[0][real], wanted.answer(toy.features[0, slice(*parts[0])][real]), atol=1e-9)


def test_lame() -> None:
    """z <- softmax(log p + W z) from z = p; w_ij: half for each of "j is among the k nearest of i" and the reverse."""
    toy, count = Toy(), 3
    features, logits, mask = toy.features[0], toy.logits[0], toy.mask[0]
    near = unit(features) @ unit(features).T
    graph = np.zeros((ITEMS, ITEMS))
    for i in np.flatnonzero(mask):
        others = [j for j in np.flatnonzero(mask) if j != i]
        graph[i, sorted(others, key=lambda j: -near[i, j])[:count]] = 1
    graph = (graph + graph.T) / 2
    found = neighbours(torch.from_numpy(features)[None], torch.from_numpy(mask)[None], count)
    np.testing.assert_array_equal(found[0], graph)
    z = p = softmax(logits)
    for _ in range(7):
        z = softmax(np.log(p) + graph @ z)
    assigned = laplacian_assignment(torch.from_numpy(logits)[None], found, iterations=7, tolerance=0.0)
    np.testing.assert_allclose(assigned[0], z, atol=1e-12)


def test_lames_objective_falls_where_the_affinity_is_not_positive_semi_definite() -> None:
    """Two neighbours that contradict each other exchange their answers for ever; with a full diagonal they settle."""
    logits = np.array([[1.0, 0.0], [0.0, 0.9]])

    def objectives(affinity: np.ndarray) -> np.ndarray:
        values = []
        for iterations in range(12):
            z = laplacian_assignment(
                torch.from_numpy(logits)[None], torch.from_numpy(affinity)[None], iterations, tolerance=0.0
            )[0].numpy()
            fit = (z * (np.log(softmax(logits)) - np.log(z))).sum()
            values.append(fit + 0.5 * np.einsum("ia,ij,ja", z, affinity, z))
        return np.array(values)

    pair = 2.5 * np.array([[0.0, 1.0], [1.0, 0.0]])
    assert (np.diff(objectives(pair)) < -0.01).any()
    assert (np.diff(objectives(pair + 2.5 * np.eye(2))) > -1e-12).all()


def test_adabn(world: World) -> None:
    """(x - m) / s * S + M with m = share m_device + (1 - share) M, share = n / (n + prior); s^2 is blended likewise."""
    loaded = world("open_ended")
    support = Episode(next(iter(Episodes(loaded.data, "test_unseen"))).support)
    method = FeatureStatistics(loaded.subject, loaded.data)
    states = method.adapt_all(support, [{"where": "features", "prior": prior} for prior in (0.0, 16.0)])
    source = method.source.moments["features"]
    mean, variance = source.mean.double().numpy(), source.variance.double().numpy()
    values = loaded.subject.features(support).double().numpy()
    for prior, state in zip((0.0, 16.0), states, strict=True):
        for g, real in enumerate(support.batch.frames.mask.numpy()):
            x = values[g][real]
            share = len(x) / (len(x) + prior)
            blended = share * x.mean(0) + (1 - share) * mean
            deviation = np.sqrt(share * x.var(0) + (1 - share) * variance + 1e-5)
            wanted = (x - blended) / deviation * np.sqrt(variance + 1e-5) + mean
            found = x * state["scale"][g].numpy() + state["shift"][g].numpy()
            np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_separable_cma_es() -> None:
    """Hansen's tutorial (arXiv 1604.00772), C diagonal, the rates of C times (n + 2) / 3 (Ros & Hansen 2008)."""
    n, population, sigma, seed = 4, 10, 0.7, 5
    centre, stretch = np.array([0.5, -1.0, 2.0, 0.0]), np.array([1.0, 4.0, 0.5, 2.0])

    def value(x: np.ndarray) -> np.ndarray:
        return (((x - centre) * stretch) ** 2).sum(-1)

    search = SeparableCmaEs(1, n, sigma, population, seed)
    generator = torch.Generator().manual_seed(seed)
    mu = population // 2
    w = np.log((population + 1) / 2) - np.log(np.arange(1, mu + 1))
    w /= w.sum()
    mu_eff = 1 / (w**2).sum()
    c_s = (mu_eff + 2) / (n + mu_eff + 5)
    d_s = 1 + 2 * max(0, np.sqrt((mu_eff - 1) / (n + 1)) - 1) + c_s
    c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)
    full_1 = 2 / ((n + 1.3) ** 2 + mu_eff)
    full_mu = min(1 - full_1, 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff))
    c_1 = full_1 * (n + 2) / 3
    c_mu = min(1 - c_1, full_mu * (n + 2) / 3)
    expected = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))
    m, c, p_s, p_c = np.zeros(n), np.ones(n), np.zeros(n), np.zeros(n)
    for g in range(1, 13):
        z = torch.randn(population, n, generator=generator).double().numpy()
        x = m + sigma * np.sqrt(c) * z
        candidates = search.ask()
        np.testing.assert_allclose(candidates[0], x, atol=1e-4)
        search.tell(candidates, torch.from_numpy(value(x)).float()[None])
        best = np.argsort(value(x))[:mu]
        y = np.sqrt(c) * z[best]
        y_w = w @ y
        m = m + sigma * y_w
        p_s = (1 - c_s) * p_s + np.sqrt(c_s * (2 - c_s) * mu_eff) * y_w / np.sqrt(c)
        length = np.linalg.norm(p_s)
        h = float(length / np.sqrt(1 - (1 - c_s) ** (2 * g)) < (1.4 + 2 / (n + 1)) * expected)
        p_c = (1 - c_c) * p_c + h * np.sqrt(c_c * (2 - c_c) * mu_eff) * y_w
        c = (1 + c_1 * (1 - h) * c_c * (2 - c_c) - c_1 - c_mu) * c + c_1 * p_c**2 + c_mu * w @ y**2
        sigma *= np.exp(c_s / d_s * (length / expected - 1))


def state_of(search: SeparableCmaEs) -> dict[str, torch.Tensor]:
    names = ("_mean", "_sigma", "_variance", "_path", "_sigma_path", "_generation", "best", "best_value")
    return {name: getattr(search, name).clone() for name in names}


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_rank_last_and_do_not_stop_a_search(broken: float) -> None:
    """One broken candidate is as the worst one; a generation of nothing else leaves that device as it was."""
    searches = [SeparableCmaEs(2, 3, 1.0, 12, 0, torch.tensor([broken, 1e3])) for _ in range(2)]
    for generation in range(60):
        candidates = [search.ask() for search in searches]
        values = (candidates[0] - 2).square().sum(-1)
        values[:, generation % 12] = 1e6
        searches[0].tell(candidates[0], values)
        values = values.clone()
        values[:, generation % 12] = broken
        searches[1].tell(candidates[1], values)
        torch.testing.assert_close(state_of(searches[1]), state_of(searches[0]))
    torch.testing.assert_close(searches[1].best, torch.full((2, 3), 2.0), atol=1e-2, rtol=0)
    before = state_of(searches[1])
    values = searches[1].ask().square().sum(-1)
    values[0] = broken
    searches[1].tell(searches[1].ask(), values)
    after = state_of(searches[1])
    assert all(torch.equal(after[name][0], before[name][0]) for name in before)
    assert not torch.equal(after["_mean"][1], before["_mean"][1])


def test_foas_fitness(world: World) -> None:
    """Mean entropy + balance / sqrt(H) times the norms of mean and deviation minus those of training, at two places."""
    loaded = world("open_ended")
    support = Episode(next(iter(Episodes(loaded.data, "test_unseen"))).support)
    method = ForwardOnly(loaded.subject, loaded.data)
    before = method._before_norm(support)
    seen: list[torch.Tensor] = []
    handle = loaded.subject.network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = loaded.subject.answer(support).logits.numpy()
    handle.remove()
    found = method._fitness(support, before, 0.4)
    normed = loaded.subject.network.frame_norm(before).numpy()
    for g in range(len(support.batch)):
        asked, frames = support.batch.text_mask[g].numpy(), support.batch.frames.mask[g].numpy()
        distance = 0.0
        for values, source in ((normed[g][frames], method.source[:2]), (seen[0][g].numpy()[asked], method.source[2:])):
            distance += np.linalg.norm(values.mean(0) - source[0].numpy())
            distance += np.linalg.norm(values.std(0) - source[1].numpy())
        wanted = entropy(logits[g][asked]).mean() + 0.4 * distance / np.sqrt(values.shape[-1])
        assert float(found[g]) == pytest.approx(wanted, rel=1e-3)


def test_lora(world: World) -> None:
    """W x + b + (alpha / r) B A x + c with alpha = r, B and c zero at first; entries of A have variance 1 / in."""
    loaded = world("open_ended")
    method = FineTuneLowRank(loaded.subject, loaded.data)
    state = method.start(2, {"rank": 3})
    head = loaded.subject.network.head
    assert not any(state[f"head.{name}"].any() for name in "uc")
    wide = method.start(1, {"rank": 400})["head.v"]
    assert float(wide.std()) == pytest.approx(head.in_features**-0.5, rel=0.05)
    rng = np.random.default_rng(0)
    for name in "uc":
        state[f"head.{name}"] = torch.from_numpy(rng.normal(size=state[f"head.{name}"].shape)).float()
    x = rng.normal(size=(2, 5, head.in_features)).astype(np.float32)
    with torch.no_grad(), method.personal(state):
        found = head(torch.from_numpy(x)).numpy()
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    for g in range(2):
        b, a, c = state["head.u"][g].numpy(), state["head.v"][g].numpy().T, state["head.c"][g].numpy()
        for n in range(5):
            wanted = weight @ x[g, n] + bias + 3 / 3 * b @ (a @ x[g, n]) + c
            np.testing.assert_allclose(found[g, n], wanted, atol=1e-4)
