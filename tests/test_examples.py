"""The notebooks run, in this process; ``adapt_a_device.py`` runs in tests/runtime/test_door.py, against a service."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, so that clips are rendered once."""
    return tmp_path_factory.mktemp("notebooks")


def run(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.chdir(place)
    return runpy.run_path(str(EXAMPLES / name), run_name="notebook")


def test_every_notebook_is_run_and_has_text() -> None:
    here = Path(__file__).read_text() + (Path(__file__).parent / "runtime" / "test_door.py").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.name in here
        assert path.read_text().startswith("# %% [markdown]\n# # ")


def test_a_model_of_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("your_own_model.py", place, monkeypatch)
    assert [name.split(".")[0] for name in found["cloud"].network.spec.names] == ["colours"] * 3 + ["answers"] * 3
    assert found["before"].parameters == "static"
    assert {path.name for path in (place / "colours").iterdir()} == {"config.json", "model.safetensors"}
    # The notebook is over and its class gone: nobody gets it imported by the file alone.
    from lit_mmpg import UserError, load

    with pytest.raises(UserError, match=r"names the class notebook\.Colours.*import notebook before loading"):
        load(place / "colours")


def test_a_method_of_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("your_own_method.py", place, monkeypatch)
    ours = found["results"][found["HoldBack"]]
    assert ours.reason is None and ours.method == "hold_back" and len(ours.sweep) == 3
    assert ours.cost is not None and ours.cost.adapt_flops > 0 and not ours.cost.backward
    items = {len(result.evaluation.items("test_unseen", result.name).item) for result in found["results"].values()}
    assert len(items) == 1 and items.pop() > 0


def test_a_form_of_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("your_own_form.py", place, monkeypatch)
    assert list(found["net"].spec.names) == ["0.gain", "4.u", "4.v", "4.c"]
    assert found["found"].batch and min(found["found"].moved.values()) > 0
    assert not torch.equal(found["together"][0], found["together"][1])
