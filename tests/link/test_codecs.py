"""Codecs: error bounds, shapes, stability, and what they refuse."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import numpy as safetensors_numpy

from lit_mmpg.link import LinkError, codec_names, codecs, decode, encode, get_codec, register

CODECS = ("fp16", "fp32", "int4", "int6", "int7", "int8")
LIMITS = {"int8": 127, "int7": 63, "int6": 31, "int4": 7}
SHORT = settings(max_examples=150, deadline=None, derandomize=True)


@st.composite
def arrays(draw, limit=60000.0, min_dims=0):
    shape = draw(hnp.array_shapes(min_dims=min_dims, max_dims=3, min_side=0, max_side=5))
    magnitude = draw(st.sampled_from([1e-44, 1e-30, 1e-6, 1.0, limit]))
    values = st.floats(-magnitude, magnitude, allow_nan=False)
    return draw(hnp.arrays(np.float64, shape, elements=values)).astype(np.float32)


def integer_reference(array: np.ndarray, axis: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and the exact (unrounded) scales, one slice at a time."""
    values, scales = np.zeros(array.shape), np.zeros(array.shape[axis])
    for i in range(array.shape[axis]):
        row = np.take(array, i, axis=axis).astype(np.float64)
        scales[i] = np.abs(row).max() / limit
        index = [slice(None)] * array.ndim
        index[axis] = i
        values[tuple(index)] = row / scales[i] if scales[i] else 0.0
    return values, scales


@given(array=arrays(), codec=st.sampled_from(CODECS))
@SHORT
def test_shape_type_and_stability(array, codec):
    encoded = encode(codec, {"x": array})
    assert all(part.flags.c_contiguous for part in encoded.values())
    decoded = decode(codec, safetensors_numpy.load(safetensors_numpy.save(encoded)))["x"]
    assert isinstance(decoded, np.ndarray)
    assert decoded.shape == array.shape
    assert decoded.dtype == np.float32
    again = encode(codec, {"x": decoded})
    assert set(again) == set(encoded)
    assert all(again[k].dtype == v.dtype and again[k].tobytes() == v.tobytes() for k, v in encoded.items())


@given(array=arrays(limit=3e38))
@SHORT
def test_fp32_is_exact(array):
    np.testing.assert_array_equal(decode("fp32", encode("fp32", {"x": array}))["x"], array)


@given(array=arrays())
@SHORT
def test_fp16_error_is_relative_above_its_subnormals(array):
    error = np.abs(decode("fp16", encode("fp16", {"x": array}))["x"].astype(np.float64) - array)
    assert (error <= np.maximum(2.0**-11 * np.abs(array.astype(np.float64)), 2.0**-25)).all()


def floats(stored: np.ndarray) -> np.ndarray:
    """Scales as documented: a float32 without sign and without its last 15 bits."""
    return np.array([struct.unpack("<f", struct.pack("<I", int(s) << 15))[0] for s in stored.ravel()]).reshape(
        stored.shape
    )


@given(array=arrays(limit=1e38, min_dims=1), codec=st.sampled_from(sorted(LIMITS)), data=st.data())
@SHORT
def test_integer_error_is_at_most_half_a_scale(array, codec, data):
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    encoded = encode(codec, {"x": array}, axis=axis)
    scale, limit = floats(encoded["x:scale"]), LIMITS[codec]
    expected_shape = [1] * array.ndim
    expected_shape[axis] = array.shape[axis]
    assert scale.shape == tuple(expected_shape)
    error = np.abs(decode(codec, encoded)["x"].astype(np.float64) - array)
    assert (error <= np.maximum(scale / 2, 2.0**-100)).all()
    if array.size:
        _, exact = integer_reference(array, axis, limit)
        stored = scale.ravel()
        normal = exact * limit >= 2.0**-100
        assert (stored[normal] >= exact[normal]).all()
        assert (stored[normal] <= exact[normal] * (1 + 2.0**-8)).all()
        assert (stored[~normal] == 0).all()


