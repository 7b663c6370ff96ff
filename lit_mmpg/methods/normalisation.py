"""Peers that adapt normalisation: statistics of the device's own frames (AdaBN), and entropy minimisation (Tent)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_mmpg.batch import Frames
from lit_mmpg.data.statistics import moments
from lit_mmpg.device.outputs import Outputs, answer_batch
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, Setting, State, Subject
from lit_mmpg.methods.hooks import input_replaced, output_replaced, over, watched
from lit_mmpg.methods.objectives import entropy
from lit_mmpg.statistics import Moments, alignment

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

SOURCE_CLIPS = 2000
"""Training clips from which the statistics of the training data are taken, spread evenly."""


def training_frames(data: DeviceData, at_once: int = 64) -> Iterator[Frames]:
    """Frames of training clips as training devices saw them, some clips at a time: ``[1, n, T, ...]``."""
    batches = data.eval_batches("train", with_context=False)
    asked = [(query.device, clip, query.context) for query in batches.queries for clip in query.clips]
    asked = asked[:: -(-len(asked) // SOURCE_CLIPS)]
    for start in range(0, len(asked), at_once):
        part = asked[start : start + at_once]
        devices, clips, contexts = zip(*part, strict=True)
        frames = batches.collate.query_frames([[clip] for clip in clips], 1, devices, contexts)
        yield Frames(frames.values.transpose(0, 1), frames.mask.transpose(0, 1))


class SourceStatistics:
    """Moments of encoded and of projected frames over the training clips.

    Attributes:
        moments: Where -> moments ``[D]``.
    """

    def __init__(self, subject: Subject, data: DeviceData) -> None:
        count = 0.0
        total: dict[str, Tensor] = {}
        square: dict[str, Tensor] = {}
        with torch.no_grad():
            for frames in training_frames(data):
                for name, values in places(subject, frames.values).items():
                    real = values[frames.mask].double()
                    total[name] = total.get(name, torch.zeros(())) + real.sum(0)
                    square[name] = square.get(name, torch.zeros(())) + real.square().sum(0)
                count += float(frames.mask.sum())
        mean = {name: value / count for name, value in total.items()}
        variance = {name: (square[name] / count - value.square()).clamp(min=0) for name, value in mean.items()}
        self.moments = {name: Moments(value.float(), variance[name].float()) for name, value in mean.items()}


def places(subject: Subject, values: Tensor, parameters: tuple[Tensor, ...] = ()) -> dict[str, Tensor]:
    """Where statistics can be aligned: the encoded features, and the input of the norm after the projection."""
    features = subject.network.encode(values, parameters)
    with watched(subject.network.frame_norm) as seen:
        subject.network.project(features, parameters)
    return {"features": features, "projected": seen[0]}


class FeatureStatistics(AdaptationMethod):
    """AdaBN-style statistics: features are standardised by the device's own moments instead of the training data's.

    Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation" (ICLR workshop 2017); the moments are
    blended with those of training as in Schneider et al., "Improving robustness against common corruptions by
    covariate shift adaptation" (NeurIPS 2020), who count the training statistics as ``prior`` samples. The device
    model has no BatchNorm, so the moments are those of the encoded frames, or of what enters the projection's norm.
    """

    name = "adabn"
    paper = "Li et al. 2017; Schneider et al. 2020"
    parts = ("frame_norm",)
    setting = "episodic"
    grid: ClassVar = {"where": ("features", "projected"), "prior": (0.0, 16.0, 64.0, 256.0, 1024.0)}

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        self.source = SourceStatistics(subject, data)

    def adapt(self, support: Episode, options: Options) -> State:
        """Scale and shift that bring the blended moments of the device to those of training."""
        return next(iter(self.adapt_all(support, [options])))

    @torch.no_grad()
    def adapt_all(self, support: Episode, points: Sequence[Options]) -> Iterator[State]:
        """The moments are taken once for all points."""
        frames = support.batch.frames
        found = {
            name: moments(values, frames.mask)
            for name, values in places(self.subject, frames.values, support.parameters).items()
        }
        for options in points:
            where = options["where"]
            scale, shift = alignment(*found[where], self.source.moments[where], float(options["prior"]))
            yield {"scale": scale, "shift": shift}

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers on the aligned features."""

        def align(x: Tensor) -> Tensor:
            return x * over(state["scale"], x) + over(state["shift"], x)

        features = self.subject.features(query)
        if options["where"] == "features":
            return self.subject.answer(query, align(features))
        with input_replaced(self.network.frame_norm, align):
            return self.subject.answer(query, features)


