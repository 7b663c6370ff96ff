"""The two messages: a device uploads anchor features, the cloud sends personal parameters down.

Layout of protocol 3, numbers little-endian and unsigned::

    offset  bytes  field
    0       4      magic ``b"MMPG"``
    4       2      protocol version; at this place in every version
    6       1      n, bytes of the device id; 0 in a download
    7       4      codec of the payload: first bytes of the SHA-256 of its name
    11      16     digest: first bytes of the SHA-256 of all other bytes of the message
    27      16     upload: model that the device holds; download: digest of the upload that it answers

An upload goes on, for C context clips with up to K anchors of H projected features each::

    43      2      C
    45      1      K
    46      2      H
    48      n      device id, 1 to 128 bytes of printable UTF-8
    48 + n         ``[C, K, H]`` anchors, encoded by the codec (integers: one scale per clip), padding is 0
                   anchor mask, ceil(C * K / 8) bytes: one bit per anchor, clip by clip, most significant bit first
                   ``[C, K]`` time of each anchor in its clip, a byte each, 0 (first frame) to 255 (last)
                   ``[C]`` frames of each clip that its anchors were chosen from, two bytes each

and a download::

    43             each entry of the ParameterSpec in its order, encoded by the codec (integers: one scale per index of
                   the shortest axis, a single one for a vector)

Nothing else is sent, and nothing is agreed beforehand, so any replica can answer any message. Sizes are known before
anything is decoded: those of an upload from its header, those of a download from the specification that the device
holds. ``model`` stands for checkpoint and specification (:func:`model_digest`). A request needs no number: its name is
its digest, and what answers it is a function of what it says, so the answer to the same upload of before is the answer
to this one. Digests detect damage and halves or messages that do not belong together; they prove no origin.

Three counts that are never mixed: ``payload_bytes`` is what the encoded arrays take; ``message_bytes`` is
``len(to_bytes())``, 43 bytes more for a download, 48 and the device id for an upload; wire bytes, which the transport
counts, add HTTP.

Features and parameters are a reconstruction of what the paper transmits; the layout is our own.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeVar

import numpy as np

from lit_mmpg.link import codecs
from lit_mmpg.link.errors import ImplausibleError, LinkError, VersionError
from lit_mmpg.parameters import ParameterSpec

PROTOCOL_VERSION = 3
MAGIC = b"MMPG"
DEFAULT_MAX_BYTES = 4 * 2**20
"""Larger messages are refused unread. The largest sensible download (four ``full`` layers in fp32) takes a quarter."""
DEFAULT_MAX_NORM = 1e3
"""Largest Euclidean norm of a received vector (last axis). Unit-variance features of width 128 have about 11."""

MAX_VALUES = 2 * DEFAULT_MAX_BYTES
"""Most values that an upload may decode to, 32 MiB as float32: what the narrowest scalar codec (4 bits) fits into
:data:`DEFAULT_MAX_BYTES`. Codebooks would make gigabytes of as many bytes."""

MAX_ANCHORS = 2**8 - 1
"""Most anchors of a clip."""

_VERSION = struct.Struct("<4sH")
_HEADER = struct.Struct("<4sHB4s16s16s")
_SHAPE = struct.Struct("<HBH")
_DIGEST = slice(11, 27)
_MAX_POSITION, _MAX_UINT16 = 2**8 - 1, 2**16 - 1
_HEX_32, _HEX_64 = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{64}")

_M = TypeVar("_M", bound="_Message")


@dataclass(frozen=True, eq=False)
class _Message:
    """What both messages share."""

    codec: str
    payload: bytes

    kind: ClassVar[str]
    sender: ClassVar[str]
    receiver: ClassVar[str]

    def __post_init__(self) -> None:
        codecs.get_codec(self.codec)
        if type(self.payload) is not bytes:
            raise ValueError(f"payload is {type(self.payload).__name__}, expected bytes")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, _Message) and other.to_bytes() == self.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @classmethod
    def parse(cls: type[_M], data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> _M:
        """Parse bytes that nobody has checked, and decode none of the values.

        Raises:
            LinkError: If they are not an undamaged message of this kind and protocol version within the limits.
        """
        if len(data) > max_bytes:
            raise LinkError(f"message has {len(data)} bytes, at most {max_bytes} are accepted")
        if len(data) < _VERSION.size:
            raise LinkError(f"message ends after {len(data)} bytes")
        magic, version = _VERSION.unpack_from(data)
        if magic != MAGIC:
            raise LinkError("not a lit-mmpg message")
        if version != PROTOCOL_VERSION:
            older = cls.sender if version < PROTOCOL_VERSION else cls.receiver
            raise VersionError(
                f"message has protocol version {version}, this side speaks {PROTOCOL_VERSION}; "
                f"upgrade lit-mmpg on {older}"
            )
        if len(data) < _HEADER.size:
            raise LinkError(f"message ends after {len(data)} bytes")
        _, _, id_length, codec, digest, other = _HEADER.unpack_from(data)
        if digest != digest_beside(data, _DIGEST):
            raise LinkError("message is damaged or cut off: its digest differs")
        kind = Upload.kind if id_length else Download.kind
        if kind != cls.kind:
            raise LinkError(f"message is of kind {kind!r}, expected {cls.kind!r}")
        try:
            message = cls._read(data, id_length, codecs.codec_of(codec), other.hex())
        except ValueError as error:
            raise LinkError(f"{cls.kind} is malformed: {error}") from error
        message.__dict__["_data"] = bytes(data)
        return message

    @classmethod
    def _read(cls: type[_M], data: bytes, id_length: int, codec: str, other: str) -> _M:
        raise NotImplementedError

    def _head(self) -> tuple[bytes, bytes, bytes]:
        """The device id, what stands at offset 27, and what stands between that and the device id."""
        raise NotImplementedError

    @cached_property
    def _data(self) -> bytes:
        device_id, other, shape = self._head()
        parts = [MAGIC, PROTOCOL_VERSION, len(device_id), codecs.codec_id(self.codec), bytes(16), other]
        data = _HEADER.pack(*parts) + shape + device_id + self.payload
        return data[: _DIGEST.start] + digest_beside(data, _DIGEST) + data[_DIGEST.stop :]

    @property
    def digest(self) -> str:
        """First 16 bytes of the SHA-256 of the message, hexadecimal."""
        return self._data[_DIGEST].hex()

    @property
    def payload_bytes(self) -> int:
        """Bytes of the encoded arrays alone."""
        return len(self.payload)

    @property
    def message_bytes(self) -> int:
        """Bytes of the whole message, ``len(to_bytes())``."""
        return len(self._data)

    def to_bytes(self) -> bytes:
        """The message as it crosses the network."""
        return self._data


@dataclass(frozen=True, eq=False)
class Upload(_Message):
    """Context of a device, from which the cloud half generates its parameters. Create it with :meth:`encode`.

    Attributes:
        codec: Codec of the anchors.
        payload: Encoded arrays, in the layout that the module documents.
        model: Digest of the device's model, see :func:`model_digest`.
        device_id: Id of the device.
        anchor_shape: C, K, H: clips, anchors per clip, width of a feature.
    """

    model: str
    device_id: str
    anchor_shape: tuple[int, int, int]

    kind: ClassVar[str] = "upload"
    sender: ClassVar[str] = "the device"
    receiver: ClassVar[str] = "the cloud"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text("model", self.model, _HEX_32)
        check_device_id(self.device_id)
        sizes = zip("CKH", self.anchor_shape, (_MAX_UINT16, MAX_ANCHORS, _MAX_UINT16), strict=True)
        for name, size, most in sizes:
            if type(size) is not int or not 1 <= size <= most:
                raise ValueError(f"anchors have {name} = {size!r}, expected an integer from 1 to {most}")
        values = math.prod(self.anchor_shape)
        if values > MAX_VALUES:
            raise ValueError(f"anchors would decode to {values} values, at most {MAX_VALUES} are accepted")
        clips, count, _ = self.anchor_shape
        bits, length = clips * count, self._parts[0]
        expected = length + -(-bits // 8) + bits + 2 * clips
        if len(self.payload) != expected:
            shape = list(self.anchor_shape)
            raise ValueError(f"payload has {len(self.payload)} bytes, anchors {shape} in {self.codec} take {expected}")
        mask = self.payload[length : self._parts[1]]
        if mask[-1] & (2 ** (-bits % 8) - 1):
            raise ValueError("anchor_mask has bits beyond its last anchor")
        if not any(mask):
            raise ValueError("no anchor is real")
        if not self.num_frames.all() and (self.anchor_mask.any(axis=1) & (self.num_frames == 0)).any():
            raise ValueError("a clip with anchors has no frames")

    @classmethod
    def encode(
        cls,
        *,
        anchors: np.ndarray,
        anchor_mask: np.ndarray,
        positions: np.ndarray,
        num_frames: np.ndarray,
        device_id: str,
        codec: str,
        checkpoint_digest: str,
        spec_digest: str,
    ) -> Upload:
        """Encode a context.

        Args:
            anchors: ``[C, K, H]`` floating point, projected features of the anchor frames. Padding is sent as 0.
            anchor_mask: ``[C, K]`` bool, True where an anchor is real.
            positions: ``[C, K]`` floating point, 0 (first frame of the clip) to 1 (last); sent in steps of 1/255.
            num_frames: ``[C]`` integer, frames of each clip, at most 65535.
            device_id: Name of the device.
            codec: Name of a codec.
            checkpoint_digest: SHA-256 of the checkpoint, hexadecimal.
            spec_digest: Digest of the ParameterSpec that the device expects, hexadecimal.

        Raises:
            ValueError: If an argument has a wrong shape, type or range, or a real anchor holds NaN or infinity.
        """
        anchors, positions, num_frames = np.asarray(anchors), np.asarray(positions), np.asarray(num_frames)
        mask = np.asarray(anchor_mask)
        if anchors.ndim != 3 or 0 in anchors.shape:
            raise ValueError(f"anchors have shape {anchors.shape}, expected [C, K, H] without an empty axis")
        _check_array("anchor_mask", mask, "bool", anchors.shape[:2])
        if positions.shape != mask.shape or positions.dtype.kind != "f":
            raise ValueError(f"positions are {positions.dtype} {positions.shape}, expected floating point {mask.shape}")
        if not ((positions >= 0) & (positions <= 1))[mask].all():
            raise ValueError("positions are outside 0 to 1")
        if num_frames.shape != mask.shape[:1] or num_frames.dtype.kind not in "iu":
            raise ValueError(
                f"num_frames are {num_frames.dtype} {num_frames.shape}, expected integers {mask.shape[:1]}"
            )
        if ((num_frames < 0) | (num_frames > _MAX_UINT16)).any():
            raise ValueError(f"num_frames are outside 0 to {_MAX_UINT16}")
        # Whatever lies in the padding must neither widen a scale nor be seen by the cloud.
        try:
            encoded = codecs.encode(codec, np.where(mask[..., None], anchors, 0), axis=0)
        except ValueError as error:
            raise ValueError(f"anchors: {error}") from error
        steps = np.rint(np.where(mask, positions, 0).astype(np.float64) * _MAX_POSITION)
        parts = (
            encoded,
            np.packbits(mask).tobytes(),
            steps.astype(np.uint8).tobytes(),
            num_frames.astype("<u2").tobytes(),
        )
        clips, count, width = map(int, anchors.shape)
        return cls(
            codec, b"".join(parts), model_digest(checkpoint_digest, spec_digest), device_id, (clips, count, width)
        )

    @classmethod
    def from_bytes(
        cls, data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_norm: float = DEFAULT_MAX_NORM
    ) -> Upload:
        """Parse untrusted bytes and check the values.

        Raises:
            LinkError: If they are not a complete upload of this protocol version within the two limits.
        """
        message = cls.parse(data, max_bytes=max_bytes)
        message.check_values(max_norm)
        return message

    @classmethod
    def _read(cls, data: bytes, id_length: int, codec: str, other: str) -> Upload:
        start = _HEADER.size + _SHAPE.size
        end = start + id_length
        if len(data) < end:
            raise ValueError(f"it ends after {len(data)} bytes")
        clips, count, width = _SHAPE.unpack_from(data, _HEADER.size)
        return cls(codec, bytes(data[end:]), other, data[start:end].decode(), (clips, count, width))

    def _head(self) -> tuple[bytes, bytes, bytes]:
        return self.device_id.encode(), bytes.fromhex(self.model), _SHAPE.pack(*self.anchor_shape)

    def check_values(self, max_norm: float = DEFAULT_MAX_NORM) -> None:
        """Decode the values and check them.

        Raises:
            LinkError: If a value cannot be decoded, or an anchor is not finite or longer than ``max_norm``.
        """
        _check_norm("anchors", self._anchors, max_norm)

    @property
    def num_values(self) -> int:
        """Number of values of the decoded anchors."""
        return math.prod(self.anchor_shape)

    @property
    def request_id(self) -> str:
        """Id of the request: digest of the upload, 32 hexadecimal digits."""
        return self.digest

    @cached_property
    def _parts(self) -> tuple[int, int, int]:
        """Where anchor mask, times and lengths begin in the payload."""
        clips, count, _ = self.anchor_shape
        try:
            mask = codecs.num_bytes(self.codec, self.anchor_shape, axis=0)
        except LinkError as error:
            raise ValueError(f"anchors: {error}") from error
        times = mask - (-clips * count // 8)
        return mask, times, times + clips * count

    @cached_property
    def _anchors(self) -> np.ndarray:
        with _naming(f"anchors ({self.codec})"):
            return codecs.decode(self.codec, self.payload[: self._parts[0]], self.anchor_shape, axis=0)

    @property
    def anchors(self) -> np.ndarray:
        """``[C, K, H]`` float32 features, 0 where padded."""
        return np.where(self.anchor_mask[..., None], self._anchors, np.float32(0))

    @cached_property
    def anchor_mask(self) -> np.ndarray:
        """``[C, K]`` bool, True where an anchor is real."""
        clips, count, _ = self.anchor_shape
        bits = np.unpackbits(np.frombuffer(self.payload, np.uint8, offset=self._parts[0]), count=clips * count)
        return np.asarray(bits.reshape(clips, count), dtype=bool)

    @property
    def positions(self) -> np.ndarray:
        """``[C, K]`` float32, 0 (first frame of the clip) to 1 (last)."""
        clips, count, _ = self.anchor_shape
        steps = np.frombuffer(self.payload, np.uint8, clips * count, self._parts[1]).astype(np.float32)
        return np.asarray(steps.reshape(clips, count) / np.float32(_MAX_POSITION))

    @cached_property
    def num_frames(self) -> np.ndarray:
        """``[C]`` int64, frames of each clip."""
        return np.frombuffer(self.payload, "<u2", offset=self._parts[2]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Download(_Message):
    """Personal parameters of one device. Create it with :meth:`answer`.

    Attributes:
        codec: Codec of the parameters.
        payload: Encoded parameters in the order of the specification.
        request_id: :attr:`Upload.request_id` of the upload that it answers.
    """

    request_id: str

    kind: ClassVar[str] = "download"
    sender: ClassVar[str] = "the cloud"
    receiver: ClassVar[str] = "the device"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text("request_id", self.request_id, _HEX_32)

    @classmethod
    def answer(
        cls, upload: Upload, spec: ParameterSpec, parameters: Mapping[str, np.ndarray], *, codec: str
    ) -> Download:
        """Encode the parameters that answer an upload.

        Args:
            upload: The upload.
            spec: Specification of the parameters; must be the one that the device expects (:attr:`Upload.model`).
            parameters: One floating-point array for each entry of ``spec``.
            codec: Name of a codec; need not be the upload's.

        Raises:
            ValueError: If the parameters do not match the specification.
        """
        return cls.answer_all([upload], spec, {n: np.asarray(a)[None] for n, a in parameters.items()}, codec=codec)[0]

    @classmethod
    def answer_all(
        cls, uploads: Sequence[Upload], spec: ParameterSpec, parameters: Mapping[str, np.ndarray], *, codec: str
    ) -> list[Download]:
        """The same for the B uploads of a batch: one array ``[B, ...]`` for each entry of ``spec``.

        Raises:
            ValueError: If the parameters of one of them do not match the specification.
        """
        if any(len(array) != len(uploads) for array in parameters.values()):
            raise ValueError(f"there are {len(uploads)} uploads and parameters of another number of devices")
        if not uploads:
            return []
        spec.validate({name: array[0] for name, array in parameters.items()}, finite=False)  # which encoding checks
        encoded = []
        for name in spec.names:
            try:
                encoded.append(codecs.encode_rows(codec, parameters[name]))
            except ValueError as error:
                raise ValueError(f"parameter {name} {error}") from error
        payloads = map(b"".join, zip(*encoded, strict=True) if encoded else ((),) * len(uploads))
        return [cls(codec, data, upload.request_id) for upload, data in zip(uploads, payloads, strict=True)]

    @classmethod
    def _read(cls, data: bytes, id_length: int, codec: str, other: str) -> Download:
        return cls(codec, bytes(data[_HEADER.size :]), other)

    def _head(self) -> tuple[bytes, bytes, bytes]:
        return b"", bytes.fromhex(self.request_id), b""

    def check_answers(self, upload: Upload) -> None:
        """Check that this belongs to ``upload``, whose digest covers device, checkpoint, specification and context.

        Raises:
            LinkError: If it does not.
        """
        if self.request_id != upload.request_id:
            raise LinkError(f"download answers the request {self.request_id}, asked was {upload.request_id}")

    def parameters(self, spec: ParameterSpec, max_norm: float = DEFAULT_MAX_NORM) -> dict[str, np.ndarray]:
        """The parameters in the specification's order, in the types in which the device computes.

        Raises:
            LinkError: If they do not match the specification, an encoded value is none, or a vector (last axis) is not
                finite or longer than ``max_norm``.
        """
        sizes = [codecs.num_bytes(self.codec, entry.shape) for entry in spec]
        if len(self.payload) != sum(sizes):
            raise LinkError(
                f"download does not match the specification: {len(self.payload)} bytes, which takes {sum(sizes)} in "
                f"{self.codec}"
            )
        result, start = {}, 0
        for entry, size in zip(spec, sizes, strict=True):
            with _naming(f"parameter {entry.name} ({self.codec})"):
                exact = codecs.decode(self.codec, self.payload[start : start + size], entry.shape)
            _check_norm(entry.name, exact, max_norm)
            with np.errstate(over="ignore"):
                result[entry.name] = exact.astype(entry.dtype)
            start += size
        try:
            spec.validate(result)
        except ValueError as error:
            raise LinkError(f"download does not match the specification: {error}") from error
        return result


def model_digest(checkpoint_digest: str, spec_digest: str) -> str:
    """What stands for a device's half in messages: 32 hexadecimal digits of a SHA-256 over two of these.

    Args:
        checkpoint_digest: SHA-256 of the checkpoint that both halves come from, hexadecimal.
        spec_digest: ``ParameterSpec.digest()`` of what the device takes.

    Raises:
        ValueError: If one is none.
    """
    _check_text("checkpoint_digest", checkpoint_digest, _HEX_64)
    _check_text("spec_digest", spec_digest, _HEX_64)
    return hashlib.sha256(bytes.fromhex(checkpoint_digest + spec_digest)).hexdigest()[:32]


def check_device_id(value: object) -> None:
    """Check a name that a device gives itself.

    Raises:
        ValueError: If it is no printable text of 1 to 128 bytes of UTF-8.
    """
    if type(value) is not str or not value.isprintable():
        raise ValueError(f"device_id {value!r} is not printable text")
    if not 1 <= len(value.encode()) <= 128:
        raise ValueError(f"device_id has {len(value.encode())} bytes, expected 1 to 128")


def _check_text(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if type(value) is not str or not pattern.fullmatch(value):
        raise ValueError(f"{name} {value!r} does not match {pattern.pattern}")


def _check_array(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {dtype} {shape}")


def _check_norm(name: str, array: np.ndarray, most: float) -> None:
    if not array.size:
        return
    vectors = np.atleast_1d(array)
    norm = float(np.sqrt(np.einsum("...i,...i->...", vectors, vectors, dtype=np.float64).max()))
    if not norm <= most:
        raise ImplausibleError(f"{name} holds a vector of norm {norm:g}, at most {most:g} is accepted")


def digest_beside(data: bytes, place: slice) -> bytes:
    """First 16 bytes of the SHA-256 of a message without those at the place of its digest."""
    total = hashlib.sha256(data[: place.start])
    total.update(memoryview(data)[place.stop :])
    return total.digest()[:16]


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Errors of a codec say which array they are about."""
    try:
        yield
    except LinkError as error:
        raise type(error)(f"{what} {error}") from error
