"""Dynamic layers injected into any module: ``lit_mmpg.adaptable``.

The classes of the chosen layers are swapped in place for subclasses made on the spot, so that keys of the state dict,
hooks and reads of ``layer.weight`` stay what they are. Generated parameters wait in a plain holder while the module
runs and are taken away in ``finally``; without them a layer runs the forward of its own class, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache, partial
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree

from lit_mmpg import lora
from lit_mmpg.errors import UserError
from lit_mmpg.forms.base import Form, Part, asked, entries, sized_like
from lit_mmpg.forms.input_layer import InputLayer
from lit_mmpg.forms.layers import Layer, kind_of
from lit_mmpg.forms.registry import find_form
from lit_mmpg.forms.targets import Targets, chosen_layers
from lit_mmpg.parameters import MODEL, ParameterSpec

INPUT = "input"
"""Name of the input layer in the specification."""

Devices = Literal["loop", "batch"]
Chosen = TypeVar("Chosen", bound=str | Form)


class Holder:
    """Generated parameters on their way to the layers while a module runs.

    Attributes:
        values: Site -> its tensors; None outside of a call with parameters.
        devices: Number of devices in the rows, None for one.
        called: Sites that were reached.
        backward: Whether the last call may still be run backward through.
    """

    def __init__(self) -> None:
        self.values: list[tuple[Tensor, ...]] | None = None
        self.devices: int | None = None
        self.called: set[int] = set()
        self.backward = False

    def holding(self, values: list[tuple[Tensor, ...]], devices: int | None, run: Callable[[], Any]) -> Any:
        """``run()`` while the parameters wait here; afterwards they are gone, whatever happens.

        Args:
            values: Site -> its tensors, none where it computes without.
            devices: Number of devices in the rows, None for one whose tensors are unbatched.
            run: Computes.
        """
        self.values, self.devices, self.backward = values, devices, torch.is_grad_enabled()
        try:
            return run()
        finally:
            self.values = self.devices = None


class Site:
    """One entry point of generated parameters: a layer, or several that share their weight.

    Args:
        name: Name in the specification.
        holder: Where its parameters wait.
        index: Its place in there.
    """

    def __init__(self, name: str, holder: Holder, index: int) -> None:
        self.name, self.holder, self.index = name, holder, index
        self.fixed = nn.ParameterDict()

    def parts(self) -> tuple[Part, ...]:
        """What is generated."""
        raise NotImplementedError

    def noise(self, own: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`lit_mmpg.forms.base.Form.noise`."""
        return [sized_like(noise, wanted) for noise, wanted in zip(drawn, own, strict=True)]

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The static parts that only exist for the form."""
        return list(self.fixed.parameters())

    def own(self) -> tuple[Tensor, ...] | None:
        """The parameters of the call that is running; None where there are none."""
        holder = self.holder
        if holder.values is None:
            recomputed = holder.backward and not torch.compiler.is_compiling()
            if recomputed and torch._C._current_graph_task_id() != -1:
                raise UserError(
                    f"{self.name} is computed again in the backward pass, when its parameters are gone: gradient "
                    "checkpointing does not go with generated parameters; turn it off"
                )
            return None
        holder.called.add(self.index)
        return holder.values[self.index] or None


class LayerSite(Site):
    """A layer with its form."""

    def __init__(self, name: str, holder: Holder, index: int, layer: Layer, form: Form, rank: int) -> None:
        super().__init__(name, holder, index)
        self.layer, self.form, self.rank = layer, form, rank
        for key, values in asked(form, layer, rank)[1].items():  # refuses what does not suit
            self.fixed[key] = nn.Parameter(values)

    def parts(self) -> tuple[Part, ...]:
        """What is generated."""
        return self.form.parts(self.layer, self.rank)

    def noise(self, own: Sequence[Tensor], drawn: Sequence[Tensor]) -> list[Tensor]:
        """As the form has it."""
        return self.form.noise(self.layer, own, drawn)

    def compute(self, layer: Layer, own: tuple[Tensor, ...], *given: Any) -> Tensor:
        """Output of one of the layers that share this site, with its parameters.

        Raises:
            UserError: If the layer is given anything but its input.
        """
        if len(given) != 1:
            raise UserError(
                f"{self.name} is called with {len(given)} arguments, and forms know of its input alone; leave it out "
                "of targets"
            )
        return self.form.apply(layer, given[0], dict(self.fixed.items()), own, self.holder.devices)


class InputSite(Site):
    """The input layer."""

    def __init__(self, holder: Holder, index: int, layer: InputLayer) -> None:
        super().__init__(INPUT, holder, index)
        self.layer = layer

    def parts(self) -> tuple[Part, ...]:
        """What is generated."""
        return self.layer.parts()


class _Injected:
    """Mixed into the class of a dynamic layer."""

    _site: LayerSite
    _layer: Layer

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        own = self._site.own()
        if own is None:
            return super().forward(*inputs, **named)  # type: ignore[misc,no-any-return]
        return self._site.compute(self._layer, own, *inputs, *named.values())

    def _static_forward(self, x: Tensor) -> Tensor:
        return super().forward(x)  # type: ignore[misc,no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduced(self, super().__reduce_ex__(protocol))


class _InputInjected:
    """Mixed into the class of the module in front of which the input layer stands."""

    _input_site: InputSite

    def forward(self, *inputs: Any, **named: Any) -> Any:
        site = self._input_site
        own = site.own()
        if own is not None and inputs:
            inputs = (site.layer.apply(inputs[0], own, site.holder.devices), *inputs[1:])
        elif own is not None:
            key = next((k for k, v in named.items() if isinstance(v, Tensor) and v.dim() == 4), None)
            if key is None:
                raise UserError("input layer: no input is a picture [N, C, H, W]; name the right module with at=")
            named = {**named, key: site.layer.apply(named[key], own, site.holder.devices)}
        return super().forward(*inputs, **named)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduced(self, super().__reduce_ex__(protocol))


def _reduced(module: Any, reduced: Any) -> Any:
    """Copying and pickling name the class that was swapped and what was mixed in, since ours has no address."""
    kind = type(module)
    mixins = tuple(base for base in kind.__mro__ if base in (_Injected, _InputInjected))
    original = next(base for base in kind.__mro__ if not hasattr(base, "_of_lit_mmpg") and base not in mixins)
    return (_blank, (original, mixins), *reduced[2:])


def _blank(original: type[nn.Module], mixins: tuple[type, ...]) -> Any:
    kind: Any = original
    for mixin in reversed(mixins):
        kind = _swapped(kind, mixin)
    return kind.__new__(kind)


@cache
def _swapped(kind: type[nn.Module], mixin: type) -> type[nn.Module]:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__, "_of_lit_mmpg": True})


@dataclass(frozen=True)
class Verification:
    """What :meth:`Adaptable.verify` found.

    Attributes:
        devices: Number of devices.
        batch: Whether devices may be batched.
        reason: Why not, empty where they may.
        largest_difference: Between the outputs of batch and loop, as a share of the largest output; None where their
            shapes differ.
        moved: Target -> how far random parameters for it alone moved the output, as a share of the largest output;
            empty where nobody looked.
    """

    devices: int
    batch: bool
    reason: str
    largest_difference: float | None
    moved: dict[str, float] = field(default_factory=dict)


TOLERANCE = 1e-3
"""Largest difference between batch and loop, as a share of the largest output. Sums in another order differ by about
1e-6 of it in float32; devices that were mixed up differ by the effect of their parameters."""


class Unsafe:
    """Layers of a module that do not go with generated parameters in some of their states.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        self._batch_norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self._checkpointing = [m for m in modules if hasattr(m, "gradient_checkpointing")]

    def refuse(self) -> None:
        """Look at their states.

        Raises:
            UserError: If a layer computes with the statistics of the batch, or would be computed again.
        """
        for m in self._batch_norms:
            if m.training or m.running_mean is None:
                raise UserError(
                    "BatchNorm computes with the statistics of the batch, which mixes devices and writes shared ones; "
                    "call eval() on the module (its other layers may train) before giving it parameters"
                )
        for module in self._checkpointing:
            if module.training and module.gradient_checkpointing:
                raise UserError(
                    f"gradient checkpointing of {type(module).__name__} computes layers again when parameters are "
                    "gone; call gradient_checkpointing_disable()"
                )


