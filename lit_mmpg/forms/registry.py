"""All forms by name: those of this package, and those that other packages add."""

from __future__ import annotations

from lit_mmpg import plugins
from lit_mmpg.errors import UserError, closest
from lit_mmpg.forms.base import Form
from lit_mmpg.forms.basis import Basis
from lit_mmpg.forms.core import Core
from lit_mmpg.forms.film import Film
from lit_mmpg.forms.full import Full
from lit_mmpg.forms.low_rank import LowRank
from lit_mmpg.forms.shift import Shift

GROUP = "lit_mmpg.forms"
"""Group of the entry points."""

BUILT_IN: dict[str, Form] = {form.name: form for form in (Full(), LowRank(), Core(), Basis(), Film(), Shift())}


def form_names() -> tuple[str, ...]:
    """Names of all forms, those of other packages last."""
    return (*BUILT_IN, *(name for name in plugins.found(GROUP) if name not in BUILT_IN))


def find_form(name: str) -> Form:
    """A form by its name; of two of one name that of this package.

    Raises:
        UserError: If there is none, or that of another package cannot be loaded.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name not in plugins.found(GROUP):
        known = form_names()
        raise UserError(f"there is no form '{name}'; known are {', '.join(known)}{closest(name, known)}")
    kind = plugins.load(GROUP, name)
    if not (isinstance(kind, type) and issubclass(kind, Form)):
        point = plugins.found(GROUP)[name]
        raise UserError(f"'{name}' of the package '{plugins.package(point)}' is not a subclass of {GROUP}.base.Form")
    form: Form = kind()
    return form
