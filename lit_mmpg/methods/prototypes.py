"""Peers that keep examples of the device beside the head: T3A's prototypes and a training-free cache.

Both need classes that questions share, so they apply to open-ended answers only: an option of one multiple-choice
question is not the same class as an option of another, and in retrieval every clip is a class of its own.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, Setting, State, own_parameters
from lit_mmpg.methods.hooks import watched

WHY_NOT = {
    "multiple_choice": "the options of one question are not the classes of another",
    "retrieval": "every clip is a class of its own, which no other text belongs to",
}


def ranks_within_class(label: Tensor, entropy: Tensor, real: Tensor) -> Tensor:
    """How many real items of the same label have a lower entropy (earlier items win ties).

    Args:
        label: ``[G, N]``.
        entropy: ``[G, N]``.
        real: ``[G, N]`` bool.

    Returns:
        ``[G, N]`` int64; padding gets a number that no limit lets pass.
    """
    entropy = entropy.masked_fill(~real, float("inf"))
    place = torch.arange(label.shape[1], device=label.device)
    lower = (entropy.unsqueeze(1) < entropy.unsqueeze(2)) | (
        (entropy.unsqueeze(1) == entropy.unsqueeze(2)) & (place[None, :] < place[:, None])
    )
    same = (label.unsqueeze(1) == label.unsqueeze(2)) & real.unsqueeze(1)
    return torch.where(real, (lower & same).sum(2), torch.iinfo(torch.int64).max)


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of the softmax over the last dimension, in nats."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


class OpenEndedMethod(AdaptationMethod):
    """Common part: the input of the head, and the head as it acts on each device."""

    setting: ClassVar[Setting] = "episodic"

    @classmethod
    def not_for_task(cls, task: str) -> str | None:
        """Open-ended answers only."""
        return WHY_NOT.get(task)

    def look(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Inputs of the head ``[B, N, H]`` and logits ``[B, N, A]``."""
        with watched(self.network.head) as seen:
            outputs = self.subject.answer(episode)
        assert outputs.logits is not None
        return seen[0], outputs.logits

    def head(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Weights ``[B, A, H]`` and biases ``[B, A]`` of the head of each device."""
        layer, devices = self.network.head, len(episode.batch)
        own = own_parameters(self.network, "head", episode.parameters)
        if not own:
            return layer.weight.expand(devices, -1, -1), layer.bias.expand(devices, -1)
        probe = torch.eye(layer.in_features, device=layer.weight.device)
        probe = torch.cat([probe, torch.zeros_like(probe[:1])]).expand(devices, -1, -1)
        answered = layer(probe, own)
        bias = answered[:, -1]
        return (answered[:, :-1] - bias.unsqueeze(1)).transpose(1, 2), bias


class T3A(OpenEndedMethod):
    """T3A: each answer's weight vector becomes the mean of the features that were given that answer.

    Iwasawa & Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization" (NeurIPS
    2021). The weights of the head are the first examples; of each class the ``keep`` examples of lowest entropy count,
    each at unit length. ``scale: paper`` scores by ``z . c_k / |c_k|``, as published, without the head's norms and
    bias; ``scale: head`` keeps both, so that without a single example the model is the checkpoint (the bias holds how
    frequent answers are, which matters here).
    """

    name = "t3a"
    paper = "Iwasawa & Matsuo 2021"
    grid: ClassVar = {"keep": (1, 5, 20, 100), "scale": ("head", "paper")}

    @torch.no_grad()
    def adapt(self, support: Episode, options: Options) -> State:
        """Unit prototypes ``[G, A, H]``."""
        features, logits = self.look(support)
        weight, bias = self.head(support)
        batch = support.batch
        keep = int(options["keep"])
        # The first example of class k is its weight vector, with the entropy that the head gives it.
        own = torch.einsum("gkh,gah->gka", weight, weight) + bias.unsqueeze(1)
        first = entropy_of(own)
        label, entropy = logits.argmax(-1), entropy_of(logits)
        rank = ranks_within_class(label, entropy, batch.text_mask)
        better = (first.gather(1, label) <= entropy).to(rank.dtype)
        kept = (rank + better < keep) & batch.text_mask
        below = torch.zeros(first.shape, device=first.device)
        below.scatter_add_(1, label, ((entropy < first.gather(1, label)) & batch.text_mask).to(below.dtype))
        total = F.normalize(weight, dim=-1) * (below < keep).unsqueeze(-1)
        unit = F.normalize(features, dim=-1) * kept.unsqueeze(-1)
        total = total.scatter_add(1, label.unsqueeze(-1).expand_as(unit), unit)
        return {"prototypes": F.normalize(total, dim=-1), "norm": weight.norm(dim=-1), "bias": bias}

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Scores against the prototypes."""
        features, _ = self.look(query)
        scores = torch.einsum("bnh,bah->bna", features, state["prototypes"])
        if options["scale"] == "head":
            scores = scores * state["norm"].unsqueeze(1) + state["bias"].unsqueeze(1)
        return Outputs(logits=scores)


class DynamicCache(OpenEndedMethod):
    """A training-free cache of the device's own confident (and unconfident) answers, added to the logits.

    After Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models" (TDA, CVPR 2024): a positive cache
    holds for each answer the ``shots`` examples of lowest entropy and votes for it with ``alpha exp(-beta (1 - cos))``;
    a negative cache holds the examples of middling entropy and votes against all answers that they found possible.
    Features are the inputs of the head; thresholds are those of the paper.
    """

    name = "tda"
    paper = "Karmanov et al. 2024"
    grid: ClassVar = {"alpha": (0.5, 2.0), "beta": (2.0, 5.0), "shots": (3,), "negative": (0.0, 0.117)}
    negative_shots = 2
    negative_beta = 1.0
    middling = (0.2, 0.5)
    """Entropies, as shares of the largest possible, between which an example is for the negative cache."""
    possible = 0.03
    """Probability above which an answer was found possible."""

    @torch.no_grad()
    def adapt(self, support: Episode, options: Options) -> State:
        """Keys ``[G, N, H]``, their answers ``[G, N]``, and which of them are in which cache."""
        features, logits = self.look(support)
        real, label, entropy = support.batch.text_mask, logits.argmax(-1), entropy_of(logits)
        share = entropy / torch.tensor(float(logits.shape[-1])).log()
        middling = real & (share > self.middling[0]) & (share < self.middling[1])
        probability = logits.softmax(-1)
        return {
            "keys": F.normalize(features, dim=-1),
            "label": label,
            "positive": ranks_within_class(label, entropy, real) < int(options["shots"]),
            "negative": ranks_within_class(label, entropy, middling) < self.negative_shots,
            "against": probability > self.possible,
        }

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """The checkpoint's logits with the votes of both caches."""
        features, logits = self.look(query)
        near = torch.einsum("bnh,bkh->bnk", F.normalize(features, dim=-1), state["keys"])
        votes = float(options["alpha"]) * torch.exp(-float(options["beta"]) * (1 - near))
        votes = votes * state["positive"].unsqueeze(1)
        scores = logits.scatter_add(2, state["label"].unsqueeze(1).expand_as(votes), votes)
        if options["negative"]:
            doubts = float(options["negative"]) * torch.exp(-self.negative_beta * (1 - near))
            doubts = doubts * state["negative"].unsqueeze(1)
            scores = scores - torch.bmm(doubts, state["against"].to(doubts.dtype))
        return Outputs(logits=scores)
