"""Torch without compilation."""

from __future__ import annotations

from lit_mmpg.torch_engines.base import TorchModuleEngine


class TorchEngine(TorchModuleEngine):
    """Torch, eager."""

    name = "torch"
