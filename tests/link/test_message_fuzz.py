"""Hostile bytes: a message parses to itself, or LinkError is raised, and nothing else happens."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_mmpg.link import Download, LinkError, Upload, codec_names
from lit_mmpg.link.codecs import codec_id
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
            codec=codec,
            checkpoint_digest="c" * 64,
            spec_digest=SPEC.digest(),
        )
        parameters = {entry.name: rng.normal(size=entry.shape) for entry in SPEC}
        messages += [upload.to_bytes(), Download.answer(upload, SPEC, parameters, codec=codec).to_bytes()]
    return messages


SEEDS = seeds()
FIELDS = [slice(4, 6), slice(6, 7), slice(7, 11), slice(27, 43), slice(43, 45), slice(45, 46), slice(46, 48)]


def resigned(data: bytes) -> bytes:
    """The same bytes with the digest made right, as somebody who means harm would send them."""
    return data[:11] + hashlib.sha256(data[:11] + data[27:]).digest()[:16] + data[27:]


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
        else:  # a field of the header
            field = draw(st.sampled_from(FIELDS))
            data[field] = draw(st.binary(min_size=field.stop - field.start, max_size=field.stop - field.start))
        if len(data) < 48:
            break
    return resigned(bytes(data)) if draw(st.booleans()) else bytes(data)


def check(data: bytes) -> None:
    for cls in (Upload, Download):
        try:
            message = cls.parse(data)
        except LinkError as error:
            assert str(error)
            continue
        assert message.to_bytes() == data and cls.parse(message.to_bytes()) == message
        again = dataclasses.replace(message)  # nothing was lost: what is written anew has the same bytes
        assert again.to_bytes() == data
        with contextlib.suppress(LinkError):
            if isinstance(message, Upload):
                message.check_values()
                assert np.isfinite(message.anchors).all()
            else:
                SPEC.validate(message.parameters(SPEC))


@given(data=mutated())
@settings(max_examples=400, deadline=None, derandomize=True)
def test_mutated_messages(data):
    check(data)


@given(data=st.binary(max_size=300))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_random_bytes(data):
    check(data)
    check(resigned(SEEDS[0][:6] + data))


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
        return resigned(bytes(data)) if rng.random() < 0.5 else bytes(data)

    resident = []
    for number in range(100_000):
        check(hostile())
        if number % 10_000 == 9_999:
            resident.append(resident_bytes())
    assert resident[-1] - resident[1] < 4 * 2**20, resident


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_message_cannot_ask_for_memory_that_it_does_not_hold():
    """Sizes in a small hostile message do not make the parser allocate what they promise."""
    for data in SEEDS:
        for codec in codec_names():
            for size in (b"\xff\xff\x01\xff\xff", b"\x01\x00\xff\xff\xff", b"\xff" * 5, b"\x80\x00\xff\x00\x01"):
                tracemalloc.start()
                check(resigned(data[:7] + codec_id(codec) + data[11:43] + size + data[48:]))
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < 2**20


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


def test_the_fuzzer_reaches_past_the_digest():
    """Messages whose content was changed and signed again do parse, so the fuzzing above is not all rejected early."""
    for data in SEEDS:
        changed = resigned(data[:27] + bytes(16) + data[43:])
        if data[6]:
            assert Upload.from_bytes(changed).model == "0" * 32
        else:
            assert Download.parse(changed).request_id == "0" * 32
        check(changed)
