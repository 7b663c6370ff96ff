"""Separable CMA-ES for many devices at once: a search by forward passes only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class SeparableCmaEs:
    """Covariance matrix adaptation with a diagonal covariance, minimising; one independent search per device.

    Ros & Hansen, "A Simple Modification in CMA-ES Achieving Linear Time and Space Complexity" (PPSN 2008): as there,
    the learning rates of the covariance are (n + 2) / 3 times those of a full matrix. The constants that this factor
    multiplies, and all others, are not those of that paper but the later ones of Hansen, "The CMA Evolution Strategy: A
    Tutorial" (arXiv 1604.00772), with positive weights alone. All devices see the same random numbers, so that a
    device's search does not depend on who is beside it.

    A candidate whose value is not finite ranks last. A generation without a single finite value teaches nothing: that
    device's search stays as it was.

    Args:
        devices: Number G of searches.
        dimension: Number n of variables.
        sigma: Step size at the start.
        population: Candidates per generation.
        seed: Seed of the random numbers.
        start_value: ``[G]`` value of the start, the zeros; a start that is not finite is worse than any candidate.

    Attributes:
        best: ``[G, n]`` best candidate so far; zeros at first.
        best_value: ``[G]`` its value.
    """

    def __init__(
        self,
        devices: int,
        dimension: int,
        sigma: float,
        population: int,
        seed: int = 0,
        start_value: Tensor | None = None,
    ) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        n, parents = dimension, population // 2
        weights = math.log(parents + 0.5) - torch.arange(1, parents + 1).log()
        self._weights = weights / weights.sum()
        mass = 1.0 / float(self._weights.square().sum())
        self._mass, self._population, self._n = mass, population, n
        self._c_sigma = (mass + 2) / (n + mass + 5)
        self._damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + self._c_sigma
        self._c_path = (4 + mass / n) / (n + 4 + 2 * mass / n)
        rank_one = 2 / ((n + 1.3) ** 2 + mass)
        rank_mu = min(1 - rank_one, 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
        # A diagonal has n instead of n (n + 1) / 2 numbers to learn, and may learn them faster.
        faster = (n + 2) / 3
        self._c_one = min(1.0, rank_one * faster)
        self._c_mu = min(1 - self._c_one, rank_mu * faster)
        self._expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
        self._mean = torch.zeros(devices, n)
        self._sigma = torch.full((devices, 1), float(sigma))
        self._variance = torch.ones(devices, n)
        self._path = torch.zeros(devices, n)
        self._sigma_path = torch.zeros(devices, n)
        self._generation = torch.zeros(devices, 1)
        self._noise = torch.zeros(population, n)
        self.best = torch.zeros(devices, n)
        self.best_value = torch.full((devices,), math.inf) if start_value is None else _comparable(start_value)

    def ask(self) -> Tensor:
        """Candidates of the next generation, ``[G, population, n]``."""
        self._noise = torch.randn(self._population, self._n, generator=self._generator)
        steps = self._variance.sqrt().unsqueeze(1) * self._noise
        return self._mean.unsqueeze(1) + self._sigma.unsqueeze(1) * steps

    def tell(self, candidates: Tensor, values: Tensor) -> None:
        """Learn from the values ``[G, population]`` of the candidates; lower is better."""
        values = _comparable(values)
        order = values.argsort(dim=1, stable=True)
        rows = torch.arange(len(values))
        first, value = candidates[rows, order[:, 0]], values[rows, order[:, 0]]
        self.best = torch.where((value < self.best_value).unsqueeze(1), first, self.best)
        self.best_value = torch.minimum(self.best_value, value)
        learns = value.isfinite().unsqueeze(1)
        chosen = self._noise[order[:, : len(self._weights)]]  # [G, parents, n], before scaling
        step = torch.einsum("p,gpn->gn", self._weights, chosen)
        scale = self._variance.sqrt()
        generation = self._generation + 1
        sigma_path = (1 - self._c_sigma) * self._sigma_path + math.sqrt(
            self._c_sigma * (2 - self._c_sigma) * self._mass
        ) * step
        length = sigma_path.norm(dim=1, keepdim=True)
        settled = (1 - (1 - self._c_sigma) ** (2 * generation)).sqrt()
        calm = (length / settled < (1.4 + 2 / (self._n + 1)) * self._expected).to(step.dtype)
        path = (1 - self._c_path) * self._path + calm * math.sqrt(
            self._c_path * (2 - self._c_path) * self._mass
        ) * scale * step
        spread = torch.einsum("p,gpn->gn", self._weights, chosen.square()) * self._variance
        kept = 1 - self._c_one - self._c_mu + (1 - calm) * self._c_one * self._c_path * (2 - self._c_path)
        variance = kept * self._variance + self._c_one * path.square() + self._c_mu * spread
        growth = torch.exp(self._c_sigma / self._damping * (length / self._expected - 1))
        self._mean = torch.where(learns, self._mean + self._sigma * scale * step, self._mean)
        self._sigma = torch.where(learns, self._sigma * growth, self._sigma)
        self._variance = torch.where(learns, variance, self._variance)
        self._path = torch.where(learns, path, self._path)
        self._sigma_path = torch.where(learns, sigma_path, self._sigma_path)
        self._generation = torch.where(learns, generation, self._generation)


def _comparable(values: Tensor) -> Tensor:
    """The values with infinity for all that are not finite, minus infinity included."""
    return torch.where(values.isfinite(), values, math.inf)
