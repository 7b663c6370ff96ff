"""The contract of a device model: what training, evaluation, export and the methods ask of a network, and no more.

A network of one's own derives from :class:`DeviceModel`, takes ``shapes`` and ``dynamic`` as its first two arguments
and any settings after them, and is named in a configuration (no file of this package changes)::

    model:
      class_path: DeviceModule
      init_args:
        network: {class_path: my_networks.Small, init_args: {width: 32}}

It must offer :meth:`DeviceModel.project`, :attr:`DeviceModel.anchor_width`, and for questions
:meth:`DeviceModel.answer`, for retrieval :meth:`DeviceModel.embed_video` and :meth:`DeviceModel.embed_text`; for pixels
:meth:`DeviceModel.encode_frames` and :attr:`DeviceModel.feature_width` too. Personal parameters are arguments of these,
never attributes.

Which layers take them is said by ``model.dynamic.layers``: names and globs of any ``nn.Linear``, ``nn.Conv2d`` or norm
of the network (``stem.conv``, ``blocks.*.norm``), which are made dynamic by injection
(:mod:`lit_mmpg.forms.injection`), so that the class itself needs nothing but plain modules. Layers of the encoder are
among them: then contexts are encoded with the static model, and what is asked about is encoded once more, with the
device's own parameters. Several devices at once are computed together where a trial shows that this gives what each
alone does (:meth:`DeviceModel.verify`), else one after the other. (The network of this package makes its linear layers
by :meth:`DeviceModel.linear`, which needs no trial.)

Baselines that work on a part of the network find it under its customary name: ``head`` (the last linear layer),
``frame_projection`` (the first), ``frame_norm`` (a layer norm behind it). Where there is none, a comparison leaves them
out and says why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lit_mmpg.device.dynamic import DynamicLinear
from lit_mmpg.device.prefix import Prefix, find_prefix
from lit_mmpg.errors import UserError
from lit_mmpg.forms.base import Part, entries
from lit_mmpg.forms.injection import (
    INPUT,
    Holder,
    InputSite,
    Site,
    Unsafe,
    Verification,
    by_name,
    compared,
    form_of,
    inject,
    not_called,
    one_by_one,
    random_parameters,
)
from lit_mmpg.forms.input_layer import InputLayer
from lit_mmpg.forms.targets import chosen_layers, matches
from lit_mmpg.parameters import ENCODE, MODEL, ParameterSpec
from lit_mmpg.settings import within
from lit_mmpg.tasks import find_task
from lit_mmpg.trust import check_class

if TYPE_CHECKING:
    from lit_mmpg.data.datamodule import DeviceData


@dataclass(frozen=True)
class DynamicConfig:
    """Which layers take generated parameters, and in which form.

    Attributes:
        layers: The dynamic layers: names, last parts of names, or globs.
        form: Name of a form (see :mod:`lit_mmpg.forms`), or glob of layer names -> form; the first match counts. Norms
            have no weight matrix and take ``film``, ``shift`` or ``full``.
        rank: Rank, for forms that have one.
        input_layer: Generated parameters that act on pixels, in front of the encoder or of one of its modules. The bias
            is relative to the range of a pixel value.
    """

    layers: tuple[str, ...] = ("frame_projection", "head")
    form: str | dict[str, str] = "low_rank"
    rank: int = 8
    input_layer: InputLayer | None = None

    def __post_init__(self) -> None:
        """Refuse what no form has."""
        within("model.dynamic.", 1, rank=self.rank)


@dataclass(frozen=True)
class InitialisationConfig:
    """Where the start values come from.

    Attributes:
        projection: ``random``, or ``captions``: the frame projection starts as a reduced-rank ridge regression from
            frame features to the TF-IDF captions of the training clips (features only).
        words: ``random``; ``ppmi``: word vectors from the co-occurrence of words in the training sentences; or
            ``captions``: those that belong to the caption ridge (retrieval then starts from the ridge's ranking).
        ridge_strength: Penalty of the ridge.
    """

    projection: Literal["random", "captions"] = "random"
    words: Literal["random", "ppmi", "captions"] = "random"
    ridge_strength: float = 3e4


@dataclass(frozen=True)
class Shapes:
    """Sizes of the model that follow from the data.

    Attributes:
        task: Name of the task (:mod:`lit_mmpg.tasks`).
        frame: Shape of one frame: ``(D,)`` features or ``(3, H, W)`` pixels.
        words: Size of the vocabulary.
        answers: Size of the answer list (open-ended only).
        max_words: Length of the longest text, words.
    """

    task: str
    frame: tuple[int, ...]
    words: int
    answers: int = 0
    max_words: int = 20

    @property
    def pixels(self) -> bool:
        """Whether frames are pixels, not features."""
        return len(self.frame) == 3


DynamicLayer = DynamicLinear | Site
"""A layer that takes personal parameters: of a class of its own, or by injection."""

MOST_TRIED = 2**24
"""Values of the parameters of a device, above which no trial draws any: a later check refuses what no link carries."""

_PLACES = {"project": 1, "answer": 3, "embed_video": 2}
"""Methods of a network that take personal parameters, and at which place."""


def _holding(method: Callable[..., Tensor], place: int) -> Callable[..., Tensor]:
    """A method during which injected layers compute with the parameters that it is given."""

    @wraps(method)
    def call(self: DeviceModel, *inputs: Any, **named: Any) -> Tensor:
        parameters = inputs[place] if len(inputs) > place else named.get("parameters", ())
        if self._holder is None or not parameters:
            return method(self, *inputs, **named)
        named.pop("parameters", None)
        behind = inputs[place + 1 :]

        def run(own: tuple[Tensor, ...], inputs: Any, named: Any) -> Tensor:
            if behind:
                return method(self, *inputs, own, *behind, **named)
            return method(self, *inputs, parameters=own, **named)

        return self._computed(parameters, run, inputs[:place], named)

    return call


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode; afterwards each of its modules is in the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class DeviceModel(nn.Module, ABC):
    """Device half: static layers plus dynamic layers whose parameters are arguments.

    Args:
        shapes: Sizes that follow from the data.
        dynamic: Dynamic layers; ``None``: a static model (stage 1).

    Attributes:
        shapes: As given.
        task: The task.
        factory: Configuration or class that made the network, used to make it again; ``None`` if unknown.
        spec: Specification of the personal parameters; set by :func:`build_network` when all layers exist.
        blind: Whether the model ignores frames (the question-only baseline).
        frozen_encoder: Whether :meth:`encode_frames` neither learns nor draws random numbers, so that a training may
            encode each frame once.
        head: The last linear layer. This and the next two are optional.
        frame_projection: The first layer that takes frame features.
        frame_norm: The norm that follows it.

    Raises:
        UserError: If the class lacks a method that the task needs.
    """

    blind = False
    frozen_encoder = False
    head: nn.Linear
    frame_projection: nn.Linear
    frame_norm: nn.LayerNorm

    def __init__(self, shapes: Shapes, dynamic: DynamicConfig | None = None) -> None:
        super().__init__()
        self.shapes, self.dynamic, self.task = shapes, dynamic, find_task(shapes.task)
        self.factory: NetworkFactory | None = None
        self.spec = ParameterSpec(())
        self._parts: dict[str, int] = {}
        self._sites: tuple[Site, ...] = ()
        self._holder: Holder | None = None
        self._verified: Verification | None = None
        self._encodes = False
        self.prefix: Prefix | None = None
        needed: tuple[str, ...] = ("embed_video", "embed_text") if self.task.searches else ("answer",)
        needed += ("encode_frames", "feature_width") if shapes.pixels else ()
        lacking = [name for name in needed if getattr(type(self), name) is getattr(DeviceModel, name)]
        if lacking:
            raise UserError(
                f"{type(self).__name__} cannot be used for task '{shapes.task}' on frames of shape {shapes.frame}: it "
                f"lacks {', '.join(lacking)} (see lit_mmpg.device.contract)"
            )
        if self.task.searches:
            self.log_temperature = nn.Parameter(torch.tensor(10.0).log())

    # -- dynamic layers ------------------------------------------------------------------------------------------

    def __init_subclass__(cls, **named: Any) -> None:
        """Injected layers find parameters while a method runs that is given some."""
        super().__init_subclass__(**named)
        for name, place in _PLACES.items():
            if name in vars(cls):
                setattr(cls, name, _holding(vars(cls)[name], place))

    def linear(self, name: str, inputs: int, outputs: int) -> DynamicLinear:
        """Make a linear layer, which takes personal parameters if ``dynamic.layers`` names it.

        Args:
            name: Attribute of the network to which the layer is assigned.
            inputs: Width of the input.
            outputs: Width of the output.
        """
        if self.dynamic is not None and any(matches(target, name, DynamicLinear) for target in self.dynamic.layers):
            return DynamicLinear(inputs, outputs, form_of(self.dynamic.form, name), self.dynamic.rank)
        return DynamicLinear(inputs, outputs)

    def index(self) -> None:
        """Set ``spec`` from the dynamic layers in the order in which they were added, and make plain layers dynamic.

        Raises:
            UserError: If a dynamic layer does not exist, the form does not suit it, or it is not called.
        """
        if self._holder is None and self.dynamic is not None:
            self._inject(self.dynamic)
        layers = self.dynamic_layers()
        self._parts = {name: len(layer.parts()) for name, layer in layers.items()}
        graphs = self._graphs(layers) if self._holder is not None else {}
        self.spec = ParameterSpec(
            tuple(e for name, layer in layers.items() for e in entries(name, layer.parts(), graphs.get(name, MODEL)))
        )

    def _inject(self, dynamic: DynamicConfig) -> None:
        named = list(self.named_modules(remove_duplicate=False))
        of_its_own = {id(m) for _, m in named if isinstance(m, DynamicLinear) and m.form is not None}
        missing: list[str] = []
        chosen: dict[str, nn.Module] = {}
        for target in dynamic.layers:
            meant = [m for name, m in named if matches(target, name, type(m))]
            if not meant:
                missing.append(target)
            elif any(id(m) not in of_its_own for m in meant):
                chosen |= {n: m for n, m in chosen_layers(self, [target]).items() if id(m) not in of_its_own}
        if missing:
            raise UserError(
                f"model.dynamic.layers: {missing} do not exist for task '{self.shapes.task}' in "
                f"{type(self).__name__}; remove them"
            )
        entered = dynamic.input_layer
        if entered is not None and not self.shapes.pixels:
            raise UserError("model.dynamic.input_layer: this data has features, not pixels; leave it out")
        if not chosen and entered is None:
            return
        in_order = {name: m for name, m in self.named_modules() if name in chosen}
        for name, m in in_order.items():
            kind = next((p.dtype for p in m.parameters()), torch.float32)
            if kind != torch.float32:
                raise UserError(
                    f"model.dynamic.layers: {name} computes in {kind}, and generated parameters are kept, sent and "
                    "exported in float32; call float() on it, or leave it out"
                )
        sites, holder = inject(self, in_order, dynamic.form, dynamic.rank, entered, swap_whole=False)
        self._sites, self._holder, self._unsafe = tuple(sites), holder, Unsafe(self)
        self.fixed = by_name({s.name: s.fixed for s in sites if len(s.fixed)})

    def _graphs(self, layers: Mapping[str, DynamicLayer]) -> dict[str, str]:
        """Injected layer -> graph of a bundle that takes its parameters: which calls it, in a run on nothing."""
        assert self._holder is not None
        neutral = self.neutral_parameters()
        self.spec = ParameterSpec(tuple(e for name, layer in layers.items() for e in entries(name, layer.parts())))
        called = self._holder.called
        with self._trial():
            frames, mask, text = self._example((1,))
            called.clear()
            encoded = self.encode_values(frames, neutral)
            encoding = set(called)
            self._encodes = bool(encoding)
            called.clear()
            self(encoded if self.shapes.pixels else frames, mask, text, neutral)
            behind = set(called)
        if not self.shapes.pixels:  # features enter the graph that answers
            encoding = set()
        if both := [s.name for s in self._sites if s.index in encoding & behind]:
            raise UserError(f"model.dynamic.layers: {both} are used in the encoder and behind it; leave them out")
        if missed := [s.name for s in self._sites if s.index not in encoding | behind]:
            why = "; sentences are embedded without personal parameters" if self.task.searches else ""
            raise UserError(f"model.dynamic.layers: {not_called(self, missed)}{why}")
        return {s.name: ENCODE if s.index in encoding else MODEL for s in self._sites}

    @contextmanager
    def _trial(self) -> Iterator[None]:
        """While something is tried: evaluation mode, no gradients, full precision."""
        device = next(self.parameters()).device.type
        with evaluating(self), torch.no_grad(), torch.autocast(device, enabled=False):
            yield

    def check_answer(self) -> None:
        """Check with an example that features, anchors and answers have the required shapes.

        Raises:
            UserError: If they have not, or do not depend on the generated parameters of a layer.
        """
        kind = type(self).__name__
        with self._trial():
            frames, mask, text = self._example((2,))
            encoded = self.encode(frames)
            self._check_frames(encoded, "encode_frames", "feature_width")
            self._check_frames(self.anchor_features(encoded), "anchor_features (project)", "anchor_width")
            found = self(frames, mask, text)
        width = self.task.head_width(self.shapes.answers)
        wanted = (2,) if self.task.searches else (2, width if width > 1 else self.task.example_options)
        said = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if said != wanted:
            raise UserError(
                f"{kind} answers two texts of task '{self.shapes.task}' by {said}; a tensor of shape "
                f"{wanted} is needed: " + ("a similarity each" if self.task.searches else "a score for each answer")
            )
        layers = self.dynamic_layers()
        made = [name for name, layer in layers.items() if isinstance(layer, DynamicLinear)]  # others: see _graphs
        if not made or self.spec.size > MOST_TRIED or torch.is_inference_mode_enabled():
            return
        with self._trial(), torch.enable_grad():
            drawn = [p[0].requires_grad_() for p in self._random_parameters(1)]
            outputs = self._with_parameters(made, lambda: self(*self._example((1,)), drawn)).sum()
            used = (
                torch.autograd.grad(outputs, drawn, allow_unused=True) if outputs.requires_grad else [None] * len(drawn)
            )
        if forgotten := [name for name in made if all(g is None for g in self.own(name, used))]:  # type: ignore[arg-type]
            raise UserError(
                f"model.dynamic.layers: the answers of {kind} do not depend on what is generated for {forgotten}; call "
                f"such a layer with its parameters, self.{forgotten[0]}(x, self.own('{forgotten[0]}', parameters)), or "
                "leave it out"
            )
        with self._trial():
            example, several = self._example((2, 2)), self._random_parameters(2)
            found = compared(
                2,
                lambda: self._with_parameters(made, lambda: self(*example, several)),
                lambda: one_by_one(lambda g, rows, _: self(*rows, [p[g] for p in several]), 2, example, {}),
            )
        if not found.batch and found.largest_difference != float("inf"):  # which is of scores that are infinite
            raise UserError(
                f"model.dynamic.layers: {kind} computes several devices otherwise than each alone ({found.reason}); "
                f"keep what is one device's apart from the others' in {self._forms(made)} and in {kind}"
            )

    def _forms(self, layers: Sequence[str]) -> str:
        """The forms of dynamic layers, for messages."""
        own = [m for name, m in self.named_modules() if name in layers and isinstance(m, DynamicLinear)]
        return f"apply of the form {' and '.join(sorted({m.form.name for m in own if m.form is not None}))}"

    def _with_parameters(self, layers: Sequence[str], run: Callable[[], Any]) -> Any:
        """What the model computes with parameters, where it computes without.

        Raises:
            UserError: If it fails; the form may be somebody else's.
        """
        try:
            return run()
        except UserError:
            raise
        except Exception as error:  # whatever a foreign form raises, or makes torch raise
            kind = type(self).__name__
            raise UserError(
                f"model.dynamic.layers: {kind} fails with generated parameters ({type(error).__name__}: {error}); mend "
                f"{self._forms(layers)}, or {kind}"
            ) from error

    def _check_frames(self, found: Any, method: str, attribute: str) -> None:
        """Check what a method makes of two clips of two frames against the width that the network names."""
        wanted = (2, 2, getattr(self, attribute))
        said = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        if said != wanted:
            raise UserError(
                f"{type(self).__name__}.{method} makes of two clips of two frames {said}; a tensor of shape {wanted} "
                f"is needed, whose last number is {attribute}"
            )

    def _example(self, lead: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Random frames, mask and text with leading dimensions, as :meth:`forward` takes them."""
        generator, shapes = torch.Generator().manual_seed(0), self.shapes
        shape = (*lead, 2, *shapes.frame)
        frames = torch.randn(shape, generator=generator)
        if shapes.pixels:
            frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        size = (*lead, self.task.example_options, shapes.max_words)
        text = torch.randint(1, max(2, shapes.words), size, generator=generator)
        place = next(self.parameters()).device
        return frames.to(place), torch.ones(shape[: len(lead) + 1], dtype=torch.bool, device=place), text.to(place)

    def verify(self, devices: int = 3) -> Verification:
        """Check with random parameters whether a batch of devices gives the same results as one device at a time.

        Runs once, before several devices are first computed together. They are batched from then on if it succeeds.

        Args:
            devices: Number of devices in the check.
        """
        with self._trial():
            example, parameters = self._example((devices, 2)), self._random_parameters(devices)

            def run(batch: bool) -> Tensor:
                self._verified = Verification(devices, batch, "", None)
                outputs: Tensor = self(*example, parameters)
                return outputs

            try:
                self._verified = compared(devices, lambda: run(True), lambda: run(False))
            except BaseException:
                self._verified = None
                raise
        return self._verified

    def dynamic_layers(self) -> dict[str, DynamicLayer]:
        """The dynamic layers by name, in the order of the specification."""
        sites = {site.name: site for site in self._sites}
        found: dict[str, DynamicLayer] = {INPUT: sites[INPUT]} if INPUT in sites else {}
        for name, layer in self.named_modules():
            if name in sites:
                found[name] = sites[name]
            elif isinstance(layer, DynamicLinear) and layer.form is not None:
                found[name] = layer
        return found

    def _all_parts(self) -> list[Part]:
        return [part for layer in self.dynamic_layers().values() for part in layer.parts()]

    def _random_parameters(self, devices: int) -> tuple[Tensor, ...]:
        return random_parameters(self._all_parts(), next(self.parameters()), devices)

    def neutral_parameters(self) -> tuple[Tensor, ...]:
        """Parameters in the order of ``spec`` with which the model computes what it computes without any."""
        like = next(self.parameters())
        return tuple(part.start.neutral(part.shape).to(like) for part in self._all_parts())

    @property
    def injected(self) -> bool:
        """Whether plain layers were made dynamic."""
        return self._holder is not None

    @property
    def encodes_personally(self) -> bool:
        """Whether :meth:`encode` holds a dynamic layer, so that features depend on personal parameters."""
        return self._encodes

    def placed(self, parameters: Sequence[Tensor], graph: str) -> Sequence[Tensor]:
        """Place the parameters of one graph among all parameters of ``spec``; the others stay empty.

        Args:
            parameters: Tensors of ``spec.of(graph)`` in order, or nothing.
            graph: Name of the graph.
        """
        if not parameters or len(parameters) == len(self.spec):
            return parameters
        own = iter(parameters)
        return tuple(next(own) if entry.graph == graph else None for entry in self.spec)  # type: ignore[misc]

    def _computed(
        self, parameters: Sequence[Tensor], run: Callable[..., Tensor], inputs: Any, named: Mapping[str, Any]
    ) -> Tensor:
        """``run(parameters, inputs, named)`` while injected layers have their parameters.

        Several devices are computed at once where :meth:`verify` has shown that they may be.
        """
        assert self._holder is not None
        if self._holder.values is not None:  # within a call that gave them theirs
            return run(parameters, inputs, named)
        self._unsafe.refuse()
        entry, first = next((e, p) for e, p in zip(self.spec, parameters, strict=True) if p is not None)
        if first.dim() == len(entry.shape):
            return self._held(parameters, None, run, inputs, named)
        devices = len(first)
        if devices > 1 and self._verified is None and not torch.compiler.is_compiling():
            self.verify()
        if devices > 1 and self._verified is not None and self._verified.batch:
            return self._held(parameters, devices, run, inputs, named)

        def of(g: int, rows: Any, by_name: Any) -> Tensor:
            own = tuple(None if p is None else p[g] for p in parameters)
            return self._held(own, None, run, rows, by_name)  # type: ignore[arg-type]

        outputs: Tensor = one_by_one(of, devices, inputs, named)
        return outputs

    def _held(
        self,
        parameters: Sequence[Tensor],
        devices: int | None,
        run: Callable[..., Tensor],
        inputs: Any,
        named: Mapping[str, Any],
    ) -> Tensor:
        assert self._holder is not None
        waiting = [tuple(self.own(site.name, parameters)) for site in self._sites]
        values = [() if any(p is None for p in own) else own for own in waiting]
        outputs: Tensor = self._holder.holding(values, devices, lambda: run(tuple(parameters), inputs, named))
        return outputs

    def own(self, name: str, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        """The slice of ``parameters`` that belongs to one layer."""
        if not parameters or name not in self._parts:
            return ()
        start = 0
        for layer, count in self._parts.items():
            if layer == name:
                return parameters[start : start + count]
            start += count
        return ()

    def made_again(self, factory: NetworkFactory) -> NetworkFactory:
        """Return a configuration that makes this network from a checkpoint alone; ``factory`` by default.

        Args:
            factory: Configuration or class that made this network.
        """
        return factory

    def context_parameters(self) -> list[nn.Parameter]:
        """Static tensors that only uploads need; trained with the cloud half and shipped with the device half."""
        return []

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Static tensors that only adaptation needs: those of the forms and of uploads."""
        own = [p for layer in self.dynamic_layers().values() for p in layer.adapter_parameters()]
        return own + self.context_parameters()

    # -- before training -----------------------------------------------------------------------------------------

    def start(self, data: DeviceData, settings: InitialisationConfig) -> None:
        """Set start values from the training data; does nothing by default.

        Args:
            data: The data, set up.
            settings: Which start values to set.
        """

    def correction_layers(self) -> list[nn.Module]:
        """Layers that undo what a camera did to the features, which ``model.trained: correction`` trains alone."""
        return []

    # -- frames --------------------------------------------------------------------------------------------------

    @property
    def feature_width(self) -> int:
        """Width D of the raw features of a frame, as :meth:`encode` gives them."""
        return self.shapes.frame[0]

    def encode(self, frames: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Raw features of frames, ``[..., T, D]``.

        Args:
            frames: ``[..., T, 3, H, W]`` uint8 pixels, or ``[..., T, D]`` features. Features given to a model of pixels
                are taken as already encoded by it.
            parameters: All personal parameters, or nothing: contexts are encoded without.

        Raises:
            UserError: If the encoder is personal, and features are given that it has encoded without parameters.
        """
        if not (self.shapes.pixels and frames.is_floating_point()):
            return self.encode_values(frames, parameters if self.encodes_personally else ())
        if parameters and any(e.graph == ENCODE and p is not None for e, p in zip(self.spec, parameters, strict=True)):
            raise UserError("the frame encoder is personal, so features do not tell what was seen; give pixels")
        return frames

    def encode_asked(self, frames: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """As :meth:`encode`, for query clips.

        If a training has set ``prefix``, outputs of the prefix, ``[..., T, prefix.width]``, are accepted as well.
        """
        prefix = self.prefix
        if prefix is None or not frames.is_floating_point():
            return self.encode(frames, parameters)
        if not parameters:
            return prefix.resume(frames, self.encode_frames)
        return self._computed(
            parameters, lambda own, inputs, named: prefix.resume(inputs[0], self.encode_frames), (frames,), {}
        )

    def find_prefix(self, pixels: Tensor) -> Prefix | None:
        """Find the part of the encoder before its first dynamic layer; ``None`` if there is none.

        Args:
            pixels: Example frames ``[n, 3, H, W]`` uint8, three or more.
        """
        if self._holder is None or not self._encodes:
            return None
        with self._trial():
            drawn = tuple(values[0] for values in self._random_parameters(1))
            return find_prefix(self, self._holder, self.encode_values, pixels, self.neutral_parameters(), drawn)

    def encode_values(self, frames: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """As :meth:`encode`, without looking at the type: pixels may be given as floating point numbers, 0 to 255."""
        if self._holder is None or not parameters:
            return self.encode_frames(frames)

        def run(own: tuple[Tensor, ...], inputs: Any, named: Any) -> Tensor:
            return self.encode_frames(self._entered(inputs[0]))

        return self._computed(parameters, run, (frames,), {})

    def _entered(self, frames: Tensor) -> Tensor:
        """Frames behind an input layer that stands in front of the whole encoder."""
        site = self._sites[0]
        if not isinstance(site, InputSite) or site.layer.at:
            return frames
        own = site.own()
        if own is None:
            return frames
        pictures = frames.flatten(0, -4).to(own[0].dtype) / 255
        return 255 * site.layer.apply(pictures, own, site.holder.devices).reshape(frames.shape)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """What :meth:`encode` computes: ``[..., 3, H, W]`` pixels, 0 to 255, to ``[..., D]``; features as they are."""
        return frames

    @abstractmethod
    def project(self, features: Tensor, parameters: Sequence[Tensor] = (), corrected: bool = True) -> Tensor:
        """Projected frame features, ``[..., T, D]`` to ``[..., T, H]``.

        Args:
            features: Raw features.
            parameters: All personal parameters, or nothing; unbatched, or with the leading dimension of ``features``.
            corrected: ``False`` leaves a correction out: what frames without any shift should be projected to.
        """

    @property
    @abstractmethod
    def anchor_width(self) -> int:
        """Width of what is uploaded of each anchor frame."""

    def anchor_features(self, features: Tensor) -> Tensor:
        """Features of each frame that are uploaded, ``[..., T, D]`` to ``[..., T, anchor_width]``.

        Computed without personal parameters, so that uploads do not depend on an earlier adaptation.
        """
        return self.project(features)

    def contextualise(self, projected: Tensor, mask: Tensor) -> Tensor:
        """Mix information over time, ``[..., T, H]`` to ``[..., T, H]``; the identity by default."""
        return projected

    def mix(self, projected: Tensor, mask: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """:meth:`contextualise`, with personal parameters."""
        if self._holder is None or not parameters:
            return self.contextualise(projected, mask)
        return self._computed(parameters, lambda own, inputs, named: self.contextualise(*inputs), (projected, mask), {})

    # -- answers -------------------------------------------------------------------------------------------------

    def answer(self, frames: Tensor, mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Scores of the answers to questions about contextualised frames.

        Args:
            frames: ``[..., T, H]``, one clip per text.
            mask: ``[..., T]`` bool.
            text: ``[..., O, L]`` word indices: O = 1 for an open-ended question, else one row per option.
            parameters: All personal parameters, or nothing.

        Returns:
            Open-ended: ``[..., A]``. Multiple choice: ``[..., O]``.
        """
        raise NotImplementedError

    def embed_video(self, frames: Tensor, mask: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Unit-length clip embedding ``[..., H]`` from contextualised frames ``[..., T, H]``."""
        raise NotImplementedError

    def embed_text(self, text: Tensor) -> Tensor:
        """Unit-length sentence embedding, ``[..., L]`` to ``[..., H]``."""
        raise NotImplementedError

    def forward(self, frames: Tensor, frame_mask: Tensor, text: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
        """Answer one text per clip.

        Args:
            frames: ``[..., T, D]`` features or ``[..., T, 3, H, W]`` uint8 pixels.
            frame_mask: ``[..., T]`` bool.
            text: ``[..., O, L]`` word indices: O = 1 for a question or a caption, else one row per option.
            parameters: Flat tuple in the order of ``spec``: empty for the static model, unbatched for one device, or
                with a leading dimension G, in which case all inputs have it too.

        Returns:
            Open-ended: ``[..., A]`` logits. Multiple choice: ``[..., O]`` logits. Retrieval: ``[...]`` cosine.
        """
        x = self.mix(self.project(self.encode(frames, parameters), parameters), frame_mask, parameters)
        return self.task.scores(self, x, frame_mask, text, parameters)


def _unregistered(network: nn.Module) -> list[str]:
    """Attributes that hold layers or tensors which learn, and of which the network does not know."""
    known, found = set(map(id, network.parameters())), []
    for name, module in network.named_modules():
        for attribute, value in vars(module).items():
            tensors = [] if isinstance(value, nn.Module) else _tensors(value)  # set past torch: it is meant so
            if any(t.requires_grad and t.is_leaf and id(t) not in known for t in tensors):
                found.append(f"{name}.{attribute}".lstrip("."))
    return found


def _tensors(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors of a value, and of layers and containers in it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, list | tuple | set | dict) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item, depth - 1)


NetworkFactory = Callable[[Shapes, DynamicConfig | None], DeviceModel]
"""What makes a device model from the data's shapes: a class that keeps the contract, with its settings bound."""


def build_network(factory: NetworkFactory, shapes: Shapes, dynamic: DynamicConfig | None = None) -> DeviceModel:
    """A device model with its specification.

    Raises:
        UserError: If the factory makes something else, or the model lacks a layer that should be dynamic.
    """
    network = factory(shapes, dynamic)
    if not isinstance(network, DeviceModel):
        raise UserError(
            f"model.network makes a {type(network).__name__}, which is no device model; derive it from "
            "lit_mmpg.device.contract.DeviceModel"
        )
    if network.shapes != shapes or network.dynamic != dynamic:
        raise UserError(
            f"{type(network).__name__} does not hand on what it is given, so that no layer would take parameters: call "
            "super().__init__(shapes, dynamic) with both"
        )
    taken = sorted(
        {"dynamic", "factory", "fixed", "prefix", "shapes", "spec", "task"}
        & {*network._modules, *network._parameters, *network._buffers}
    )
    if taken and not network.injected:
        raise UserError(
            f"{type(network).__name__} calls a layer or tensor {' and '.join(taken)}, which DeviceModel itself uses; "
            "name it otherwise"
        )
    if unseen := _unregistered(network):
        raise UserError(
            f"{type(network).__name__} keeps layers or tensors in {', '.join(unseen)}, where torch does not find them: "
            "they would be neither trained nor saved; use nn.ModuleList, nn.ModuleDict or nn.ParameterList, or "
            "requires_grad_(False) where they are to stay as they are"
        )
    network.factory = network.made_again(factory)
    network.index()
    network.check_answer()
    return network


def network_factory(plain: Mapping[str, Any]) -> NetworkFactory:
    """Inverse of :func:`lit_mmpg.settings.to_plain` for a network that names its class.

    The class is imported by its name, and has to be a device model; its module must be trusted (:mod:`lit_mmpg.trust`).

    Args:
        plain: ``class_path`` and ``init_args``.

    Raises:
        UserError: If there is no such device model, or it is not trusted.
    """
    path = str(plain["class_path"])
    module, _, name = path.rpartition(".")
    check_class(path, "the description of the network")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the network's class {path} cannot be imported ({error}); put it where Python finds it"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, DeviceModel)):
        raise UserError(f"{path} is no device model; derive it from lit_mmpg.device.contract.DeviceModel")
    return partial(kind, **dict(plain.get("init_args") or {}))