def not_called(module: nn.Module, missed: Sequence[str]) -> str:
    """What to tell about targets that were not reached."""
    fused = (nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.MultiheadAttention)
    remedy = "leave them out of targets"
    for name, m in module.named_modules():
        if isinstance(m, fused) and any(n.startswith(f"{name}." if name else "") for n in missed):
            remedy = (
                f"{type(m).__name__} takes a fused path in eval mode that calls no layer of it: "
                "torch.backends.mha.set_fastpath_enabled(False)"
            )
    return f"targets were not called, so that their parameters have no effect: {', '.join(missed)}; {remedy}"


class Adaptable(nn.Module):
    """A module some of whose layers take generated parameters. Made by :func:`adaptable`.

    One call at a time: threads that share it would share the parameters, which is refused where it is seen.

    Attributes:
        module: The module itself, its layers swapped in place.
        spec: Names, shapes and order of the parameters.
    """

    def __init__(self, module: nn.Module, sites: Sequence[Site], holder: Holder, graph: str, devices: Devices) -> None:
        super().__init__()
        self.module = module
        self._sites, self._holder = tuple(sites), holder
        self.fixed = by_name({s.name: s.fixed for s in sites if len(s.fixed)})
        self.spec = ParameterSpec(tuple(e for site in sites for e in entries(site.name, site.parts(), graph)))
        self._counts = [len(site.parts()) for site in sites]
        self._verified = False
        self._devices: Devices = _way(devices)
        self._unsafe = Unsafe(module)

    @property
    def layers(self) -> dict[str, Site]:
        """Dynamic layers by name, for a :class:`lit_mmpg.cloud.adaptor.FastDomainAdaptor`."""
        return {site.name: site for site in self._sites}

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The static tensors that only exist for the forms."""
        return list(self.fixed.parameters())

    @property
    def devices(self) -> Devices:
        """How several devices are computed: one after the other, or all in one call.

        ``batch`` needs a successful :meth:`verify`: whether a module keeps its rows apart cannot be told from shapes.
        """
        return self._devices

    @devices.setter
    def devices(self, how: Devices) -> None:
        if how == "batch" and not self._verified:
            raise UserError("devices='batch' has not been verified for this module; call net.verify(example) first")
        self._devices = _way(how)

    def forward(
        self, *inputs: Any, parameters: Sequence[Tensor] | Mapping[str, Tensor] | None = None, **named: Any
    ) -> Any:
        """Compute.

        Args:
            inputs: What the module takes. For G devices every tensor has a leading dimension G.
            parameters: Nothing (the static module); or the tensors of ``spec`` in order or by name, unbatched for one
                device or each with a leading dimension G.
            named: Named inputs of the module.

        Returns:
            What the module returns; for G devices every tensor with a leading dimension G.

        Raises:
            UserError: If parameters do not fit ``spec``, the module cannot take them as it is, or a target was not
                called.
        """
        if self._holder.values is not None:
            raise UserError("another call of this module is running; give each thread a copy of its own")
        if parameters is not None and not isinstance(parameters, Sequence | Mapping):
            raise UserError(f"parameters are a sequence or a mapping of tensors, not {type(parameters).__name__}")
        if not parameters:
            self._holder.backward = False
            return self.module(*inputs, **named)
        values, devices = self._checked(parameters)
        self._unsafe.refuse()
        if devices is None:
            return self._run(values, None, inputs, named)
        for tensor in pytree.tree_leaves((inputs, named)):
            if isinstance(tensor, Tensor) and (tensor.dim() == 0 or tensor.shape[0] != devices):
                raise UserError(
                    f"parameters are of {devices} devices, an input has the shape {list(tensor.shape)}; give every "
                    "input a leading dimension of devices"
                )
        if self._devices == "batch":
            if not self._verified:
                raise UserError("devices='batch' has not been verified for this module; call net.verify(example) first")
            return self._batched(values, devices, inputs, named)
        return self._looped(values, devices, inputs, named)

    def _checked(self, parameters: Sequence[Tensor] | Mapping[str, Tensor]) -> tuple[list[Tensor], int | None]:
        if isinstance(parameters, Mapping):
            if set(parameters) != set(self.spec.names):
                missing, unknown = set(self.spec.names) - set(parameters), set(parameters) - set(self.spec.names)
                raise UserError(f"parameters do not fit: missing {sorted(missing)}, unknown {sorted(unknown)}")
            parameters = [parameters[name] for name in self.spec.names]
        if len(parameters) != len(self.spec):
            raise UserError(f"{len(parameters)} parameters were given, net.spec has {len(self.spec)}")
        for entry, tensor, own in zip(self.spec, parameters, self._own(), strict=True):
            if not isinstance(tensor, Tensor) or not (tensor.dtype == own.dtype or torch.is_autocast_enabled()):
                found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise UserError(f"parameter {entry.name} is {found}; its layer takes a tensor of {own.dtype}")
        batched = parameters[0].dim() > len(self.spec.entries[0].shape)
        devices = parameters[0].shape[0] if batched else None
        before = (devices,) if batched else ()
        for entry, tensor in zip(self.spec, parameters, strict=True):
            if tuple(tensor.shape) != (*before, *entry.shape):
                raise UserError(
                    f"parameter {entry.name} has the shape {list(tensor.shape)}, expected {[*before, *entry.shape]}"
                )
        return list(parameters), devices

    def _own(self) -> list[Tensor]:
        """For each parameter a tensor of the type, and at the place, with which its layer computes."""
        first = next(self.module.parameters(), torch.empty(0))
        likes = [next(s.layer.module.parameters(), first) if isinstance(s, LayerSite) else first for s in self._sites]
        return [like for like, count in zip(likes, self._counts, strict=True) for _ in range(count)]

    def _run(self, values: Sequence[Tensor], devices: int | None, inputs: Any, named: Any) -> Any:
        holder, start = self._holder, 0
        groups = []
        for count in self._counts:
            groups.append(tuple(values[start : start + count]))
            start += count
        holder.called.clear()
        output = holder.holding(groups, devices, lambda: self.module(*inputs, **named))
        missed = [site.name for site in self._sites if site.index not in holder.called]
        if missed:
            raise UserError(not_called(self.module, missed))
        return output

    def _looped(self, values: Sequence[Tensor], devices: int, inputs: Any, named: Any) -> Any:
        return one_by_one(lambda g, *own: self._run([v[g] for v in values], None, *own), devices, inputs, named)

    def _batched(self, values: Sequence[Tensor], devices: int, inputs: Any, named: Any) -> Any:
        def flat(t: Tensor) -> Tensor:
            if t.dim() < 2:
                raise UserError(f"an input [{devices}] has no rows to batch devices in; use devices='loop'")
            return t.flatten(0, 1)

        def apart(t: Tensor) -> Tensor:
            if t.dim() == 0 or t.shape[0] % devices:
                raise UserError(
                    f"an output has the shape {list(t.shape)} for {devices} devices: a loss, or logits across the "
                    "batch, mixes devices; use devices='loop'"
                )
            return t.unflatten(0, (devices, -1))

        inputs, named = pytree.tree_map_only(Tensor, flat, (inputs, named))
        return pytree.tree_map_only(Tensor, apart, self._run(values, devices, inputs, named))

    def random_parameters(self, devices: int | None = None, size: float = 0.3, seed: int = 0) -> tuple[Tensor, ...]:
        """Random parameters none of which is zero, in the order of ``spec``.

        Args:
            devices: Number of devices, None for unbatched ones.
            size: Standard deviation around the values with which layers compute what they do without.
            seed: Of the generator.
        """
        if devices is not None and devices < 1:
            raise UserError(f"devices is {devices}; give a number of devices, or None for unbatched parameters")
        parts = [part for site in self._sites for part in site.parts()]
        like = next(self.module.parameters(), torch.empty(0))
        drawn = random_parameters(parts, like, devices or 1, size, seed)
        drawn = tuple(tensor.to(own) for tensor, own in zip(drawn, self._own(), strict=True))
        return drawn if devices else tuple(tensor[0] for tensor in drawn)

    @torch.no_grad()
    def save_adapter(self, folder: str | os.PathLike[str], parameters: Sequence[Tensor]) -> None:
        """Write one device's parameters as a LoRA adapter of ``module`` (:mod:`lit_mmpg.lora`).

        Args:
            folder: Made where it is missing.
            parameters: The tensors of ``spec`` in order, unbatched.

        Raises:
            UserError: If they do not fit, or a LoRA adapter cannot express what a layer computes with them.
        """
        values, devices = self._checked(parameters)
        if devices is not None:
            raise UserError("an adapter holds the parameters of one device; choose one of the leading dimension")
        arrays = {n: t.detach().cpu().float().numpy() for n, t in zip(self.spec.names, values, strict=True)}
        lora.save(folder, self.spec, arrays, self._kernels())

    def load_adapter(self, folder: str | os.PathLike[str]) -> tuple[Tensor, ...]:
        """One device's parameters, in the order of ``spec``, from a LoRA adapter of ``module``.

        Raises:
            UserError: If it is no LoRA adapter of exactly the targets, or a layer computes otherwise than its adapter.
        """
        loaded = lora.load(folder, self.spec, self._kernels())
        return tuple(torch.from_numpy(loaded[name]).to(o) for name, o in zip(self.spec.names, self._own(), strict=True))

    def _kernels(self) -> dict[str, tuple[int, ...]]:
        """Shapes ``[in, kh, kw]`` of the kernels of the convolutions, all layers being such as LoRA adapters know."""
        kernels: dict[str, tuple[int, ...]] = {}
        for site in self._sites:
            modules = [m for m in self.module.modules() if getattr(m, "_site", None) is site]
            if len(modules) > 1:
                raise UserError(
                    f"{site.name} shares its weight with another layer, of which LoRA adapters know nothing"
                )
            for m in modules:
                if isinstance(m, nn.Conv2d):
                    if m.groups > 1 or set(m.dilation) != {1} or m.padding_mode != "zeros":
                        raise UserError(
                            f"{site.name} is a convolution with groups, dilation or padding other than zeros, which "
                            "LoRA adapters do not keep; leave it out of targets"
                        )
                    kernels[site.name] = tuple(m.weight.shape[1:])
        return kernels

    def verify(self, *example: Any, devices: int = 3, **named: Any) -> Verification:
        """Try the module: does every target change the output, and does a batch of devices equal the loop?

        Where it does, ``net.devices`` becomes ``batch``, else ``loop``.

        Args:
            example: Inputs of one device, two rows or more.
            devices: Number of devices to try with, 2 or more.
            named: Named inputs of one device.

        Returns:
            What was found, with the reason where devices cannot be batched.

        Raises:
            UserError: If a target is not called or does not change the output, an output cannot be told apart by
                devices, or the module is in a mode in which it computes something else at each call.
        """
        if devices < 2:
            raise UserError(f"devices is {devices}; rows of several devices show whether they mix: give 2 or more")
        self._verified = False
        generator = torch.Generator().manual_seed(1)

        def several(t: Tensor) -> Tensor:
            rows = t.unsqueeze(0).repeat(devices, *(1 for _ in t.shape))
            if not t.is_floating_point():
                return rows
            return rows + 0.1 * t.std(correction=0) * torch.randn(rows.shape, generator=generator).to(rows)

        inputs, more = pytree.tree_map_only(Tensor, several, (example, named))
        parameters = self.random_parameters(devices)
        self._unsafe.refuse()
        static = self.module(*example, **named)
        for leaf in pytree.tree_leaves(static):
            _joined([leaf])
        if (_difference(self.module(*example, **named), static)[0] or 0.0) > TOLERANCE:
            raise UserError("the module computes something else at each call, as dropout does; call eval() on it first")
        moved = {}
        unbatched = [p[0] for p in parameters]
        parts = [part for site in self._sites for part in site.parts()]
        neutral = [part.start.neutral(part.shape).to(own) for part, own in zip(parts, unbatched, strict=True)]
        start = 0
        for site, count in zip(self._sites, self._counts, strict=True):
            alone = neutral[:start] + unbatched[start : start + count] + neutral[start + count :]
            start += count
            moved[site.name] = _difference(self._run(alone, None, example, named), static)[0] or 0.0
        still = [name for name, distance in moved.items() if distance < 1e-9]
        if still:
            raise UserError(f"targets do not change the output: {', '.join(still)}; leave them out of targets")
        found = compared(
            devices,
            lambda: self._batched(parameters, devices, inputs, more),
            lambda: self._looped(parameters, devices, inputs, more),
        )
        self._verified = found.batch
        self._devices = "batch" if self._verified else "loop"
        return replace(found, moved=moved)


def random_parameters(
    parts: Iterable[Part], like: Tensor, devices: int, size: float = 0.3, seed: int = 0
) -> tuple[Tensor, ...]:
    """Random parameters none of which is zero.

    Args:
        parts: What they are.
        like: A tensor of the same type, at the same place.
        devices: Number of devices G.
        size: Standard deviation around the values with which layers compute what they do without.
        seed: Of the generator.

    Returns:
        A tensor ``[G, ...]`` for each part.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for part in parts:
        base = torch.stack([part.start.draw(part.shape, generator).to(like) for _ in range(devices)])
        drawn.append(base + size * torch.randn(base.shape, generator=generator).to(like))
    return tuple(drawn)


