"""What all engines share: checks around ``activate``, ``infer``, ``deactivate`` and the swap of personal parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.runtime.bundle import Arrays, Bundle
from lit_mmpg.runtime.engines.cache import EngineCache
from lit_mmpg.runtime.manifest import TensorInfo
from lit_mmpg.settings import from_plain

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class EngineConfig:
    """Options of an engine. Each engine has its own subclass, whose ``__post_init__`` rejects what cannot work.

    Attributes:
        personalise: How personal parameters reach the engine, one of the engine's ``ways``.
    """

    personalise: str = "inputs"

    @classmethod
    def from_options(cls, engine: str, options: Mapping[str, Any]) -> Self:
        """A config from keyword options.

        Raises:
            UserError: If an option does not exist or does not fit.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise UserError(f"engine '{engine}' has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return from_plain(cls, options, f"engine '{engine}': ")


class Engine(ABC):
    """One graph of a bundle, made ready to run on this machine.

    Use it as a context manager, or call :meth:`activate` and :meth:`deactivate`. Public verbs check; the verbs with a
    leading underscore do the work.

    Args:
        bundle: The bundle.
        role: Which graph.
        precision: In which precision.
        config: Options; the engine's defaults when None.

    Raises:
        UserError: If the bundle lacks the graph, or the options do not fit the engine, before anything runs.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[EngineConfig]] = EngineConfig
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16", "int8_weight", "int8")
    ways: ClassVar[tuple[str, ...]] = ("inputs",)
    """Ways in which personal parameters can reach the engine: ``inputs`` of the graph, or values inside it that are
    replaced by ``rebind``, ``refit`` or ``reload``."""
    suffix: ClassVar[str] = ".engine"
    """Of the files in which built engines are kept."""
    build_s: float | None = None
    """Seconds that building took when the engine was last made ready; ``None`` where a kept one was loaded, or nothing
    is built ahead of the first call."""

    def __init__(self, bundle: Bundle, role: str, precision: str = "fp32", config: EngineConfig | None = None) -> None:
        if precision not in self.precisions:
            raise UserError(f"engine '{self.name}' runs {', '.join(self.precisions)}, not {precision}")
        self.bundle, self.role, self.precision = bundle, role, precision
        self.info = bundle.info(role, precision)
        self.config = config or self.config_class()
        if self.config.personalise not in self.ways:
            raise UserError(
                f"engine '{self.name}' personalises by {', '.join(self.ways)}, not by '{self.config.personalise}'"
            )
        self.entries = bundle.spec.of(role)
        """Personal parameters that the graph takes."""
        names = set(self.entries.names)
        self.inputs = tuple(info for info in self.info.inputs if info.name not in names)
        """Inputs that :meth:`infer` takes."""
        self.personal = len(self.inputs) < len(self.info.inputs)
        """Whether the graph takes personal parameters."""
        self.active = False
        self._accepted: list[tuple[np.dtype, tuple[int, ...]]] = []
        self._static = own_of(bundle.spec, role, bundle.static_parameters()) if self.personal else {}
        self.parameters: Arrays = dict(self._static)
        """Personal parameters in use."""

    @classmethod
    @abstractmethod
    def requirements(cls) -> str | None:
        """Why this machine cannot run the engine, with the remedy; ``None`` where it can."""

    def activate(self) -> None:
        """Load or build; after that :meth:`infer` can be called.

        Raises:
            UserError: If this machine cannot run the engine.
        """
        if self.active:
            return
        reason = self.requirements()
        if reason:
            raise UserError(f"engine '{self.name}' cannot run here: {reason}")
        try:
            self._activate()
        except BaseException:
            with suppress(Exception):  # what went wrong first is what there is to tell
                self._deactivate()
            raise
        self.active = True

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph.

        Args:
            inputs: One array for each of ``self.inputs``; a type that loses nothing in the input's type is converted.
                Personal parameters are already loaded.

        Returns:
            Outputs by name.

        Raises:
            UserError: If an input is missing, or its type or shape is not what the graph takes.
        """
        return self._infer(self._checked(inputs))

    def layer_times(self, inputs: Mapping[str, np.ndarray], calls: int) -> list[dict[str, Any]] | None:
        """Where the time of :meth:`infer` goes, by the engine's own profiler, which slows it down.

        Args:
            inputs: As for :meth:`infer`.
            calls: Calls over which times are averaged.

        Returns:
            In the order of execution ``name``, ``operator`` and ``time_ms`` of each layer in one call; None where the
            engine has no profiler here.
        """
        return None

    def parts_ms(self, inputs: Mapping[str, np.ndarray]) -> dict[str, float] | None:
        """One inference in parts, which may take longer than :meth:`infer`.

        Args:
            inputs: As for :meth:`infer`.

        Returns:
            Milliseconds of ``copy_inputs``, ``compute`` and ``copy_outputs``; None where the engine does not tell.
        """
        return None

    # -- built engines that are kept -----------------------------------------------------------------------------------

    @classmethod
    def identity(cls) -> dict[str, Any] | None:
        """What built engines depend on here: ``library``, ``version`` and ``machine``; None where none are kept.

        Raises:
            UserError: If the library is missing, or the machine does not tell.
        """
        return None

    def key(self) -> dict[str, Any] | None:
        """What the built engine depends on, under which it is kept; None where it is not."""
        return None

    @property
    def label(self) -> dict[str, str]:
        """What the engine is built from, for people."""
        return {
            "engine": self.name,
            "bundle": self.bundle.path.resolve().name,
            "role": self.role,
            "precision": self.precision,
        }

    @property
    def cache(self) -> EngineCache:
        """Where built engines are kept."""
        return EngineCache(getattr(self.config, "cache", None))

    def build(self) -> bytes:
        """Build ahead of time, or take what is kept.

        Raises:
            UserError: If there is nothing to build, or it cannot be built here.
        """
        raise UserError(f"engine '{self.name}' builds nothing ahead of time")

    def _checked(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """The graph's inputs, of its types; engines read memory, so a wrong type would be read as garbage."""
        missing = [info.name for info in self.inputs if info.name not in inputs]
        if missing:
            raise UserError(f"'{self.role}' of {self.bundle.path}: input '{missing[0]}' is missing")
        arrays = {info.name: inputs[info.name] for info in self.inputs}
        kinds = [(array.dtype, array.shape) for array in arrays.values()]
        if kinds == self._accepted:  # as in the call before, which is the usual case
            return arrays
        sizes: dict[str, tuple[int, str]] = {}
        for info in self.inputs:
            array = arrays[info.name]
            what = f"'{self.role}' of {self.bundle.path}: input '{info.name}'"
            if not np.can_cast(array.dtype, info.dtype, "safe"):
                raise UserError(
                    f"{what} is {array.dtype}, the graph takes {info.dtype}; convert it where nothing is lost"
                )
            if not self._fits(info, array.shape, sizes):
                known = "".join(f"; {name} is {size} in '{other}'" for name, (size, other) in sizes.items())
                expected = ", ".join(map(str, info.shape))
                raise UserError(f"{what} has shape {list(array.shape)}, the graph takes [{expected}]{known}")
            arrays[info.name] = array.astype(info.dtype, copy=False)
        self._accepted = [(array.dtype, array.shape) for array in arrays.values()]
        return arrays

    @staticmethod
    def _fits(info: TensorInfo, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> bool:
        """Whether a shape is that of an input; notes the sizes of its varying dimensions."""
        if len(shape) != len(info.shape):
            return False
        for size, expected in zip(shape, info.shape, strict=True):
            if isinstance(expected, str):
                expected = sizes.setdefault(expected, (size, info.name))[0]
            if size != expected:
                return False
        return True

    def load_parameters(self, parameters: Mapping[str, np.ndarray] | None) -> None:
        """Swap the personal parameters.

        Args:
            parameters: One array for each entry of the ParameterSpec, those of other graphs at will; ``None`` goes back
                to the static model.

        Raises:
            ValueError: If they do not match the specification; the former ones then stay in use.
            UserError: If the graph takes none.
        """
        if not self.personal:
            if parameters:
                raise UserError(f"'{self.role}' of {self.bundle.path} takes no personal parameters")
            return
        chosen = self._static if parameters is None else own_of(self.bundle.spec, self.role, parameters)
        self.entries.validate(chosen)
        arrays = {e.name: np.ascontiguousarray(chosen[e.name], dtype=e.dtype) for e in self.entries}
        if self.active:
            self._load_parameters(arrays)
        self.parameters = arrays

    def deactivate(self) -> None:
        """Free what :meth:`activate` made."""
        if self.active:
            self.active = False
            self._deactivate()

    def __enter__(self) -> Self:
        self.activate()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with suppress(*([Exception] if kind else [])):  # an error on the way out hides none before it
            self.deactivate()

    @property
    def engine_bytes(self) -> int | None:
        """Size of what the engine loads or has built, in bytes; ``None`` where it is not known."""
        return self.info.bytes

    @property
    def workspace_bytes(self) -> int | None:
        """Memory of the accelerator that the active engine asks for activations; ``None`` where it does not say."""
        return None

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.bundle.graph(self.role, self.precision)

    def describe(self) -> dict[str, Any]:
        """Versions and settings that belong in a report."""
        return {"engine": self.name, "precision": self.precision, "personalise": self.config.personalise}

    @abstractmethod
    def _activate(self) -> None:
        """Load or build, with ``self.parameters``."""

    @abstractmethod
    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run."""

    @abstractmethod
    def _load_parameters(self, parameters: Arrays) -> None:
        """Swap the parameters of an active engine."""

    @abstractmethod
    def _deactivate(self) -> None:
        """Free what there is: after a failed activation, that is a part."""


def own_of(spec: ParameterSpec, role: str, parameters: Mapping[str, np.ndarray]) -> Arrays:
    """Parameters without those that other graphs take."""
    others = {entry.name for entry in spec if entry.graph != role}
    return {name: array for name, array in parameters.items() if name not in others}
