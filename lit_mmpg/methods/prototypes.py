"""Peers that keep examples of the device beside the head: T3A's prototypes and a training-free cache.

Each in two settings: *episodic*, from the device's earlier clips alone, as all other peers here; and *online*, as their
authors run them, from a stream in which every question that is answered is an example, too.

Both need classes that questions share, so they apply to open-ended answers only: an option of one multiple-choice
question is not the same class as an option of another, and in retrieval every clip is a class of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, Setting, State, own_parameters
from lit_mmpg.methods.controls import materialised
from lit_mmpg.methods.hooks import watched
from lit_mmpg.methods.objectives import entropy_of


def ranks_within_class(label: Tensor, entropy: Tensor, real: Tensor) -> Tensor:
    """How many real items of the same label have a lower entropy (earlier items win ties).

    Args:
        label: ``[G, N]``.
        entropy: ``[G, N]``.
        real: ``[G, N]`` bool.

    Returns:
        ``[G, N]`` int64; what is not real gets a number that no limit lets pass.
    """
    most = torch.iinfo(torch.int64).max
    label = label.masked_fill(~real, most)
    order = entropy.argsort(dim=1, stable=True)
    order = order.gather(1, label.gather(1, order).argsort(dim=1, stable=True))
    grouped = label.gather(1, order)
    rank = torch.arange(label.shape[1], device=label.device) - torch.searchsorted(grouped, grouped)
    return torch.empty_like(rank).scatter_(1, order, rank).masked_fill(~real, most)


def admit(kept: Tensor, label: Tensor, entropy: Tensor, new: int, allowed: Tensor, limit: int) -> None:
    """Let one example per device in, if its class has room or it is more certain than the least certain one kept.

    Changes ``kept`` as a stream does: afterwards those of lowest entropy of each class are kept, at most ``limit``;
    of equal ones the earlier, so what went out never comes back.

    Args:
        kept: ``[G, n]`` bool, changed in place.
        label: ``[G, n]``.
        entropy: ``[G, n]``.
        new: Place of the example that arrives.
        allowed: ``[G]`` bool, whether it may come in.
        limit: Most examples of a class.
    """
    mates = kept & (label == label[:, new : new + 1])
    least_certain = entropy.masked_fill(~mates, float("-inf")).amax(1, keepdim=True)
    place = torch.arange(label.shape[1], device=label.device)
    last = torch.where(mates & (entropy == least_certain), place, -1).amax(1)
    full = mates.sum(1) >= limit
    comes = allowed & (~full | (entropy[:, new] < least_certain.squeeze(1)))
    goes = (comes & full).nonzero().squeeze(1)
    kept[goes, last[goes]] = False
    kept[:, new] |= comes


def joined(state: State, seen: State) -> State:
    """Examples of the state, then new ones; entries of the state that are none stay as they are."""
    return state | {name: torch.cat([state[name], tensor], 1) for name, tensor in seen.items()}


def compacted(state: State, kept: Tensor, names: Iterable[str]) -> State:
    """The state with those examples alone that some device keeps, in their order."""
    width = int(kept.sum(1).max())
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    found = {}
    for name in names:
        tensor = state[name]
        index = order.reshape(*order.shape, *(1 for _ in tensor.shape[2:])).expand(-1, -1, *tensor.shape[2:])
        found[name] = tensor.gather(1, index)
    return state | found


class OpenEndedMethod(AdaptationMethod):
    """Common part: the input of the head, and the head as it acts on each device."""

    setting: ClassVar[Setting] = "episodic"
    needs = ("shared_classes",)
    parts = ("head",)

    def look(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Inputs of the head ``[B, N, H]`` and logits ``[B, N, A]``."""
        with watched(self.network.head) as seen:
            outputs = self.subject.answer(episode)
        assert outputs.logits is not None
        return seen[0], outputs.logits

    def seen(self, features: Tensor, logits: Tensor) -> State:
        """Items as examples: ``keys [G, N, H]`` at unit length, ``label`` and ``entropy`` ``[G, N]``."""
        keys = F.normalize(features, dim=-1)
        return {"keys": keys, "label": logits.argmax(-1), "entropy": entropy_of(logits)}

    def head(self, episode: Episode) -> tuple[Tensor, Tensor]:
        """Weights ``[B, A, H]`` and biases ``[B, A]`` of the head of each device."""
        layer, devices = self.network.head, len(episode.batch)
        own = own_parameters(self.network, "head", episode.parameters)
        if not own:
            return layer.weight.expand(devices, -1, -1), layer.bias.expand(devices, -1)
        return materialised(layer, own)


