"""LAME: the answers to a batch of queries are corrected together, so that neighbours agree."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import Episode, Options, State
from lit_mmpg.methods.prototypes import OpenEndedMethod


def neighbours(features: Tensor, real: Tensor, count: int) -> Tensor:
    """Affinities of a k-nearest-neighbour graph, symmetric.

    Of the published code's three affinities (``rbf``, its default; ``kNN``; ``linear``) this is ``kNN``, made symmetric
    as its ``LAME_FORCE_SYMMETRY`` does.

    Args:
        features: ``[B, N, H]``.
        real: ``[B, N]`` bool.
        count: Neighbours k of each item, itself not counted.

    Returns:
        ``[B, N, N]``: the mean of "j is near i" and "i is near j"; zero for padding and on the diagonal.
    """
    unit = F.normalize(features, dim=-1)
    near = unit @ unit.transpose(1, 2)
    size = near.shape[-1]
    allowed = real.unsqueeze(1) & real.unsqueeze(2) & ~torch.eye(size, dtype=torch.bool, device=near.device)
    near = near.masked_fill(~allowed, -2.0)
    index = near.topk(min(count, size), dim=-1).indices
    graph = torch.zeros_like(near).scatter_(2, index, 1.0) * allowed
    return 0.5 * (graph + graph.transpose(1, 2))


def laplacian_assignment(logits: Tensor, affinity: Tensor, iterations: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Maximise ``sum_i z_i . log p_i + H(z_i) + 1/2 sum_ij w_ij z_i . z_j`` over the simplices.

    The concave-convex update of the paper is ``z_i = softmax(log p_i + sum_j w_ij z_j)``, all items at once. It never
    lowers the objective where ``affinity`` is positive semi-definite. A graph of neighbours is not, since its diagonal
    is zero: there an update may lower it, and strong affinities can keep items exchanging their assignments until
    ``iterations`` ends it (two items with w = 2.5 do).

    Args:
        logits: ``[B, N, A]``; p is their softmax.
        affinity: ``[B, N, N]``, symmetric and not negative.
        iterations: Most updates.
        tolerance: Stop when no assignment changes by more.

    Returns:
        ``[B, N, A]`` assignments z.
    """
    logs = logits.log_softmax(-1)
    assigned = logs.exp()
    for _ in range(iterations):
        updated = (logs + affinity @ assigned).softmax(-1)
        change = (updated - assigned).abs().max()
        assigned = updated
        if change < tolerance:
            break
    return assigned


class Lame(OpenEndedMethod):
    """LAME: Laplacian adjusted maximum-likelihood estimation of the answers to a batch of queries.

    Boudiaf et al., "Parameter-free Online Test-time Adaptation" (CVPR 2022). The queries of one device in one batch are
    corrected together; the features are the inputs of the head. Nothing is learnt from the support, so its clips serve
    nobody here. The affinities are those of :func:`neighbours` times ``weight`` (1 in the published code, whose default
    affinity is another one).
    """

    name = "lame"
    paper = "Boudiaf et al. 2022"
    setting = "transductive"
    knows = "nothing"
    grid: ClassVar = {"neighbours": (1, 3, 5), "weight": (0.5, 1.0)}

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Logarithms of the assignments."""
        features, logits = self.look(query)
        graph = float(options["weight"]) * neighbours(features, query.batch.text_mask, int(options["neighbours"]))
        return Outputs(logits=laplacian_assignment(logits, graph).clamp(min=1e-30).log())
