"""Codecs: how float arrays become the few bytes that cross the network, and float32 again.

========  ====================================================  ============================================
name      what is sent for an array ``x``                       error of one value
========  ====================================================  ============================================
``fp32``  ``x`` as float32                                      none (float32 input)
``fp16``  ``x`` as float16                                      <= 2^-11 |x|, or 2^-25 below 2^-14
``int8``  ``x`` as int8 and ``x:scale`` as uint16               <= scale / 2; scale < max |x| / 127 * (1 + 2^-8)
``int7``  ``x`` packed, ``x:scale``, ``x:length``               <= scale / 2; scale < max |x| / 63 * (1 + 2^-8)
``int6``  the same with 31 for 63                               one bit less each
``int4``  the same with 7 for 63
``pq...`` the nearest words of codebooks that both sides hold   see :mod:`lit_mmpg.link.product`
========  ====================================================  ============================================

Integers are symmetric with one scale for each index of one axis ("per channel"). The scale keeps every axis, with
length 1 where it is shared, so an encoded tensor says for itself which axis that is. A scale is a float32 without its
sign (scales have none) and its last 15 bits: two bytes, the whole range, nine significant bits, rounded up so that no
value leaves the range. Encoding what was decoded gives the same bytes again with each codec.

``int7``, ``int6`` and ``int4`` pack ``value + limit`` along the last axis, most significant bit first, into whole bytes
(uint8); ``length`` (uint16) is the size of that axis; a scalar has none. Another codec is one :func:`register` call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np

from lit_mmpg.link.errors import ImplausibleError, LinkError

PART_SEPARATOR = ":"
"""Between the name of a tensor and the name of an additional part of it; tensor names may not hold it."""

_SCALE_BITS = 9  # what a scale's two bytes hold; 127 / (1 + 2^-8) still rounds to 127: encode(decode(x)) is exact
_SCALE_SHIFT = 15  # bits of a float32 that a scale leaves out
_SMALLEST = 2.0**-100  # smaller magnitudes become zero: their scales would be subnormal


class Codec(Protocol):
    """One way to send an array.

    ``encode`` gets a finite float32 array and returns its parts by name; the main part is called ``""``. ``shape`` and
    ``decode`` get parts that nobody has checked and raise :class:`~lit_mmpg.link.errors.LinkError` for anything that
    ``encode`` cannot have made: ``shape`` looks at types, shapes and single values alone and allocates nothing of
    size, so that a receiver can refuse what would become too large; ``decode`` returns float32 in that shape.
    """

    @property
    def name(self) -> str:
        """Name in the message header."""

    def encode(self, array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
        """Parts of ``array``; ``axis`` is as in :func:`encode`. Raises ValueError for values out of range."""

    def shape(self, parts: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """Shape of the array that ``parts`` decode to."""

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Float32 array from ``parts``."""