class T3A(OpenEndedMethod):
    """T3A: each answer's weight vector becomes the mean of the features that were given that answer.

    Iwasawa & Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain Generalization" (NeurIPS
    2021). The weights of the head are the first examples; of each class the ``keep`` examples of lowest entropy count,
    each at unit length. ``scale: paper`` scores by ``z . c_k / |c_k|``, as published, without the head's norms and
    bias; ``scale: head`` keeps both, so that without a single example the model is the checkpoint (the bias holds how
    frequent answers are, which matters here).

    As in the paper, row k of the head is the first example of class k. The published code files it under the class that
    the head itself gives it; the two differ where a row is not its own argmax, and there a class of the published code
    may be left without any example, with the score 0.
    """

    name = "t3a"
    paper = "Iwasawa & Matsuo 2021"
    grid: ClassVar = {"keep": (1, 5, 20, 100), "scale": ("head", "paper")}

    def examples(self, support: Episode, keep: int) -> State:
        """The head's rows and the support as examples, those that are kept, and the norms and bias of the head.

        Returns:
            ``keys [G, A + N, H]`` at unit length, ``label``, ``entropy`` and ``kept`` ``[G, A + N]``, ``norm`` and
            ``bias`` ``[G, A]``.
        """
        weight, bias = self.head(support)
        seen = self.seen(*self.look(support))
        own = torch.einsum("gkh,gah->gka", weight, weight) + bias.unsqueeze(1)
        label = torch.arange(weight.shape[1], device=weight.device).expand(len(weight), -1)
        state = joined({"keys": F.normalize(weight, dim=-1), "label": label, "entropy": entropy_of(own)}, seen)
        real = torch.cat([torch.ones_like(label, dtype=torch.bool), support.batch.text_mask], 1)
        real &= state["entropy"].isfinite()
        kept = ranks_within_class(state["label"], state["entropy"], real) < keep
        return state | {"kept": kept, "norm": weight.norm(dim=-1), "bias": bias}

    @torch.no_grad()
    def adapt(self, support: Episode, options: Options) -> State:
        """Unit prototypes ``[G, A, H]``."""
        state = self.examples(support, int(options["keep"]))
        return {"prototypes": prototypes(state), "norm": state["norm"], "bias": state["bias"]}

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Scores against the prototypes."""
        return Outputs(logits=self.scores(self.look(query)[0], state["prototypes"], state, options))

    def scores(self, features: Tensor, centres: Tensor, state: State, options: Options) -> Tensor:
        """Scores ``[B, N, A]`` of features ``[B, N, H]`` against prototypes ``[B, A, H]``."""
        scores = torch.einsum("bnh,bah->bna", features, centres)
        if options["scale"] == "head":
            scores = scores * state["norm"].unsqueeze(1) + state["bias"].unsqueeze(1)
        return scores


def prototypes(state: State) -> Tensor:
    """Unit means ``[G, A, H]`` of the kept examples of each class; zero for a class without any."""
    kept = state["keys"].masked_fill(~state["kept"].unsqueeze(-1), 0)
    total = torch.zeros_like(state["norm"]).unsqueeze(-1).repeat(1, 1, kept.shape[-1])
    total.scatter_add_(1, state["label"].unsqueeze(-1).expand_as(kept), kept)
    return F.normalize(total, dim=-1)


class OnlineT3A(T3A):
    """T3A as its authors run it: the prototypes go on changing with every question that is answered.

    The stream of a device is its earlier clips and then its queries. Each question is answered by the prototypes of all
    examples up to and including itself: one example at a time, where the published code takes a batch of them at once.
    """

    name = "t3a_online"
    setting: ClassVar[Setting] = "online"
    at_once = 8  # each step of the stream asks all of them

    @torch.no_grad()
    def adapt(self, support: Episode, options: Options) -> State:
        """The examples of the support; see :meth:`T3A.examples`."""
        return compact_kept(self.examples(support, int(options["keep"])))

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Scores against the prototypes as they are when each question has been seen."""
        features, logits = self.look(query)
        start, seen = state["kept"].shape[1], self.seen(features, logits)
        real = query.batch.text_mask & seen["entropy"].isfinite()
        grown = joined(state, seen | {"kept": torch.zeros_like(real)})
        scores = []
        for n in range(features.shape[1]):
            admit(grown["kept"], grown["label"], grown["entropy"], start + n, real[:, n], int(options["keep"]))
            scores.append(self.scores(features[:, n : n + 1], prototypes(grown), grown, options))
        state.update(compact_kept(grown))
        return Outputs(logits=torch.cat(scores, 1))


def compact_kept(state: State) -> State:
    """A state of T3A without the examples that no device keeps."""
    return compacted(state, state["kept"], ("keys", "label", "entropy", "kept"))


