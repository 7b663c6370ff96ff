"""ParameterSpec: order, digest, and what it refuses."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

U, C = ParameterEntry("layer.u", (3, 2)), ParameterEntry("layer.c", (3,), "float16")
SPEC = ParameterSpec((U, C))


def test_order_and_sizes():
    assert SPEC.names == ("layer.u", "layer.c")
    assert (len(SPEC), SPEC.size, ParameterEntry("scalar", ()).size) == (2, 9, 1)
    assert list(SPEC) == [U, C]


def test_json_round_trip():
    data = json.loads(json.dumps(SPEC.to_json()))
    assert data == [
        {"name": "layer.u", "shape": [3, 2], "dtype": "float32"},
        {"name": "layer.c", "shape": [3], "dtype": "float16"},
    ]
    assert ParameterSpec.from_json(data) == SPEC


def test_digest_is_documented_and_depends_on_everything():
    text = json.dumps(SPEC.to_json(), separators=(",", ":"))
    assert SPEC.digest() == hashlib.sha256(text.encode()).hexdigest()
    variants = [
        SPEC,
        ParameterSpec((C, U)),
        ParameterSpec((U,)),
        ParameterSpec((U, ParameterEntry("layer.d", (3,), "float16"))),
        ParameterSpec((U, ParameterEntry("layer.c", (4,), "float16"))),
        ParameterSpec((U, ParameterEntry("layer.c", (3,)))),
    ]
    assert len({spec.digest() for spec in variants}) == len(variants)


def test_repeated_names_are_refused():
    with pytest.raises(ValueError, match="repeat"):
        ParameterSpec((U, U))


@pytest.mark.parametrize(
    "data",
    [
        [{"name": "a", "shape": [1]}],
        [{"name": "a", "shape": ["x"], "dtype": "float32"}],
        [{"name": "a", "shape": 3, "dtype": "float32"}],
        ["a"],
        [{"name": "a", "shape": [1], "dtype": "float32"}] * 2,
    ],
)
def test_malformed_json_is_a_user_error(data):
    with pytest.raises(UserError, match="export the bundle again"):
        ParameterSpec.from_json(data)


GOOD = {"layer.u": np.zeros((3, 2)), "layer.c": np.zeros(3)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer.u": np.zeros((2, 3))}, r"layer.u has shape \(2, 3\), expected \(3, 2\)"),
        ({"layer.c": np.array([0, np.nan, 0])}, "layer.c holds NaN"),
        ({"layer.c": np.array([0, -np.inf, 0])}, "layer.c holds NaN or infinity"),
        ({"other": np.zeros(1)}, r"missing \[\], unknown \['other'\]"),
    ],
)
def test_validate(changes, message):
    SPEC.validate(GOOD)
    with pytest.raises(ValueError, match=message):
        SPEC.validate(GOOD | changes)


def test_validate_names_what_is_missing():
    with pytest.raises(ValueError, match=r"missing \['layer.u'\]"):
        SPEC.validate({"layer.c": np.zeros(3)})
