"""The device half: the lightweight model with its dynamic layers, anchors, evaluation and stage 1."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_mmpg.device.dual import DualEncoder as DualEncoder


def __getattr__(name: str) -> Any:
    if name == "DualEncoder":  # imported when it is asked for
        from lit_mmpg.device.dual import DualEncoder

        return DualEncoder
    raise AttributeError(f"module 'lit_mmpg.device' has no attribute '{name}'")
