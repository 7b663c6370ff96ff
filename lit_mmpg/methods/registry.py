"""All methods by name, and what each applies to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from lit_mmpg.errors import UserError
from lit_mmpg.methods.base import AdaptationMethod, Known, Setting
from lit_mmpg.methods.controls import GeneratorOnDevice, MeanDevice, SameNormNoise
from lit_mmpg.methods.finetune import CleanTwins, FineTuneAll, FineTuneHead, FineTuneLowRank
from lit_mmpg.methods.forward_only import ForwardOnly
from lit_mmpg.methods.laplacian import Lame
from lit_mmpg.methods.normalisation import FeatureStatistics, OnlineTent, Tent
from lit_mmpg.methods.pixels import AnchorJpegUpload, PixelColourAlignment
from lit_mmpg.methods.prototypes import T3A, DynamicCache, OnlineCache, OnlineT3A
from lit_mmpg.methods.reference import Majority, Unadapted
from lit_mmpg.plugins import Registry, subclass_of
from lit_mmpg.tasks import all_tasks

_ALL: tuple[type[AdaptationMethod], ...] = (
    Unadapted,
    Majority,
    FeatureStatistics,
    Tent,
    OnlineTent,
    T3A,
    OnlineT3A,
    Lame,
    ForwardOnly,
    DynamicCache,
    OnlineCache,
    FineTuneAll,
    FineTuneHead,
    FineTuneLowRank,
    CleanTwins,
    MeanDevice,
    SameNormNoise,
    GeneratorOnDevice,
    PixelColourAlignment,
    AnchorJpegUpload,
)


def _take(name: str, made: Any) -> type[AdaptationMethod]:
    kind = subclass_of(AdaptationMethod, name, made)  # type: ignore[type-abstract]
    lacking = [field for field in ("paper", "setting") if not hasattr(kind, field)]
    if lacking:
        raise TypeError(f"it lacks {' and '.join(lacking)}")
    for field, known in (("setting", get_args(Setting)), ("knows", get_args(Known))):
        if getattr(kind, field) not in known:  # which would run as another setting
            raise TypeError(f"its {field} is {getattr(kind, field)!r} and not among {', '.join(known)}")
    if isinstance(kind.needs, str) or isinstance(kind.parts, str):  # whose letters nothing lacks
        raise TypeError("its needs and parts are tuples of texts")
    empty = [option for option, values in kind.grid.items() if not isinstance(values, tuple | list) or not values]
    if empty:
        raise TypeError(f"its grid has no tuple of values for {empty[0]}")
    return kind


def usable(kind: type[AdaptationMethod]) -> type[AdaptationMethod]:
    """A class of one's own, which has to be as those of other packages.

    Raises:
        UserError: If it is not.
    """
    try:
        return _take(getattr(kind, "name", ""), kind)
    except TypeError as error:
        said = getattr(kind, "__name__", kind)
        raise UserError(f"the method {said} cannot be used: {error}; mend the class") from error


METHODS = Registry("lit_mmpg.methods", "method", {method.name: method for method in _ALL}, _take)
"""In the order of tables."""
method_names, find_method = METHODS.names, METHODS.find


def applicability(methods: Sequence[str] = ()) -> list[dict[str, str]]:
    """The matrix of tasks and methods: those named, or all that can be used.

    Returns:
        One row per method: ``method, setting, knows, paper`` and for each task ``yes`` or the reason why it is n/a.
    """
    rows = []
    for name in methods or METHODS.all():
        method = find_method(name)
        row = {"method": name, "setting": method.setting, "knows": method.knows, "paper": method.paper}
        rows.append(row | {task.name: method.not_for_task(task) or "yes" for task in all_tasks()})
    return rows
