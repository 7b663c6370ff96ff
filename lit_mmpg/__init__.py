"""lit-mmpg: adapt small multi-modal models on devices without backpropagation, by cloud-device collaboration."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0.dev0"

_WHERE = {"InputLayer": "lit_mmpg.forms.input_layer", "adaptable": "lit_mmpg.forms.injection"}
"""Public name -> module that holds it, imported when the name is asked for."""

__all__ = ["InputLayer", "__version__", "adaptable"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