def test_int8_agrees_with_a_reference_and_rounds_half_to_even():
    rng = np.random.default_rng(3)
    array = rng.normal(size=(6, 2, 40)).astype(np.float32)
    encoded = encode("int8", {"x": array}, axis=0)
    exact, _ = integer_reference(array, 0, 127)
    assert np.abs(encoded["x"] - exact).max() <= 0.5 + 127 * 2.0**-8
    assert np.abs(encoded["x"]).reshape(6, -1).max(axis=1).tolist() == [127] * 6
    halves = np.array([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    assert encode("int8", {"x": halves})["x"].tolist() == [127, 0, 2, 2, 0, -2, -2]


def test_packed_integers_by_hand():
    """7 values from -7 to 7 in 4 bits each: value + 7, first value in the high half, the last half byte empty."""
    encoded = encode("int4", {"x": np.array([[7.0, -7.0, 0.0], [3.5, 1.0, -1.0]])}, axis=0)
    assert encoded["x"].tolist() == [[0xE0, 0x70], [0xE9, 0x50]]
    np.testing.assert_array_equal(floats(encoded["x:scale"]).ravel(), [1.0, 0.5])
    assert encoded["x:length"].tolist() == 3
    six = encode("int6", {"x": np.array([31.0, -31.0, 1.0, 0.0, 5.0])})
    assert "".join(f"{byte:08b}" for byte in six["x"]) == "11111000000010000001111110010000"


def test_int8_default_axis_has_the_fewest_scales():
    tensors = {
        "u": np.ones((256, 4)),
        "v": np.ones((4, 256)),
        "square": np.ones((3, 3)),
        "c": np.ones(9),
        "s": np.ones(()),
    }
    scales = {k: v.shape for k, v in encode("int8", tensors).items() if k.endswith(":scale")}
    assert scales == {"u:scale": (1, 4), "v:scale": (4, 1), "square:scale": (3, 1), "c:scale": (1,), "s:scale": ()}


def test_int8_channels_do_not_disturb_each_other():
    array = np.array([[1e-3, -1e-3], [1e3, 5e2]], np.float32)
    decoded = decode("int8", encode("int8", {"x": array}, axis=0))["x"]
    np.testing.assert_allclose(decoded, array, rtol=1e-2)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (0, 3), (2, 3, 4)])
def test_zeros_and_empty_arrays(codec, shape):
    encoded = encode(codec, {"x": np.zeros(shape, np.float32)})
    decoded = decode(codec, encoded)["x"]
    assert decoded.shape == shape
    assert not decoded.any()
    if codec in LIMITS:
        assert not encoded["x:scale"].any()


@pytest.mark.parametrize("codec", CODECS)
def test_layout_of_the_input_does_not_matter(codec):
    array = np.arange(12, dtype=np.float64).reshape(3, 4)
    straight, turned = encode(codec, {"x": array}), encode(codec, {"x": np.asfortranarray(array)})
    swapped = encode(codec, {"x": array.astype(">f8")})
    for other in (turned, swapped):
        assert all(other[k].tobytes() == v.tobytes() for k, v in straight.items())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_encode_refuses_what_is_not_finite_in_float32(codec, bad):
    with pytest.raises(ValueError, match=r"tensor layer\.u holds NaN"):
        encode(codec, {"layer.u": np.array([1.0, bad])})


@pytest.mark.parametrize(
    ("codec", "tensors", "axis", "message"),
    [
        ("zip", {"x": np.ones(2)}, None, "unknown codec 'zip'; known: fp16, fp32, int4, int6, int7, int8"),
        ("fp32", {"x": np.ones(2, int)}, None, "type int64"),
        ("fp32", {"x": np.ones(2, complex)}, None, "type complex128"),
        ("fp32", {"x": np.array(["a"])}, None, "expected floating point"),
        ("fp32", {"a:b": np.ones(2)}, None, "name 'a:b'"),
        ("fp32", {"": np.ones(2)}, None, "name ''"),
        ("fp32", {"__metadata__": np.ones(2)}, None, "reserved"),
        ("fp16", {"x": np.array([65520.0])}, None, "tensor x: .*does not fit fp16"),
        ("int8", {"x": np.array([3.4028235e38])}, None, "tensor x: .*does not fit int8"),
        ("int8", {"x": np.ones((2, 2))}, 2, "no axis 2"),
        ("int8", {"x": np.ones(())}, 0, "no axis 0"),
    ],
)
def test_encode_refuses(codec, tensors, axis, message):
    with pytest.raises(ValueError, match=message):
        encode(codec, tensors, axis=axis)


def test_fp16_takes_its_largest_value():
    assert decode("fp16", encode("fp16", {"x": np.array([65519.0])}))["x"].tolist() == [65504.0]


ONE = np.float32(1).view(np.uint32) >> 15
INT8 = {"x": np.ones((2, 3), np.int8), "x:scale": np.full((2, 1), ONE, np.uint16)}
INT4 = {"x": np.full((2, 2), 0x80, np.uint8), "x:scale": INT8["x:scale"], "x:length": np.array(3, np.uint16)}


