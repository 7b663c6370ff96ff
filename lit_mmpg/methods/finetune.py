"""Fine-tuning on a device's labelled clips: all weights, the head, or a low-rank delta (LoRA).

All devices of a group are tuned at once on stacked weights, each by its own loss on its own clips, so the result of a
device does not depend on who else is in the group. Learning rate and steps are swept on validation devices; zero steps
are in the grid, so that early stopping may find that tuning does harm.

The text encoder of a retrieval model stays as it is: one embedded text has to rank clips of many devices.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.device.contract import DeviceModel
from lit_mmpg.device.outputs import Outputs, answer_batch
from lit_mmpg.forms.layers import LinearLayer
from lit_mmpg.forms.registry import find_form
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options, Setting, State, Subject
from lit_mmpg.methods.hooks import output_replaced, over

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

STEPS = (0, 8, 32, 128, 384)


class Sampler:
    """Draws each step's labelled clips and texts, for each device by itself.

    Args:
        support: Labelled clips ``[G, C, ...]``.
        clips: Clips per device and step.
        items: Texts per clip and step.
        steps: Number of steps.
        seed: Seed; the draws of a device depend on it and on the device alone.
    """

    def __init__(self, support: Batch, clips: int, items: int, steps: int, seed: int) -> None:
        self.support = support
        mask, text_clip = support.text_mask.cpu().numpy(), support.text_clip.cpu().numpy()
        self._clips = np.zeros((len(support), steps, clips), np.int64)
        self._items = np.zeros((len(support), steps, clips * items), np.int64)
        self._real = np.zeros((len(support), steps, clips * items), bool)
        for g, device in enumerate(support.device.tolist()):
            rng = np.random.default_rng([seed, device, *support.clip[g, :1].clamp(min=0).tolist()])
            own = {c: np.flatnonzero(mask[g] & (text_clip[g] == c)) for c in np.unique(text_clip[g][mask[g]])}
            if own:
                self._draw(g, own, rng)

    def _draw(self, g: int, own: dict[int, np.ndarray], rng: np.random.Generator) -> None:
        steps, clips = self._clips.shape[1:]
        items = self._items.shape[2] // clips
        names = np.array(list(own))
        taken = min(clips, len(names))
        for step in range(steps):
            chosen = rng.permutation(names)[:taken]
            self._clips[g, step, :taken] = chosen
            for place, clip in enumerate(chosen):
                drawn = rng.permutation(own[clip])[:items]
                start = place * items
                self._items[g, step, start : start + len(drawn)] = drawn
                self._real[g, step, start : start + len(drawn)] = True
            # Places beyond a device's labelled clips repeat its first one; they have no texts.
            self._clips[g, step, taken:] = chosen[0]

    def batch(self, step: int, values: Tensor) -> Batch:
        """The batch of one step; ``values [G, C, T, ...]`` are the frames of the support, encoded or not."""
        support = self.support
        device = support.clip.device
        rows = torch.arange(len(support), device=device).unsqueeze(1)
        clips = torch.from_numpy(self._clips[:, step]).to(device)
        items = torch.from_numpy(self._items[:, step]).to(device)
        mask = torch.from_numpy(self._real[:, step]).to(device)
        per_clip = items.shape[1] // clips.shape[1]
        place = torch.arange(items.shape[1], device=device) // per_clip
        clip = support.clip[rows, clips].clone()
        # A repeated clip without texts must not stand among the negatives of its own text.
        clip[~mask.unflatten(1, (clips.shape[1], per_clip)).any(-1)] = -1
        return replace(
            support,
            frames=Frames(values[rows, clips], support.frames.mask[rows, clips]),
            clean=support.clean and Frames(support.clean.values[rows, clips], support.clean.mask[rows, clips]),
            text=support.text[rows, items],
            text_mask=mask,
            text_clip=place.expand_as(items),
            answer=torch.where(mask, support.answer[rows, items], -1),
            item=support.item[rows, items],
            kind=support.kind[rows, items],
            clip=clip,
        )


class FineTuning(AdaptationMethod):
    """Common part: steps of Adam on stacked weights, one trajectory for all numbers of steps."""

    paper = "fine-tuning"
    setting: ClassVar[Setting] = "supervised"
    knows = "labelled"
    backward = True
    grid: ClassVar = {"learning_rate": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2), "steps": STEPS}

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        self.clips, self.items = data.batch.clips, data.batch.items_per_clip

    @abstractmethod
    def start(self, devices: int, options: Options) -> State:
        """Weights before the first step, stacked over devices; with them the model is the checkpoint."""

    @abstractmethod
    def answer(self, episode: Episode, values: Tensor, state: State) -> Outputs:
        """Answers with the weights of ``state``; ``values`` are what :meth:`prepare` returned."""

    def prepare(self, episode: Episode) -> Tensor:
        """The part of the forward pass that tuning does not change: here the encoder."""
        with torch.no_grad():
            return self.subject.features(episode)

    def adapt(self, support: Episode, options: Options) -> State:
        """Tuned weights, stacked over devices."""
        return next(iter(self.adapt_all(support, [options])))

    def adapt_all(self, support: Episode, points: Sequence[Options]) -> Iterator[State]:
        """One trajectory for neighbouring points that differ in their steps alone; its states are not kept."""
        values = self.prepare(support)

        def rest(options: Options) -> dict[str, Any]:
            return {name: value for name, value in options.items() if name != "steps"}

        for options, group in itertools.groupby(points, rest):
            wanted = [int(point["steps"]) for point in group]
            states = self._descend(support, values, options, set(wanted))
            if wanted == sorted(set(wanted)):
                yield from (state for _, state in states)
            else:
                found = dict(states)
                yield from (found[step] for step in wanted)

    def _descend(
        self, support: Episode, values: Tensor, options: Options, wanted: set[int]
    ) -> Iterator[tuple[int, State]]:
        last = max(wanted)
        state = {name: tensor.requires_grad_() for name, tensor in self.start(len(support.batch), options).items()}
        optimiser = torch.optim.Adam(state.values(), lr=float(options["learning_rate"]))
        sampler = Sampler(support.batch, self.clips, self.items, last, self.seed)
        for step in range(last + 1):
            if step in wanted:
                yield step, {name: tensor.detach().clone() for name, tensor in state.items()}
            if step == last:
                return
            batch = sampler.batch(step, values)
            with torch.enable_grad():
                loss = self.loss(Episode(batch, support.parameters), state).sum()
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()

    def loss(self, episode: Episode, state: State) -> Tensor:
        """What the steps minimise, for each device by itself, ``[G]``."""
        outputs = self.answer(episode, episode.batch.frames.values, state)
        return self.network.task.device_loss(self.network, episode.batch, outputs)

    def respond(self, query: Episode, state: State, options: Options) -> Outputs:
        """Answers with the device's own weights."""
        return self.answer(query, self.prepare(query), state)


