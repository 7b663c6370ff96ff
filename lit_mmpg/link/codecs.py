"""Codecs: how float arrays become the few bytes that cross the network, and float32 again.

========  ====================================================  ============================================
name      bytes of an array ``x``                               error of one value
========  ====================================================  ============================================
``fp32``  float32                                               none (float32 input)
``fp16``  float16                                               <= 2^-11 |x|, or 2^-25 below 2^-14
``int8``  int8, then the scales                                 <= scale / 2; scale < max |x| / 127 * (1 + 2^-8)
``int7``  7 bits each, packed, then the scales                  <= scale / 2; scale < max |x| / 63 * (1 + 2^-8)
``int6``  the same with 31 for 63                               one bit less each
``int4``  the same with 7 for 63
``pq...`` the nearest words of codebooks that both sides hold   see :mod:`lit_mmpg.link.product`
========  ====================================================  ============================================

Values are in C order, numbers little-endian. Bytes say nothing of the array's shape: whoever decodes knows it, and with
it how many bytes there must be (:func:`num_bytes`), before anything is allocated.

Integers are symmetric with one scale for each index of one axis ("per channel"). A scale is a float32 without its sign
(scales have none) and its last 15 bits: two bytes, the whole range, nine significant bits, rounded up so that no value
leaves the range. Encoding what was decoded gives the same bytes again with each codec.

``int7``, ``int6`` and ``int4`` pack ``value + limit``, most significant bit first, into whole bytes; spare bits of the
last byte are 0. Another codec is one :func:`register` call.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Protocol

import numpy as np

from lit_mmpg.link.errors import ImplausibleError, LinkError

Shape = tuple[int, ...]

_SCALE_BITS = 9  # what a scale's two bytes hold; 127 / (1 + 2^-8) still rounds to 127: encode(decode(x)) is exact
_SCALE_SHIFT = 15  # bits of a float32 that a scale leaves out
_SMALLEST = 2.0**-100  # smaller magnitudes become zero: their scales would be subnormal


class Codec(Protocol):
    """One way to send an array. ``axis`` is always as in :func:`encode`.

    ``encode`` gets a finite float32 array. ``decode`` gets as many bytes as ``num_bytes`` says, unchecked otherwise,
    and raises :class:`~lit_mmpg.link.errors.LinkError` for any that ``encode`` cannot have made.
    """

    @property
    def name(self) -> str:
        """Name in configurations; its digest stands in messages (:func:`codec_id`)."""

    def num_bytes(self, shape: Shape, axis: int | None) -> int:
        """Bytes of an encoded array of this shape. Raises LinkError where no such array can be sent."""

    def encode(self, array: np.ndarray, axis: int | None) -> bytes:
        """Bytes of ``array``. Raises ValueError for values out of range."""

    def decode(self, data: bytes, shape: Shape, axis: int | None) -> np.ndarray:
        """Float32 array of this shape."""


class Float:
    """Floating-point values as they are, or rounded.

    Args:
        name: Name of the codec.
        dtype: What is sent, little-endian.
    """

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, np.dtype(dtype)

    def num_bytes(self, shape: Shape, axis: int | None) -> int:
        """See :class:`Codec`."""
        return math.prod(shape) * self.dtype.itemsize

    def encode(self, array: np.ndarray, axis: int | None) -> bytes:
        """See :class:`Codec`."""
        if array.dtype == self.dtype:
            return array.tobytes()
        with np.errstate(over="ignore"):
            sent = array.astype(self.dtype)
        if not np.isfinite(sent).all():
            largest, most = np.abs(array).max(), np.finfo(self.dtype).max
            raise ValueError(f"largest magnitude {largest:g} does not fit {self.name} ({most:g}); use fp32 or int8")
        return sent.tobytes()

    def decode(self, data: bytes, shape: Shape, axis: int | None) -> np.ndarray:
        """See :class:`Codec`."""
        return np.frombuffer(data, self.dtype).astype(np.float32).reshape(shape)


class Integer:
    """Symmetric integers of 2 to 8 bits, rounded half to even, with scales along one axis.

    Args:
        bits: Bits of a value.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.limit, self.name = bits, 2 ** (bits - 1) - 1, f"int{bits}"

    def num_bytes(self, shape: Shape, axis: int | None) -> int:
        """See :class:`Codec`."""
        return -(-math.prod(shape) * self.bits // 8) + 2 * math.prod(_scales(shape, axis))

    def encode(self, array: np.ndarray, axis: int | None) -> bytes:
        """See :class:`Codec`."""
        values, scale = _quantise(array, axis, self.limit)
        return self._pack(values.ravel()) + scale.astype("<u2").tobytes()

    def decode(self, data: bytes, shape: Shape, axis: int | None) -> np.ndarray:
        """See :class:`Codec`."""
        scales = _scales(shape, axis)
        start = len(data) - 2 * math.prod(scales)
        stored = np.frombuffer(data, "<u2", offset=start).reshape(scales)
        return _dequantise(self._unpack(data[:start], math.prod(shape)).reshape(shape), stored)

    def _pack(self, values: np.ndarray) -> bytes:
        if self.bits == 8:
            return values.tobytes()
        codes = (values.astype(np.int16) + self.limit).astype(np.uint8)
        return np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - self.bits :]).tobytes()

    def _unpack(self, data: bytes, count: int) -> np.ndarray:
        packed = np.frombuffer(data, np.uint8)
        if self.bits == 8:
            values = packed.view(np.int8)
            if (values == -128).any():
                raise LinkError("holds -128, which symmetric int8 does not use")
            return values
        if packed.size and packed[-1] & (2 ** (8 * packed.size - self.bits * count) - 1):
            raise LinkError("has bits beyond its last value")
        # Eight values lie in as many bytes as one of them has bits; a value lies in two neighbouring bytes at most.
        groups = np.zeros((-(-count // 8), self.bits + 1), np.uint16)
        whole = np.zeros(groups.shape[0] * self.bits, np.uint8)
        whole[: packed.size] = packed
        groups[:, :-1] = whole.reshape(-1, self.bits)
        byte, offset = np.divmod(self.bits * np.arange(8), 8)
        codes = groups[:, byte] << 8
        codes |= groups[:, byte + 1]
        codes >>= (16 - self.bits - offset).astype(np.uint16)
        codes &= 2**self.bits - 1
        codes = codes.reshape(-1)[:count]
        if (codes > 2 * self.limit).any():
            raise LinkError(f"holds a code that symmetric {self.name} does not use")
        return codes.astype(np.int8) - np.int8(self.limit)


def _quantise(array: np.ndarray, axis: int | None, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers from ``-limit`` to ``limit`` as int8, and their stored scales."""
    shared = _shared_axes(array.shape, axis)
    exact = array.astype(np.float64)
    largest = np.max(np.abs(exact), axis=shared, keepdims=True, initial=0.0)
    scale = _round_up(np.where(largest < _SMALLEST, 0.0, largest / limit))
    if (scale * limit > np.finfo(np.float32).max).any():
        raise ValueError(f"largest magnitude {largest.max():g} does not fit int{limit.bit_length() + 1}")
    values = np.rint(exact / np.where(scale > 0, scale, np.inf)).astype(np.int8)
    bits = np.asarray(scale, np.float32).view(np.uint32)
    return values, bits >> _SCALE_SHIFT


def _dequantise(values: np.ndarray, stored: np.ndarray) -> np.ndarray:
    scale = (stored.astype(np.uint32) << _SCALE_SHIFT).view(np.float32)
    if not np.isfinite(scale).all():
        raise ImplausibleError("has a scale that is NaN or infinite")
    with np.errstate(over="ignore"):
        return np.asarray(values * scale, dtype=np.float32)


@lru_cache(maxsize=256)
def _scales(shape: Shape, axis: int | None) -> Shape:
    """Shape of the scales of an array."""
    shared = _shared_axes(shape, axis)
    return tuple(1 if i in shared else n for i, n in enumerate(shape))


def _shared_axes(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    """Axes over which one scale is shared: all but the one that has its own scales."""
    if axis is None:
        if len(shape) < 2:
            return tuple(range(len(shape)))
        axis = shape.index(min(shape))
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"has no axis {axis}, its shape is {shape}")
    return tuple(i for i in range(len(shape)) if i != axis % len(shape))


def _round_up(scale: np.ndarray) -> np.ndarray:
    """Next number with ``_SCALE_BITS`` significant bits, so that no value divided by its scale exceeds 127."""
    mantissa, exponent = np.frexp(scale)
    rounded: np.ndarray = np.ldexp(np.ceil(np.ldexp(mantissa, _SCALE_BITS)), exponent - _SCALE_BITS)
    return rounded


_BUILT_IN: tuple[Codec, ...] = (Float("fp32", "<f4"), Float("fp16", "<f2"), *map(Integer, (8, 7, 6, 4)))
_CODECS: dict[str, Codec] = {codec.name: codec for codec in _BUILT_IN}


def register(codec: Codec) -> None:
    """Make a codec known by its name.

    Raises:
        ValueError: If the name is taken by another codec, or messages could not tell it from another.
    """
    if _CODECS.get(codec.name, codec) != codec:
        raise ValueError(f"a codec called {codec.name!r} is registered already")
    if any(codec_id(other) == codec_id(codec.name) for other in _CODECS if other != codec.name):
        raise ValueError(f"the name {codec.name!r} has the digest of another codec's; choose another")
    _CODECS.setdefault(codec.name, codec)


def codec_names() -> tuple[str, ...]:
    """Names of the registered codecs, sorted."""
    return tuple(sorted(_CODECS))


@lru_cache(maxsize=64)
def codec_id(name: str) -> bytes:
    """What stands for a codec in messages: four bytes of the SHA-256 of its name."""
    return hashlib.sha256(name.encode()).digest()[:4]


def codec_of(number: bytes) -> str:
    """The registered codec with that :func:`codec_id`.

    Raises:
        LinkError: If there is none.
    """
    for name in _CODECS:
        if codec_id(name) == number:
            return name
    known = ", ".join(codec_names())
    raise LinkError(f"unknown codec (digest {number.hex()}): not registered here, or other codebooks; known: {known}")


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _CODECS:
        raise ValueError(f"unknown codec {name!r}; known: {', '.join(codec_names())}")
    return _CODECS[name]


def num_bytes(codec: str, shape: Shape, axis: int | None = None) -> int:
    """Bytes of an encoded array; the arguments are as in :func:`encode`.

    Raises:
        LinkError: If the codec cannot send an array of this shape.
        ValueError: If it is unknown.
    """
    return get_codec(codec).num_bytes(shape, axis)


def encode(codec: str, tensor: np.ndarray, axis: int | None = None) -> bytes:
    """Encode an array.

    Args:
        codec: Name of a registered codec.
        tensor: Floating-point array of any shape.
        axis: Axis whose indices have a scale each. None: the shortest axis (the first of equals; the rank of a low-rank
            factor), and a single scale for vectors and scalars.

    Raises:
        ValueError: If the codec is unknown, or the array is not floating point, holds NaN or infinity, or is out of the
            codec's range; or the codec gives something else than as many bytes as it says.

    Example:
        >>> sent = encode("int8", np.linspace(-1, 1, 64, dtype=np.float32))
        >>> len(sent)  # a byte each, and two of their scale
        66
        >>> received = decode("int8", sent, (64,))
        >>> bool(abs(received - np.linspace(-1, 1, 64)).max() < 0.01)
        True
    """
    chosen, array = get_codec(codec), np.asarray(tensor)
    if array.dtype.kind != "f":
        raise ValueError(f"has type {array.dtype}, expected floating point")
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        with np.errstate(over="ignore"):
            array = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(array).all():
        raise ValueError("holds NaN, infinity or a magnitude beyond float32")
    data, expected = chosen.encode(array, axis), chosen.num_bytes(array.shape, axis)
    if not isinstance(data, bytes) or len(data) != expected:
        made = f"{len(data)} bytes" if isinstance(data, bytes) else f"a {type(data).__name__}"
        raise ValueError(f"takes {expected} bytes by num_bytes() of {codec}, its encode() gives {made}; mend the codec")
    return data


def encode_rows(codec: str, tensor: np.ndarray) -> list[bytes]:
    """Each row of an array as :func:`encode` has it; of codecs without scales all in one step.

    Raises:
        ValueError: As :func:`encode`.
    """
    if not isinstance(get_codec(codec), Float):
        return [encode(codec, row) for row in tensor]
    data, size = encode(codec, tensor), num_bytes(codec, tensor.shape[1:])
    return [data[size * row : size * (row + 1)] for row in range(len(tensor))]


def decode(codec: str, data: bytes, shape: Shape, axis: int | None = None) -> np.ndarray:
    """Inverse of :func:`encode`, for bytes that nobody has checked: a float32 array of this shape.

    Raises:
        LinkError: If there are not as many bytes as there must be, they are none that the codec makes, or a value
            decodes to NaN or infinity.
        ValueError: If the codec is unknown.
    """
    chosen = get_codec(codec)
    expected = chosen.num_bytes(shape, axis)
    if len(data) != expected:
        raise LinkError(f"has {len(data)} bytes, {list(shape)} in {codec} takes {expected}")
    array = chosen.decode(data, shape, axis)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != tuple(shape):
        made = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise LinkError(f"decodes to {made}, float32 {list(shape)} is needed; mend decode() of the codec {codec}")
    if not np.isfinite(array).all():
        raise ImplausibleError("holds NaN or infinity")
    return array
