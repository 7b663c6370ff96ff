"""Messages: round trips, the documented layout, byte counts, and what a receiver refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_mmpg.link import PROTOCOL_VERSION, Download, LinkError, Upload, VersionError
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

SPEC = ParameterSpec((ParameterEntry("projection.u", (6, 2)), ParameterEntry("projection.c", (6,))))
CODECS = ("fp32", "fp16", "int8", "int7", "int6", "int4")
BOUND = {"fp32": 1e-7, "fp16": 2.0**-11, "int8": 1 / 253, "int7": 1 / 125, "int6": 1 / 61, "int4": 1 / 13}
"""Largest error of a value over the largest magnitude that shares its scale."""
IDENTITY = {
    "device_id": "kitchen robot 3",
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


def name_of(codec: str) -> bytes:
    return hashlib.sha256(codec.encode()).digest()[:4]


def signed(data: bytes) -> bytes:
    """The message with the digest that it should have."""
    return data[:11] + hashlib.sha256(data[:11] + data[27:]).digest()[:16] + data[27:]


def split(message: bytes) -> dict:
    """Independent reading of the documented layout."""
    assert message == signed(message) and message[:6] == b"MMPG\x03\x00"
    length = message[6]
    fields: dict = {"codec": message[7:11], "other": message[27:43], "payload": message[43:]}
    if length:
        shape = int.from_bytes(message[43:45], "little"), message[45], int.from_bytes(message[46:48], "little")
        fields |= {"shape": shape, "device_id": message[48 : 48 + length], "payload": message[48 + length :]}
    return fields


def forge(message: bytes, **changes) -> bytes:
    """The message with other fields, its digest made right again."""
    fields = split(message) | changes
    device_id, shape = fields.get("device_id", b""), fields.get("shape")
    head = b"MMPG\x03\x00" + bytes([len(device_id)]) + fields["codec"] + bytes(16) + fields["other"]
    return signed(head + (struct.pack("<HBH", *shape) if shape else b"") + device_id + fields["payload"])


@pytest.mark.parametrize("codec", CODECS)
def test_upload_round_trip(codec):
    source = context()
    sent = make_upload(codec)
    received = Upload.from_bytes(sent.to_bytes())
    assert received == sent
    assert hash(received) == hash(sent)
    for field in ("request_id", "device_id", "codec", "model", "anchor_shape"):
        assert getattr(received, field) == getattr(sent, field)
    assert received.anchor_shape == (3, 2, 5)
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
    received = Download.parse(sent.to_bytes())
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
    received = Download.parse(Download.answer(upload, spec, {}, codec="int8").to_bytes())
    assert received.parameters(spec) == {}
    assert received.payload_bytes == 0


def test_padding_is_neither_sent_nor_widens_a_scale():
    source = context()
    mask = np.array([[True, False], [True, True], [False, False]])
    polluted, clean = source["anchors"].copy(), np.where(mask[..., None], source["anchors"], 0)
    polluted[~mask] = np.nan
    positions = np.where(mask, source["positions"], np.nan)
    upload = make_upload(anchors=polluted, anchor_mask=mask, positions=positions)
    assert upload == make_upload(anchors=clean, anchor_mask=mask, positions=np.where(mask, positions, 0))
    assert not upload.anchors[~mask].any()


@pytest.mark.parametrize("make", [make_upload, make_download])
@pytest.mark.parametrize("codec", CODECS[:3])
def test_layout_as_documented(make, codec):
    """Read with nothing of the package's own, number by number."""
    message = make(codec)
    fields = split(message.to_bytes())
    assert fields["codec"] == name_of(codec)
    data, value = fields["payload"], {"fp32": "<f4", "fp16": "<f2", "int8": "i1"}[codec]

    def take(dtype: str, *shape: int) -> np.ndarray:
        nonlocal data
        count = int(np.prod(shape))
        array, data = np.frombuffer(data, dtype, count), data[count * np.dtype(dtype).itemsize :]
        return array.reshape(shape)

    def decoded(shape: tuple, scales: tuple) -> np.ndarray:
        values = take(value, *shape)
        if codec != "int8":
            return values
        stored = take("<u2", *scales)
        return values * (stored.astype(np.uint32) << 15).view(np.float32)

    close = {"atol": {"fp32": 1e-6, "fp16": 2e-3, "int8": 0.02}[codec], "rtol": 1e-6}
    if make is make_download:
        assert fields["other"].hex() == make_upload().request_id == message.request_id
        for name, scales in (("projection.u", (1, 2)), ("projection.c", (1,))):
            exact = make_parameters()[name]
            np.testing.assert_allclose(decoded(exact.shape, scales), exact, **close)
    else:
        both = bytes.fromhex(IDENTITY["checkpoint_digest"] + SPEC.digest())
        assert fields["other"] == hashlib.sha256(both).digest()[:16]
        assert (fields["shape"], fields["device_id"]) == ((3, 2, 5), b"kitchen robot 3")
        assert message.request_id == message.to_bytes()[11:27].hex()
        source = context()
        mask = source["anchor_mask"]
        np.testing.assert_allclose(
            decoded((3, 2, 5), (3, 1, 1)), np.where(mask[..., None], source["anchors"], 0), **close
        )
        bits = [int(b) for byte in take("u1", 1) for b in f"{byte:08b}"]
        assert bits == [*mask.ravel().astype(int).tolist(), 0, 0]
        np.testing.assert_array_equal(take("u1", 3, 2), np.where(mask, np.rint(source["positions"] * 255), 0))
        np.testing.assert_array_equal(take("<u2", 3), source["num_frames"])
    assert data == b""


