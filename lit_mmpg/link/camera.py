"""The two messages about a camera: a device shows what stays in its frames, the cloud answers with gain and bias.

They are an addition of our own beside the messages of an adaptation (:mod:`lit_mmpg.link.messages`), which do not
change. A query holds a picture, so nothing sends it unless it is told to.

Layout of version 1, numbers little-endian::

    offset  bytes  field
    0       4      magic ``b"MMPC"``
    4       2      version
    6       1      n, bytes of the device id; 0 in an answer
    7       16     digest: first bytes of the SHA-256 of all other bytes of the message
    23      2, 2   height and width of the pictures
    27      2      query: frames C that it is made of
    29      n      query: device id, 1 to 128 bytes of printable UTF-8; then the pictures
    27      16     answer: digest of the query
    43      4, 4   answer: model (-1: none is recognised), version of the memory; then the pictures, if there are

Pictures are cut into 8 x 8 places, whose cosine coefficients are rounded in one step (float32, first), sorted by
frequency, written as 0, -1, 1, -2, ... of 16 bits, low bytes first, and packed by LZMA. The step is the smallest with
which they fit :data:`MOST_BYTES`; so sizes do not depend on C.
"""

from __future__ import annotations

import lzma
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from lit_mmpg.link.errors import ImplausibleError, LinkError, VersionError
from lit_mmpg.link.messages import check_device_id, digest_beside
from lit_mmpg.maps import GREY, Correction, cosines, gradients, integrate, opposed, resized, unopposed

VERSION = 1
MAGIC = b"MMPC"
SIZE = (72, 96)
"""Height and width of the pictures that devices send."""
MOST_BYTES = 3000
"""What the pictures of a message may take."""
QUERY_STEPS, ANSWER_STEPS = (1.0, 0.5, 0.5), (2.0, 4.0, 4.0, 1.0, 2.0, 2.0, 2.0)
"""Relative steps of the pictures: brightness and two colours; those of gain and of bias, and trust."""
CONTRAST = 60.0
"""Deviation at which a gain counts as much as a bias, grey levels: that of ordinary frames."""

LARGEST_VALUE = 1e5
"""Largest value of a picture; ordinary ones stay below a thousand grey levels."""
MOST_GAIN = 32.0
"""Gains that undo a camera are a quarter of that: those of frames that barely pass (:data:`lit_mmpg.maps.NOISE`)."""

SOME = 0.05
"""Trust below which gains and biases say little."""
_BLOCK = 8
_HEADER = struct.Struct("<4sHB16sHH")
_DIGEST = slice(7, 23)
_ANSWER = struct.Struct("<16siI")
_STEP = struct.Struct("<f")
_LARGEST = 512
"""Largest height and width."""
_PACKING = [{"id": lzma.FILTER_LZMA1, "dict_size": 2**16, "lc": 0, "lp": 0, "pb": 0}]
_COSINES = cosines(_BLOCK)
_ORDER = np.argsort(np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)).ravel(), kind="stable")


