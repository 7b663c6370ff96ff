"""A memory of camera models: what the cameras of a fleet have in common, looked up by what one of them shows.

Devices of one model share an artefact (:mod:`lit_mmpg.data.artefacts`). The memory holds for each model the change that
it makes to the mean frame, and its opacity, both at the median strength of its devices. A query is the median gradients
of the device's C frames; recognition looks for the model, the shift and the strength under which these are most
likely. The answer are gain and bias images for the device's input layer, the best ones over draws of the posterior of
its shift, scale and strength: what C frames leave open is undone less. Where no model is likely enough it is none.

The memory extends the Fast Domain Adaptor of the paper (our own addition, no reconstruction). It is filled in three
ways: from true maps (an oracle), from devices with paired clean views (:meth:`Evidence.paired`), or from what devices
upload (:meth:`Evidence.uploaded`), of which nobody says which model they are. No torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from lit_mmpg.errors import UserError
from lit_mmpg.heartbeat import tell
from lit_mmpg.maps import Correction, PixelMaps, Scene, gradients, guided, integrate, moved, opposed, smooth, undo
from lit_mmpg.writing import tensors_as_bytes, write_bytes

SCHEMA = 2
"""Raise it when a file of an older version would be read as something else."""

STRENGTHS = (0.55, 0.75, 0.95, 1.15)
"""Strengths among which recognition chooses, relative to the median of the model's devices."""
STRENGTH_SPREAD, SCALE_SPREAD, SHIFT_SPREAD_PX = 0.15, 0.01, 2.0
"""Standard deviations of strengths and of scales about 1, and of shifts about 0, before a query is seen."""
PLACES_ALIKE = 16.0
"""Neighbouring places that tell the same: so many count as one in a likelihood that is weighed against those."""
REACH_PX = 6
"""Largest shift that recognition looks for, in each direction: the spread of devices about the middle of theirs."""
CANDIDATES = 8
"""Models whose likelihood is computed, the first by the matched filter."""
STEPS = (1.0, 1.0, 0.01, 0.1)
"""Largest steps with which a place is refined: down, right, scale, strength."""
BARELY = (0.1, 0.2)
"""Share of the light that has to pass before it is taken for any, and for what it is."""
EVERY, FEW_PLACES = 2, 3000
"""Distance of the places whose gradients are compared, pixels, in frames of more places than so many."""
AT_ONCE = 32
"""Models whose spectra are made at once."""
SAME = 0.9
"""Correlation from which what was learnt twice is one model: at 72 x 96 that of other devices of one model is about as
much, that of a model which changed by a half is less."""
TOGETHER = 512
"""Devices that are compared with all others at once."""
DRAWS, WALK = 16, 200
"""Draws of the posterior that are kept, and steps of the walk that draws them."""


def _each(brightness: float, colours: float) -> np.ndarray:
    return np.array([brightness, colours, colours], np.float32)[:, None, None]


THRESHOLD, CEILING = _each(1.5, 0.5), _each(8.0, 3.0)
"""Gradients of the matched filter, grey levels, of brightness and of colours (:func:`lit_mmpg.maps.opposed`): what is
smaller says nothing, what is larger says no more."""
WEIGHT = _each(1.0, 4.0)
"""How much they count: scenes vary little in colours."""
STRENGTH_BOUNDS = (0.3, 2.0)
"""Strengths that a device is believed to have against the median of its model's."""
LOW_PX = 6.0
"""Changes of the mean frame wider than this are taken from means, finer ones from gradients; pixels."""
TRIMMED = 0.2
"""Share of the devices on either side that a pooled value leaves out, so that a few wrong uploads do nothing."""
GATE_DEVICES = 200
"""Most clean devices that are drawn to find a gate."""


Residual = Callable[[PixelMaps, np.ndarray, np.ndarray, Scene], tuple[np.ndarray, np.ndarray]]
"""Takes the maps of a device, the opacity and the light of the memory's answer and how clean frames look; returns
opacity and light with what is the device's own."""