class FineTuneHead(FineTuning):
    """Fine-tuning of the last linear layer alone, weight and bias."""

    name = "finetune_head"
    parts = ("head",)
    paper = "fine-tuning (last layer)"

    def start(self, devices: int, options: Options) -> State:
        """The head of the checkpoint."""
        head = self.network.head
        return {
            "weight": head.weight.detach().repeat(devices, 1, 1),
            "bias": head.bias.detach().repeat(devices, 1),
        }

    def answer(self, episode: Episode, values: Tensor, state: State) -> Outputs:
        """Answers with the personal head; what a cloud half generated for it stays on top."""
        head = self.network.head
        # A delta on the static head, so that generated parameters keep what they add.
        weight = (state["weight"] - head.weight).transpose(1, 2)
        bias = state["bias"] - head.bias

        def personal(x: Tensor, y: Tensor) -> Tensor:
            delta = torch.bmm(x.flatten(1, -2), weight).unflatten(1, x.shape[1:-1])
            return y + delta + over(bias, y)

        with output_replaced(head, personal):
            return answer_batch(self.network, episode.batch, values, episode.parameters)


class FineTuneLowRank(FineTuning):
    """LoRA: a low-rank delta on correction (where the model has one), frame projection and head: what a cloud adapts.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR 2022): ``W x + U (V^T x)``, with U = 0 at
    first, plus a bias. Shapes and names are those of the dynamic form ``low_rank``.

    Against the defaults of the library peft: the scale ``lora_alpha / r`` is 1 (there 8 / 8, so 1 too at rank 8, but
    not at other ranks); V starts normal with a standard deviation of ``in_features ** -0.5``, sqrt(3) times that of the
    uniform start there; a bias is tuned, too, which is ``lora_bias=True`` there. No dropout in either.
    """

    name = "finetune_lora"
    parts = ("frame_projection", "head")
    paper = "Hu et al. 2022"
    grid: ClassVar = {"learning_rate": (1e-4, 1e-3, 3e-3, 1e-2), "rank": (8,), "steps": STEPS}

    @property
    def layers(self) -> list[str]:
        """Names of the layers that get a delta."""
        return [*(["correction"] if self.network.correction_layers() else []), "frame_projection", "head"]

    def start(self, devices: int, options: Options) -> State:
        """V random, U and the bias zero."""
        generator = torch.Generator().manual_seed(self.seed)
        state: State = {}
        for name in self.layers:
            layer: nn.Linear = getattr(self.network, name)
            for part in find_form("low_rank").parts(LinearLayer(layer), int(options["rank"])):
                values = part.start.draw(part.shape, generator).to(layer.weight.device)
                state[f"{name}.{part.name}"] = values.repeat(devices, *(1 for _ in part.shape))
        return state

    @contextmanager
    def personal(self, state: State) -> Iterator[None]:
        """While this lasts, the layers have the deltas of ``state``."""

        def delta(name: str) -> AbstractContextManager[None]:
            u, v, c = (state[f"{name}.{part}"] for part in ("u", "v", "c"))

            def personal(x: Tensor, y: Tensor) -> Tensor:
                low = torch.bmm(torch.bmm(x.flatten(1, -2), v), u.transpose(1, 2))
                return y + low.unflatten(1, x.shape[1:-1]) + over(c, y)

            return output_replaced(getattr(self.network, name), personal)

        with ExitStack() as stack:
            for name in self.layers:
                stack.enter_context(delta(name))
            yield

    def answer(self, episode: Episode, values: Tensor, state: State) -> Outputs:
        """Answers with the personal deltas."""
        with self.personal(state):
            return answer_batch(self.network, episode.batch, values, episode.parameters)


