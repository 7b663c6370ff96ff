"""Hostile bytes: a message parses to itself, or LinkError is raised, and nothing else happens."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_mmpg.link import Download, LinkError, Upload
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

SPEC = ParameterSpec((ParameterEntry("head.u", (4, 2)), ParameterEntry("head.c", (4,))))


def seeds() -> list[bytes]:
    rng = np.random.default_rng(5)
    messages: list[bytes] = []
    for codec in ("fp32", "fp16", "int8", "int6"):
        upload = Upload.encode(
            anchors=rng.normal(size=(2, 3, 4)),
            anchor_mask=np.array([[True, True, False], [True, False, False]]),
            positions=rng.random((2, 3)),
            num_frames=np.array([9, 1]),
            device_id="lamp",
            sequence=3,
            codec=codec,
            checkpoint_digest="c" * 64,
            spec_digest=SPEC.digest(),
            request_id="d" * 32,
        )
        parameters = {entry.name: rng.normal(size=entry.shape) for entry in SPEC}
        messages += [upload.to_bytes(), Download.answer(upload, SPEC, parameters, codec=codec).to_bytes()]
    return messages


SEEDS = seeds()


def resigned(data: bytes) -> bytes:
    """The same bytes with every checksum made right, as somebody who means harm would send them."""
    header_length = struct.unpack_from("<H", data, 6)[0]
    header, payload = data[12 : 12 + header_length], data[12 + header_length :]
    try:
        fields = json.loads(header)
        fields["payload_sha256"] = hashlib.sha256(payload).hexdigest()
        header = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, TypeError):
        pass
    return data[:6] + struct.pack("<HI", len(header) & 0xFFFF, zlib.crc32(header)) + header + payload


@st.composite
def mutated(draw):
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["byte", "insert", "delete", "copy", "number"]))
        if kind == "byte":
            data[start] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[start:start] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "delete":
            del data[start : start + draw(st.integers(1, 16))]
        elif kind == "copy":
            target = draw(st.integers(0, len(data) - 1))
            data[target:target] = data[start : start + draw(st.integers(1, 64))]
        else:
            digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
            data[draw(st.sampled_from(digits))] = draw(st.integers(48, 57))
        if len(data) < 12:
            break
    return resigned(bytes(data)) if len(data) >= 12 and draw(st.booleans()) else bytes(data)


def check(data: bytes) -> None:
    for cls in (Upload, Download):
        try:
            message = cls.from_bytes(data)
        except LinkError as error:
            assert str(error)
            continue
        again = cls.from_bytes(message.to_bytes())
        assert again == message
        arrays = [message.anchors] if isinstance(message, Upload) else list(message._decoded.values())
        assert all(np.isfinite(array).all() for array in arrays)
        if isinstance(message, Download):
            with contextlib.suppress(LinkError):
                SPEC.validate(message.parameters(SPEC))


@given(data=mutated())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_mutated_messages(data):
    check(data)


@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_random_bytes(data):
    check(data)
    check(resigned(SEEDS[0][:6] + data) if len(data) >= 6 else data)


@pytest.mark.soak
@given(data=st.one_of(mutated(), st.binary(max_size=4096)))
@settings(max_examples=100_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_soak(data):
    check(data)


def test_the_fuzzer_reaches_past_the_checksums():
    """Messages whose content was changed and signed again do parse, so the fuzzing above is not all rejected early."""
    for data in SEEDS:
        cls = Upload if b'"kind":"upload"' in data else Download
        changed = resigned(data.replace(b'"sequence":3', b'"sequence":8'))
        assert cls.from_bytes(changed).sequence == 8
        check(changed)
