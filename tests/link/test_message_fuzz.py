"""Hostile bytes: a message parses to itself, or LinkError is raised, and nothing else happens."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_mmpg.link import Download, LinkError, Upload
from lit_mmpg.parameters import ParameterEntry, ParameterSpec

ROOT = Path(__file__).parents[2]
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


@pytest.mark.soak
def test_memory_stays_flat_over_100_000_hostile_messages():
    rng = random.Random(0)

    def hostile() -> bytes:
        data = bytearray(rng.choice(SEEDS))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice([0, 1, 1, 9])] = rng.randbytes(rng.choice([0, 1, 1, 8]))
        return resigned(bytes(data)) if len(data) >= 12 and rng.random() < 0.5 else bytes(data)

    resident = []
    for number in range(100_000):
        check(hostile())
        if number % 10_000 == 9_999:
            resident.append(resident_bytes())
    assert resident[-1] - resident[1] < 4 * 2**20, resident


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def with_table(data: bytes, old: bytes, new: bytes) -> bytes:
    """A message whose table of tensors says something else, with the length of the table and all checksums right."""
    start = 12 + struct.unpack_from("<H", data, 6)[0]
    length = struct.unpack_from("<Q", data, start)[0]
    table = data[start + 8 : start + 8 + length].replace(old, new).rstrip()
    table += b" " * (-len(table) % 8)
    return resigned(data[:start] + struct.pack("<Q", len(table)) + table + data[start + 8 + length :])


def test_a_message_cannot_ask_for_memory_that_it_does_not_hold():
    """Shapes and offsets in a small hostile message do not make the parser allocate what they promise."""
    for data in SEEDS:
        for old, new in ((b"[2,3,4]", b"[2,3,99999999]"), (b"[4,2]", b"[4,2000000000]"), (b"[0,", b"[0,9999")):
            tracemalloc.start()
            check(with_table(data, old, new))
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2**20
        cls = Upload if b'"kind":"upload"' in data else Download
        assert cls.from_bytes(with_table(data, b"no such text", b"")) == cls.from_bytes(data)


@pytest.mark.soak
def test_coverage_guided_soak(tmp_path):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; 'make soak' tries to")
    for number, seed in enumerate(SEEDS):
        (tmp_path / f"{number}").write_bytes(b"\0" + seed)
        (tmp_path / f"{number}-signed").write_bytes(b"\1" + seed)
    command = [sys.executable, "-m", "tests.link.coverage_fuzz", "-runs=100000", "-rss_limit_mb=768", "-max_len=8192"]
    done = subprocess.run(
        [*command, f"-artifact_prefix={tmp_path}/", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 100000 runs" in done.stderr


def test_the_fuzzer_reaches_past_the_checksums():
    """Messages whose content was changed and signed again do parse, so the fuzzing above is not all rejected early."""
    for data in SEEDS:
        cls = Upload if b'"kind":"upload"' in data else Download
        changed = resigned(data.replace(b'"sequence":3', b'"sequence":8'))
        assert cls.from_bytes(changed).sequence == 8
        check(changed)