class CleanTwins(FineTuneLowRank):
    """Oracle: the same low-rank delta, learnt on the device from the clean twins of its earlier frames.

    No device has these. What it gains on top of a static model is the room that is left for personal parameters of a
    device whose frames alone are shifted: where little is gained, the shift has destroyed what is missing.
    """

    name = "clean_twins_lora"
    paper = "control (oracle)"
    setting = "control"
    needs_clean = True
    grid: ClassVar = {"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3), "rank": (8,), "steps": STEPS}

    @property
    def layers(self) -> list[str]:
        """Those in front of the projected features, which are what is learnt."""
        return [name for name in super().layers if name != "head"]

    def loss(self, episode: Episode, state: State) -> Tensor:
        """Squared distance of the projected frames from those of their clean twins, a mean over real frames."""
        batch = episode.batch
        assert batch.clean is not None
        with torch.no_grad():
            clean = self.network.project(self.network.encode(batch.clean.values), corrected=False)
        with self.personal(state):
            projected = self.network.project(
                self.network.encode(batch.frames.values, episode.parameters), episode.parameters
            )
        weight = batch.frames.mask.unsqueeze(-1).to(clean.dtype).expand_as(clean)
        return ((projected - clean).square() * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1)


class _Whole(nn.Module):
    """The device model as one function of raw frames: ``functional_call`` replaces the weights of a forward only."""

    def __init__(self, network: DeviceModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Batch, parameters: tuple[Tensor, ...]) -> Outputs:
        return answer_batch(self.network, batch, self.network.encode(batch.frames.values, parameters), parameters)


class FineTuneAll(FineTuning):
    """Fine-tuning of all weights of the device model, a pixel encoder included."""

    name = "finetune_all"
    paper = "fine-tuning (all weights)"
    encode_once = False
    at_once = 8  # every device has a whole model of its own
    grid: ClassVar = {"learning_rate": (3e-5, 3e-4, 1e-3), "steps": STEPS[:-1]}

    def __init__(self, subject: Subject, data: DeviceData, seed: int = 0) -> None:
        super().__init__(subject, data, seed)
        self.whole = _Whole(self.network)

    def start(self, devices: int, options: Options) -> State:
        """A copy of the checkpoint for each device."""
        frozen = tuple(f"network.{part}" for part in self.subject.task.frozen)
        return {
            name: tensor.detach().repeat(devices, *(1 for _ in tensor.shape))
            for name, tensor in self.whole.named_parameters()
            if not name.startswith(frozen)
        }

    def prepare(self, episode: Episode) -> Tensor:
        """Frames as they are: the encoder is tuned, too."""
        return episode.batch.frames.values

    def answer(self, episode: Episode, values: Tensor, state: State) -> Outputs:
        """Answers of each device's own model, all at once."""
        batch = episode.batch

        def one(
            weights: State,
            values: Tensor,
            mask: Tensor,
            text: Tensor,
            text_clip: Tensor,
            parameters: tuple[Tensor, ...],
        ) -> tuple[Tensor, ...]:
            own = Batch(
                frames=Frames(values[None], mask[None]),
                context=Frames(values[None, :0], mask[None, :0]),
                text=text[None],
                text_mask=batch.text_mask[:1],
                text_clip=text_clip[None],
                answer=batch.answer[:1],
                item=batch.item[:1],
                clip=batch.clip[:1],
                device=batch.device[:1],
                kind=batch.kind[:1],
            )
            found: Outputs = functional_call(self.whole, weights, (own, tuple(p[None] for p in parameters)))
            return tuple(t[0] for t in (found.logits, found.video, found.text) if t is not None)

        results = torch.func.vmap(one)(
            state, values, batch.frames.mask, batch.text, batch.text_clip, tuple(episode.parameters)
        )
        return Outputs(logits=results[0]) if len(results) == 1 else Outputs(video=results[0], text=results[1])
