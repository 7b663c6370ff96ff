"""Names that other people's code uses: changed here only together with CONTRIBUTING, "What stays compatible"."""

from __future__ import annotations

import inspect

import pytest

import lit_mmpg
from lit_mmpg.device.contract import DeviceModel, DynamicConfig, Shapes
from lit_mmpg.forms.base import Form
from lit_mmpg.link import PROTOCOL_VERSION
from lit_mmpg.runtime.manifest import SCHEMA
from lit_mmpg.runtime.personal import PersonalDevice

PUBLIC = ["InputLayer", "PersonalDevice", "System", "UserError", "__version__", "adaptable", "load"]

OFFERED = {  # what a network of one's own may define, and what it is called with
    "project": "features parameters corrected",
    "answer": "frames mask text parameters",
    "embed_video": "frames mask parameters",
    "embed_text": "text",
    "encode_frames": "frames",
    "anchor_features": "features",
    "contextualise": "projected mask",
    "context_parameters": "",
    "correction_layers": "",
    "start": "data settings",
}
CALLED = {  # what it finds
    "encode": "frames parameters",
    "mix": "projected mask parameters",
    "linear": "name inputs outputs",
    "own": "name parameters",
    "forward": "frames frame_mask text parameters",
}
DOOR = ["answer", "close", "features", "observe", "personalise", "reset", "search"]


def arguments(method: object) -> str:
    return " ".join(list(inspect.signature(method).parameters)[1:])  # type: ignore[arg-type]


def test_what_the_package_offers() -> None:
    assert sorted(lit_mmpg.__all__) == sorted(PUBLIC)
    assert all(getattr(lit_mmpg, name) is not None for name in PUBLIC)
    found = [name for name, value in vars(PersonalDevice).items() if inspect.isfunction(value) and name[0] != "_"]
    assert set(DOOR) <= set(found)


@pytest.mark.parametrize(("name", "expected"), [*OFFERED.items(), *CALLED.items()])
def test_the_contract_of_a_device_model(name: str, expected: str) -> None:
    assert arguments(getattr(DeviceModel, name)) == expected


def test_the_contract_needs_no_more_than_it_did() -> None:
    assert DeviceModel.__abstractmethods__ == {"project", "anchor_width"}
    assert arguments(DeviceModel.__init__) == "shapes dynamic"
    assert list(inspect.signature(DynamicConfig).parameters) == ["layers", "form", "rank", "input_layer"]
    assert list(inspect.signature(Shapes).parameters) == ["task", "frame", "words", "answers", "max_words"]
    assert Form.__abstractmethods__ == {"parts", "apply"}


def test_versions_of_what_is_written_and_sent() -> None:
    assert (SCHEMA, PROTOCOL_VERSION) == (2, 3)
