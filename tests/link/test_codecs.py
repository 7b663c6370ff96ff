"""Codecs: error bounds, shapes, stability, and what they refuse."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lit_mmpg.link import LinkError, codec_names, codecs, decode, encode, get_codec, num_bytes, register

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


def there_and_back(codec: str, array: np.ndarray, axis: int | None = None) -> np.ndarray:
    return decode(codec, encode(codec, array, axis), array.shape, axis)


def integers(codec: str, array: np.ndarray, axis: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Values and scales of an integer codec, read bit by bit as documented."""
    data, bits = encode(codec, array, axis), int(codec[3:])
    length = -(-array.size * bits // 8)
    if bits == 8:
        values = np.frombuffer(data[:length], np.int8)
    else:
        text = "".join(f"{byte:08b}" for byte in data[:length])
        assert set(text[array.size * bits :]) <= {"0"}
        values = np.array([int(text[i * bits : (i + 1) * bits], 2) - LIMITS[codec] for i in range(array.size)])
    stored = [int.from_bytes(data[i : i + 2], "little") for i in range(length, len(data), 2)]
    scales = [struct.unpack("<f", struct.pack("<I", number << 15))[0] for number in stored]
    return values.reshape(array.shape), np.array(scales)


@given(array=arrays(), codec=st.sampled_from(CODECS))
@SHORT
def test_shape_type_and_stability(array, codec):
    data = encode(codec, array)
    assert len(data) == num_bytes(codec, array.shape)
    decoded = decode(codec, data, array.shape)
    assert decoded.shape == array.shape
    assert decoded.dtype == np.float32
    assert encode(codec, decoded) == data


@given(array=arrays(limit=3e38))
@SHORT
def test_fp32_is_exact(array):
    np.testing.assert_array_equal(there_and_back("fp32", array), array)


@given(array=arrays())
@SHORT
def test_fp16_error_is_relative_above_its_subnormals(array):
    error = np.abs(there_and_back("fp16", array).astype(np.float64) - array)
    assert (error <= np.maximum(2.0**-11 * np.abs(array.astype(np.float64)), 2.0**-25)).all()


@given(array=arrays(limit=1e38, min_dims=1), codec=st.sampled_from(sorted(LIMITS)), data=st.data())
@SHORT
def test_integer_error_is_at_most_half_a_scale(array, codec, data):
    axis = data.draw(st.integers(-array.ndim, array.ndim - 1))
    (_, stored), limit = integers(codec, array, axis), LIMITS[codec]
    assert stored.shape == (array.shape[axis],)
    scale = np.moveaxis(stored.reshape(-1, *[1] * (array.ndim - 1)), 0, axis)
    error = np.abs(there_and_back(codec, array, axis).astype(np.float64) - array)
    assert (error <= np.maximum(scale / 2, 2.0**-100)).all()
    if array.size:
        _, exact = integer_reference(array, axis, limit)
        normal = exact * limit >= 2.0**-100
        assert (stored[normal] >= exact[normal]).all()
        assert (stored[normal] <= exact[normal] * (1 + 2.0**-8)).all()
        assert (stored[~normal] == 0).all()


def test_int8_agrees_with_a_reference_and_rounds_half_to_even():
    rng = np.random.default_rng(3)
    array = rng.normal(size=(6, 2, 40)).astype(np.float32)
    values, _ = integers("int8", array, axis=0)
    exact, _ = integer_reference(array, 0, 127)
    assert np.abs(values - exact).max() <= 0.5 + 127 * 2.0**-8
    assert np.abs(values).reshape(6, -1).max(axis=1).tolist() == [127] * 6
    halves = np.array([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    assert integers("int8", halves)[0].tolist() == [127, 0, 2, 2, 0, -2, -2]


def test_packed_integers_by_hand():
    """Values from -7 to 7 in 4 bits each: value + 7, first in the high half; a scale of 1 is 0x7F00, 0.5 0x7E00."""
    encoded = encode("int4", np.array([[7.0, -7.0, 0.0], [3.5, 1.0, -1.0]]), axis=0)
    assert encoded.hex(" ") == "e0 7e 95 00 7f 00 7e"
    six = encode("int6", np.array([31.0, -31.0, 1.0, 0.0, 5.0]))
    assert "".join(f"{byte:08b}" for byte in six[:4]) == "11111000000010000001111110010000"


@pytest.mark.parametrize(
    ("shape", "scales"), [((256, 4), 4), ((4, 256), 4), ((3, 3), 3), ((9,), 1), ((), 1), ((2, 3, 1), 1)]
)
def test_int8_default_axis_has_the_fewest_scales(shape, scales):
    assert num_bytes("int8", shape) == int(np.prod(shape)) + 2 * scales


def test_int8_channels_do_not_disturb_each_other():
    array = np.array([[1e-3, -1e-3], [1e3, 5e2]], np.float32)
    np.testing.assert_allclose(there_and_back("int8", array, axis=0), array, rtol=1e-2)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (0, 3), (2, 3, 4)])
def test_zeros_and_empty_arrays(codec, shape):
    decoded = there_and_back(codec, np.zeros(shape, np.float32))
    assert decoded.shape == shape
    assert not decoded.any()
    if codec in LIMITS:
        assert not integers(codec, np.zeros(shape))[1].any()


@pytest.mark.parametrize("codec", CODECS)
def test_layout_of_the_input_does_not_matter(codec):
    array = np.arange(12, dtype=np.float64).reshape(3, 4)
    assert encode(codec, array) == encode(codec, np.asfortranarray(array)) == encode(codec, array.astype(">f8"))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_encode_refuses_what_is_not_finite_in_float32(codec, bad):
    with pytest.raises(ValueError, match="holds NaN"):
        encode(codec, np.array([1.0, bad]))


@pytest.mark.parametrize(
    ("codec", "array", "axis", "message"),
    [
        ("zip", np.ones(2), None, "unknown codec 'zip'; known: fp16, fp32, int4, int6, int7, int8"),
        ("fp32", np.ones(2, int), None, "type int64"),
        ("fp32", np.ones(2, complex), None, "type complex128"),
        ("fp32", np.array(["a"]), None, "expected floating point"),
        ("fp16", np.array([65520.0]), None, r"does not fit fp16 \(65504\)"),
        ("int8", np.array([3.4028235e38]), None, "does not fit int8"),
        ("int8", np.ones((2, 2)), 2, "no axis 2"),
        ("int8", np.ones(()), 0, "no axis 0"),
    ],
)
def test_encode_refuses(codec, array, axis, message):
    with pytest.raises(ValueError, match=message):
        encode(codec, array, axis=axis)


def test_fp16_takes_its_largest_value():
    assert there_and_back("fp16", np.array([65519.0])).tolist() == [65504.0]


@pytest.mark.parametrize(
    ("codec", "shape", "data", "message"),
    [
        ("fp32", (2,), struct.pack("<2f", 1, np.nan), "holds NaN"),
        ("fp32", (2,), struct.pack("<2f", 1, -np.inf), "holds NaN or infinity"),
        ("fp16", (1,), struct.pack("<e", np.inf), "holds NaN or infinity"),
        ("int8", (2, 3), b"\1" * 6 + b"\0\0\x00\xff", "NaN or infinite"),
        ("int8", (2, 3), b"\1" * 6 + b"\0\0\xff\xff", "NaN or infinite"),
        ("int8", (1,), b"\x64\xff\xfe", "NaN or infinity"),
        ("int8", (1,), b"\x80\1\0", "-128"),
        ("int4", (3,), b"\x77\x71\1\0", "beyond its last value"),
        ("int4", (3,), b"\x77\xf0\1\0", "does not use"),
        ("int7", (8,), b"\x02" * 6 + b"\x7f\1\0", "does not use"),
    ],
)
def test_decode_refuses(codec, shape, data, message):
    assert len(data) == num_bytes(codec, shape)
    with pytest.raises(LinkError, match=message):
        decode(codec, data, shape)


@pytest.mark.parametrize("codec", CODECS)
def test_decode_refuses_other_lengths(codec):
    data = encode(codec, np.ones((2, 3)))
    for other in (data[:-1], data + b"\0", b""):
        with pytest.raises(LinkError, match=f"has {len(other)} bytes, .* takes {len(data)}"):
            decode(codec, other, (2, 3))


class Halves:
    """Sends every second value after the others: enough of a codec to be registered."""

    name = "halves"

    def num_bytes(self, shape, axis):
        return 4 * int(np.prod(shape))

    def encode(self, array, axis):
        flat = array.ravel()
        return np.concatenate([flat[::2], flat[1::2]]).tobytes()

    def decode(self, data, shape, axis):
        flat, result = np.frombuffer(data, np.float32), np.empty(np.prod(shape), np.float32)
        result[::2], result[1::2] = np.split(flat, [-(-len(flat) // 2)])
        return result.reshape(shape)


def test_a_codec_can_be_added_once(monkeypatch):
    monkeypatch.setattr(codecs, "_CODECS", dict(codecs._CODECS))
    before = set(codec_names())
    codec = Halves()
    register(codec)
    register(codec)
    assert set(codec_names()) == before | {"halves"} >= set(CODECS)
    assert get_codec("halves") is codec and codecs.codec_of(codecs.codec_id("halves")) == "halves"
    array = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(there_and_back("halves", array), array)
    with pytest.raises(ValueError, match="'halves' is registered already"):
        register(Halves())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"encode": lambda self, array, axis: array.tobytes()[:-1]}, "gives 23 bytes; mend the codec"),
        ({"encode": lambda self, array, axis: array}, "gives a ndarray; mend the codec"),
        ({"decode": lambda self, data, shape, axis: np.frombuffer(data, np.float32)}, r"decodes to float32 \[6\]"),
        ({"decode": lambda self, data, shape, axis: np.zeros(shape)}, r"decodes to float64 \[2, 3\], float32"),
        ({"decode": lambda self, data, shape, axis: [[0.0] * 3] * 2}, "decodes to a list"),
    ],
)
def test_a_codec_that_does_not_do_what_it_says_is_told(monkeypatch, wrong, said):
    monkeypatch.setattr(codecs, "_CODECS", dict(codecs._CODECS))
    register(type("Wrong", (Halves,), {"name": "wrong"} | wrong)())
    with pytest.raises((LinkError, ValueError), match=said):
        there_and_back("wrong", np.zeros((2, 3), np.float32))


def test_names_that_messages_could_not_tell_apart_are_refused(monkeypatch):
    monkeypatch.setattr(codecs, "_CODECS", dict(codecs._CODECS))
    monkeypatch.setattr(codecs, "codec_id", lambda name: name.encode()[:2])
    with pytest.raises(ValueError, match="digest of another codec's"):
        register(type("Into", (Halves,), {"name": "into"})())
    assert "into" not in codec_names()