class Tent(AdaptationMethod):
    """Tent: minimise the entropy of the answers by the scale and shift of the normalisation layer alone.

    Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization" (ICLR 2021), with Adam. The layer is the
    norm of the frame projection: a LayerNorm, so that there are no batch statistics to replace as in the published
    code. The entropy is that of the answers to questions about the device's earlier clips (without their answers); for
    retrieval, of each earlier search over the earlier clips.
    """

    name = "tent"
    paper = "Wang et al. 2021"
    parts = ("frame_norm",)
    setting: ClassVar[Setting] = "episodic"
    backward = True
    grid: ClassVar = {"learning_rate": (1e-3, 1e-2), "steps": (1, 4, 16)}
    kept: ClassVar[tuple[str, ...]] = ("weight", "bias")
    """What a device keeps of an adaptation; everything where empty."""
    beta = (0.9, 0.999)
    """Decay of Adam's first and second moments, as in the published code."""

    def adapt(self, support: Episode, options: Options) -> State:
        """Scale and shift of the norm, ``[G, H]`` each, after some steps of Adam."""
        return next(iter(self.adapt_all(support, [options])))

    def adapt_all(self, support: Episode, points: Sequence[Options]) -> Iterator[State]:
        """One trajectory per learning rate, of which the points take their steps."""
        found: dict[tuple[float, int], State] = {}
        with torch.no_grad():
            features = self.subject.features(support)
        for rate in dict.fromkeys(float(p["learning_rate"]) for p in points):
            steps = {int(p["steps"]) for p in points if float(p["learning_rate"]) == rate}
            state = self.start(len(support.batch))
            for step in range(max(steps) + 1):
                if step in steps:
                    found[rate, step] = {name: state[name] for name in self.kept or state}
                if step < max(steps):
                    self.step(support, features, state, rate)
        for options in points:
            yield found[float(options["learning_rate"]), int(options["steps"])]

    def start(self, devices: int) -> State:
        """The norm of the checkpoint for each device, with Adam's moments of both and number of steps."""
        norm = self.network.frame_norm
        state = {"weight": norm.weight.detach().repeat(devices, 1), "bias": norm.bias.detach().repeat(devices, 1)}
        state |= {f"{name}.{moment}": torch.zeros_like(state[name]) for name in list(state) for moment in ("m", "v")}
        return state | {"steps": torch.zeros_like(state["weight"][:, :1])}

    def step(self, episode: Episode, features: Tensor, state: State, rate: float) -> Outputs:
        """One step of Adam on the mean entropy of each device; replaces the entries of ``state``.

        Returns:
            The answers from which the step was taken: those before it.
        """
        with torch.enable_grad():
            own = {name: state[name].detach().requires_grad_() for name in ("weight", "bias")}
            outputs = self._answer(episode, features, own)
            # Devices do not share anything that is adapted, so the gradient of the sum is that of each.
            loss = entropy(self.network, episode.batch, outputs).sum()
            gradients = torch.autograd.grad(loss, list(own.values()))
        state["steps"] = steps = state["steps"] + 1
        first, second = self.beta
        for name, gradient in zip(own, gradients, strict=True):
            m = state[f"{name}.m"] = first * state[f"{name}.m"] + (1 - first) * gradient
            v = state[f"{name}.v"] = second * state[f"{name}.v"] + (1 - second) * gradient.square()
            scale = (v / (1 - second**steps)).sqrt() + 1e-8
            state[name] = state[name] - rate * m / (1 - first**steps) / scale
        parts = (outputs.logits, outputs.video, outputs.text)
        return Outputs(*(None if part is None else part.detach() for part in parts))

    def _answer(self, episode: Episode, features: Tensor, state: Mapping[str, Any]) -> Outputs:
        norm = self.network.frame_norm

        def personal(x: Tensor, _: Tensor) -> Tensor:
            normal = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
            return normal * over(state["weight"], x) + over(state["bias"], x)

        with output_replaced(norm, personal):
            return answer_batch(self.network, episode.batch, features, episode.parameters)

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers with the device's own norm."""
        return self._answer(query, self.subject.features(query), state)


class OnlineTent(Tent):
    """Tent as its authors run it: one batch of a stream after the other is answered and then taken to learn from.

    The stream of a device is its earlier clips, all in one batch, and then its queries, some clips at a time. A batch
    is answered by the forward pass from which its step is taken, so its step serves the batches after it; with more
    ``steps``, as in the published code, by the last of them. Norm and moments of Adam are never reset.
    """

    name = "tent_online"
    setting: ClassVar[Setting] = "online"
    grid: ClassVar = {"learning_rate": (1e-4, 1e-3, 1e-2), "steps": (1,)}
    kept: ClassVar[tuple[str, ...]] = ()
    at_once = 8  # each step of the stream asks all of them

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers of the last forward pass over the batch."""
        features = self.subject.features(query)
        for _ in range(int(options["steps"])):
            outputs = self.step(query, features, state, float(options["learning_rate"]))
        return outputs