@pytest.mark.parametrize(
    ("codec", "encoded", "message"),
    [
        ("zip", INT8, "unknown codec 'zip'"),
        ("fp32", {"x": np.ones(2, np.float64)}, "type float64, expected float32"),
        ("fp32", {"x": np.array([1, np.nan], np.float32)}, "x .fp32. holds NaN"),
        ("fp32", {"x": np.array([1, -np.inf], np.float32)}, "holds NaN or infinity"),
        ("fp32", {"x": np.ones(2, np.float32), "x:scale": np.ones(1, np.float32)}, "the values alone"),
        ("fp16", {"x": np.ones(2, np.float32)}, "expected float16"),
        ("fp16", {"x": np.array([np.inf], np.float16)}, "holds NaN or infinity"),
        ("fp32", {"x:": np.ones(2, np.float32)}, "name 'x:' is malformed"),
        ("fp32", {":x": np.ones(2, np.float32)}, "name ':x' is malformed"),
        ("int8", {"x": INT8["x"]}, "values and their scale"),
        ("int8", {"x:scale": INT8["x:scale"]}, "values and their scale"),
        ("int8", INT8 | {"x:offset": INT8["x:scale"]}, "values and their scale"),
        ("int8", INT8 | {"x": np.ones((2, 3), np.uint8)}, "values of type uint8"),
        ("int8", INT8 | {"x:scale": np.ones((2, 1), np.float32)}, "scales of type float32"),
        ("int8", INT8 | {"x:scale": np.ones((3, 1), np.uint16)}, "scales of shape"),
        ("int8", INT8 | {"x:scale": np.ones((2, 3), np.uint16)}, "scales of shape"),
        ("int8", INT8 | {"x:scale": np.ones(2, np.uint16)}, "scales of shape"),
        ("int8", INT8 | {"x:scale": np.array([[1], [0xFF00]], np.uint16)}, "NaN or infinite"),
        ("int8", INT8 | {"x:scale": np.array([[1], [0xFFFF]], np.uint16)}, "NaN or infinite"),
        ("int8", {"x": np.array([100], np.int8), "x:scale": np.array([0xFEFF], np.uint16)}, "NaN or infinity"),
        ("int8", {"x": np.array([-128], np.int8), "x:scale": np.ones(1, np.uint16)}, "-128"),
        ("int4", INT8, "values int8"),
        ("int4", {"x": INT4["x"], "x:scale": INT4["x:scale"]}, "2 bytes for 1 values"),
        ("int4", {"x": INT4["x"][:, :1], "x:scale": INT4["x:scale"]}, "no length"),
        ("int4", {"x": INT4["x"], "x:length": INT4["x:length"]}, "their scale"),
        ("int4", INT4 | {"x:length": np.array(5, np.uint16)}, "2 bytes for 5 values of 4 bits"),
        ("int4", INT4 | {"x:length": np.array([3], np.uint16)}, "length uint16"),
        ("int4", INT4 | {"x": INT4["x"] | 1}, "beyond its last value"),
        ("int4", INT4 | {"x": INT4["x"] | 0xF0}, "does not use"),
        ("int4", INT4 | {"x:scale": np.ones((2, 2), np.uint16)}, "scales of shape"),
    ],
)
def test_decode_refuses(codec, encoded, message):
    with pytest.raises(LinkError, match=message):
        decode(codec, encoded)


class Halves:
    """Sends every other value: enough of a codec to be registered."""

    name = "halves"

    def encode(self, array, axis):
        return {"": array[::2], "odd": array[1::2]}

    def decode(self, parts):
        result = np.empty(sum(len(p) for p in parts.values()), np.float32)
        result[::2], result[1::2] = parts[""], parts["odd"]
        return result


def test_a_codec_can_be_added_once(monkeypatch):
    monkeypatch.setattr(codecs, "_CODECS", dict(codecs._CODECS))
    before = set(codec_names())
    codec = Halves()
    register(codec)
    register(codec)
    assert set(codec_names()) == before | {"halves"} >= set(CODECS)
    assert get_codec("halves") is codec
    array = np.arange(5, dtype=np.float32)
    encoded = encode("halves", {"x": array})
    assert set(encoded) == {"x", "x:odd"}
    np.testing.assert_array_equal(decode("halves", encoded)["x"], array)
    with pytest.raises(ValueError, match="'halves' is registered already"):
        register(Halves())
