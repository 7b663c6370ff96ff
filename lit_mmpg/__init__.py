"""lit-mmpg: adapt small multi-modal models on devices without backpropagation, by cloud-device collaboration."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_mmpg.errors import UserError as UserError
    from lit_mmpg.forms.injection import adaptable as adaptable
    from lit_mmpg.forms.input_layer import InputLayer as InputLayer
    from lit_mmpg.runtime.personal import PersonalDevice as PersonalDevice
    from lit_mmpg.system import System as System
    from lit_mmpg.system import load as load

__version__ = "0.1.0.dev0"

_PUBLIC = {
    "InputLayer": "lit_mmpg.forms.input_layer",
    "PersonalDevice": "lit_mmpg.runtime.personal",
    "System": "lit_mmpg.system",
    "UserError": "lit_mmpg.errors",
    "adaptable": "lit_mmpg.forms.injection",
    "load": "lit_mmpg.system",
}
"""Public name -> the module that defines it, imported when the name is asked for: ``import lit_mmpg`` costs nothing."""

__all__ = ["InputLayer", "PersonalDevice", "System", "UserError", "__version__", "adaptable", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lit_mmpg' has no attribute '{name}'")
    return getattr(_import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
