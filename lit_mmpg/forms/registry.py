"""All forms by name: those of this package, and those that other packages add."""

from __future__ import annotations

from typing import Any

from lit_mmpg.forms.base import Form
from lit_mmpg.forms.basis import Basis
from lit_mmpg.forms.core import Core
from lit_mmpg.forms.film import Film
from lit_mmpg.forms.full import Full
from lit_mmpg.forms.low_rank import LowRank
from lit_mmpg.forms.shift import Shift
from lit_mmpg.plugins import Registry, subclass_of

BUILT_IN: dict[str, Form] = {form.name: form for form in (Full(), LowRank(), Core(), Basis(), Film(), Shift())}


def _take(name: str, made: Any) -> Form:
    return subclass_of(Form, name, made)()  # type: ignore[type-abstract]


FORMS = Registry("lit_mmpg.forms", "form", BUILT_IN, _take)
form_names, find_form = FORMS.names, FORMS.find