@pytest.mark.parametrize("make", [make_upload, make_download])
@pytest.mark.parametrize("codec", CODECS)
def test_byte_counts(make, codec):
    message = make(codec)
    data = message.to_bytes()
    assert message.message_bytes == len(data) == type(message).parse(data).message_bytes
    assert message.payload_bytes == len(split(data)["payload"])
    header = 48 + len("kitchen robot 3") if make is make_upload else 43
    assert message.message_bytes == message.payload_bytes + header <= message.payload_bytes + 64


def test_sizes_that_the_design_counts_on():
    upload = make_upload(**context(clips=16, anchors=1, width=128), device_id="x" * 16)
    side = 16 * 2 + 2 + 16 + 16 * 2  # scales, mask, positions, lengths
    assert upload.payload_bytes == 16 * 128 + side
    assert upload.message_bytes == upload.payload_bytes + 64  # the longest id that keeps it
    seven = make_upload("int7", **context(clips=16, anchors=1, width=128))
    assert seven.payload_bytes == 16 * 112 + side <= 2048
    entries = {"p.u": (256, 4), "p.v": (1280, 4), "p.c": (256,)}
    spec = ParameterSpec(tuple(ParameterEntry(*item) for item in entries.items()))
    parameters = {name: np.ones(shape, np.float32) for name, shape in entries.items()}
    download = Download.answer(make_upload(spec_digest=spec.digest()), spec, parameters, codec="int8")
    assert download.payload_bytes == 1024 + 5120 + 256 + 2 * (4 + 4 + 1)
    assert download.message_bytes == download.payload_bytes + 43


def test_a_request_is_named_by_what_it_says():
    assert make_upload().request_id == make_upload().request_id
    others = [make_upload("fp32"), make_upload(device_id="lamp"), make_upload(checkpoint_digest="0" * 64)]
    others += [make_upload(spec_digest="0" * 64), make_upload(**context(seed=1))]
    assert len({upload.request_id for upload in (make_upload(), *others)}) == 6


