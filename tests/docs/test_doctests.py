"""Examples in docstrings, of functions and classes that people call."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "lit_mmpg"
MODULES = sorted(
    ".".join(("lit_mmpg", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed


def test_what_is_called_first_has_an_example() -> None:
    have = {"errors", "forms.injection", "forms.input_layer", "link.codecs", "parameters", "results", "system"}
    assert have | {"metrics.retrieval", "metrics.statistics", "runtime.policies", "statistics"} <= {
        name.removeprefix("lit_mmpg.") for name in MODULES
    }
