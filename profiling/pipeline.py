"""The measured path of one cell: the engines of its roles, from pixels or features to an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from lit_mmpg.profiling.inputs import adapted_parameters, role_inputs
from lit_mmpg.profiling.plan import Cell
from lit_mmpg.runtime.bundle import Arrays, Bundle
from lit_mmpg.runtime.engines import Engine, create_engine
from lit_mmpg.runtime.verify import Verdict, verify
from lit_mmpg.tasks import find_task


class Pipeline:
    """Engines of one cell. Use it as a context manager.

    Args:
        bundle: The bundle.
        cell: Engine, precision, batch, and whether the encoder is in the path.
        more_roles: Roles beside those of an answer, for example ``project``.

    Raises:
        UserError: If the bundle lacks a graph or an option does not fit.
    """

    def __init__(self, bundle: Bundle, cell: Cell, more_roles: Sequence[str] = ()) -> None:
        self.bundle, self.cell = bundle, cell
        roles = [*(["encode"] if cell.encoder else []), *more_roles, "model"]
        roles += [role for role in find_task(bundle.manifest.task).paired_roles if role not in roles]
        self.engines: dict[str, Engine] = {}
        for role in roles:
            precision = cell.precision if cell.precision in bundle.precisions(role) else "fp32"
            self.engines[role] = create_engine(cell.engine, bundle, role, precision, **cell.selection.options)
        self.inputs: dict[str, Arrays] = {role: role_inputs(bundle, role, cell.batch) for role in roles}
        if cell.encoder:
            frames = self.inputs["model"]["frames"]
            self.inputs["encode"] = role_inputs(bundle, "encode", cell.batch * frames.shape[1])
        self.activate_ms = 0.0

    @property
    def roles(self) -> dict[str, str]:
        """Precision of every role."""
        return {role: engine.precision for role, engine in self.engines.items()}

    @property
    def build_ms(self) -> dict[str, float | None]:
        """What building took of the activation of every role; None where a kept engine was loaded, or none is built."""
        spent_s = {role: engine.build_s for role, engine in self.engines.items()}
        return {role: None if seconds is None else seconds * 1e3 for role, seconds in spent_s.items()}

    def parts_ms(self) -> dict[str, float] | None:
        """One inference of every engine in parts, summed; None where one does not tell copies from compute."""
        total: dict[str, float] = {}
        for role, engine in self.engines.items():
            parts = engine.parts_ms(self.inputs[role])
            if parts is None:
                return None
            for name, ms in parts.items():
                total[name] = total.get(name, 0.0) + ms
        return total

    @property
    def unit(self) -> str:
        """One unit of work in words."""
        clips = "one clip" if self.cell.batch == 1 else f"{self.cell.batch} clips at once"
        frames = self.inputs["model"]["frames"].shape[1]
        start = f"from the pixels of {frames} frames" if self.cell.encoder else f"from the features of {frames} frames"
        return f"{clips} {start} {find_task(self.bundle.manifest.task).unit()}"

    def __enter__(self) -> Pipeline:
        begin = time.perf_counter()
        with ExitStack() as stack:  # one engine's error keeps no other active
            for engine in self.engines.values():
                stack.enter_context(engine)
            self._active = stack.pop_all()
        self.activate_ms = (time.perf_counter() - begin) * 1e3
        return self

    def __exit__(self, *error: Any) -> None:
        self._active.__exit__(*error)

    @property
    def device_ms(self) -> Callable[[], float] | None:
        """Milliseconds of the last unit on the GPU, summed over the engines; None where these run on the processor."""
        timed: list[Any] = [engine for engine in self.engines.values() if getattr(engine, "gpu_ms", None) is not None]
        return (lambda: sum(engine.gpu_ms for engine in timed)) if timed else None

    def verify(self) -> list[Verdict]:
        """Compare every engine with the reference of the bundle."""
        return [verify(engine, self.bundle) for engine in self.engines.values()]

    def load(self, parameters: Mapping[str, np.ndarray] | None) -> None:
        """Swap the personal parameters of every graph that takes some."""
        for engine in self.engines.values():
            if engine.personal:
                engine.load_parameters(parameters)

    def personalise(self, number: int = 0) -> None:
        """Load the parameters of one of the reference's devices, where the model takes some."""
        parameters = adapted_parameters(self.bundle, number)
        if parameters is not None:
            self.load(parameters)

    def encode_context(self) -> np.ndarray:
        """As :meth:`encode`, with the static encoder, as a clip that enters the context is encoded."""
        engine = self.engines.get("encode")
        if engine is None or not engine.personal:
            return self.encode()
        own = engine.parameters
        engine.load_parameters(None)
        try:
            return self.encode()
        finally:
            engine.load_parameters(own)

    def encode(self) -> np.ndarray:
        """Features ``[batch, T, D]``: of the encoder where it is in the path, else as the bundle has them."""
        frames = self.inputs["model"]["frames"]
        if not self.cell.encoder:
            return frames
        features = self.engines["encode"].infer(self.inputs["encode"])["features"]
        return features.reshape(frames.shape)

    def answer(self, features: np.ndarray | None = None) -> np.ndarray:
        """One unit of work: scores, or similarities for retrieval.

        Args:
            features: ``[batch, T, D]`` that are encoded already; made here when None.
        """
        inputs = self.inputs["model"]
        if features is not None or self.cell.encoder:
            inputs = inputs | {"frames": self.encode() if features is None else features}
        outputs = self.engines["model"].infer(inputs)
        if "text" not in self.engines:
            return outputs["scores"]
        query = self.engines["text"].infer(self.inputs["text"])["embedding"]
        return outputs["embedding"] @ query.T