def test_messages_are_frozen_and_of_different_kinds():
    upload, download = make_upload(), make_download()
    with pytest.raises(dataclasses.FrozenInstanceError):
        upload.device_id = "other"
    assert upload != download
    with pytest.raises(LinkError, match="kind 'upload', expected 'download'"):
        Download.parse(upload.to_bytes())
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
        ({k: np.resize(v, (3, 256, *v.shape[2:])) for k, v in context().items() if k != "num_frames"}, "K = 256"),
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
    with pytest.raises(ValueError, match=r"unknown \['projection.u'\]"):
        Download.answer(make_upload(), other, make_parameters(), codec="fp32")
    with pytest.raises(ValueError, match=r"missing \['projection.u'\]"):
        Download.answer(make_upload(), SPEC, {"projection.c": np.zeros(6)}, codec="fp32")
    with pytest.raises(ValueError, match="NaN"):
        Download.answer(make_upload(), SPEC, make_parameters() | {"projection.c": np.full(6, np.nan)}, codec="fp32")


def test_an_answer_to_something_else_is_noticed():
    upload = make_upload()
    download = Download.answer(upload, SPEC, make_parameters(), codec="int8")
    download.check_answers(upload)
    others = {"device_id": "kitchen robot 4", "checkpoint_digest": "0" * 64, "spec_digest": "0" * 64, "codec": "fp16"}
    for other in (*(make_upload(**{name: value}) for name, value in others.items()), make_upload(**context(seed=1))):
        with pytest.raises(LinkError, match=f"answers the request {upload.request_id}, asked was {other.request_id}"):
            download.check_answers(other)


@pytest.mark.parametrize("codec", CODECS)
def test_parameters_are_checked_against_the_specification(codec):
    download = make_download(codec)
    for payload in (download.payload[:-1], download.payload + b"\0", b""):
        forged = Download.parse(forge(download.to_bytes(), payload=payload))
        with pytest.raises(LinkError, match=f"does not match the specification: {len(payload)} bytes"):
            forged.parameters(SPEC)
    with pytest.raises(LinkError, match="does not match the specification"):
        download.parameters(ParameterSpec(SPEC.entries[:1]))


def test_parameters_that_overflow_the_device_type_are_refused():
    spec = ParameterSpec((ParameterEntry("c", (2,), "float16"),))
    upload = make_upload(spec_digest=spec.digest())
    good = Download.answer(upload, spec, {"c": np.array([1.5, 2.0])}, codec="fp32").parameters(spec)
    assert good["c"].dtype == np.float16
    with pytest.raises(LinkError, match="NaN or infinity"):
        Download.answer(upload, spec, {"c": np.array([1.5, 7e4])}, codec="fp32").parameters(spec, max_norm=1e9)


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
    with pytest.raises(LinkError, match=r"anchors holds a vector of norm [45]"):
        Upload.from_bytes(data, max_norm=460)
    with pytest.raises(LinkError, match="norm"):
        Upload.from_bytes(make_upload("fp32", anchors=np.full((3, 2, 5), 1e38)).to_bytes())
    with pytest.raises(LinkError, match="norm"):
        Upload.from_bytes(data, max_norm=float("nan"))
    parameters = {name: 100 * array for name, array in make_parameters().items()}
    download = Download.answer(make_upload(), SPEC, parameters, codec=codec)
    assert download.parameters(SPEC)
    with pytest.raises(LinkError, match=r"projection\.\w holds a vector of norm"):
        download.parameters(SPEC, max_norm=100)


@pytest.mark.parametrize(
    ("version", "older"),
    [(2, ("device", "cloud")), (0, ("device", "cloud")), (4, ("cloud", "device")), (65535, ("cloud", "device"))],
)
def test_other_protocol_versions_are_refused_and_the_older_side_is_named(version, older):
    for rest in (b"", b"a layout of which nothing is known here" * 3):
        for cls, side in zip((Upload, Download), older, strict=True):
            said = f"protocol version {version}, this side speaks {PROTOCOL_VERSION}; upgrade lit-mmpg on the {side}$"
            with pytest.raises(VersionError, match=said):
                cls.parse(struct.pack("<4sH", b"MMPG", version) + rest)


def test_older_versions_can_tell_which_version_this_is():
    """Versions 1 and 2 read twelve bytes, refuse shorter messages, and take the version from bytes 4 and 5."""
    for message in (make_upload(), make_download()):
        assert struct.unpack_from("<4sHHI", message.to_bytes())[:2] == (b"MMPG", 3)


