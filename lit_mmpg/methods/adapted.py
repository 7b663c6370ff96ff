"""Measuring a method on a finished checkpoint: options chosen on validation, then the test devices, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lit_mmpg.batch import Batch, Outputs
from lit_mmpg.cloud.exchange import state_digest
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.device.evaluation import Cost, Evaluation
from lit_mmpg.errors import UserError
from lit_mmpg.methods.base import STREAM_CLIPS, AdaptationMethod, Episode, Loaded, Options, State, Subject, rows
from lit_mmpg.methods.costs import AdaptationCost, measured, single_clip
from lit_mmpg.methods.episodes import Episodes, Group
from lit_mmpg.methods.registry import find_method, usable

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData

_log = logging.getLogger(__name__)

ENOUGH = 0.75
"""Share of the labelled clips that a supervised method asks for which devices must have on average."""


@dataclass(frozen=True)
class Adapted:
    """Result of a method on a checkpoint.

    Attributes:
        name: Name of the row.
        method: Name of the method.
        setting: See :data:`lit_mmpg.methods.base.Setting`.
        reason: Why it is n/a; ``None`` where it ran.
        evaluation: Items and metrics of the test groups under ``name``; ``None`` where n/a.
        rows: Result rows as ``lit-mmpg test`` writes them.
        cost: What it costs; ``None`` where n/a.
        chosen: Options that won on the validation devices.
        sweep: One row per point of the grid: its options and the primary metric on validation.
        seconds: Wall-clock seconds of the whole measurement.
    """

    name: str
    method: str
    setting: str
    reason: str | None = None
    evaluation: Evaluation | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    cost: AdaptationCost | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def load(checkpoint: str | Path, flags: Sequence[str] = ()) -> Loaded:
    """Load a checkpoint of either half with its data; several methods may share the result.

    Args:
        checkpoint: File that ``lit-mmpg fit`` wrote.
        flags: Further flags for the data, as for ``lit-mmpg test``.

    Raises:
        UserError: If the checkpoint or the data is not usable.
    """
    from lit_mmpg.training.evaluation import restore

    module, data = restore(checkpoint, flags)
    if isinstance(module, CloudModule):
        module.know_conditions(data.corpus.conditions)
    names = [device.id for device in data.device_table.devices]
    return Loaded(Subject(module, names), data, str(checkpoint))


def evaluate_adapted(
    loaded: Loaded,
    method: str | type[AdaptationMethod],
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Adapted:
    """Run a method on a checkpoint.

    Args:
        loaded: The checkpoint and its data.
        method: Name of the method, or a class of your own.
        name: Name of the row; the method's when not given.
        options: Values that replace those of the method's grid (a list: among these the validation devices choose),
            and ``labels``: number of labelled clips of a supervised method.
        seed: Seed of what the method draws.
        groups: Groups of test devices; all when not given.

    Returns:
        The result; one with a reason and without numbers where the method is n/a.

    Raises:
        UserError: If the method or an option is unknown.
    """
    start = time.perf_counter()
    kind = find_method(method) if isinstance(method, str) else usable(method)
    method = kind.name
    asked = dict(options or {})
    label = name or method
    labels = asked.pop("labels", 16 if kind.knows == "labelled" else None)
    unknown = set(asked) - set(kind.grid)
    if unknown:
        raise UserError(f"method '{method}' has no option {sorted(unknown)}; it has {', '.join(kind.grid) or 'none'}")
    subject, data = loaded.subject, loaded.data
    reason = kind.not_for(subject, data)
    if reason is not None:
        return Adapted(label, method, kind.setting, reason)
    # Frames are encoded once for the sweep and the test together, unless the method or the cloud half changes how.
    frozen = subject.pixels and kind.encode_once and not kind.needs_pixels and not subject.network.encodes_personally
    encode = _encoder(subject) if frozen else None
    data.encode_once(encode, encode)
    try:
        weights = state_digest(subject.module)
        runner = _Runner(subject, data, kind(subject, data, seed), labels, seed)
        asked_groups = list(groups or data.test_groups)
        reason = runner.too_few(asked_groups[0])
        if reason is not None:
            return Adapted(label, method, kind.setting, reason)
        points = kind.points(asked)
        sweep = runner.sweep(points) if len(points) > 1 else []
        # A score that is no number is never the best one, whatever argmax makes of it.
        scores = np.nan_to_num([row["score"] for row in sweep], nan=-np.inf)
        chosen = points[int(np.argmax(scores))] if sweep else points[0]
        evaluation = runner.test(label, chosen, runner.groups(asked_groups))
        cost = runner.cost(chosen, evaluation.groups[0])
        if state_digest(subject.module) != weights or any(part.training for part in subject.module.modules()):
            raise UserError(f"method '{method}' changes the checkpoint, which others start from; change a copy of it")
    finally:
        data.encode_once(None, None)
    found = evaluation.rows({label: Cost(cost.upload_bytes, cost.download_bytes)})
    seconds = time.perf_counter() - start
    return Adapted(label, method, kind.setting, None, evaluation, found, cost, chosen, sweep, seconds)


def _encoder(subject: Subject) -> Callable[[np.ndarray], np.ndarray]:
    @torch.inference_mode()
    def encode(pixels: np.ndarray) -> np.ndarray:
        encoded: np.ndarray = subject.network.encode(torch.from_numpy(pixels)).numpy()
        return encoded

    return encode


class _Runner:
    """One method on one checkpoint and data."""

    def __init__(
        self, subject: Subject, data: DeviceData, method: AdaptationMethod, labels: int | None, seed: int
    ) -> None:
        self.subject, self.data, self.method, self.labels, self.seed = subject, data, method, labels, seed
        self.online = method.setting == "online"
        self.support_clips = self.labelled_items = 0.0

    def _episodes(self, group: str, at_once: int | None = None) -> Episodes:
        labelled = self.method.knows == "labelled"
        clips = self.labels if labelled else None
        at_once = at_once or self.method.at_once
        stream = STREAM_CLIPS if self.online else 0
        return Episodes(self.data, group, labelled, clips, at_once, self.seed, self.method.needs_clean, stream)

    def too_few(self, first: str) -> str | None:
        """Why a supervised method has too few labelled clips to live up to its name, on validation or group `first`."""
        return self._lacks("val") or self._lacks(first)

    def groups(self, asked: Sequence[str]) -> list[str]:
        """Those groups of test devices that have enough labelled clips; a method without labels is measured on all."""
        return [group for group in asked if self._lacks(group) is None]

    def _lacks(self, group: str) -> str | None:
        """How many labelled clips the devices of a group have where those are too few for the method."""
        if self.method.knows != "labelled" or self.labels is None:
            return None
        fewest, mean = self._episodes(group).clips
        if mean >= ENOUGH * self.labels:
            return None
        return f"devices of group {group} have {mean:.0f} earlier clips (some {fewest}), not {self.labels}"

    def sweep(self, points: Sequence[Options]) -> list[dict[str, Any]]:
        """Primary metric of each point on the validation devices; ``score`` is higher when better."""
        labels = [str(i) for i in range(len(points))]
        evaluation = self._evaluation(["val"], labels)
        for group in self._episodes("val"):
            support = self._support(group)
            for label, options, state in zip(labels, points, self.method.adapt_all(support, points), strict=True):
                self._answer("val", label, group, support, state, options, evaluation)
        primary = evaluation.task.primary
        values = [evaluation.compute("val", label)[primary.name] for label in labels]
        return [{**p, primary.name: v, "score": primary.score(v)} for p, v in zip(points, values, strict=True)]

    def test(self, name: str, options: Options, groups: list[str]) -> Evaluation:
        """Answers on the test devices."""
        evaluation = self._evaluation(groups, [name])
        for g, group in enumerate(groups):
            episodes = self._episodes(group)
            items = []
            for part in episodes:
                support = self._support(part)
                self._answer(group, name, part, support, self.method.adapt(support, options), options, evaluation)
                items += [part.labelled_items] * len(part.support)
            if g == 0 and self.method.knows != "nothing":
                self.support_clips = episodes.clips[1]
                self.labelled_items = float(np.mean(items)) if self.method.knows == "labelled" else 0.0
        return evaluation

    def _evaluation(self, groups: list[str], methods: list[str]) -> Evaluation:
        return Evaluation([self.data.group(name) for name in groups], methods)

    def _support(self, group: Group) -> Episode:
        return Episode(group.support, self.subject.personal(group.support.context, group.support.device))

    @torch.no_grad()
    def _answer(
        self,
        group: str,
        name: str,
        part: Group,
        support: Episode,
        state: State,
        options: Options,
        evaluation: Evaluation,
    ) -> None:
        for batch, index in part.queries:
            own = tuple(tensor[index] for tensor in support.parameters)
            query = Episode(evaluation.task.query_view(batch), own)
            held = state if self.online else rows(state, index)
            outputs = self.method.respond(query, held, options)
            self._check_form(outputs, batch)
            evaluation.update(group, name, batch, outputs)

    def _check_form(self, outputs: Outputs, batch: Batch) -> None:
        """Refuse answers to another number of texts or clips: they would be repeated, and count."""
        asked = {"logits": batch.text_mask, "text": batch.text_mask, "video": batch.clip}
        given = {name: tensor for name in asked if (tensor := getattr(outputs, name, None)) is not None}
        wrong = [f"{name} {tuple(t.shape)}" for name, t in given.items() if t.shape[:-1] != asked[name].shape]
        width = self.subject.task.head_width(self.subject.network.shapes.answers)
        width = width if width > 1 else batch.text.shape[-2]
        if not wrong and "logits" in given and given["logits"].shape[-1] != width:
            wrong = [f"{given['logits'].shape[-1]} logits where there are {width} answers"]
        if wrong or not given:
            said = wrong[0] if wrong else type(outputs).__name__
            raise UserError(
                f"method '{self.method.name}' answers by {said}; respond returns Outputs, with a row of scores for "
                f"each text {tuple(batch.text_mask.shape)}, and of embeddings for each clip {tuple(batch.clip.shape)}"
            )

    def cost(self, options: Options, group: str) -> AdaptationCost:
        """Operations and seconds of a single device, apart from the evaluation, which works on many at once."""
        part = next(iter(self._episodes(group, at_once=1)))
        support = self._support(part)
        # One clip at a time, as a device answers: a batch of clips would share what each clip costs alone.
        query = Episode(self.subject.task.query_view(single_clip(part.queries[0][0])), support.parameters)
        state = self.method.adapt(support, options)
        adapt = measured(lambda: self.method.adapt(support, options))
        with torch.no_grad():
            # An online method changes the entries of what it is given, and each repetition has to do the same.
            answer = measured(lambda: self.method.respond(query, dict(state), options))
        sent = self.method.sent_bytes()
        cloud, cloud_s = self.subject.cloud, None
        if cloud is not None and sent.download_bytes and self.method.answers_in == "device":
            # The method goes on top of the checkpoint's own adaptation, so the device takes its anchors too.
            with torch.no_grad():
                adapt = adapt.then(measured(lambda: cloud.select(part.support.context)))
                anchors, _ = cloud.select(part.support.context)
                cloud_s = measured(lambda: cloud.generate(anchors)).seconds
        return AdaptationCost(
            upload_bytes=sent.upload_bytes,
            download_bytes=sent.download_bytes,
            per=self.method.bytes_per,
            adapt_flops=adapt.flops,
            adapt_s=adapt.seconds,
            answer_flops=answer.flops,
            answer_s=answer.seconds,
            adapt_peak_bytes=adapt.peak_bytes,
            answer_peak_bytes=answer.peak_bytes,
            answers_in=self.method.answers_in,
            backward=self.method.backward,
            support_clips=self.support_clips,
            labelled_items=self.labelled_items,
            cloud_s=cloud_s,
            from_pixels=support.batch.frames.values.dtype == torch.uint8,
        )
