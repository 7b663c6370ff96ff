"""The two messages: a device uploads anchor features, the cloud sends personal parameters down.

Layout, integers little-endian::

    offset  bytes  field
    0       4      magic ``b"MMPG"``
    4       2      protocol version, unsigned; at this place in every version
    6       2      n, length of the header, unsigned
    8       4      CRC-32 (zlib) of the header
    12      n      header: one JSON object, UTF-8, keys sorted, no white space, no escapes but those JSON requires
    12 + n         payload: a safetensors file, to the end of the message

Header, every key present and no other:

    ``kind``               ``"upload"`` or ``"download"``
    ``request_id``         UUID, 32 lower-case hexadecimal digits; a download echoes the upload's
    ``sequence``           0 .. 2^63 - 1; a device's counter, which only grows; echoed
    ``device_id``          printable text, 1 to 128 bytes of UTF-8; echoed
    ``codec``              codec of the features or parameters, see :mod:`lit_mmpg.link.codecs`
    ``context_length``     1 .. 65535, clips in the context; echoed
    ``checkpoint_digest``  SHA-256 of the checkpoint that both halves come from
    ``spec_digest``        ``ParameterSpec.digest()``
    ``payload_sha256``     SHA-256 of the payload

Payload of an upload, for C context clips with up to K anchors of H projected features each:

    ``anchors``            [C, K, H], encoded by the codec (integers: one scale per clip), padding is 0
    ``anchor_mask``        uint8 [ceil(C * K / 8)], one bit per anchor, clip by clip, most significant bit first
    ``positions``          uint8 [C, K], time of the anchor in its clip, 0 (first frame) to 255 (last)
    ``num_frames``         uint16 [C], frames of the clip that the anchors were chosen from

Payload of a download: one tensor for each entry of the ParameterSpec, under its name, encoded by the codec (integers:
one scale per index of the shortest axis, a single one for a vector).

Version 2 halved the scales, and positions went from uint16 to uint8.

Three counts that are never mixed: ``payload_bytes`` is what the encoded tensors hold (values, scales, mask, positions,
lengths), without the JSON inside safetensors; ``message_bytes`` is ``len(to_bytes())``; wire bytes, which the transport
counts, add HTTP. The digests detect damage and halves that do not belong together; they prove no origin.

Features and parameters are a reconstruction of what the paper transmits; the layout is our own.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
from safetensors import numpy as safetensors_numpy

from lit_mmpg.link import codecs
from lit_mmpg.link.errors import ImplausibleError, LinkError, VersionError
from lit_mmpg.parameters import ParameterSpec

PROTOCOL_VERSION = 2
MAGIC = b"MMPG"
DEFAULT_MAX_BYTES = 4 * 2**20
"""Larger messages are refused unread. The largest sensible download (four ``full`` layers in fp32) takes a quarter."""
DEFAULT_MAX_NORM = 1e3
"""Largest Euclidean norm of a received vector (last axis). Unit-variance features of width 128 have about 11."""

MAX_VALUES = 2 * DEFAULT_MAX_BYTES
"""Most values that a message may decode to, 32 MiB as float32: what the narrowest scalar codec (4 bits) fits into
:data:`DEFAULT_MAX_BYTES`. Codebooks would make gigabytes of as many bytes."""

_PRELUDE = struct.Struct("<4sHHI")
_MAX_HEADER_BYTES = 4096
_MAX_TENSOR_TABLE_BYTES = 2**16
_MAX_POSITION, _MAX_UINT16 = 2**8 - 1, 2**16 - 1
_HEX_32, _HEX_64 = re.compile("[0-9a-f]{32}"), re.compile("[0-9a-f]{64}")
_SIDE_TENSORS = ("anchor_mask", "positions", "num_frames")

_M = TypeVar("_M", bound="_Message")


@dataclass(frozen=True, eq=False)
class _Message:
    """What both messages share: the header's fields and the encoded tensors."""

    request_id: str
    sequence: int
    device_id: str
    codec: str
    context_length: int
    checkpoint_digest: str
    spec_digest: str
    tensors: Mapping[str, np.ndarray]

    kind: ClassVar[str]
    _side_tensors: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        _check_text("request_id", self.request_id, _HEX_32)
        _check_text("checkpoint_digest", self.checkpoint_digest, _HEX_64)
        _check_text("spec_digest", self.spec_digest, _HEX_64)
        _check_integer("sequence", self.sequence, 0, 2**63 - 1)
        _check_integer("context_length", self.context_length, 1, _MAX_UINT16)
        check_device_id(self.device_id)
        if type(self.codec) is not str:
            raise ValueError(f"codec {self.codec!r} is not text")
        empty = [name for name, tensor in self.tensors.items() if tensor.size == 0]
        if empty:
            raise ValueError(f"tensors without values: {sorted(empty)}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, _Message) and other.to_bytes() == self.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @classmethod
    def from_bytes(
        cls: type[_M], data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_norm: float = DEFAULT_MAX_NORM
    ) -> _M:
        """Parse bytes that nobody has checked.

        Raises:
            LinkError: If they are not an undamaged message of this kind and protocol version within the two limits.
        """
        message = cls.parse(data, max_bytes=max_bytes)
        message.check_values(max_norm)
        return message

    @classmethod
    def parse(cls: type[_M], data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> _M:
        """The first half of :meth:`from_bytes`: header, digest, types and shapes are checked, nothing is decoded.

        What it allocates is in proportion to the bytes. Values are to be checked by :meth:`check_values` before they
        are used.

        Raises:
            LinkError: If they are not an undamaged message of this kind and protocol version, or would decode to more
                than :data:`MAX_VALUES` values.
        """
        return _parse(cls, data, max_bytes)

    def check_values(self, max_norm: float = DEFAULT_MAX_NORM) -> None:
        """The second half of :meth:`from_bytes`: decode the values and check them.

        Raises:
            LinkError: If an encoded value is none, or a vector is not finite or longer than ``max_norm``.
        """
        for name, array in self._decoded.items():
            norm = _largest_norm(array)
            if not norm <= max_norm:
                raise ImplausibleError(
                    f"tensor {name} holds a vector of norm {norm:g}, at most {max_norm:g} is accepted"
                )

    @property
    def num_values(self) -> int:
        """Values that its encoded tensors decode to."""
        return sum(map(math.prod, self._shapes.values()))

    @property
    def _encoded(self) -> dict[str, np.ndarray]:
        return {name: tensor for name, tensor in self.tensors.items() if name not in self._side_tensors}

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return codecs.shapes(self.codec, self._encoded)

    @cached_property
    def _decoded(self) -> dict[str, np.ndarray]:
        return codecs.decode(self.codec, self._encoded)

    @property
    def payload_bytes(self) -> int:
        """Bytes of the encoded tensors alone."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def message_bytes(self) -> int:
        """Bytes of the whole message, ``len(to_bytes())``."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The message as it crosses the network."""
        payload = safetensors_numpy.save(dict(self.tensors))
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "tensors"}
        header = _header_bytes(values | {"kind": self.kind, "payload_sha256": hashlib.sha256(payload).hexdigest()})
        return _PRELUDE.pack(MAGIC, PROTOCOL_VERSION, len(header), zlib.crc32(header)) + header + payload


@dataclass(frozen=True, eq=False)
class Upload(_Message):
    """A device's recent context, from which the cloud generates its parameters. Make one with :meth:`encode`.

    Attributes:
        request_id: UUID of the request, 32 hexadecimal digits.
        sequence: The device's counter.
        device_id: Name of the device.
        codec: Codec of the anchors.
        context_length: C, number of clips.
        checkpoint_digest: SHA-256 of the checkpoint, hexadecimal.
        spec_digest: Digest of the ParameterSpec that the device expects, hexadecimal.
        tensors: Encoded tensors as the module describes them.
    """

    kind: ClassVar[str] = "upload"
    _side_tensors: ClassVar[tuple[str, ...]] = _SIDE_TENSORS

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = sorted({"anchors", *_SIDE_TENSORS} - set(self.tensors))
        if missing:
            raise ValueError(f"upload lacks the tensors {missing}")
        if set(self._shapes) != {"anchors"}:
            raise ValueError(f"upload holds unknown tensors {sorted(set(self._shapes) - {'anchors'})}")
        shape = self._shapes["anchors"]
        if len(shape) != 3 or shape[0] != self.context_length:
            raise ValueError(f"anchors have shape {shape}, expected [{self.context_length}, K, H]")
        bits = shape[0] * shape[1]
        _check_array("anchor_mask", self.tensors["anchor_mask"], "uint8", (-(-bits // 8),))
        _check_array("positions", self.tensors["positions"], "uint8", shape[:2])
        _check_array("num_frames", self.tensors["num_frames"], "uint16", shape[:1])
        if np.unpackbits(self.tensors["anchor_mask"])[bits:].any():
            raise ValueError("anchor_mask has bits beyond its last anchor")
        if not self.anchor_mask.any():
            raise ValueError("no anchor is real")
        if (self.anchor_mask.any(axis=1) & (self.num_frames == 0)).any():
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
        sequence: int,
        codec: str,
        checkpoint_digest: str,
        spec_digest: str,
        request_id: str | None = None,
    ) -> Upload:
        """Encode a context.

        Args:
            anchors: ``[C, K, H]`` floating point, projected features of the anchor frames. Padding is sent as 0.
            anchor_mask: ``[C, K]`` bool, True where an anchor is real.
            positions: ``[C, K]`` floating point, 0 (first frame of the clip) to 1 (last); sent in steps of 1/255.
            num_frames: ``[C]`` integer, frames of each clip, at most 65535.
            device_id: Name of the device.
            sequence: The device's counter.
            codec: Name of a codec.
            checkpoint_digest: SHA-256 of the checkpoint, hexadecimal.
            spec_digest: Digest of the ParameterSpec.
            request_id: UUID as 32 hexadecimal digits; a new random one by default.

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
        encoded = codecs.encode(codec, {"anchors": np.where(mask[..., None], anchors, 0)}, axis=0)
        steps = np.rint(np.where(mask, positions, 0).astype(np.float64) * _MAX_POSITION)
        encoded |= {
            "anchor_mask": np.packbits(mask),
            "positions": steps.astype(np.uint8),
            "num_frames": num_frames.astype(np.uint16),
        }
        return cls(
            request_id=uuid.uuid4().hex if request_id is None else request_id,
            sequence=sequence,
            device_id=device_id,
            codec=codec,
            context_length=int(anchors.shape[0]),
            checkpoint_digest=checkpoint_digest,
            spec_digest=spec_digest,
            tensors=encoded,
        )

    @property
    def anchor_shape(self) -> tuple[int, int, int]:
        """C, K, H: clips, anchors per clip, width of a feature."""
        clips, anchors, width = self._shapes["anchors"]
        return clips, anchors, width

    @property
    def anchors(self) -> np.ndarray:
        """``[C, K, H]`` float32 features, 0 where padded."""
        return np.where(self.anchor_mask[..., None], self._decoded["anchors"], np.float32(0))

    @cached_property
    def anchor_mask(self) -> np.ndarray:
        """``[C, K]`` bool, True where an anchor is real."""
        shape = self._shapes["anchors"][:2]
        bits = np.unpackbits(self.tensors["anchor_mask"], count=shape[0] * shape[1])
        return np.asarray(bits.reshape(shape), dtype=bool)

    @property
    def positions(self) -> np.ndarray:
        """``[C, K]`` float32, 0 (first frame of the clip) to 1 (last)."""
        steps: np.ndarray = self.tensors["positions"].astype(np.float32)
        return np.asarray(steps / np.float32(_MAX_POSITION))

    @property
    def num_frames(self) -> np.ndarray:
        """``[C]`` int64, frames of each clip."""
        return self.tensors["num_frames"].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Download(_Message):
    """One device's personal parameters. Make one with :meth:`answer`.

    Attributes:
        request_id: UUID of the request that it answers.
        sequence: Sequence of that request.
        device_id: Name of the device that the parameters are for.
        codec: Codec of the parameters.
        context_length: C, number of clips that they were generated from.
        checkpoint_digest: SHA-256 of the checkpoint, hexadecimal.
        spec_digest: Digest of the ParameterSpec, hexadecimal.
        tensors: Encoded parameters by name.
    """

    kind: ClassVar[str] = "download"

    @classmethod
    def answer(
        cls, upload: Upload, spec: ParameterSpec, parameters: Mapping[str, np.ndarray], *, codec: str
    ) -> Download:
        """Encode the parameters that answer an upload, with its identity.

        Args:
            upload: The upload.
            spec: Specification of the parameters.
            parameters: One floating-point array for each entry of ``spec``.
            codec: Name of a codec; need not be the upload's.

        Raises:
            ValueError: If the parameters do not match the specification, or that is not the one the device expects.
        """
        if spec.digest() != upload.spec_digest:
            raise ValueError("the parameters have another specification than the device expects")
        spec.validate(parameters)
        return cls(
            request_id=upload.request_id,
            sequence=upload.sequence,
            device_id=upload.device_id,
            codec=codec,
            context_length=upload.context_length,
            checkpoint_digest=upload.checkpoint_digest,
            spec_digest=upload.spec_digest,
            tensors=codecs.encode(codec, {name: parameters[name] for name in spec.names}),
        )

    def check_answers(self, upload: Upload) -> None:
        """Check that this answers ``upload`` and no other request, device, checkpoint or specification.

        Raises:
            LinkError: If it does not; the message names the field.
        """
        echoed = ("request_id", "sequence", "device_id", "context_length", "checkpoint_digest", "spec_digest")
        for name in echoed:
            if getattr(self, name) != getattr(upload, name):
                raise LinkError(f"download has {name} {getattr(self, name)!r}, asked for {getattr(upload, name)!r}")

    def parameters(self, spec: ParameterSpec) -> dict[str, np.ndarray]:
        """The parameters in the specification's order, in the types in which the device computes.

        Raises:
            LinkError: If they do not match the specification.
        """
        if self.spec_digest != spec.digest():
            raise LinkError("download was made for another parameter specification; export the bundle again")
        try:
            spec.validate(self._decoded)
            with np.errstate(over="ignore"):
                result = {entry.name: self._decoded[entry.name].astype(entry.dtype) for entry in spec}
            spec.validate(result)
        except ValueError as error:
            raise LinkError(f"download does not match the specification: {error}") from error
        return result


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


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} {value!r} is not an integer from {low} to {high}")


def _check_array(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {dtype} {shape}")


def _header_bytes(header: Mapping[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _strict_object(data: bytes, what: str) -> dict[str, Any]:
    """One JSON object whose keys do not repeat."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key repeats")
        return result

    try:
        parsed = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise LinkError(f"{what} is not strict JSON: {error}") from error
    if type(parsed) is not dict:
        raise LinkError(f"{what} is not a JSON object")
    return parsed


def _parse(cls: type[_M], data: bytes, max_bytes: int) -> _M:
    if len(data) > max_bytes:
        raise LinkError(f"message has {len(data)} bytes, at most {max_bytes} are accepted")
    if len(data) < _PRELUDE.size:
        raise LinkError(f"message ends after {len(data)} bytes")
    magic, version, header_length, checksum = _PRELUDE.unpack_from(data)
    if magic != MAGIC:
        raise LinkError("not a lit-mmpg message")
    if version != PROTOCOL_VERSION:
        remedy = "update this side" if version > PROTOCOL_VERSION else "update the sender"
        raise VersionError(f"message has protocol version {version}, this side speaks {PROTOCOL_VERSION}; {remedy}")
    payload_start = _PRELUDE.size + header_length
    if header_length > _MAX_HEADER_BYTES or payload_start > len(data):
        raise LinkError(f"header of {header_length} bytes is too long or cut off")
    header_data, payload = data[_PRELUDE.size : payload_start], data[payload_start:]
    if zlib.crc32(header_data) != checksum:
        raise LinkError("header is damaged: its checksum differs")
    values = _parse_header(cls, header_data)
    if hashlib.sha256(payload).hexdigest() != values.pop("payload_sha256"):
        raise LinkError("payload is damaged: its SHA-256 differs")
    try:
        message = cls(**values, tensors=_parse_payload(payload))
    except ValueError as error:
        raise LinkError(f"{cls.kind} is malformed: {error}") from error
    if message.num_values > MAX_VALUES:
        raise LinkError(f"{cls.kind} would decode to {message.num_values} values, at most {MAX_VALUES} are accepted")
    return message


def _parse_header(cls: type[_M], data: bytes) -> dict[str, Any]:
    header = _strict_object(data, "header")
    expected = {f.name for f in fields(cls) if f.name != "tensors"} | {"kind", "payload_sha256"}
    if set(header) != expected:
        missing, unknown = expected - set(header), set(header) - expected
        raise LinkError(f"header fields do not match: missing {sorted(missing)}, unknown {sorted(unknown)}")
    try:
        canonical = _header_bytes(header) == data
    except (ValueError, RecursionError) as error:
        raise LinkError(f"header cannot be written as UTF-8: {error}") from error
    if not canonical:
        raise LinkError("header is not in canonical form")
    kind = header.pop("kind")
    if kind != cls.kind:
        raise LinkError(f"message is of kind {kind!r}, expected {cls.kind!r}")
    return header


def _parse_payload(payload: bytes) -> dict[str, np.ndarray]:
    if len(payload) < 8:
        raise LinkError(f"payload ends after {len(payload)} bytes")
    table_length = int.from_bytes(payload[:8], "little")
    if table_length > min(_MAX_TENSOR_TABLE_BYTES, len(payload) - 8):
        raise LinkError(f"payload has a table of {table_length} bytes, which is too long or cut off")
    if "__metadata__" in _strict_object(payload[8 : 8 + table_length], "payload table"):
        raise LinkError("payload holds metadata")
    try:
        return safetensors_numpy.load(payload)
    except Exception as error:  # whatever the parser finds wrong, the bytes are at fault
        raise LinkError(f"payload is not safetensors: {error}") from error


def _largest_norm(array: np.ndarray) -> float:
    vectors = np.atleast_1d(array)
    return float(np.sqrt(np.einsum("...i,...i->...", vectors, vectors, dtype=np.float64).max()))
