"""FOA: a shift of the projected features is searched for by forward passes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lit_mmpg.device.outputs import Outputs, answer_batch
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, State, Subject
from lit_mmpg.methods.episodes import Episodes
from lit_mmpg.methods.evolution import SeparableCmaEs
from lit_mmpg.methods.hooks import input_replaced, over, watched
from lit_mmpg.methods.objectives import entropy

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

SOURCE_DEVICES = 64
"""Training devices whose activations are the target."""


def masked_moments(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all but the first and last dimension: ``[B, ..., H]`` to two of ``[B, H]``."""
    flat, weight = values.flatten(1, -2), mask.flatten(1).unsqueeze(-1).to(values.dtype)
    count = weight.sum(1).clamp(min=1)
    mean = (flat * weight).sum(1) / count
    variance = ((flat - mean.unsqueeze(1)).square() * weight).sum(1) / count
    return mean, (variance + 1e-8).sqrt()


class ForwardOnly(AdaptationMethod):
    """FOA-style forward-only search: CMA-ES finds a shift with which answers are certain and activations familiar.

    After Niu et al., "Test-Time Model Adaptation with Only Forward Passes" (ICML 2024). The device model has no prompt
    tokens; what is searched for is a shift of the projected features before their norm. Fitness: the entropy of the
    answers plus ``balance`` times the distance between the mean and standard deviation of activations (the normalised
    projection and the input of the head) and those of training. ``activation`` is the share of the remaining
    difference of means at the head that is added there (their activation shifting). ``generations: 0`` searches for
    nothing: with ``activation: 0`` it is the checkpoint.

    What differs from the published code: entropies and distances are means, not sums over a batch, and distances are
    norms over the square root of the width (the paper's equation has norms, the code their squares); the search is a
    separable CMA-ES with 16 candidates a generation on all earlier clips at once, not a full-covariance one with 27 and
    one generation for each batch of a stream; the shift of the head is taken once instead of from a running mean. As
    there, the best candidate counts, and what was best before (here the unshifted model) competes.
    """

    name = "foa"
    paper = "Niu et al. 2024"
    parts = ("frame_norm", "head")
    setting = "episodic"
    grid: ClassVar = {"balance": (0.4, 4.0), "activation": (0.0, 1.0), "generations": (0, 12), "sigma": (0.1,)}
    population = 16

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        found: list[list[Tensor]] = []
        seen = 0
        with torch.no_grad():
            for group in Episodes(data, "train"):
                parameters = subject.personal(group.support.context, group.support.device)
                episode = Episode(group.support, parameters)
                found.append(self._activations(episode, self._before_norm(episode))[0])
                seen += len(group.support)
                if seen >= SOURCE_DEVICES:
                    break
        # Every device's moments weigh the same, and the target is a typical device.
        self.source = [torch.cat([part[i] for part in found]).mean(0) for i in range(len(found[0]))]

    def _before_norm(self, episode: Episode) -> Tensor:
        with watched(self.network.frame_norm) as seen:
            self.network.project(self.subject.features(episode), episode.parameters)
        return seen[0]

    def _activations(self, episode: Episode, before: Tensor) -> tuple[list[Tensor], Outputs]:
        """Moments of the activations, ``[B, H]`` each, and the answers; ``before`` enters the norm."""
        projected = self.network.frame_norm(before)
        with watched(self.network.head) as seen:
            outputs = answer_batch(self.network, episode.batch, before, episode.parameters, projected)
        own = self.subject.task.head_mask(episode.batch)
        return [*masked_moments(projected, episode.batch.frames.mask), *masked_moments(seen[0], own)], outputs

    def _fitness(self, episode: Episode, before: Tensor, balance: float) -> Tensor:
        moments, outputs = self._activations(episode, before)
        distance = torch.stack(
            [(own - wanted).norm(dim=-1) for own, wanted in zip(moments, self.source, strict=True)]
        ).sum(0)
        return (
            entropy(self.network, episode.batch, outputs)
            + balance * distance / self.network.frame_norm.normalized_shape[0] ** 0.5
        )

    def adapt(self, support: Episode, options: Options) -> State:
        """Shift before the norm and at the head, ``[G, H]`` each."""
        return next(iter(self.adapt_all(support, [options])))

    @torch.no_grad()
    def adapt_all(self, support: Episode, points: Sequence[Options]) -> Iterator[State]:
        """One search for the points that differ in their activation shift alone."""
        before = self._before_norm(support)
        found: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}
        for options in points:
            key = tuple(value for name, value in sorted(options.items()) if name != "activation")
            if key not in found:
                shift = self._search(support, before, options)
                moments, _ = self._activations(support, before + over(shift, before))
                found[key] = shift, self.source[2] - moments[2]
            shift, rest = found[key]
            yield {"shift": shift, "head": float(options["activation"]) * rest}

    def _search(self, support: Episode, before: Tensor, options: Options) -> Tensor:
        balance = float(options["balance"])
        unshifted = self._fitness(support, before, balance)
        search = SeparableCmaEs(
            len(support.batch), before.shape[-1], float(options["sigma"]), self.population, self.seed, unshifted
        )
        for _ in range(int(options["generations"])):
            candidates = search.ask()
            values = [self._fitness(support, before + over(shift, before), balance) for shift in candidates.unbind(1)]
            search.tell(candidates, torch.stack(values, 1))
        return search.best

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers on the shifted features."""
        with (
            input_replaced(self.network.frame_norm, lambda x: x + over(state["shift"], x)),
            input_replaced(self.network.head, lambda x: x + over(state["head"], x)),
        ):
            return self.subject.answer(query)
