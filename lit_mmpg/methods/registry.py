"""All methods by name, and what each applies to."""

from __future__ import annotations

from collections.abc import Sequence

from lit_mmpg.errors import UserError
from lit_mmpg.methods.base import AdaptationMethod
from lit_mmpg.methods.controls import GeneratorOnDevice, MeanDevice, SameNormNoise
from lit_mmpg.methods.finetune import CleanTwins, FineTuneAll, FineTuneHead, FineTuneLowRank
from lit_mmpg.methods.forward_only import ForwardOnly
from lit_mmpg.methods.laplacian import Lame
from lit_mmpg.methods.normalisation import FeatureStatistics, OnlineTent, Tent
from lit_mmpg.methods.pixels import AnchorJpegUpload, PixelColourAlignment
from lit_mmpg.methods.prototypes import T3A, DynamicCache, OnlineCache, OnlineT3A
from lit_mmpg.methods.reference import Majority, Unadapted
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
METHODS = {method.name: method for method in _ALL}
"""Name -> method, in the order of tables."""


def find_method(name: str) -> type[AdaptationMethod]:
    """A method by its name.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in METHODS:
        raise UserError(f"there is no method '{name}'; known are {', '.join(METHODS)}")
    return METHODS[name]


def applicability(methods: Sequence[str] = ()) -> list[dict[str, str]]:
    """The matrix of methods and tasks.

    Args:
        methods: Names; all when empty.

    Returns:
        One row per method: ``method, setting, knows, paper`` and for each task ``yes`` or the reason why it is n/a.
    """
    rows = []
    for name in methods or METHODS:
        method = find_method(name)
        row = {"method": name, "setting": method.setting, "knows": method.knows, "paper": method.paper}
        rows.append(row | {task.name: method.not_for_task(task) or "yes" for task in all_tasks()})
    return rows
