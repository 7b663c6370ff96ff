"""T3A, the cache, LAME and the forward-only search on toy cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_mmpg.methods.base import Episode, rows
from lit_mmpg.methods.episodes import Episodes
from lit_mmpg.methods.evolution import SeparableCmaEs
from lit_mmpg.methods.forward_only import ForwardOnly
from lit_mmpg.methods.laplacian import Lame, laplacian_assignment, neighbours
from lit_mmpg.methods.objectives import entropy_of
from lit_mmpg.methods.prototypes import T3A, ranks_within_class
from lit_mmpg.tasks import find_task
from tests.methods.conftest import World, take


def first_group(world: World, task: str = "open_ended"):
    loaded = world(task)
    group = next(iter(Episodes(loaded.data, "test_unseen")))
    batch, index = group.queries[0]
    return loaded, Episode(group.support), Episode(find_task(task).query_view(batch)), index


def test_ranks_within_a_class() -> None:
    label = torch.tensor([[0, 0, 1, 0, 1]])
    entropy = torch.tensor([[0.5, 0.1, 0.9, 0.1, 0.2]])
    real = torch.tensor([[True, True, True, True, False]])
    found = ranks_within_class(label, entropy, real)[0].tolist()
    assert found[:4] == [2, 0, 0, 1]
    assert found[4] > 10**6


@pytest.mark.parametrize("keep", [1, 3, 100])
def test_t3a_prototypes_are_those_of_the_paper(world: World, keep: int) -> None:
    """An independent, sequential reading of the published algorithm."""
    loaded, support, query, index = first_group(world)
    method = T3A(loaded.subject, loaded.data)
    options = {"keep": keep, "scale": "paper"}
    state = method.adapt(support, options)
    features, logits = (tensor.detach().numpy() for tensor in method.look(support))
    head = loaded.subject.network.head
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    for g in range(len(support.batch)):
        examples = {k: [] for k in range(len(weight))}

        def entropy(scores: np.ndarray) -> float:
            p = np.exp(scores - scores.max())
            p /= p.sum()
            return float(-(p * np.log(p)).sum())

        for k, w in enumerate(weight):
            examples[k].append((entropy(weight @ w + bias), -1, w / np.linalg.norm(w)))
        for n in np.flatnonzero(support.batch.text_mask[g].numpy()):
            z = features[g, n]
            examples[int(logits[g, n].argmax())].append((entropy(logits[g, n]), n, z / np.linalg.norm(z)))
        for k, own in examples.items():
            kept = sorted(own, key=lambda e: (e[0], e[1]))[:keep]
            mean = np.mean([z for _, _, z in kept], 0)
            np.testing.assert_allclose(state["prototypes"][g, k], mean / np.linalg.norm(mean), atol=1e-4)
    answered = method.respond(query, rows(state, index), options).logits
    z, _ = method.look(query)
    b = 0
    wanted = z[b].detach().numpy() @ state["prototypes"][int(index[b])].numpy().T
    np.testing.assert_allclose(answered[b].detach().numpy(), wanted, atol=1e-4)


def test_t3a_without_examples_is_the_checkpoint(world: World) -> None:
    loaded, support, query, index = first_group(world)
    method = T3A(loaded.subject, loaded.data)
    empty = Episode(take(support.batch, torch.arange(len(support.batch))))
    empty.batch.text_mask[:] = False
    options = {"keep": 5, "scale": "head"}
    found = method.respond(query, rows(method.adapt(empty, options), index), options).logits
    torch.testing.assert_close(found, loaded.subject.answer(query).logits, atol=1e-4, rtol=1e-4)


def test_lame_finds_the_optimum_of_its_objective() -> None:
    """Two answers, three queries: the assignment is the maximum that a fine grid over all assignments finds."""
    logits = torch.tensor([[[1.0, 0.0], [0.2, 0.0], [0.0, 0.7]]], dtype=torch.float64)
    affinity = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 0.5, 0.0]]], dtype=torch.float64)
    found = laplacian_assignment(logits, affinity, iterations=1000, tolerance=1e-12)[0].numpy()
    p = logits.softmax(-1)[0].numpy()
    steps = np.linspace(0.001, 0.999, 80)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    z = np.stack([grid, 1 - grid], -1)  # [candidates, queries, answers]
    objective = (z * (np.log(p) - np.log(z))).sum((1, 2))
    objective += 0.5 * np.einsum("cia,ij,cja->c", z, affinity[0].numpy(), z)
    best = z[objective.argmax()]
    np.testing.assert_allclose(found, best, atol=0.01)
    value = (found * (np.log(p) - np.log(found))).sum() + 0.5 * np.einsum("ia,ij,ja", found, affinity[0].numpy(), found)
    assert value >= objective.max() - 1e-9


def test_lame_without_neighbours_is_the_checkpoint_and_padding_has_none(world: World) -> None:
    loaded, _, query, index = first_group(world)
    method = Lame(loaded.subject, loaded.data)
    state = rows(method.adapt(query, {}), index)
    found = method.respond(query, state, {"neighbours": 1, "weight": 0.0}).logits
    wanted = loaded.subject.answer(query).logits.log_softmax(-1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    features = torch.randn(2, 5, 4)
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    graph = neighbours(features, real, 3)
    assert torch.equal(graph, graph.transpose(1, 2))
    assert not graph.diagonal(dim1=1, dim2=2).any()
    assert not graph[1, 2:].any() and graph[1, 0, 1] == 1


def test_the_search_finds_the_minimum_of_a_stretched_bowl() -> None:
    """Independent searches: each device's own optimum, with scales that differ by a factor of ten."""
    centre = torch.tensor([[1.0, -2.0, 0.5], [-1.0, 0.0, 3.0]])
    scale = torch.tensor([1.0, 10.0, 3.0])
    search = SeparableCmaEs(2, 3, sigma=1.0, population=12, seed=0)
    for _ in range(150):
        candidates = search.ask()
        search.tell(candidates, ((candidates - centre.unsqueeze(1)) * scale).square().sum(-1))
    torch.testing.assert_close(search.best, centre, atol=1e-3, rtol=0)
    alone = SeparableCmaEs(1, 3, sigma=1.0, population=12, seed=0)
    for _ in range(150):
        candidates = alone.ask()
        alone.tell(candidates, ((candidates - centre[1:].unsqueeze(1)) * scale).square().sum(-1))
    torch.testing.assert_close(alone.best[0], search.best[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("task", ["open_ended", "retrieval"])
def test_foa_lowers_its_fitness_without_any_gradient(world: World, task: str) -> None:
    loaded, support, query, index = first_group(world, task)
    method = ForwardOnly(loaded.subject, loaded.data)
    options = {"balance": 0.4, "activation": 0.0, "generations": 4, "sigma": 0.1}
    state = method.adapt(support, options)
    before = method._before_norm(support)
    start = method._fitness(support, before, 0.4)
    end = method._fitness(support, before + state["shift"][:, None, None], 0.4)
    assert bool((end < start).all())
    assert not any(parameter.requires_grad for parameter in loaded.subject.network.parameters())
    # Validation may choose to do nothing.
    assert {"activation": 0.0, "generations": 0}.items() <= method.points()[0].items()
    none = method.adapt(support, {**options, "generations": 0})
    assert not none["shift"].any() and not none["head"].any()
    found, plain = method.respond(query, rows(none, index), options), loaded.subject.answer(query)
    for own, static in ((found.logits, plain.logits), (found.video, plain.video)):
        assert (own is None and static is None) or torch.equal(own, static)


def test_foa_shifts_activations_onto_those_of_training(world: World) -> None:
    loaded, support, _, _ = first_group(world)
    method = ForwardOnly(loaded.subject, loaded.data)
    options = {"balance": 0.4, "activation": 1.0, "generations": 0, "sigma": 0.1}
    state = method.adapt(support, options)
    before = method._before_norm(support)
    moments, _ = method._activations(support, before)
    torch.testing.assert_close(moments[2] + state["head"], method.source[2].expand_as(moments[2]))


def test_entropy_of_even_and_certain_answers() -> None:
    even, certain = entropy_of(torch.zeros(4)), entropy_of(torch.tensor([100.0, 0.0, 0.0, 0.0]))
    assert float(even) == pytest.approx(np.log(4)) and float(certain) == pytest.approx(0.0, abs=1e-6)