def encode_pictures(pictures: np.ndarray, steps: Sequence[float], most_bytes: int = MOST_BYTES) -> bytes:
    """Pictures in so many bytes.

    Args:
        pictures: ``[n, H, W]`` finite.
        steps: Relative step of each.
        most_bytes: What they may take.

    Raises:
        ValueError: If a value is not finite, or the coarsest step that makes sense does not fit.
    """
    if not np.isfinite(pictures).all():
        raise ValueError("a picture holds NaN or infinity")
    height, width = (-(-n // _BLOCK) * _BLOCK for n in pictures.shape[-2:])
    padded = np.pad(
        pictures.astype(np.float64), ((0, 0), (0, height - pictures.shape[1]), (0, width - pictures.shape[2])), "edge"
    )
    places = padded.reshape(len(padded), height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK).swapaxes(2, 3)
    spectra = _COSINES @ places @ _COSINES.T / np.reshape(steps, (-1, 1, 1, 1, 1))
    ordered = np.moveaxis(spectra.reshape(*spectra.shape[:3], -1)[..., _ORDER], -1, 1)

    def packed(step: float) -> bytes:
        exact = float(np.float32(step))
        values = np.rint(ordered / exact).astype(np.int64)
        codes = np.where(values < 0, -2 * values - 1, 2 * values).astype("<u2")
        halves = codes.view(np.uint8).reshape(*codes.shape, 2)
        planes = halves[..., 0].tobytes() + halves[..., 1].tobytes()
        return _STEP.pack(exact) + lzma.compress(planes, lzma.FORMAT_RAW, filters=_PACKING)

    # No value may leave 16 bits. A third of the deviation is near the step that most pictures need.
    finest = max(float(np.abs(ordered).max()) / 32000, 1e-3)
    low = high = max(float(ordered.std()) / 3, finest)
    found = packed(high)
    while len(found) > most_bytes:
        if high > 1e6:
            raise ValueError(f"{len(pictures)} pictures of {pictures.shape[1:]} do not fit {most_bytes} bytes")
        low, high = high, 2 * high
        found = packed(high)
    while low == high > finest:
        low = max(high / 2, finest)
        if len(tried := packed(low)) <= most_bytes:
            high, found = low, tried
    for _ in range(7 if high > low else 0):
        middle = math.sqrt(low * high)
        tried = packed(middle)
        low, high, found = (low, middle, tried) if len(tried) <= most_bytes else (middle, high, found)
    return found


def decode_pictures(data: bytes, shape: tuple[int, int, int], steps: Sequence[float]) -> np.ndarray:
    """Inverse of :func:`encode_pictures`, for bytes that nobody has checked: ``[n, H, W]`` float32.

    Raises:
        LinkError: If they are no pictures of this shape.
    """
    count, height, width = shape[0], *(-(-n // _BLOCK) for n in shape[1:])
    size = 2 * count * height * width * _BLOCK**2
    if len(data) < _STEP.size:
        raise LinkError(f"pictures end after {len(data)} bytes")
    (step,) = _STEP.unpack_from(data)
    if not 0 < step <= 1e7:
        raise ImplausibleError(f"pictures have a step of {step:g}")
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_PACKING)
    try:
        values = unpacker.decompress(data[_STEP.size :], size)
        values += unpacker.decompress(b"", 1) if not unpacker.eof and not unpacker.needs_input else b""
    except (lzma.LZMAError, EOFError) as error:
        raise LinkError(f"pictures cannot be unpacked ({error})") from error
    if len(values) != size or not unpacker.eof or unpacker.unused_data:
        raise LinkError(f"pictures are not {list(shape)}")
    codes = np.frombuffer(values, np.uint8).reshape(2, count, _BLOCK**2, height, width).astype(np.int64)
    codes = codes[0] + 256 * codes[1]
    ordered = np.where(codes % 2, -(codes + 1) // 2, codes // 2) * step
    spectra = np.empty((count, height, width, _BLOCK**2))
    spectra[..., _ORDER] = np.moveaxis(ordered, 1, -1)
    spectra = spectra.reshape(*spectra.shape[:3], _BLOCK, _BLOCK) * np.reshape(steps, (-1, 1, 1, 1, 1))
    places = (_COSINES.T @ spectra @ _COSINES).swapaxes(2, 3).reshape(count, height * _BLOCK, width * _BLOCK)
    if not abs(places).max() <= LARGEST_VALUE:
        raise ImplausibleError(f"pictures hold values above {LARGEST_VALUE:g}")
    return places[:, : shape[1], : shape[2]].astype(np.float32)


@dataclass(frozen=True)
class _Message:
    """What both messages share.

    Attributes:
        size: Height and width of the pictures.
        pictures: What :func:`encode_pictures` made.
    """

    size: tuple[int, int]
    pictures: bytes

    kind: ClassVar[str]

    @classmethod
    def _opened(cls, data: bytes) -> tuple[int, tuple[int, int], bytes]:
        """Bytes of the device id, size and what follows the header.

        Raises:
            LinkError: If it is no undamaged message of this version.
        """
        if len(data) < _HEADER.size or data[:4] != MAGIC:
            raise LinkError("not a lit-mmpg message about a camera")
        _, version, id_length, digest, height, width = _HEADER.unpack_from(data)
        if version != VERSION:
            raise VersionError(
                f"message about a camera has version {version}, this side speaks {VERSION}; upgrade lit-mmpg on the "
                f"{'device' if (version < VERSION) == (cls.kind == 'camera query') else 'cloud'}"
            )
        if digest != digest_beside(data, _DIGEST):
            raise LinkError("message is damaged or cut off: its digest differs")
        if (cls.kind == "camera query") != bool(id_length):
            raise LinkError(f"message is no {cls.kind}")
        if not (8 <= height <= _LARGEST and 8 <= width <= _LARGEST):
            raise ImplausibleError(f"pictures are {height} x {width}, expected 8 to {_LARGEST}")
        return id_length, (height, width), data[_HEADER.size :]

    def _closed(self, id_length: int, rest: bytes) -> bytes:
        data = _HEADER.pack(MAGIC, VERSION, id_length, bytes(16), *self.size) + rest
        return data[: _DIGEST.start] + digest_beside(data, _DIGEST) + data[_DIGEST.stop :]

    @property
    def payload_bytes(self) -> int:
        """Bytes of the encoded pictures alone."""
        return len(self.pictures)


@dataclass(frozen=True)
class CameraQuery(_Message):
    """What stays in the frames of a device. Make one with :meth:`encode`.

    Attributes:
        device_id: Name of the device.
        frames: Frames C that it is made of.
    """

    device_id: str
    frames: int

    kind: ClassVar[str] = "camera query"

    @classmethod
    def encode(cls, gradient: np.ndarray, frames: int, device_id: str) -> CameraQuery:
        """From the median gradients ``[2, 3, H, W]`` of so many frames (:class:`lit_mmpg.maps.PixelMaps`)."""
        check_device_id(device_id)
        size = (gradient.shape[-2], gradient.shape[-1])
        return cls(size, encode_pictures(opposed(integrate(gradient)), QUERY_STEPS), device_id, min(frames, 2**16 - 1))

    def to_bytes(self) -> bytes:
        """The message as it crosses the network."""
        return self._data

    @cached_property
    def _data(self) -> bytes:
        name = self.device_id.encode()
        return self._closed(len(name), struct.pack("<H", self.frames) + name + self.pictures)

    @property
    def digest(self) -> bytes:
        """Names the query in its answer, 16 bytes."""
        return self._data[_DIGEST]

    @classmethod
    def from_bytes(cls, data: bytes) -> CameraQuery:
        """Parse bytes that nobody has checked. The pictures are decoded by :meth:`gradient` alone.

        Raises:
            LinkError: If they are no undamaged query of this version.
        """
        id_length, size, rest = cls._opened(data)
        if len(rest) < 2 + id_length:
            raise LinkError("camera query ends too early")
        (frames,) = struct.unpack_from("<H", rest)
        try:
            device_id = rest[2 : 2 + id_length].decode()
            check_device_id(device_id)
        except ValueError as error:
            raise LinkError(f"camera query is malformed: {error}") from error
        pictures = rest[2 + id_length :]
        if not frames or len(pictures) > MOST_BYTES:
            raise ImplausibleError(f"camera query of {frames} frames with {len(pictures)} bytes of pictures")
        return cls(size, pictures, device_id, frames)

    def gradient(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """Median gradients ``[2, 3, H, W]`` as they arrived, for frames of this height and width.

        Raises:
            LinkError: If the pictures cannot be decoded.
        """
        pictures = decode_pictures(self.pictures, (3, *self.size), QUERY_STEPS)
        return gradients(resized(unopposed(pictures), size or self.size))


@dataclass(frozen=True)
class CameraAnswer(_Message):
    """What a camera is recognised as, and what undoes it. Make one with :meth:`encode`.

    Attributes:
        query: :attr:`CameraQuery.digest` of the query.
        model: Index of the model in the memory; -1: none is recognised.
        version: Version of the memory.
    """

    query: bytes
    model: int
    version: int

    kind: ClassVar[str] = "camera answer"

    @classmethod
    def encode(cls, query: CameraQuery, correction: Correction | None, model: int, version: int) -> CameraAnswer:
        """For a query; no correction: none is recognised."""
        if correction is None:
            return cls(query.size, b"", query.digest, -1, version)
        images = (correction.gain, correction.bias, correction.trust)
        gain, bias, trust = (resized(image, query.size) for image in images)
        trust = trust.mean(0, keepdims=True)
        # For each unit of trust: so edges of what is opaque stand in one picture, and not in seven.
        gain, bias = (gain + SOME) / (trust + SOME) - 1, bias / (trust + SOME)
        pictures = [opposed(CONTRAST * gain), opposed(GREY * gain + bias), CONTRAST * (trust - 1)]
        return cls(query.size, encode_pictures(np.concatenate(pictures), ANSWER_STEPS), query.digest, model, version)

    def to_bytes(self) -> bytes:
        """The message as it crosses the network."""
        return self._closed(0, _ANSWER.pack(self.query, self.model, self.version) + self.pictures)

    @classmethod
    def from_bytes(cls, data: bytes) -> CameraAnswer:
        """Parse bytes that nobody has checked.

        Raises:
            LinkError: If they are no undamaged answer of this version.
        """
        _, size, rest = cls._opened(data)
        if len(rest) < _ANSWER.size:
            raise LinkError("camera answer ends too early")
        query, model, version = _ANSWER.unpack_from(rest)
        pictures = rest[_ANSWER.size :]
        if model < -1 or (model < 0) != (not pictures) or len(pictures) > MOST_BYTES:
            raise ImplausibleError(f"camera answer of model {model} with {len(pictures)} bytes of pictures")
        return cls(size, pictures, query, model, version)

    def correction(self) -> Correction | None:
        """What undoes the camera, for frames of the query's size; ``None``: none is recognised.

        Raises:
            LinkError: If the pictures cannot be decoded, or undo no camera.
        """
        if self.model < 0:
            return None
        pictures = decode_pictures(self.pictures, (7, *self.size), ANSWER_STEPS)
        gain, level = unopposed(pictures[:3]) / CONTRAST, unopposed(pictures[3:6])
        trust = np.clip(1 + pictures[6:] / CONTRAST, 0, 1).repeat(3, 0)
        share = trust + SOME
        found = Correction((1 + gain) * share - SOME, (level - GREY * gain) * share, trust)
        if abs(found.gain).max() > MOST_GAIN or abs(found.bias).max() > 255 * MOST_GAIN:
            raise ImplausibleError("camera answer has a gain or a bias that undoes no camera")
        return found