def compared(devices: int, batch: Callable[[], Any], loop: Callable[[], Any]) -> Verification:
    """Whether a batch of devices computes what the loop does.

    Args:
        devices: Number of devices.
        batch: Computes all of them at once; may fail.
        loop: Computes one after the other.
    """
    expected = loop()
    difference: float | None = None
    try:
        difference, reason = _difference(batch(), expected)
    except UserError as error:
        reason = str(error)
    except (RuntimeError, ValueError, IndexError) as error:  # rows that do not divide, wherever the module notices
        reason = f"the module does not run on the rows of several devices ({error})"
    if difference is not None and difference > TOLERANCE:
        reason = f"batched outputs differ from the loop by {difference:.2g} of the largest output: rows mix devices"
    return Verification(devices, not reason, reason, difference)


def one_by_one(run: Callable[[int, Any, Any], Any], devices: int, inputs: Any, named: Any) -> Any:
    """Outputs of several devices, computed one after the other.

    Args:
        run: Computes the outputs of a device, given its number and its inputs.
        devices: Number of devices G.
        inputs: Inputs by place; every tensor has a leading dimension G.
        named: Inputs by name, likewise.

    Returns:
        The outputs, every tensor with a leading dimension G.
    """
    outputs = [run(g, *pytree.tree_map_only(Tensor, partial(_row, g), (inputs, named))) for g in range(devices)]
    leaves = [pytree.tree_flatten(output) for output in outputs]
    joined = [_joined(parts) for parts in zip(*(found for found, _ in leaves), strict=True)]
    return pytree.tree_unflatten(joined, leaves[0][1])


