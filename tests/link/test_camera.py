import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_mmpg.link.camera import (
    MOST_BYTES,
    QUERY_STEPS,
    SIZE,
    CameraAnswer,
    CameraQuery,
    decode_pictures,
    encode_pictures,
)
from lit_mmpg.link.errors import ImplausibleError, LinkError, VersionError
from lit_mmpg.maps import Correction, gradients

RNG = np.random.default_rng(0)


def pictures(count: int, height: int, width: int) -> np.ndarray:
    return np.cumsum(np.cumsum(RNG.normal(size=(count, height, width)), 1), 2)


QUERY = CameraQuery.encode(gradients(pictures(3, *SIZE).astype(np.float32)), 4, "kitchen")
RAMP = np.linspace(0.5, 1.5, SIZE[1])[None, None] * np.ones((3, *SIZE))
ANSWER = CameraAnswer.encode(QUERY, Correction(RAMP, 40 - 20 * RAMP, 0.5 * RAMP), 7, 3)


@pytest.mark.parametrize("shape", [(3, 72, 96), (3, 70, 93), (6, 8, 8), (1, 144, 192)])
def test_pictures_come_back_within_their_bytes(shape):
    sent = pictures(*shape)
    steps = (1.0,) * shape[0]
    data = encode_pictures(sent, steps)
    back = decode_pictures(data, shape, steps)
    assert len(data) <= MOST_BYTES and back.shape == shape
    assert abs(back - sent).mean() < 0.1 * sent.std()
    finer = decode_pictures(encode_pictures(sent, steps, 4 * MOST_BYTES), shape, steps)
    assert abs(finer - sent).mean() <= abs(back - sent).mean()


def test_flat_pictures_cost_nothing_and_those_without_numbers_are_refused():
    flat = np.full((3, *SIZE), 7.25)
    data = encode_pictures(flat, QUERY_STEPS)
    assert len(data) < 120
    np.testing.assert_allclose(decode_pictures(data, (3, *SIZE), QUERY_STEPS), flat, atol=0.01)
    with pytest.raises(ValueError, match="NaN"):
        encode_pictures(flat * np.nan, QUERY_STEPS)
    with pytest.raises(ValueError, match="do not fit 20 bytes"):
        encode_pictures(pictures(3, *SIZE), QUERY_STEPS, 20)


def test_a_query_and_its_answer_cross():
    back = CameraQuery.from_bytes(QUERY.to_bytes())
    assert back == QUERY and back.digest == QUERY.digest and (back.frames, back.device_id) == (4, "kitchen")
    assert back.gradient().shape == (2, 3, *SIZE) and back.gradient((36, 48)).shape == (2, 3, 36, 48)
    answer = CameraAnswer.from_bytes(ANSWER.to_bytes())
    assert answer == ANSWER and (answer.model, answer.version, answer.query) == (7, 3, QUERY.digest)
    correction = answer.correction()
    np.testing.assert_allclose(correction.gain, RAMP, atol=0.02)
    np.testing.assert_allclose(correction.bias, 40 - 20 * RAMP, atol=2)
    np.testing.assert_allclose(correction.trust, 0.5 * RAMP, atol=0.02)
    nothing = CameraAnswer.from_bytes(CameraAnswer.encode(QUERY, None, 7, 3).to_bytes())
    assert nothing.correction() is None and nothing.model == -1 and nothing.payload_bytes == 0


def test_sizes_do_not_depend_on_the_number_of_frames():
    assert max(QUERY.payload_bytes, ANSWER.payload_bytes) <= MOST_BYTES
    many = CameraQuery.encode(QUERY.gradient(), 10**6, "kitchen")
    assert many.frames == 2**16 - 1 and len(many.to_bytes()) <= MOST_BYTES + 29 + len("kitchen")


@pytest.mark.parametrize(("message", "kind"), [(QUERY, CameraQuery), (ANSWER, CameraAnswer)])
def test_other_messages_are_refused(message, kind):
    data = message.to_bytes()
    other = CameraAnswer if kind is CameraQuery else CameraQuery
    for wrong in (b"", data[:9], data[:-1], data + b"x", b"MMPG" + data[4:], data[:-1] + bytes([data[-1] ^ 1])):
        with pytest.raises(LinkError):
            kind.from_bytes(wrong)
    with pytest.raises(LinkError, match="message is no"):
        other.from_bytes(data)
    with pytest.raises(VersionError, match="upgrade lit-mmpg on the"):
        kind.from_bytes(data[:4] + b"\x09\x00" + data[6:])
    with pytest.raises(ValueError, match="device_id"):
        CameraQuery.encode(QUERY.gradient(), 1, "")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3000), st.integers(0, 2**16))
def test_damaged_pictures_are_refused_or_have_their_shape(noise, at, seed):
    data = bytearray(QUERY.pictures)
    data[at : at + len(noise)] = noise
    for damaged in (bytes(data), noise, bytes(data[: seed % (len(data) + 1)])):
        with contextlib.suppress(LinkError):
            assert decode_pictures(damaged, (3, *SIZE), QUERY_STEPS).shape == (3, *SIZE)


def test_packed_bytes_never_grow_beyond_their_pictures():
    bomb = encode_pictures(np.zeros((6, 512, 512)), (1.0,) * 6)
    assert len(bomb) < MOST_BYTES
    with pytest.raises(LinkError, match="pictures are not"):
        decode_pictures(bomb, (3, *SIZE), QUERY_STEPS)


def test_an_answer_that_would_blind_the_device_is_refused():
    for wrong in (Correction.affine(0 * RAMP + 90, RAMP), Correction.affine(RAMP, 0 * RAMP - 9000)):
        answer = CameraAnswer.from_bytes(CameraAnswer.encode(QUERY, wrong, 7, 3).to_bytes())
        with pytest.raises(LinkError, match="undoes no camera"):
            answer.correction()


def test_absurd_values_are_refused():
    data = encode_pictures(np.linspace(0, 1, 3 * 72 * 96).reshape(3, *SIZE), QUERY_STEPS)
    huge = np.float32(1e6).tobytes() + data[4:]
    with pytest.raises(ImplausibleError, match="values above"):
        decode_pictures(huge, (3, *SIZE), QUERY_STEPS)
