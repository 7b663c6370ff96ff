"""The benchmark times only what computes the same: every implementation agrees, and a wrong one is refused."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from profiling.benchmarks.layers import LayerCase, Problem, check_equal, implementations, layer_problem, model_problem

PROBLEMS = {"layer": lambda: layer_problem(LayerCase("small", 6, 5, 3, rank=2), 4), "model": lambda: model_problem(3)}


def outputs_like(problem: Problem) -> Tensor:
    torch.manual_seed(1)
    return torch.randn_like(implementations(problem)["batched"](problem.parameters))


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_implementations_agree_in_outputs_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    problem = PROBLEMS[name]()
    candidates = implementations(problem)
    assert set(candidates) == {"batched", "functional_call", "vmap", "vmap_factors"}
    check_equal(problem, candidates, outputs_like(problem))


def test_a_planted_difference_is_refused() -> None:
    torch.manual_seed(0)
    problem = PROBLEMS["layer"]()
    candidates = implementations(problem)

    def mixed_up(parameters: Sequence[Tensor]) -> Tensor:  # every device gets its neighbour's parameters
        return candidates["batched"]([p.roll(1, 0) for p in parameters])

    with pytest.raises(AssertionError, match="mixed_up differs"):
        check_equal(problem, candidates | {"mixed_up": mixed_up}, outputs_like(problem))