def by_name(modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Modules under names of layers, dots as ``/``; ``ModuleDict`` itself refuses ``values``, ``keys`` and the like."""
    kept = nn.ModuleDict()
    kept._modules.update({name.replace(".", "/"): module for name, module in modules.items()})
    return kept


def _joined(parts: Sequence[Any]) -> Any:
    """One leaf of the outputs of several devices: tensors are stacked, and what is none has to be the same for all."""
    first = parts[0]
    if isinstance(first, Tensor):
        if len({part.shape for part in parts}) > 1:
            raise UserError("an output differs in shape from device to device; give the module one device at a time")
        return torch.stack(list(parts))
    if isinstance(first, bool | int | float | str | None) and all(part == first for part in parts):
        return first
    raise UserError(
        f"an output is {type(first).__name__}, which cannot be told apart by devices; have the module return tensors, "
        "in tuples, lists, dicts or registered classes, or give it one device at a time"
    )


def _way(devices: Devices) -> Devices:
    if devices not in get_args(Devices):
        raise UserError(f"devices is {devices!r}; it is 'loop' or 'batch'")
    return devices


def _row(g: int, tensor: Tensor) -> Tensor:
    return tensor[g]


def _difference(found: Any, expected: Any) -> tuple[float | None, str]:
    """Largest difference as a share of the largest value, and a reason where outputs cannot be compared."""
    pairs = list(zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True))
    largest = 0.0
    for a, b in pairs:
        if not isinstance(a, Tensor) or not a.numel():
            continue
        if a.shape != b.shape:
            return None, (
                f"an output has the shape {list(a.shape)} in a batch and {list(b.shape)} in the loop: logits or a loss "
                "across the batch mix devices; use devices='loop'"
            )
        a, b = a.detach().double(), b.detach().double()
        scale = float(b.abs().max()) or 1.0
        distance = float((a - b).abs().max()) / scale
        if distance != distance:
            return float("inf"), "an output is not a number"
        largest = max(largest, distance)
    return largest, ""


def adaptable(
    module: nn.Module,
    targets: Targets = (),
    form: str | Form | Mapping[str, str | Form] = "low_rank",
    rank: int = 4,
    *,
    input_layer: InputLayer | None = None,
    devices: Devices = "loop",
    graph: str = MODEL,
) -> Adaptable:
    """Make layers of a module take generated parameters. The module is changed in place, but not what it computes.

    Args:
        module: Any module.
        targets: Its layers: a list of names, last parts of names and globs; or one regular expression, or
            ``all-linear``. The empty name is the module itself.
        form: A form or its name, or glob of layer names -> form (the first that matches).
        rank: Rank of the forms that have one.
        input_layer: Generated parameters in front of the module, or of one within it.
        devices: How several devices are computed. ``batch`` runs only after a successful ``verify``.
        graph: Graph of a bundle that this module becomes.

    Raises:
        UserError: If a target names no layer, a form does not suit one, or the module is adaptable already.

    Example:
        >>> import torch, lit_mmpg
        >>> network = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.ReLU())
        >>> net = lit_mmpg.adaptable(network, ["0"], form="low_rank", rank=1)
        >>> [(entry.name, entry.shape) for entry in net.spec]
        [('0.u', (3, 1)), ('0.v', (6, 1)), ('0.c', (3,))]
        >>> net(torch.ones(2, 6), parameters=net.random_parameters()).shape
        torch.Size([2, 3])
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"adaptable: {type(module).__name__} is no torch.nn.Module; give it one")
    layers = chosen_layers(module, targets) if targets or targets == "" else {}
    if not isinstance(input_layer, InputLayer | None):
        raise UserError(f"input_layer is {input_layer!r}; give InputLayer(...)")
    if not layers and input_layer is None:
        raise UserError("adaptable: neither targets nor an input layer were given")
    sites, holder = inject(module, layers, form, rank, input_layer)
    return Adaptable(module, sites, holder, graph, devices)