@dataclass(frozen=True)
class Recognition:
    """What a query was recognised as.

    Attributes:
        model: Index of the model.
        score: How much more likely the query and the place are with the model than the query is without, in nats.
        strength: Strength of the device, relative to the median of the model's.
        down: Shift downwards, pixels.
        right: Shift to the right.
        scale: Enlargement about the middle of the frame.
    """

    model: int
    score: float
    strength: float
    down: float
    right: float
    scale: float = 1.0


@dataclass(frozen=True)
class Evidence:
    """What one device tells of its model.

    Attributes:
        gradient: ``[2, 3, H, W]`` float32 gradients of the change of its mean frame.
        change: ``[3, H, W]`` the change itself, grey levels; only its coarse part is used.
        passes: ``[3, H, W]`` share of the light that passes.
    """

    gradient: np.ndarray
    change: np.ndarray
    passes: np.ndarray

    @classmethod
    def uploaded(cls, maps: PixelMaps, scene: Scene) -> Evidence:
        """From the maps of a device alone."""
        return cls(maps.gradient, maps.mean - scene.mean, maps.deviation / np.maximum(scene.deviation, 1))

    @classmethod
    def paired(cls, seen: np.ndarray, clean: np.ndarray, prior: float = 4.0) -> Evidence:
        """From clips with paired clean views.

        Args:
            seen: ``[N, 3, H, W]`` frames as the device takes them.
            clean: ``[N, 3, H, W]`` the same without its artefact.
            prior: Deviation, grey levels, that a place of the clean frames needs before its slope counts.
        """
        seen, clean = seen.astype(np.float32), clean.astype(np.float32)
        change = (seen - clean).mean(0)
        apart = clean - clean.mean(0)
        variance = np.square(apart).mean(0)
        slope = ((seen - seen.mean(0)) * apart).mean(0)
        return cls(gradients(change), change, (slope + prior**2) / (variance + prior**2))


