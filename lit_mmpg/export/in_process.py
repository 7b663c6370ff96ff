"""A checkpoint as devices in this process: what ``export`` makes of it, without files and graphs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lit_mmpg.device.graphs import GraphSpec, graph_specs
from lit_mmpg.export.bundle import fitting_encoder, make_manifest
from lit_mmpg.export.source import Trained
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.runtime.bundle import Arrays, Bundle
from lit_mmpg.runtime.engines.base import own_of
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.statistics import trained_moments


@contextmanager
def unnoticed() -> Iterator[None]:
    """Lightning's CLI seeds the process that opens a checkpoint, and tells about hardware: here it does neither."""
    notices = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = notices.level
    notices.setLevel(logging.WARNING)
    kept = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    with isolate_rng():
        try:
            yield
        finally:
            notices.setLevel(level)
            for name, value in kept.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


class TorchRunner:
    """One graph, run by torch as it was trained.

    Args:
        graph: The graph.
        spec: Personal parameters of the whole model.
    """

    def __init__(self, graph: GraphSpec, spec: ParameterSpec) -> None:
        self._graph, self._spec, self._entries = graph, spec, graph.entries(spec)
        self._parameters: tuple[Tensor, ...] = ()

    @torch.inference_mode()
    def infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs by name."""
        arguments: dict[str, Tensor | tuple[Tensor, ...]] = {n: torch.tensor(a) for n, a in inputs.items()}
        if len(self._entries):
            arguments["parameters"] = self._parameters
        return {self._graph.output: self._graph.module(**arguments).numpy()}

    def load_parameters(self, parameters: Mapping[str, np.ndarray] | None) -> None:
        """Swap the personal parameters; ``None`` goes back to the static model, which takes none.

        Raises:
            ValueError: If they do not match the specification; the former ones then stay in use.
        """
        own = own_of(self._spec, self._graph.role, parameters or {})
        if parameters is not None:
            self._entries.validate(own)
        self._parameters = tuple(torch.tensor(own[entry.name]) for entry in self._entries) if own else ()

    def deactivate(self) -> None:
        """Nothing is held: all devices of a checkpoint share its weights."""


class CheckpointDevices:
    """Sessions of devices on one device model, which they share.

    Args:
        source: The checkpoint, or what a saved folder holds.
        frame_encoder: Frame encoder that made its features: folder, or name on the hub; ``None``: that of the data,
            where it names one that is here. Without one devices take features, unless the device model takes pixels.

    Attributes:
        bundle: What a device must know, as ``export`` would write it; without graphs, and without the bounds of
            plausible parameters, which need validation data: finite outputs are what is asked of parameters.

    Raises:
        UserError: If the frame encoder is not the one that made the features.
    """

    def __init__(self, source: Trained, frame_encoder: str | None = None) -> None:
        trained = getattr(getattr(source, "data", None), "encoder", None)
        if frame_encoder is None and isinstance(trained, (str, Path)) and Path(trained).is_dir():
            frame_encoder = str(trained)
        encoder = None if frame_encoder is None else fitting_encoder(source, frame_encoder, "frame_encoder")
        graphs = graph_specs(source.network, source.shape.max_frames, 1)
        if encoder is not None:
            graphs.append(encoder.spec())
        manifest = make_manifest(source, [], {}, encoder)
        quantiser = source.cloud.quantiser if source.cloud else None
        moments = trained_moments(source.meta.get("own_statistics", {}))
        self.bundle = Bundle(source.path, manifest, quantiser, moments)
        self._graphs = {graph.role: graph for graph in graphs}

    def session(self) -> DeviceSession:
        """A device's own."""
        return TorchSession(self.bundle, self._graphs)


class TorchSession(DeviceSession):
    """A device whose graphs torch runs, unexported.

    Args:
        bundle: What the device must know.
        graphs: Its graphs by role.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[str, GraphSpec]) -> None:
        self._graphs = graphs
        super().__init__(bundle)

    def _make(self, role: str, precision: str) -> TorchRunner:
        return TorchRunner(self._graphs[role], self.bundle.spec)