class DynamicCache(OpenEndedMethod):
    """A training-free cache of the device's own confident (and unconfident) answers, added to the logits.

    After Karmanov et al., "Efficient Test-Time Adaptation of Vision-Language Models" (TDA, CVPR 2024): a positive cache
    holds for each answer the ``shots`` examples of lowest entropy and votes for it with ``alpha exp(-beta (1 - cos))``;
    a negative cache holds the examples of middling entropy and votes against all answers that they found possible.
    Features are the inputs of the head and logits are the head's, where the paper has CLIP's image features and 100
    times their cosines. Thresholds, sizes and the negative cache's strength are those of the published code.
    """

    name = "tda"
    paper = "Karmanov et al. 2024"
    grid: ClassVar = {"alpha": (0.5, 2.0), "beta": (2.0, 5.0), "shots": (3,), "negative": (0.0, 0.117)}
    negative_shots = 2
    negative_beta = 1.0
    middling = (0.2, 0.5)
    """Bounds of the entropy in nats over log2 A, between which an example is for the negative cache: as in the
    published code, which divides nats by bits, so that they are 29 and 72 % of the largest entropy."""
    possible = 0.03
    """Probability above which (and below 1) an answer was found possible."""

    def examples(self, features: Tensor, logits: Tensor) -> State:
        """What :meth:`seen` returns, whether it is ``middling``, and the answers ``against`` which it speaks.

        The last are ``[G, N, A]``, 1 or 0.
        """
        seen, probability = self.seen(features, logits), logits.softmax(-1)
        level = seen["entropy"] / math.log2(logits.shape[-1])
        against = (probability > self.possible) & (probability < 1.0)
        middling = (level > self.middling[0]) & (level < self.middling[1])
        return seen | {"middling": middling, "against": against.to(logits.dtype)}

    @torch.no_grad()
    def adapt(self, support: Episode, options: Options) -> State:
        """Examples of the support, and which of them are in the ``positive`` and the ``negative`` cache."""
        state = self.examples(*self.look(support))
        real = support.batch.text_mask & state["entropy"].isfinite()
        label, entropy = state["label"], state["entropy"]
        positive = ranks_within_class(label, entropy, real) < int(options["shots"])
        negative = ranks_within_class(label, entropy, real & state["middling"]) < self.negative_shots
        return state | {"positive": positive, "negative": negative}

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """The checkpoint's logits with the votes of both caches."""
        return Outputs(logits=self.voted(*self.look(query), state, options))

    def voted(self, features: Tensor, logits: Tensor, state: State, options: Options) -> Tensor:
        """Logits ``[B, N, A]`` with the votes of both caches."""
        near = torch.einsum("bnh,bkh->bnk", F.normalize(features, dim=-1), state["keys"])
        votes = float(options["alpha"]) * torch.exp(-float(options["beta"]) * (1 - near))
        votes = votes.masked_fill(~state["positive"].unsqueeze(1), 0)
        scores = logits.scatter_add(2, state["label"].unsqueeze(1).expand_as(votes), votes)
        if options["negative"]:
            doubts = float(options["negative"]) * torch.exp(-self.negative_beta * (1 - near))
            doubts = doubts.masked_fill(~state["negative"].unsqueeze(1), 0)
            scores = scores - torch.bmm(doubts, state["against"])
        return scores


class OnlineCache(DynamicCache):
    """TDA as its authors run it: each question enters the caches and is then answered with them, one at a time.

    The stream of a device is its earlier clips and then its queries.
    """

    name = "tda_online"
    setting: ClassVar[Setting] = "online"
    at_once = 8  # each step of the stream asks all of them

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """The checkpoint's logits with the votes of the caches as they are when each question has been seen."""
        features, logits = self.look(query)
        start, seen = state["label"].shape[1], self.examples(features, logits)
        real = query.batch.text_mask & seen["entropy"].isfinite()
        nothing = torch.zeros_like(real)
        grown = joined(state, seen | {"positive": nothing, "negative": nothing})
        label, entropy = grown["label"], grown["entropy"]
        scores = []
        for n in range(features.shape[1]):
            admit(grown["positive"], label, entropy, start + n, real[:, n], int(options["shots"]))
            middling = real[:, n] & seen["middling"][:, n]
            admit(grown["negative"], label, entropy, start + n, middling, self.negative_shots)
            scores.append(self.voted(features[:, n : n + 1], logits[:, n : n + 1], grown, options))
        state.update(compacted(grown, grown["positive"] | grown["negative"], tuple(grown)))
        return Outputs(logits=torch.cat(scores, 1))