def inject(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    form: str | Form | Mapping[str, str | Form],
    rank: int,
    input_layer: InputLayer | None = None,
    swap_whole: bool = True,
) -> tuple[list[Site], Holder]:
    """Swap the classes of layers, so that they compute with what waits in a holder.

    Args:
        module: The module.
        layers: Its layers by name, see :func:`lit_mmpg.forms.targets.chosen_layers`.
        form: A form or its name, or glob of layer names -> form (the first that matches).
        rank: Rank of the forms that have one.
        input_layer: Generated parameters in front of the module, or of one within it.
        swap_whole: Whether an input layer in front of the whole module is applied to what its ``forward`` is given;
            else whoever calls the module applies it.

    Returns:
        Where parameters enter, the input layer first, and the holder; still empty.

    Raises:
        UserError: If a form does not suit a layer, or the module was injected into already; it is then as before.
    """
    if type(rank) is not int or rank < 1:
        raise UserError(f"rank is {rank!r}; give a whole number, 1 or more")
    if any(hasattr(type(m), "_of_lit_mmpg") for m in module.modules()):
        raise UserError("this module is adaptable already; name all targets in one call")
    holder = Holder()
    sites: list[Site] = []
    entered = _module_at(module, input_layer.at) if input_layer and (input_layer.at or swap_whole) else None
    if input_layer:
        if INPUT in layers:
            raise UserError(f"a layer is called '{INPUT}' as the input layer is; leave one of them out")
        sites.append(InputSite(holder, 0, input_layer))
        sites[0].parts()  # refuses what does not exist
    shared: dict[int, LayerSite] = {}
    kept: list[Tensor | None] = []  # a parametrized weight is computed at each look, and its id would be taken again
    swaps: list[tuple[nn.Module, LayerSite, Layer]] = []
    for name, m in layers.items():
        kind = kind_of(m)
        assert kind is not None
        if isinstance(m, LazyModuleMixin):
            raise UserError(f"target {name}: the sizes of {type(m).__name__} are not known yet; run the module once")
        layer = kind(m)
        weight = layer.weight
        kept.append(weight)
        key = id(m if weight is None else weight)
        site = shared.get(key)
        if site is None:
            chosen = form_of(form, name)
            if not isinstance(chosen, str | Form):
                raise UserError(f"form: {chosen!r} is neither a name nor a Form; give one of them, or glob -> form")
            label = name or "module"
            try:
                own = chosen if isinstance(chosen, Form) else find_form(chosen)
                site = shared[key] = LayerSite(label, holder, len(sites), layer, own, rank)
            except UserError as error:
                raise UserError(f"target {label}: {error}") from error
            sites.append(site)
        else:
            parts, others = site.form.parts(layer, rank), site.parts()
            if [p.shape for p in parts] != [p.shape for p in others]:
                raise UserError(f"targets {site.name} and {name} share a weight, but differ in shape; name one of them")
            starts = ([p.start.neutral(p.shape) for p in side] for side in (parts, others))
            if not all(map(torch.equal, *starts)):
                raise UserError(
                    f"targets {site.name} and {name} share a weight, but not the bias that would be generated for "
                    "both; name one of them, or choose a form without it"
                )
        swaps.append((m, site, layer))
    # Nothing was changed so far, so that a refusal leaves the module as it was.
    for m, site, layer in swaps:
        m.__class__ = _swapped(type(m), _Injected)  # type: ignore[arg-type]
        object.__setattr__(m, "_site", site)
        object.__setattr__(m, "_layer", layer)
        layer.static = m._static_forward  # type: ignore[assignment]
    if entered is not None:
        entered.__class__ = _swapped(type(entered), _InputInjected)  # type: ignore[arg-type]
        object.__setattr__(entered, "_input_site", sites[0])
    return sites, holder


def form_of(form: Chosen | Mapping[str, Chosen], name: str) -> Chosen:
    """The form of a layer.

    Args:
        form: A form or its name; or glob of layer names -> form (the first that matches).
        name: Name of the layer.

    Raises:
        UserError: If no glob matches.
    """
    if not isinstance(form, Mapping):
        return form
    chosen = next((f for g, f in form.items() if fnmatchcase(name, g)), None)
    if chosen is None:
        raise UserError(f"form: no glob matches the target {name}; add one, or '*' at the end")
    return chosen


def _module_at(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        raise UserError(f"input layer: at='{name}' names nothing in {type(module).__name__}") from error