FP32 = make_upload("fp32").to_bytes()
INT8 = make_upload("int8").to_bytes()
INT4 = make_upload("int4").to_bytes()
SIDE = 1 + 6 + 6  # mask, positions, lengths


def patched(data: bytes, at: int, value: bytes) -> bytes:
    """The payload with other bytes somewhere, counted from its end where negative."""
    payload = bytearray(split(data)["payload"])
    at %= len(payload)
    payload[at : at + len(value)] = value
    return forge(data, payload=bytes(payload))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (forge(INT8, codec=name_of("zip")), "unknown codec"),
        (forge(INT8, codec=name_of("fp32")), "in fp32 take"),
        (forge(INT8, shape=(4, 2, 5)), "payload has"),
        (forge(INT8, shape=(0, 2, 5)), "C = 0"),
        (forge(INT8, shape=(3, 0, 5)), "K = 0"),
        (forge(INT8, shape=(3, 2, 0)), "H = 0"),
        (forge(INT8, shape=(65535, 255, 65535)), "at most 8388608"),
        (forge(INT8, shape=(2, 3, 5)), "payload has"),
        (forge(INT8, device_id=b"a\tb"), "device_id"),
        (forge(INT8, device_id=b"\xff\xfe"), "utf-8"),
        (forge(INT8, device_id=b"x" * 129), "129 bytes"),
        (forge(INT8, payload=b""), "payload has 0 bytes"),
        (forge(INT8, payload=split(INT8)["payload"] + b"\0"), "payload has"),
        (signed(INT8[:6] + b"\xff" + INT8[7:60]), "it ends after 60 bytes"),
        (signed(INT8[:45]), "it ends after 45 bytes"),
        (patched(FP32, 0, struct.pack("<f", np.nan)), r"anchors \(fp32\) holds NaN"),
        (patched(FP32, 0, struct.pack("<f", -np.inf)), "holds NaN or infinity"),
        (patched(FP32, 0, struct.pack("<f", 1e9)), "norm"),
        (patched(INT8, 0, b"\x80"), "-128"),
        (patched(INT8, 30, b"\xff\xff"), "NaN or infinite"),
        (patched(INT8, 30, b"\x00\xf6"), "norm"),
        (patched(INT4, 0, b"\xff"), "does not use"),
        (patched(INT8, -SIDE, bytes([split(INT8)["payload"][-SIDE] | 1])), "beyond its last anchor"),
        (patched(INT8, -SIDE, b"\0"), "no anchor is real"),
        (patched(INT8, -6, bytes(6)), "no frames"),
    ],
)
def test_forged_uploads_are_refused(data, message):
    with pytest.raises(LinkError, match=message):
        Upload.from_bytes(data)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, struct.pack("<f", np.nan), r"parameter projection.u \(fp32\) holds NaN"),
        (4 * 12, struct.pack("<f", np.inf), "parameter projection.c"),
        (4, struct.pack("<f", -1e9), "norm"),
    ],
)
def test_forged_downloads_are_refused(at, value, message):
    with pytest.raises(LinkError, match=message):
        Download.parse(patched(make_download("fp32").to_bytes(), at, value)).parameters(SPEC)


@pytest.mark.parametrize("make", [make_upload, make_download])
def test_every_truncation_and_every_extension_is_refused(make):
    message = make()
    data = message.to_bytes()
    for length in range(len(data)):
        with pytest.raises(LinkError):
            type(message).parse(data[:length])
    with pytest.raises(LinkError, match="damaged or cut off"):
        type(message).parse(data[:50])
    with pytest.raises(LinkError, match="damaged"):
        type(message).parse(data + b"\0")


@pytest.mark.parametrize("make", [make_upload, make_download])
def test_every_single_flipped_bit_is_refused(make):
    message = make()
    data = message.to_bytes()
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(LinkError):
                type(message).parse(bytes(damaged))
