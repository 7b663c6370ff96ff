"""Product quantisation: nearest words, stability, what is refused, and what k-means gains."""

from __future__ import annotations

import numpy as np
import pytest

from lit_mmpg.link import Download, LinkError, Upload, codecs, decode, encode, register
from lit_mmpg.link.product import ProductQuantiser, learn, part_widths
from lit_mmpg.parameters import ParameterSpec

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(600, 10)).astype(np.float32)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(codecs, "_CODECS", dict(codecs._CODECS))


def test_the_nearest_word_is_sent_and_encoding_is_stable():
    quantiser = learn(VECTORS, 3, words=20)
    register(quantiser)
    x = RNG.normal(size=(4, 2, 10)).astype(np.float32)
    codes = encode(quantiser.name, {"x": x})
    assert codes["x"].dtype == np.uint8 and codes["x"].shape == (4, 2, 3)
    decoded = decode(quantiser.name, codes)["x"]
    start = 0
    for m, width in enumerate(part_widths(10, 3)):
        part, book = x[..., start : start + width], quantiser.codebooks[m]
        distance = np.square(part[..., None, :] - book).sum(-1)
        np.testing.assert_array_equal(codes["x"][..., m], distance.argmin(-1))
        np.testing.assert_array_equal(decoded[..., start : start + width], book[codes["x"][..., m]])
        start += width
    np.testing.assert_array_equal(encode(quantiser.name, {"x": decoded})["x"], codes["x"])


def test_k_means_is_better_than_its_start_and_repeatable():
    def error(quantiser):
        return float(np.square(quantiser.decode(quantiser.encode(VECTORS, None)) - VECTORS).mean())

    start, learnt = learn(VECTORS, 2, words=32, rounds=0), learn(VECTORS, 2, words=32)
    assert error(learnt) < 0.8 * error(start)
    assert learn(VECTORS, 2, words=32) == learnt
    assert learn(VECTORS, 2, words=32, seed=1) != learnt


def test_fewer_vectors_than_words_are_kept_exactly():
    few = np.repeat(VECTORS[:9], 3, axis=0)
    quantiser = learn(few, 2)
    np.testing.assert_array_equal(quantiser.decode(quantiser.encode(few, None)), few)


def test_messages_carry_the_digest_and_other_codebooks_do_not_decode():
    quantiser = learn(VECTORS, 4)
    register(quantiser)
    register(learn(VECTORS, 4))  # the same again
    spec = ParameterSpec(())
    upload = Upload.encode(
        anchors=VECTORS[:6].reshape(3, 2, 10),
        anchor_mask=np.array([[True, True], [True, False], [False, False]]),
        positions=np.zeros((3, 2)),
        num_frames=np.array([3, 1, 0]),
        device_id="a",
        sequence=0,
        codec=quantiser.name,
        checkpoint_digest="c" * 64,
        spec_digest=spec.digest(),
    )
    data = upload.to_bytes()
    received = Upload.from_bytes(data)
    assert received.tensors["anchors"].shape == (3, 2, 4)
    assert not received.anchors[1, 1].any() and not received.anchors[2].any()
    np.testing.assert_array_equal(received.anchors[0, 0], quantiser.decode(quantiser.encode(VECTORS[:1], None))[0])
    assert Download.answer(received, spec, {}, codec="int8")
    codecs._CODECS.pop(quantiser.name)
    with pytest.raises(LinkError, match=f"unknown codec '{quantiser.name}'"):
        Upload.from_bytes(data)


def test_sixteen_clips_fit_in_256_bytes():
    quantiser = learn(RNG.normal(size=(300, 128)), 12)
    register(quantiser)
    upload = Upload.encode(
        anchors=RNG.normal(size=(16, 1, 128)),
        anchor_mask=np.ones((16, 1), bool),
        positions=np.zeros((16, 1)),
        num_frames=np.full(16, 8),
        device_id="a",
        sequence=0,
        codec=quantiser.name,
        checkpoint_digest="c" * 64,
        spec_digest="d" * 64,
    )
    assert upload.payload_bytes == 16 * 12 + 2 + 16 + 16 * 2 <= 256


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"": np.zeros((2, 3), np.int8)}, "int8"),
        ({"": np.zeros((2, 4), np.uint8)}, "expected uint8"),
        ({"": np.zeros((), np.uint8)}, "expected uint8"),
        ({"": np.full((2, 3), 20, np.uint8)}, "beyond its codebook"),
        ({"": np.zeros((2, 3), np.uint8), "scale": np.zeros(1)}, "codes alone"),
    ],
)
def test_forged_codes_are_refused(parts, message):
    with pytest.raises(LinkError, match=message):
        learn(VECTORS, 3, words=20).decode(parts)


@pytest.mark.parametrize(
    "books",
    [[], [np.zeros((0, 2))], [np.zeros(3)], [np.zeros((257, 2))], [np.full((2, 2), np.nan)],
     [np.zeros((2, 1)), np.zeros((2, 4))]],
)  # fmt: skip
def test_what_is_no_codebook_is_refused(books):
    with pytest.raises(ValueError, match="codebook"):
        ProductQuantiser(books)


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match="vectors of 10 values"):
        learn(VECTORS, 3).encode(np.zeros((2, 9), np.float32), None)
    with pytest.raises(ValueError, match="cannot learn"):
        learn(VECTORS, 11)