@dataclass(frozen=True)
class CameraMemory:
    """Camera models that are known.

    Attributes:
        scene: How clean frames look.
        change: ``[K, 3, H, W]`` float32 change of the mean frame, grey levels, at strength 1.
        opacity: ``[K, 3, H, W]`` float32, 0 to 1, at strength 1.
        devices: ``[K]`` devices that each model was learnt from.
        version: Grows with every model that is added.
        gates: Number of frames C to the score that a recognition by so many needs (:meth:`with_gates`).
    """

    scene: Scene
    change: np.ndarray
    opacity: np.ndarray
    devices: np.ndarray
    version: int = 0
    gates: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, scene: Scene) -> CameraMemory:
        """A memory that knows nothing."""
        none = np.zeros((0, *scene.mean.shape), np.float32)
        return cls(scene, none, none, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.change)

    def with_models(self, change: np.ndarray, opacity: np.ndarray, devices: Sequence[int]) -> CameraMemory:
        """The memory with further models; what it knew stays as it was.

        Raises:
            ValueError: If the shapes differ, or a value is not finite.
        """
        wanted = (len(devices), *self.scene.mean.shape)
        if change.shape != wanted or opacity.shape != wanted:
            raise ValueError(f"models have shapes {change.shape} and {opacity.shape}, expected {wanted}")
        if not (np.isfinite(change).all() and np.isfinite(opacity).all()):
            raise ValueError("a model holds NaN or infinity")
        return replace(
            self,
            change=np.concatenate([self.change, change.astype(np.float32)]),
            opacity=np.concatenate([self.opacity, np.clip(opacity, 0, 1).astype(np.float32)]),
            devices=np.concatenate([self.devices, np.asarray(devices, np.int64)]),
            version=self.version + 1,
        )

    def with_gates(self, clean: np.ndarray, share: float = 0.02, counts: Sequence[int] = (1, 4, 16)) -> CameraMemory:
        """The memory with the scores that few clean devices reach, by how many frames they have taken.

        Args:
            clean: ``[N, 3, H, W]`` clean frames, each of another clip. Devices that have taken C of them are drawn.
            share: Share of clean devices that are recognised as something.
            counts: The numbers C; those above N are left out.

        Raises:
            UserError: If there are too few frames for the share.
        """
        require_clean(len(clean), share)
        rng, gates = np.random.default_rng(0), {}
        for count in (c for c in counts if c <= len(clean)):
            if count == 1:  # each once says as much as draws
                taken = np.arange(len(clean))[:GATE_DEVICES, None]
            else:
                taken = np.stack([rng.choice(len(clean), count, replace=False) for _ in range(GATE_DEVICES)])
            gates[count] = gate_for(self, [PixelMaps.of(clean[i]).gradient for i in taken], share)
        return replace(self, gates=gates)

    def gate(self, count: int) -> float:
        """The score that a recognition by ``count`` frames needs: that of the next smaller number that was measured.

        Raises:
            UserError: If none was.
        """
        known = [c for c in self.gates if c <= count]
        if not known:
            raise UserError("the camera memory holds no gates; learn it with 'lit-mmpg memory', or call with_gates()")
        return self.gates[max(known)]

    def holds(self, change: np.ndarray) -> np.ndarray:
        """Which of some models ``[K, 3, H, W]`` are known already, as ``[K]`` bool; their shift does not matter."""
        if not len(self):
            return np.zeros(len(change), bool)
        keys = [squashed(gradients(model)) for model in change]
        return np.array([_matched(key, *self._spectra, REACH_PX)[0].max() >= SAME for key in keys], bool)

    def recognise(self, gradient: np.ndarray, reach: int = REACH_PX) -> Recognition | None:
        """The most likely model of a device, and its place in parts of a pixel; none where nothing is known.

        A matched filter over all shifts picks the models and shifts for which :class:`_Likelihood` is asked. The best
        is refined: shifts, scale and strength are changed in turn while that makes it more likely, in ever smaller
        steps.

        Args:
            gradient: ``[2, 3, H, W]`` median gradients of the device.
            reach: Largest shift, pixels.
        """
        if not len(self):
            return None
        spectra, norms = self._spectra if reach == REACH_PX else self._made(reach)
        scores, shifts = _matched(squashed(gradient), spectra, norms, reach)
        likelihood = _Likelihood(self, gradient)
        best: Recognition | None = None
        for model in np.argsort(-scores)[:CANDIDATES].tolist():
            for strength in STRENGTHS:
                tried = likelihood(Recognition(model, 0.0, strength, *map(float, shifts[model])))
                best = tried if best is None or tried.score > best.score else best
        assert best is not None
        for step in (1.0, 0.5, 0.25, 0.125):
            for name, by in [*zip(("down", "right", "scale", "strength"), STEPS, strict=True)] * 2:
                for way in (-step, step):
                    tried = likelihood(replace(best, **{name: getattr(best, name) + way * by}))
                    best = tried if tried.score > best.score else best
        return best

    def posterior(self, gradient: np.ndarray, found: Recognition) -> list[Recognition]:
        """Equally likely places of a device whose model is known: draws of their posterior, by a Metropolis walk.

        Args:
            gradient: ``[2, 3, H, W]``, as in :meth:`recognise`.
            found: Its result.
        """
        rng, likelihood = np.random.default_rng(0), _Likelihood(self, gradient)
        here, walk = found, []
        moves = rng.normal(size=(WALK, 4)) * np.array(STEPS) * (0.28, 0.28, 0.35, 0.7)
        for move, chance in zip(moves.tolist(), np.log(rng.random(WALK)).tolist(), strict=True):
            down, right, scale, strength = move
            tried = likelihood(
                Recognition(
                    here.model, 0.0, here.strength + strength, here.down + down, here.right + right, here.scale + scale
                )
            )
            here = tried if chance < tried.score - here.score else here
            walk.append(here)
        return [walk[i] for i in np.linspace(WALK // 4, WALK - 1, DRAWS).astype(int)]

    def _key(self, model: int) -> np.ndarray:
        """Gradients of the change of one model, ``[2, 3, H, W]``, as :func:`lit_mmpg.maps.opposed` tells them."""
        return opposed(gradients(self.change[model]))

    @cached_property
    def _spectra(self) -> tuple[np.ndarray, np.ndarray]:
        return self._made(REACH_PX)

    def _made(self, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """Spectra of all keys, made of a few models at a time: a large memory is several times this in between."""
        parts = [
            _spectra(squashed(np.moveaxis(gradients(self.change[i : i + AT_ONCE]), 0, 1)), reach)
            for i in range(0, len(self), AT_ONCE)
        ]
        spectra, norms = (np.concatenate(part) for part in zip(*parts, strict=True))
        return spectra, norms

    def answer(self, places: Sequence[Recognition]) -> tuple[np.ndarray, np.ndarray]:
        """Opacity and added light at some places, ``[N, 3, H, W]`` each.

        Light that passes is raised to the power of the strength, so that what is opaque on one device is so on all.
        What passes less than :data:`BARELY` is taken for noise of the estimate.
        """
        hidden = {}
        for model in {place.model for place in places}:
            passes = 1 - np.clip(self.opacity[model], 0, 1)
            hidden[model] = 1 - passes * np.clip((passes - BARELY[0]) / (BARELY[1] - BARELY[0]), 0, 1)
        change = np.stack([placed(self.change[place.model], place) for place in places])
        opacity = np.stack([placed(hidden[place.model], place) for place in places])
        strength = np.array([place.strength for place in places], np.float32)[:, None, None, None]
        stronger = 1 - (1 - opacity) ** strength
        change *= np.where(opacity > 1e-3, stronger / np.maximum(opacity, 1e-3), strength)
        return stronger, change + stronger * self.scene.mean

    def correct(
        self, gradient: np.ndarray, gate: float = 0.0, maps: PixelMaps | None = None, residual: Residual | None = None
    ) -> tuple[Recognition | None, Correction | None]:
        """What a device is recognised as and parameters for it; none where no model is likely enough.

        Args:
            gradient: ``[2, 3, H, W]`` median gradients of the device: of its own maps, or as they arrived
                (:class:`lit_mmpg.link.camera.CameraQuery`).
            gate: Score that a recognition has to reach; see :meth:`gate`.
            maps: Of the device; needed for a residual alone.
            residual: Adds what is the device's own, to the memory's answer or, where nothing is known, to none.

        Raises:
            ValueError: If there is a residual without maps.
        """
        if residual is not None and maps is None:
            raise ValueError("a residual needs the maps of the device")
        found = self.recognise(gradient)
        known = found if found is not None and found.score >= gate else None
        if known is None and residual is None:
            return None, None
        nothing = np.zeros((1, *self.scene.mean.shape), np.float32)
        opacity, light = (nothing, nothing) if known is None else self.answer(self.posterior(gradient, known))
        if residual is not None and maps is not None:
            pairs = [residual(maps, o, added, self.scene) for o, added in zip(opacity, light, strict=True)]
            opacity, light = (np.stack(values) for values in zip(*pairs, strict=True))
        correction = undo(opacity, light, self.scene)
        return known, correction if known is None else correction.cautious()

    def save(self, path: str | Path) -> None:
        """Write the memory as safetensors in half precision, in one step."""
        tensors = {
            "scene.mean": self.scene.mean,
            "scene.deviation": self.scene.deviation,
            "change": self.change,
            "opacity": self.opacity,
        }
        stored = {name: np.asarray(tensor, np.float16) for name, tensor in tensors.items()}
        told = {"schema": SCHEMA, "version": self.version, "devices": self.devices.tolist()}
        told |= {"gates": {str(count): score for count, score in self.gates.items()}}
        write_bytes(Path(path), tensors_as_bytes(stored, {"camera_memory": json.dumps(told)}))

    @classmethod
    def load(cls, path: str | Path) -> CameraMemory:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: If the file is missing, is none of these, or is damaged.
        """
        try:
            with safe_open(str(path), "numpy") as file:
                told = json.loads((file.metadata() or {})["camera_memory"])
                names = ("scene.mean", "scene.deviation", "change", "opacity")
                mean, deviation, change, opacity = (file.get_tensor(name).astype(np.float32) for name in names)
            if told["schema"] != SCHEMA:
                raise UserError(f"{path}: a memory of schema {told['schema']}, {SCHEMA} is read; learn it again")
            gates = {int(count): float(score) for count, score in told.get("gates", {}).items()}
            scene, scores = np.stack([mean, deviation]), [*gates.values()]
            if scene.shape[:-2] != (2, 3) or not (np.isfinite(scene).all() and np.isfinite(scores).all()):
                raise ValueError("the scene has another shape, or it or a gate is no finite number")
            blank = replace(cls.empty(Scene(mean, deviation)), version=int(told["version"]) - 1, gates=gates)
            return blank.with_models(change, opacity, told["devices"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a readable camera memory ({error}); copy it again, or learn it") from error

    @classmethod
    def ready(cls, path: str | Path) -> CameraMemory:
        """As :meth:`load`, for who recognises cameras by one frame and more.

        Raises:
            UserError: As :meth:`load`, or if it holds no gate for one frame.
        """
        memory = cls.load(path)
        try:
            memory.gate(1)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return memory


def placed(picture: np.ndarray, found: Recognition) -> np.ndarray:
    """A picture ``[..., H, W]`` of a model as it lies in the frames of a device."""
    return moved(picture, found.down, found.right, found.scale)


def own_residual(prior: float = 64.0) -> Residual:
    """A residual from the device's own frames: what its median gradients show beyond the memory's answer.

    Args:
        prior: Frames without any artefact of its own that are counted in.
    """

    def add(maps: PixelMaps, opacity: np.ndarray, light: np.ndarray, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        known = light - opacity * scene.mean
        beyond = integrate(maps.gradient - gradients(known))
        return opacity, light + maps.count / (maps.count + prior) * beyond

    return add


class _Likelihood:
    """How likely places of models are: logarithm of the posterior, less that of no model at all.

    Natural gradients are sparse. In brightness and in both colours they are taken for independent with Laplace's
    density, whose scale is the one under which the rest is likeliest; :data:`PLACES_ALIKE` of them count as one, so
    one in :data:`EVERY` rows and columns is looked at, and every one of frames that have few.

    Args:
        memory: The models.
        gradient: ``[2, 3, H, W]`` median gradients of a device.
    """

    def __init__(self, memory: CameraMemory, gradient: np.ndarray) -> None:
        self.every = EVERY if gradient[0, 0].size >= FEW_PLACES else 1
        self.memory, self.seen = memory, opposed(gradient)[..., :: self.every, :: self.every].copy()
        self.count = gradient[:, 0].size / PLACES_ALIKE
        self.plain = self._size(self.seen)
        self.keys: dict[int, np.ndarray] = {}

    @staticmethod
    def _size(field: np.ndarray) -> np.ndarray:
        """Mean magnitude of each channel; that of less than a twentieth of a grey level is noise of rounding."""
        return np.maximum(np.abs(field).sum((-1, -2)).sum(0) / field[:, 0].size, 0.05)

    def __call__(self, place: Recognition) -> Recognition:
        """The same place with its score."""
        if place.model not in self.keys:
            self.keys[place.model] = self.memory._key(place.model)
        key = moved(self.keys[place.model], place.down, place.right, place.scale, self.every)
        key *= place.strength
        key -= self.seen
        gain = self.count * float(np.log(self.plain / self._size(key)).sum())
        away = [(place.strength - 1) / STRENGTH_SPREAD, (place.scale - 1) / SCALE_SPREAD]
        away += [place.down / SHIFT_SPREAD_PX, place.right / SHIFT_SPREAD_PX]
        return replace(place, score=gain - sum(x * x for x in away) / 2 if place.strength > 0 else -np.inf)


def squashed(gradient: np.ndarray) -> np.ndarray:
    """Gradients ``[..., 3, H, W]`` as the matched filter sees them: small ones are dropped, large ones are bounded."""
    field = opposed(gradient)
    bounded: np.ndarray = WEIGHT * np.clip(np.abs(field) - THRESHOLD, 0, CEILING) * np.sign(field)
    return bounded


def shifted(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    """A picture ``[..., H, W]`` shifted by whole pixels; what comes in repeats the edge."""
    rows = np.clip(np.arange(picture.shape[-2]) - down, 0, picture.shape[-2] - 1)
    columns = np.clip(np.arange(picture.shape[-1]) - right, 0, picture.shape[-1] - 1)
    return picture[..., rows[:, None], columns]


def _overlapping(key: np.ndarray, seen: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """The parts of a key shifted by (down, right) and of a query that lie on each other."""
    height, width = seen.shape[-2:]
    part = key[..., max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    return part, seen[..., max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]


def _size(shape: tuple[int, ...], reach: int) -> tuple[int, int]:
    """Room for the matched filter, so that what is shifted out does not come in again."""
    return shape[-2] + reach, shape[-1] + reach


def _spectra(keys: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Conjugate spectra of keys ``[K, ..., H, W]`` and their norms ``[K]``."""
    norms = np.sqrt(np.square(keys).reshape(len(keys), -1).sum(1))
    return np.conj(np.fft.rfft2(keys, _size(keys.shape, reach))), norms


def _matched(
    query: np.ndarray, spectra: np.ndarray, norms: np.ndarray, reach: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Largest correlation of a query ``[..., H, W]`` with each key, given by spectrum and norm, and its shift."""
    size = _size(query.shape, reach)
    spectrum = np.fft.rfft2(query, size)
    offsets = [(down, right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]
    rows, columns = np.array(offsets).T
    parts = []
    for start in range(0, len(spectra), AT_ONCE):
        product = spectrum * spectra[start : start + AT_ONCE]
        parts.append(
            np.fft.irfft2(product.reshape(len(product), -1, *spectrum.shape[-2:]).sum(1), size)[:, rows, columns]
        )
    found = np.concatenate(parts)
    best = found.argmax(1)
    scores = found[np.arange(len(best)), best] / (norms + 1e-9) / (np.sqrt(np.square(query).sum()) + 1e-9)
    return scores, [offsets[i] for i in best]


def require_clean(count: int, share: float) -> None:
    """Check that so many clean frames can show what this share of clean devices looks like.

    Raises:
        UserError: If they are too few.
    """
    if count * share < 1:
        raise UserError(
            f"{count} clean frames cannot show what one in {round(1 / share)} clean cameras looks like; give at least "
            f"{round(1 / share)}, each of another clip"
        )


def gate_for(memory: CameraMemory, clean: Sequence[np.ndarray], share: float = 0.05) -> float:
    """Score that this share of clean devices reaches: what a recognition needs.

    Args:
        memory: The memory.
        clean: ``[2, 3, H, W]`` median gradients of clean devices, of as many frames as of those that are looked up.
        share: Share of clean devices that are recognised as something.
    """
    found = [memory.recognise(gradient) for gradient in clean]
    scores = [recognition.score for recognition in found if recognition is not None]
    return max(0.0, float(np.quantile(scores, 1 - share))) if scores else 0.0


def alike(evidence: Sequence[np.ndarray], reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Largest correlation of each two devices over shifts, and the shift of the second against the first.

    Args:
        evidence: Squashed gradients of each device, ``[..., H, W]``.
        reach: Largest shift, pixels.

    Returns:
        ``[N, N]`` correlations and ``[N, N, 2]`` shifts.
    """
    stack = np.stack(evidence).astype(np.float32)
    norm = _norms(stack)
    best = np.full((len(stack), len(stack)), -np.inf, np.float32)
    shifts = np.zeros((*best.shape, 2), np.int64)
    for down in range(-reach, reach + 1):
        for right in range(0 if down >= 0 else 1, reach + 1):
            # Each pair of opposite shifts needs one product.
            found = stack.reshape(len(stack), -1) @ _laid(stack, -down, -right).T / norm[:, None] / norm
            for value, sign in ((found, 1), (found.T, -1)):
                better = value > best
                best = np.where(better, value, best)
                shifts[better] = (sign * down, sign * right)
    return best, shifts


def _norms(stack: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(stack).reshape(len(stack), -1).sum(1)) + 1e-9


def _laid(stack: np.ndarray, down: int, right: int) -> np.ndarray:
    """Pictures ``[N, ..., H, W]`` shifted by whole pixels, nothing coming in, as ``[N, ...]``."""
    laid = np.zeros_like(stack)
    part, seen = _overlapping(stack, laid, down, right)
    seen[...] = part
    return laid.reshape(len(stack), -1)


def related(evidence: Sequence[Evidence], least: float, reach: int) -> list[np.ndarray]:
    """Devices that can be of one model: none correlates with one of another list by ``least`` or more.

    Average linkage joins no groups between which no pair correlates by as much, so each list can be grouped alone.
    Pictures of half the size are compared first, and in full those that correlate by half of ``least``. No matrix of
    all pairs is made.

    Returns:
        Indices of each list, those of a device that is like nobody included.
    """
    small = np.stack([_halved(squashed(device.gradient)) for device in evidence])
    small /= _norms(small).reshape(-1, *[1] * (small.ndim - 1))
    flat, label = small.reshape(len(small), -1), np.arange(len(small))
    half = (reach + 1) // 2
    steps = range(-half, half + 1)
    for start in range(0, len(small), TOGETHER):
        tell("comparing cameras", start, len(small), "cameras")
        rest = flat[start:]
        likely = np.zeros((min(TOGETHER, len(rest)), len(rest)), bool)
        for down, right in product(steps, steps):
            likely |= _laid(small[start : start + TOGETHER], down, right) @ rest.T >= least / 2
        for one, others in enumerate(likely, start):
            near = start + np.flatnonzero(others)
            near = near[(near > one) & (label[near] != label[one])]  # the others are in its list anyway
            if len(near):
                keys = np.stack([squashed(evidence[other].gradient) for other in near])
                scores, _ = _matched(squashed(evidence[one].gradient), *_spectra(keys, reach), reach)
                joined = np.append(label[near[scores >= least]], label[one])
                label[np.isin(label, joined)] = joined.min()
    return [np.flatnonzero(label == found) for found in np.unique(label)]


def _halved(picture: np.ndarray) -> np.ndarray:
    """A picture ``[..., H, W]`` at half its height and width, an odd row or column left out."""
    height, width = picture.shape[-2] // 2 * 2, picture.shape[-1] // 2 * 2
    even = picture[..., :height, :width]
    half: np.ndarray = (even[..., ::2, ::2] + even[..., 1::2, ::2] + even[..., ::2, 1::2] + even[..., 1::2, 1::2]) / 4
    return half.astype(np.float32)


def group(correlation: np.ndarray, least: float) -> list[np.ndarray]:
    """Groups of devices by average linkage, joined while their mean correlation is at least ``least``.

    Returns:
        Indices of each group, largest first.
    """
    members: dict[int, list[int]] = {i: [i] for i in range(len(correlation))}
    mean = correlation.astype(np.float64).copy()
    np.fill_diagonal(mean, -np.inf)
    while len(members) > 1:
        one, other = np.unravel_index(int(mean.argmax()), mean.shape)
        if mean[one, other] < least:
            break
        sizes = len(members[int(one)]), len(members[int(other)])
        joined = (sizes[0] * mean[one] + sizes[1] * mean[other]) / sum(sizes)
        mean[one], mean[:, one] = joined, joined
        mean[other], mean[:, other] = -np.inf, -np.inf
        mean[one, one] = -np.inf
        members[int(one)] += members.pop(int(other))
    return sorted((np.array(sorted(found)) for found in members.values()), key=lambda found: (-len(found), found[0]))


def pool(evidence: Sequence[Evidence], offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change of the mean frame and opacity of one model from some of its devices.

    Every value is divided by the strength of its device, which is estimated from the pooled gradients in turn; a
    trimmed mean over devices is taken place by place.

    Args:
        evidence: The devices.
        offsets: ``[N, 2]`` shift of each device against the model.

    Returns:
        ``[3, H, W]`` each, at the median strength of the devices.
    """
    devices = list(zip(evidence, offsets.tolist(), strict=True))
    fields, changes, passes = (
        np.stack([shifted(getattr(own, name), -down, -right) for own, (down, right) in devices])
        for name in ("gradient", "change", "passes")
    )
    flat = fields.reshape(len(fields), -1)
    strengths = np.ones(len(fields))
    pooled = trimmed_mean(fields, strengths)
    for _ in range(5):
        axis = pooled.ravel()
        strengths = flat @ axis / max(float(axis @ axis), 1e-9)
        # The median and the bounds: one device that claims to be strong moves neither the others nor the result.
        strengths = np.clip(strengths / max(float(np.median(strengths)), 1e-9), *STRENGTH_BOUNDS)
        pooled = trimmed_mean(fields, strengths)
    fine = integrate(pooled)
    coarse = trimmed_mean(changes, strengths)
    change = fine - smooth(fine, LOW_PX) + smooth(coarse, LOW_PX)
    opacity = trimmed_mean(1 - passes, strengths)
    opacity = guided(opacity, change, 2.0, 8.0)
    return change, np.clip(opacity, 0, 1)


def trimmed_mean(values: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Mean over devices of ``values [N, ...] / strengths [N]`` without the outermost, weighted by squared strength."""
    shape = (-1,) + (1,) * (values.ndim - 1)
    own = values / strengths.reshape(shape)
    weights = np.broadcast_to(np.square(strengths).reshape(shape), own.shape)
    left_out = int(TRIMMED * len(own))
    if left_out:
        order = np.argsort(own, 0)[left_out : len(own) - left_out]
        own, weights = np.take_along_axis(own, order, 0), np.take_along_axis(weights, order, 0)
    mean: np.ndarray = (own * weights).sum(0) / weights.sum(0)
    return mean


def learn(
    memory: CameraMemory, evidence: Sequence[Evidence], least: float, fewest: int = 3, reach: int = 4
) -> tuple[CameraMemory, list[np.ndarray]]:
    """Add the models that some devices have in common.

    Args:
        memory: What is known already; it stays.
        evidence: The devices, of whose models nothing is said.
        least: Mean correlation with which devices are of one model.
        fewest: Devices that make a model.
        reach: Largest shift between two of them, pixels.

    Returns:
        The memory with the new models, and the devices of each of these.
    """
    found: list[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]] = []
    for part in related(evidence, least, reach) if evidence else ():
        if len(part) < fewest:
            continue
        correlation, shifts = alike([squashed(evidence[i].gradient) for i in part], reach)
        for own in group(correlation, least):
            if len(own) >= fewest:
                # Shifts are told against the device that is most like the others, then from their middle.
                centre = own[correlation[np.ix_(own, own)].sum(1).argmax()]
                offsets = shifts[centre, own]
                offsets = offsets - np.rint(np.median(offsets, 0)).astype(np.int64)
                found.append((part[own], pool([evidence[i] for i in part[own]], offsets)))
    if not found:
        return memory, []
    found.sort(key=lambda one: (-len(one[0]), one[0][0]))  # the largest first
    groups = [members for members, _ in found]
    change, opacity = (np.stack(values) for values in zip(*(maps for _, maps in found), strict=True))
    return memory.with_models(change, opacity, [len(members) for members in groups]), groups