class _Float:
    """What the floating-point codecs share."""

    name: str
    dtype: type[np.floating]

    def shape(self, parts: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """See :class:`Codec`."""
        if set(parts) != {""}:
            raise LinkError(f"has parts {sorted(parts)}, expected the values alone")
        if parts[""].dtype != self.dtype:
            raise LinkError(f"has type {parts[''].dtype}, expected {np.dtype(self.dtype)}")
        return parts[""].shape

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :class:`Codec`."""
        self.shape(parts)
        return parts[""].astype(np.float32)


class Fp32(_Float):
    """Values as they are."""

    name, dtype = "fp32", np.float32

    def encode(self, array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
        """See :class:`Codec`."""
        return {"": array.astype(np.float32)}


class Fp16(_Float):
    """Values rounded to half precision; magnitudes of 65520 and more are refused."""

    name, dtype = "fp16", np.float16

    def encode(self, array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
        """See :class:`Codec`."""
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise ValueError(f"largest magnitude {np.abs(array).max():g} does not fit fp16 (65504); use fp32 or int8")
        return {"": half}


class Int8:
    """Symmetric 8-bit integers, -127 to 127, rounded half to even, with scales along one axis."""

    name = "int8"

    def encode(self, array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
        """See :class:`Codec`."""
        values, scale = _quantise(array, axis, 127)
        return {"": values, "scale": scale}

    def shape(self, parts: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """See :class:`Codec`."""
        if set(parts) != {"", "scale"}:
            raise LinkError(f"has parts {sorted(parts)}, expected the values and their scale")
        if parts[""].dtype != np.int8:
            raise LinkError(f"has values of type {parts[''].dtype}, expected int8")
        return _scaled_shape(parts[""].shape, parts["scale"])

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :class:`Codec`."""
        self.shape(parts)
        if (parts[""] == -128).any():
            raise LinkError("holds -128, which symmetric int8 does not use")
        return _dequantise(parts[""], parts["scale"])


class PackedInt:
    """Symmetric integers of fewer than 8 bits, packed along the last axis.

    Args:
        bits: Bits of a value, 2 to 7.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.limit, self.name = bits, 2 ** (bits - 1) - 1, f"int{bits}"

    def encode(self, array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
        """See :class:`Codec`."""
        if array.ndim and array.shape[-1] > 2**16 - 1:
            raise ValueError(f"has a last axis of {array.shape[-1]} values, {self.name} takes at most 65535")
        values, scale = _quantise(array, axis, self.limit)
        codes = (np.atleast_1d(values).astype(np.int16) + self.limit).astype(np.uint8)
        bits = np.unpackbits(codes[..., None], axis=-1)[..., 8 - self.bits :]
        packed = np.packbits(bits.reshape(*codes.shape[:-1], codes.shape[-1] * self.bits), axis=-1)
        parts = {"": packed, "scale": scale}
        return parts | {"length": np.array(array.shape[-1], np.uint16)} if array.ndim else parts

    def shape(self, parts: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """See :class:`Codec`."""
        if not {"", "scale"} <= set(parts) <= {"", "scale", "length"}:
            raise LinkError(f"has parts {sorted(parts)}, expected the values, their scale and their length")
        packed, length = parts[""], parts.get("length", np.ones((), np.uint16))
        if packed.dtype != np.uint8 or length.dtype != np.uint16 or length.shape != () or not packed.ndim:
            raise LinkError(f"has values {packed.dtype} {packed.shape} and length {length.dtype} {length.shape}")
        count = int(length)
        if packed.shape[-1] != -(-count * self.bits // 8):
            raise LinkError(f"has {packed.shape[-1]} bytes for {count} values of {self.bits} bits")
        if "length" not in parts and packed.ndim > 1:
            raise LinkError("has no length")
        return _scaled_shape((*packed.shape[:-1], count) if "length" in parts else (), parts["scale"])

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """See :class:`Codec`."""
        shape, packed = self.shape(parts), parts[""]
        count = shape[-1] if shape else 1
        spare = 8 * packed.shape[-1] - self.bits * count
        if (packed[..., -1:] & (2**spare - 1)).any():
            raise LinkError("has bits beyond its last value")
        # A value lies in two neighbouring bytes at most.
        byte, offset = np.divmod(self.bits * np.arange(count), 8)
        padded = np.concatenate([packed, np.zeros((*packed.shape[:-1], 1), np.uint8)], axis=-1).astype(np.uint16)
        codes = padded[..., byte] << 8
        codes |= padded[..., byte + 1]
        codes >>= (16 - self.bits - offset).astype(np.uint16)
        codes &= 2**self.bits - 1
        if (codes > 2 * self.limit).any():
            raise LinkError(f"holds a code that symmetric {self.name} does not use")
        return _dequantise((codes.astype(np.int8) - np.int8(self.limit)).reshape(shape), parts["scale"])


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
    return values, (bits >> _SCALE_SHIFT).astype(np.uint16)


def _scaled_shape(shape: tuple[int, ...], stored: np.ndarray) -> tuple[int, ...]:
    """The shape of values with these scales, if they fit."""
    if stored.dtype != np.uint16:
        raise LinkError(f"has scales of type {stored.dtype}, expected uint16")
    ones = (1,) * len(shape)
    if stored.shape not in {ones, *((*ones[:i], n, *ones[i + 1 :]) for i, n in enumerate(shape))}:
        raise LinkError(f"has values of shape {shape} but scales of shape {stored.shape}")
    return shape


def _dequantise(values: np.ndarray, stored: np.ndarray) -> np.ndarray:
    scale = (stored.astype(np.uint32) << _SCALE_SHIFT).view(np.float32)
    if not np.isfinite(scale).all():
        raise ImplausibleError("has a scale that is NaN or infinite")
    with np.errstate(over="ignore"):
        return np.asarray(values * scale, dtype=np.float32)


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


_BUILT_IN: tuple[Codec, ...] = (Fp32(), Fp16(), Int8(), *map(PackedInt, (7, 6, 4)))
_CODECS: dict[str, Codec] = {codec.name: codec for codec in _BUILT_IN}


def register(codec: Codec) -> None:
    """Make a codec known by its name.

    Raises:
        ValueError: If the name is taken by another codec.
    """
    if _CODECS.setdefault(codec.name, codec) != codec:
        raise ValueError(f"a codec called {codec.name!r} is registered already")


def codec_names() -> tuple[str, ...]:
    """Names of the registered codecs, sorted."""
    return tuple(sorted(_CODECS))


def get_codec(name: str) -> Codec:
    """The codec of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _CODECS:
        raise ValueError(f"unknown codec {name!r}; known: {', '.join(codec_names())}")
    return _CODECS[name]


def encode(codec: str, tensors: Mapping[str, np.ndarray], axis: int | None = None) -> dict[str, np.ndarray]:
    """Encode named arrays.

    Args:
        codec: Name of a registered codec.
        tensors: Floating-point arrays of any shape; names without ``:``.
        axis: Axis whose indices have a scale each, in every array. None: for each array its shortest axis (the first of
            equals; the rank of a low-rank factor), and a single scale for vectors and scalars.

    Returns:
        Encoded arrays, contiguous and ready for safetensors: ``name``, and ``name:part`` for each additional part.

    Raises:
        ValueError: If the codec is unknown, or an array is not floating point, holds NaN or infinity, or is out of the
            codec's range.

    Example:
        >>> sent = encode("int8", {"anchor": np.linspace(-1, 1, 64, dtype=np.float32)})
        >>> {name: array.nbytes for name, array in sent.items()}
        {'anchor': 64, 'anchor:scale': 2}
        >>> received = decode("int8", sent)["anchor"]
        >>> bool(abs(received - np.linspace(-1, 1, 64)).max() < 0.01)
        True
    """
    chosen, encoded = get_codec(codec), {}
    for name, tensor in tensors.items():
        if not name or PART_SEPARATOR in name or name == "__metadata__":
            raise ValueError(f"tensor name {name!r} is empty or reserved")
        array = np.asarray(tensor)
        if array.dtype.kind != "f":
            raise ValueError(f"tensor {name} has type {array.dtype}, expected floating point")
        with np.errstate(over="ignore"):
            array = np.array(array, dtype=np.float32, order="C")
        if not np.isfinite(array).all():
            raise ValueError(f"tensor {name} holds NaN, infinity or a magnitude beyond float32")
        try:
            parts = chosen.encode(array, axis)
        except ValueError as error:
            raise ValueError(f"tensor {name}: {error}") from error
        for part, value in parts.items():
            encoded[f"{name}{PART_SEPARATOR}{part}" if part else name] = np.asarray(value, order="C")
    return encoded


def decode(codec: str, encoded: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of :func:`encode`, for arrays that nobody has checked.

    Returns:
        Float32 arrays by name, in the shapes of the originals.

    Raises:
        LinkError: If the codec is unknown, a part is missing, unknown, or of a wrong type or shape, or a value decodes
            to NaN or infinity.
    """
    decoded = {}
    for name, parts in _grouped(codec, encoded).items():
        with _naming(name, codec):
            decoded[name] = _CODECS[codec].decode(parts)
            if not np.isfinite(decoded[name]).all():
                raise ImplausibleError("holds NaN or infinity")
    return decoded


def shapes(codec: str, encoded: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """Shapes of what :func:`decode` would give, found without decoding.

    Raises:
        LinkError: If the codec is unknown, or a part is missing, unknown, or of a wrong type or shape.
    """
    found = {}
    for name, parts in _grouped(codec, encoded).items():
        with _naming(name, codec):
            found[name] = _CODECS[codec].shape(parts)
    return found


def _grouped(codec: str, encoded: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Encoded parts by tensor."""
    if codec not in _CODECS:
        raise LinkError(f"unknown codec {codec!r}; known here: {', '.join(codec_names())}")
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for key, value in encoded.items():
        name, separator, part = key.partition(PART_SEPARATOR)
        if not name or (separator and not part):
            raise LinkError(f"tensor name {key!r} is malformed")
        grouped.setdefault(name, {})[part] = value
    return grouped


@contextmanager
def _naming(name: str, codec: str) -> Iterator[None]:
    """Errors of a codec say which tensor they are about."""
    try:
        yield
    except LinkError as error:
        raise type(error)(f"tensor {name} ({codec}) {error}") from error
