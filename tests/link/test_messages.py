"""Messages: round trips, the documented layout, byte counts, and what a receiver refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
import uuid
import zlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_mmpg.link import PROTOCOL_VERSION, Download, LinkError, Upload
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

SPEC = ParameterSpec((ParameterEntry("projection.u", (6, 2)), ParameterEntry("projection.c", (6,))))
CODECS = ("fp32", "fp16", "int8", "int7", "int6", "int4")
BOUND = {"fp32": 1e-7, "fp16": 2.0**-11, "int8": 1 / 253, "int7": 1 / 125, "int6": 1 / 61, "int4": 1 / 13}
"""Largest error of a value over the largest magnitude that shares its scale."""
IDENTITY = {
    "device_id": "kitchen robot 3",
    "sequence": 41,
    "checkpoint_digest": hashlib.sha256(b"checkpoint").hexdigest(),
    "spec_digest": SPEC.digest(),
}


def context(clips=3, anchors=2, width=5, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.random((clips, anchors)) < 0.7
    mask[0, 0] = True
    return {
        "anchors": rng.normal(size=(clips, anchors, width)),
        "anchor_mask": mask,
        "positions": rng.random((clips, anchors)),
        "num_frames": rng.integers(1, 300, clips),
    }


def make_upload(codec="int8", **changes) -> Upload:
    return Upload.encode(**(context() | IDENTITY | {"codec": codec} | changes))


def make_parameters(seed=1):
    rng = np.random.default_rng(seed)
    return {entry.name: rng.normal(size=entry.shape).astype(np.float32) for entry in SPEC}


def make_download(codec="int8") -> Download:
    return Download.answer(make_upload(), SPEC, make_parameters(), codec=codec)


def assemble(header: bytes, payload: bytes, magic=b"MMPG", version=PROTOCOL_VERSION) -> bytes:
    return struct.pack("<4sHHI", magic, version, len(header), zlib.crc32(header)) + header + payload


def split(message: bytes) -> tuple[dict, bytes]:
    """Independent reading of the documented layout."""
    magic, version, header_length, checksum = struct.unpack("<4sHHI", message[:12])
    assert (magic, version) == (b"MMPG", 2)
    header, payload = message[12 : 12 + header_length], message[12 + header_length :]
    assert checksum == zlib.crc32(header)
    return json.loads(header.decode("utf-8")), payload


def forge(message: bytes, payload: bytes | None = None, **changes) -> bytes:
    """The message with other header fields (or None to drop one) and payload, its checksums made right again."""
    header, old_payload = split(message)
    payload = old_payload if payload is None else payload
    header = {
        k: v
        for k, v in (header | {"payload_sha256": hashlib.sha256(payload).hexdigest()} | changes).items()
        if v is not None
    }
    return assemble(json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(), payload)


def forge_tensors(message: bytes, **changes) -> bytes:
    """The message with other tensors (or None to drop one), its checksums made right again."""
    tensors = safetensors.numpy.load(split(message)[1]) | changes
    return forge(message, safetensors.numpy.save({k: v for k, v in tensors.items() if v is not None}))


@pytest.mark.parametrize("codec", CODECS)
def test_upload_round_trip(codec):
    source = context()
    sent = make_upload(codec)
    received = Upload.from_bytes(sent.to_bytes())
    assert received == sent
    assert hash(received) == hash(sent)
    for field in ("request_id", "sequence", "device_id", "codec", "context_length", "checkpoint_digest", "spec_digest"):
        assert getattr(received, field) == getattr(sent, field)
    assert received.context_length == 3
    mask = source["anchor_mask"]
    np.testing.assert_array_equal(received.anchor_mask, mask)
    np.testing.assert_array_equal(received.num_frames, source["num_frames"])
    np.testing.assert_allclose(received.positions, np.where(mask, source["positions"], 0), atol=1 / 510 + 1e-7)
    expected = np.where(mask[..., None], source["anchors"], 0)
    per_clip = np.abs(expected).max(axis=(1, 2), keepdims=True)
    assert (np.abs(received.anchors - expected) <= BOUND[codec] * per_clip + 1e-12).all()
    assert received.anchors.dtype == received.positions.dtype == np.float32


@given(
    clips=st.integers(1, 20),
    anchors=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shape_survives(clips, anchors, width, seed, data):
    source = context(clips, anchors, width, seed)
    sent = make_upload(data.draw(st.sampled_from(CODECS)), **source)
    received = Upload.from_bytes(sent.to_bytes())
    assert received == sent
    assert received.anchors.shape == (clips, anchors, width)
    np.testing.assert_array_equal(received.anchor_mask, source["anchor_mask"])
    np.testing.assert_array_equal(received.anchors, sent.anchors)


@pytest.mark.parametrize("codec", CODECS)
def test_download_round_trip(codec):
    upload, parameters = make_upload(), make_parameters()
    sent = Download.answer(upload, SPEC, parameters, codec=codec)
    received = Download.from_bytes(sent.to_bytes())
    assert received == sent
    received.check_answers(upload)
    result = received.parameters(SPEC)
    assert tuple(result) == SPEC.names
    for name, array in result.items():
        assert array.dtype == np.float32
        assert np.abs(array - parameters[name]).max() <= BOUND[codec] * np.abs(parameters[name]).max()


def test_download_of_a_specification_without_entries():
    spec = ParameterSpec(())
    upload = make_upload(spec_digest=spec.digest())
    received = Download.from_bytes(Download.answer(upload, spec, {}, codec="int8").to_bytes())
    assert received.parameters(spec) == {}
    assert received.payload_bytes == 0


def test_padding_is_neither_sent_nor_widens_a_scale():
    source = context()
    mask = np.array([[True, False], [True, True], [False, False]])
    polluted, clean = source["anchors"].copy(), np.where(mask[..., None], source["anchors"], 0)
    polluted[~mask] = np.nan
    positions = np.where(mask, source["positions"], np.nan)
    shared = {"anchor_mask": mask, "request_id": uuid.uuid4().hex}
    upload = make_upload(anchors=polluted, positions=positions, **shared)
    assert upload == make_upload(anchors=clean, positions=np.where(mask, positions, 0), **shared)
    assert not upload.anchors[~mask].any()


@pytest.mark.parametrize("make", [make_upload, make_download])
@pytest.mark.parametrize("codec", CODECS[:3])
def test_layout_as_documented(make, codec):
    message = make(codec)
    header, payload = split(message.to_bytes())
    assert header == {
        "kind": "upload" if make is make_upload else "download",
        "request_id": message.request_id,
        "sequence": 41,
        "device_id": "kitchen robot 3",
        "codec": codec,
        "context_length": 3,
        "checkpoint_digest": IDENTITY["checkpoint_digest"],
        "spec_digest": SPEC.digest(),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    tensors = safetensors.numpy.load(payload)
    stored = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}[codec]
    if make is make_upload:
        source = context()
        mask = source["anchor_mask"]
        bits = [int(b) for byte in tensors.pop("anchor_mask") for b in f"{byte:08b}"]
        assert bits[:6] == mask.ravel().astype(int).tolist()
        assert bits[6:] == [0, 0]
        positions = tensors.pop("positions")
        assert positions.dtype == np.uint8
        np.testing.assert_array_equal(positions, np.where(mask, np.rint(source["positions"] * 255), 0))
        lengths = tensors.pop("num_frames")
        assert lengths.dtype == np.uint16
        np.testing.assert_array_equal(lengths, source["num_frames"])
        originals = {"anchors": (np.where(mask[..., None], source["anchors"], 0), (3, 1, 1))}
    else:
        parameters = make_parameters()
        originals = {
            "projection.u": (parameters["projection.u"], (1, 2)),
            "projection.c": (parameters["projection.c"], (1,)),
        }
    for name, (original, scale_shape) in originals.items():
        values = tensors.pop(name)
        assert values.dtype == stored
        assert values.shape == original.shape
        scale = tensors.pop(f"{name}:scale") if codec == "int8" else np.float32(1)
        if codec == "int8":
            assert (scale.dtype, scale.shape) == (np.uint16, scale_shape)
            scale = (scale.astype(np.uint32) << 15).view(np.float32)
        np.testing.assert_allclose(
            values * scale, original, atol={"fp32": 0, "fp16": 2e-3, "int8": 0.02}[codec], rtol=1e-6
        )
    assert not tensors


@pytest.mark.parametrize("make", [make_upload, make_download])
@pytest.mark.parametrize("codec", CODECS)
def test_byte_counts(make, codec):
    message = make(codec)
    data = message.to_bytes()
    assert message.message_bytes == len(data) == type(message).from_bytes(data).message_bytes
    tensors = safetensors.numpy.load(split(data)[1])
    assert message.payload_bytes == sum(array.size * array.dtype.itemsize for array in tensors.values())
    assert message.payload_bytes < message.message_bytes


def test_sizes_that_the_design_counts_on():
    upload = make_upload(**context(clips=16, anchors=1, width=128))
    side = 16 * 2 + 2 + 16 + 16 * 2  # scales, mask, positions, lengths
    assert upload.payload_bytes == 16 * 128 + side
    assert upload.message_bytes < upload.payload_bytes + 900
    seven = make_upload("int7", **context(clips=16, anchors=1, width=128))
    assert seven.payload_bytes == 16 * 112 + side + 2 <= 2048
    entries = {"p.u": (256, 4), "p.v": (1280, 4), "p.c": (256,)}
    spec = ParameterSpec(tuple(ParameterEntry(*item) for item in entries.items()))
    parameters = {name: np.ones(shape, np.float32) for name, shape in entries.items()}
    download = Download.answer(make_upload(spec_digest=spec.digest()), spec, parameters, codec="int8")
    assert download.payload_bytes == 1024 + 5120 + 256 + 2 * (4 + 4 + 1)
    assert download.message_bytes < 8192


def test_request_ids_are_fresh_uuids():
    first, second = make_upload(), make_upload()
    assert first.request_id != second.request_id
    assert uuid.UUID(hex=first.request_id).version == 4
    assert first != second


def test_messages_are_frozen_and_of_different_kinds():
    upload, download = make_upload(), make_download()
    with pytest.raises(dataclasses.FrozenInstanceError):
        upload.sequence = 2
    assert upload != download
    with pytest.raises(LinkError, match="kind 'upload', expected 'download'"):
        Download.from_bytes(upload.to_bytes())
    with pytest.raises(LinkError, match="kind 'download', expected 'upload'"):
        Upload.from_bytes(download.to_bytes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchors": np.zeros((3, 2))}, "anchors have shape"),
        ({"anchors": np.zeros((3, 2, 0))}, "without an empty axis"),
        ({"anchors": np.zeros((3, 2, 5), int)}, "floating point"),
        ({"anchors": np.full((3, 2, 5), np.nan)}, "holds NaN"),
        ({"anchor_mask": np.ones((3, 2))}, "anchor_mask is float64"),
        ({"anchor_mask": np.ones((3, 1), bool)}, "anchor_mask is bool"),
        ({"anchor_mask": np.zeros((3, 2), bool)}, "no anchor is real"),
        ({"positions": np.zeros((3, 1))}, "positions are"),
        ({"positions": np.zeros((3, 2), int)}, "positions are int64"),
        ({"positions": np.full((3, 2), 1.01)}, "outside 0 to 1"),
        ({"positions": np.full((3, 2), np.nan)}, "outside 0 to 1"),
        ({"num_frames": np.ones(3)}, "num_frames are float64"),
        ({"num_frames": np.ones(2, int)}, "num_frames are"),
        ({"num_frames": np.full(3, 65536)}, "outside 0 to 65535"),
        ({"num_frames": np.full(3, -1)}, "outside 0 to 65535"),
        ({"num_frames": np.zeros(3, int)}, "no frames"),
        ({"codec": "zip"}, "unknown codec"),
        ({"device_id": ""}, "device_id"),
        ({"device_id": "a\nb"}, "not printable"),
        ({"device_id": "\ud800"}, "not printable"),
        ({"device_id": "é" * 65}, "130 bytes"),
        ({"device_id": 7}, "not printable"),
        ({"sequence": -1}, "sequence -1"),
        ({"sequence": 2**63}, "sequence"),
        ({"sequence": 1.0}, "sequence 1.0"),
        ({"sequence": True}, "sequence True"),
        ({"request_id": "abc"}, "request_id"),
        ({"request_id": str(uuid.uuid4())}, "request_id"),
        ({"checkpoint_digest": "A" * 64}, "checkpoint_digest"),
        ({"spec_digest": "a" * 63}, "spec_digest"),
    ],
)
def test_encode_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make_upload(**changes)


def test_device_ids_may_be_any_printable_text():
    name = "Küche 厨房 \"3\" \\ 'x'"
    assert Upload.from_bytes(make_upload(device_id=name).to_bytes()).device_id == name


def test_answer_refuses_parameters_of_another_specification():
    other = ParameterSpec((ParameterEntry("projection.c", (6,)),))
    with pytest.raises(ValueError, match="another specification"):
        Download.answer(make_upload(), other, {"projection.c": np.zeros(6)}, codec="fp32")
    with pytest.raises(ValueError, match=r"missing \['projection.u'\]"):
        Download.answer(make_upload(), SPEC, {"projection.c": np.zeros(6)}, codec="fp32")
    with pytest.raises(ValueError, match="NaN"):
        Download.answer(make_upload(), SPEC, make_parameters() | {"projection.c": np.full(6, np.nan)}, codec="fp32")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", "0" * 32),
        ("sequence", 40),
        ("device_id", "kitchen robot 4"),
        ("context_length", 2),
        ("checkpoint_digest", "0" * 64),
        ("spec_digest", "0" * 64),
    ],
)
def test_an_answer_to_something_else_is_noticed(field, value):
    upload = make_upload()
    download = Download.answer(upload, SPEC, make_parameters(), codec="int8")
    foreign = Download.from_bytes(forge(download.to_bytes(), **{field: value}))
    with pytest.raises(LinkError, match=f"download has {field}"):
        foreign.check_answers(upload)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"projection.u": None}, "missing"),
        ({"extra": np.ones(2, np.float32)}, r"unknown \['extra'\]"),
        ({"projection.u": np.ones((2, 6), np.float32)}, "has shape"),
    ],
)
def test_parameters_are_checked_against_the_specification(tensors, message):
    download = Download.from_bytes(forge_tensors(make_download("fp32").to_bytes(), **tensors))
    with pytest.raises(LinkError, match=message):
        download.parameters(SPEC)


def test_parameters_need_the_same_specification():
    other = ParameterSpec(tuple(reversed(SPEC.entries)))
    with pytest.raises(LinkError, match="another parameter specification"):
        make_download().parameters(other)


def test_parameters_that_overflow_the_device_type_are_refused():
    spec = ParameterSpec((ParameterEntry("c", (2,), "float16"),))
    upload = make_upload(spec_digest=spec.digest())
    good = Download.answer(upload, spec, {"c": np.array([1.5, 2.0])}, codec="fp32").parameters(spec)
    assert good["c"].dtype == np.float16
    with pytest.raises(LinkError, match="NaN or infinity"):
        Download.answer(upload, spec, {"c": np.array([1.5, 7e4])}, codec="fp32").parameters(spec)


def test_size_limit_is_inclusive():
    data = make_upload().to_bytes()
    assert Upload.from_bytes(data, max_bytes=len(data)).to_bytes() == data
    with pytest.raises(LinkError, match=f"{len(data)} bytes, at most {len(data) - 1}"):
        Upload.from_bytes(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize("codec", CODECS)
def test_absurd_norms_are_refused(codec):
    anchors = np.zeros((3, 2, 5))
    anchors[0, 0, :2] = 300.0, 400.0
    data = make_upload(codec, anchors=anchors).to_bytes()
    assert Upload.from_bytes(data, max_norm=540).anchors.max() == pytest.approx(400, rel=1e-2)
    with pytest.raises(LinkError, match=r"tensor anchors holds a vector of norm [45]"):
        Upload.from_bytes(data, max_norm=460)
    with pytest.raises(LinkError, match="norm"):
        Upload.from_bytes(make_upload("fp32", anchors=np.full((3, 2, 5), 1e38)).to_bytes())
    with pytest.raises(LinkError, match="norm"):
        Upload.from_bytes(data, max_norm=float("nan"))


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(PROTOCOL_VERSION + 1, "update this side"), (65535, "update this side"), (0, "update the sender")],
)
def test_other_protocol_versions_are_refused_whatever_follows(version, remedy):
    for rest in (b"", b"a layout of which nothing is known here"):
        with pytest.raises(LinkError, match=f"protocol version {version}, this side speaks 2; {remedy}"):
            Upload.from_bytes(struct.pack("<4sHHI", b"MMPG", version, 0, 0) + rest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "gossip"}, "kind 'gossip'"),
        ({"kind": 3}, "kind 3"),
        ({"sequence": None}, r"missing \['sequence'\]"),
        ({"colour": "red"}, r"unknown \['colour'\]"),
        ({"sequence": "41"}, "sequence '41'"),
        ({"sequence": 41.0}, "sequence 41.0"),
        ({"sequence": True}, "sequence True"),
        ({"sequence": -1}, "sequence -1"),
        ({"sequence": 10**400}, "sequence 1"),
        ({"sequence": float("nan")}, "sequence nan"),
        ({"sequence": float("inf")}, "sequence inf"),
        ({"device_id": ["x"]}, "device_id"),
        ({"device_id": "a\tb"}, "device_id"),
        ({"codec": "zip"}, "unknown codec 'zip'"),
        ({"codec": ["int8"]}, "codec"),
        ({"codec": "fp32"}, "expected the values alone"),
        ({"context_length": 4}, "anchors have shape"),
        ({"context_length": 0}, "context_length"),
        ({"request_id": 12}, "request_id"),
        ({"request_id": "0" * 33}, "request_id"),
        ({"request_id": "0" * 32 + "\n"}, "request_id"),
        ({"checkpoint_digest": {"a": 1}}, "checkpoint_digest"),
        ({"payload_sha256": "0" * 64}, "SHA-256"),
        ({"payload_sha256": 5}, "SHA-256"),
    ],
)
def test_forged_headers_are_refused(changes, message):
    with pytest.raises(LinkError, match=message):
        Upload.from_bytes(forge(make_upload().to_bytes(), **changes))


def header_and_payload() -> tuple[bytes, bytes]:
    data = make_upload().to_bytes()
    length = struct.unpack_from("<H", data, 6)[0]
    return data[12 : 12 + length], data[12 + length :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.replace(b'"sequence":41', b'"sequence":41,"sequence":41'), "a key repeats"),
        (lambda h: h.replace(b'"sequence":41', b'"sequence": 41'), "canonical"),
        (lambda h: h.replace(b"kitchen", b"k\\u0069tchen"), "canonical"),
        (lambda h: h.replace(b"kitchen", b"\\ud800"), "UTF-8"),
        (lambda h: h.replace(b"kitchen", b"\xff\xfe"), "strict JSON"),
        (lambda h: h[:-1], "strict JSON"),
        (lambda h: b"[" + h + b"]", "not a JSON object"),
        (lambda h: b"", "strict JSON"),
        (lambda h: b"[" * 4000, "strict JSON"),
        (lambda h: h.replace(b'"sequence":41', b'"sequence":' + b"[" * 1500 + b"]" * 1500), "."),
        (lambda h: h.replace(b"kitchen", b"k" * 4096), "too long"),
    ],
)
def test_headers_that_are_not_canonical_json_are_refused(change, message):
    header, payload = header_and_payload()
    assert change(header) != header
    with pytest.raises(LinkError, match=message):
        Upload.from_bytes(assemble(change(header), payload))


MASK = safetensors.numpy.load(header_and_payload()[1])["anchor_mask"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"anchors": None, "anchors:scale": None}, r"lacks the tensors \['anchors'\]"),
        ({"positions": None}, r"lacks the tensors \['positions'\]"),
        ({"anchors:scale": None}, "expected the values and their scale"),
        ({"more": np.ones(1, np.int8), "more:scale": np.ones(1, np.uint16)}, r"unknown tensors \['more'\]"),
        ({"anchors": np.ones((3, 2, 5), np.float32)}, "type float32"),
        ({"anchors": np.ones((3, 10), np.int8), "anchors:scale": np.ones((3, 1), np.uint16)}, "anchors have shape"),
        ({"anchors": np.ones((2**40, 0), np.int8)}, r"without values: \['anchors'\]"),
        ({"anchors:scale": np.full((3, 1, 1), 0xFFFF, np.uint16)}, "NaN"),
        ({"anchors:scale": np.full((3, 1, 1), 0xF600, np.uint16)}, "norm"),
        ({"anchor_mask": MASK | 1}, "beyond its last anchor"),
        ({"anchor_mask": MASK * 0}, "no anchor is real"),
        ({"anchor_mask": np.ones((3, 2), bool)}, "anchor_mask is bool"),
        ({"anchor_mask": np.zeros(2, np.uint8)}, "anchor_mask is"),
        ({"positions": np.zeros((3, 2), np.float16)}, "positions is float16"),
        ({"positions": np.zeros((2, 3), np.uint8)}, "positions is"),
        ({"num_frames": np.zeros(3, np.uint16)}, "no frames"),
        ({"num_frames": np.ones(3, np.int64)}, "num_frames is int64"),
        ({"num_frames": np.ones(1, np.uint16)}, "num_frames is"),
    ],
)
def test_forged_tensors_are_refused(tensors, message):
    with pytest.raises(LinkError, match=message):
        Upload.from_bytes(forge_tensors(make_upload().to_bytes(), **tensors))


def table(text: str, values: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + values


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload ends after 0 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "too long or cut off"),
        (table(" " * 70000 + "{}"), "too long or cut off"),
        (table("{}", b"left over"), "not safetensors"),
        (table("[" * 60000), "strict JSON"),
        (table('{"__metadata__":{"a":"b"}}'), "metadata"),
        (table('{"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
               b"\0" * 4), "a key repeats"),
        (table('{"c":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4), "not safetensors"),
        (table('{"c":{"dtype":"F32","shape":[1],"data_offsets":[0,9]}}', b"\0" * 4), "not safetensors"),
        (table('{"c":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4), "not safetensors"),
        (table('{"c":{"dtype":"pickle","shape":[2],"data_offsets":[0,4]}}', b"\0" * 4), "not safetensors"),
        (table('{"c":{"dtype":"F32","shape":[9223372036854775807,0],"data_offsets":[0,0]}}'), "not safetensors"),
        (table('{"c":{"dtype":"F32","shape":[1099511627776,0],"data_offsets":[0,0]}}'), "without values"),
        (table('{"c":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8), "type int64"),
    ],
)  # fmt: skip
def test_forged_payloads_are_refused(payload, message):
    with pytest.raises(LinkError, match=message):
        Download.from_bytes(forge(make_download("fp32").to_bytes(), payload))


@pytest.mark.parametrize("make", [make_upload, make_download])
def test_every_truncation_and_every_extension_is_refused(make):
    message = make()
    data = message.to_bytes()
    for length in range(len(data)):
        with pytest.raises(LinkError):
            type(message).from_bytes(data[:length])
    with pytest.raises(LinkError, match=r"header .* cut off"):
        type(message).from_bytes(data[:100])
    with pytest.raises(LinkError, match="SHA-256"):
        type(message).from_bytes(data + b"\0")


@pytest.mark.parametrize("make", [make_upload, make_download])
def test_every_single_flipped_bit_is_refused(make):
    message = make()
    data = message.to_bytes()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(LinkError):
                type(message).from_bytes(bytes(damaged))
