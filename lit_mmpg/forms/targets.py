"""Which layers of a module are meant: names, globs, regular expressions, or ``all-linear``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from lit_mmpg.errors import UserError, closest
from lit_mmpg.forms.layers import kind_of

ALL_LINEAR = "all-linear"

Targets = str | re.Pattern[str] | Sequence[str | re.Pattern[str]]
"""A text alone is ``all-linear`` or a regular expression of whole names, as in peft. In a list, a text is a name, the
last part of names (``q_proj``), or a glob (``blocks.*.pwl``, whose ``*`` matches dots too); a compiled pattern matches
whole names."""


def chosen_layers(module: nn.Module, targets: Targets) -> dict[str, nn.Module]:
    """The layers that targets name, in the order of the module; one that has several names has its first.

    Raises:
        UserError: If a target names no layer that forms act on.
    """
    every = list(module.named_modules(remove_duplicate=False))
    names = [name for name, _ in every]
    wanted: set[int] = set()
    alone = isinstance(targets, str)
    several = targets if isinstance(targets, Iterable) and not alone else [targets]
    for target in several:
        if not isinstance(target, str | re.Pattern):
            raise UserError(f"target {target!r} is no name, glob or compiled pattern; name layers, as in ['head']")
        named = [(name, m) for name, m in every if matches(target, name, type(m), alone)]
        layers = [m for name, m in named if kind_of(m) is not None]
        if not layers:
            shown = target if isinstance(target, str) else target.pattern
            if not named:
                kinds = ", ".join(sorted({type(m).__name__ for _, m in every if kind_of(m) is not None}))
                hint = closest(shown, names) or f"; it has layers of {kinds or 'no kind that forms act on'}"
                raise UserError(f"target '{shown}' names nothing in {type(module).__name__}{hint}")
            name, found = named[0]
            raise UserError(
                f"target '{shown}': {name or 'the module itself'} is {type(found).__name__}, and forms act on Linear, "
                "Conv2d, LayerNorm, GroupNorm and BatchNorm; name such layers within it"
            )
        if target == ALL_LINEAR:
            layers = [m for m in layers if not _never_called(m)]
        for name, m in named:
            if _never_called(m) and any(m is layer for layer in layers):
                raise UserError(
                    f"target {name} belongs to nn.MultiheadAttention, which reads its weights and never calls it; "
                    "name other layers, or write the attention with layers that are called"
                )
        wanted.update(id(m) for m in layers)
    return {name: m for name, m in module.named_modules() if id(m) in wanted}


def matches(target: str | re.Pattern[str], name: str, kind: type[nn.Module], alone: bool = False) -> bool:
    """Whether a target means a module of this name; ``alone``: it is no entry of a list, but a text of its own."""
    if isinstance(target, re.Pattern):
        return target.fullmatch(name) is not None
    if target == ALL_LINEAR:
        return issubclass(kind, nn.Linear)
    if alone:
        try:
            return re.fullmatch(target, name) is not None
        except re.error as error:
            raise UserError(f"target '{target}' is no regular expression ({error}); give a list for globs") from error
    return name == target or name.endswith(f".{target}") or ("*" in target and fnmatchcase(name, target))


def _never_called(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
