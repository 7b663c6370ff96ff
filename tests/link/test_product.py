"""Product quantisation: nearest words, stability, what is refused, and what k-means gains."""

from __future__ import annotations

import numpy as np
import pytest

from lit_mmpg.link import Download, LinkError, Upload, codecs, decode, encode, register
from lit_mmpg.link.product import ProductQuantiser, learn, part_widths, principal_axes
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
    data = encode(quantiser.name, x)
    codes = np.frombuffer(data, np.uint8).reshape(4, 2, 3)
    decoded = decode(quantiser.name, data, x.shape)
    turned, found = ((y.astype(np.float64) - quantiser.mean) @ quantiser.rotation for y in (x, decoded))
    start = 0
    for m, width in enumerate(part_widths(10, 3)):
        part, book = turned[..., start : start + width], quantiser.codebooks[m]
        distance = np.square(part[..., None, :] - book).sum(-1)
        np.testing.assert_array_equal(codes[..., m], distance.argmin(-1))
        np.testing.assert_allclose(found[..., start : start + width], book[codes[..., m]], atol=2e-6)
        start += width
    assert encode(quantiser.name, decoded) == data


def arrived(quantiser: ProductQuantiser, vectors: np.ndarray) -> np.ndarray:
    return quantiser.decode(quantiser.encode(vectors, None), vectors.shape, None)


def error(quantiser: ProductQuantiser, vectors: np.ndarray = VECTORS) -> float:
    """Mean squared error of what arrives."""
    return float(np.square(arrived(quantiser, vectors) - vectors).mean())


def anisotropic(seed: int, count: int = 1500, width: int = 16) -> np.ndarray:
    """Vectors whose variance falls fast along axes that are nobody's coordinates."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0]
    spread = 0.7 ** np.arange(width)
    return (rng.normal(size=(count, width)) * spread @ axes.T + rng.normal(size=width)).astype(np.float32)


@pytest.mark.parametrize("parts", [2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_the_rotation_never_costs_accuracy_on_anisotropic_vectors(seed, parts):
    vectors = anisotropic(seed)
    seen, unseen = vectors[:1000], vectors[1000:]
    plain, turned = (learn(seen, parts, words=64, rounds=6, rotate=rotate) for rotate in (False, True))
    assert error(turned, unseen) <= error(plain, unseen)
    assert len(turned.encode(unseen, None)) == len(plain.encode(unseen, None)) == parts * len(unseen)


def test_each_part_gets_its_share_of_the_variance():
    vectors = anisotropic(0).astype(np.float64)
    axes = principal_axes(vectors, 3, least=1e-12)
    np.testing.assert_allclose(axes.T @ axes, np.eye(16), atol=1e-12)
    turned = vectors @ axes
    covariance = np.cov(turned.T)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-6)
    variance = np.array_split(np.diag(covariance), 3)
    # The three largest go to three parts, the fourth to the part whose own is the smallest of them.
    largest = np.sort(np.concatenate(variance))[::-1]
    owner = [next(m for m in range(3) if value in variance[m]) for value in largest[:4]]
    assert sorted(owner[:3]) == [0, 1, 2] and owner[3] == owner[2]
    assert [len(part) for part in variance] == part_widths(16, 3)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("rank", [1, 5])
def test_what_arrived_is_sent_as_the_same_codes(offset, rank):
    """Vectors in few dimensions far from the origin: most parts are rounding errors, in which no word may hide."""
    rng = np.random.default_rng(rank)
    vectors = (rng.normal(size=(700, rank)) @ rng.normal(size=(rank, 32)) + offset).astype(np.float32)
    quantiser = learn(vectors, 8)
    codes = quantiser.encode(vectors, None)
    assert quantiser.encode(quantiser.decode(codes, vectors.shape, None), None) == codes


def test_k_means_is_better_than_its_start_and_repeatable():
    start, learnt = learn(VECTORS, 2, words=32, rounds=0), learn(VECTORS, 2, words=32)
    assert error(learnt) < 0.8 * error(start)
    assert learn(VECTORS, 2, words=32) == learnt
    assert learn(VECTORS, 2, words=32, seed=1) != learnt


def test_fewer_vectors_than_words_are_kept_exactly():
    few = np.repeat(VECTORS[:9], 3, axis=0)
    quantiser = learn(few, 2)
    np.testing.assert_allclose(arrived(quantiser, few), few, atol=1e-5)
    assert max(map(len, quantiser.codebooks)) <= 9
    same = learn(np.ones((3, 4), np.float32), 2)
    np.testing.assert_array_equal(arrived(same, np.zeros((1, 4), np.float32)), np.ones((1, 4)))


def test_many_vectors_are_decoded_as_one_is():
    quantiser = learn(VECTORS, 3, words=20)
    codes = RNG.integers(0, 20, size=(3, 3000, 3)).astype(np.uint8)
    whole = quantiser.decode(codes.tobytes(), (3, 3000, 10), None)
    assert whole.shape == (3, 3000, 10) and whole.dtype == np.float32
    one = quantiser.decode(codes[2, 2999].tobytes(), (10,), None)
    np.testing.assert_allclose(whole[2, 2999], one, rtol=1e-6)
    assert quantiser.decode(b"", (3, 0, 10), None).shape == (3, 0, 10)


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
        codec=quantiser.name,
        checkpoint_digest="c" * 64,
        spec_digest=spec.digest(),
    )
    data = upload.to_bytes()
    received = Upload.from_bytes(data)
    assert received.payload_bytes == 3 * 2 * 4 + 1 + 6 + 6
    assert not received.anchors[1, 1].any() and not received.anchors[2].any()
    np.testing.assert_array_equal(received.anchors[0, 0], arrived(quantiser, VECTORS[:1])[0])
    assert Download.answer(received, spec, {}, codec="int8")
    codecs._CODECS.pop(quantiser.name)
    with pytest.raises(LinkError, match=r"unknown codec .*or other codebooks"):
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
        codec=quantiser.name,
        checkpoint_digest="c" * 64,
        spec_digest="d" * 64,
    )
    assert upload.payload_bytes == 16 * 12 + 2 + 16 + 16 * 2 <= 256


def test_forged_codes_are_refused():
    quantiser = learn(VECTORS, 3, words=20)
    register(quantiser)
    assert decode(quantiser.name, bytes(6), (2, 10)).shape == (2, 10)
    with pytest.raises(LinkError, match="beyond its codebook"):
        decode(quantiser.name, bytes(5) + b"\x14", (2, 10))
    for shape, message in (((2, 9), "vectors of 10 values"), ((), "vectors of 10 values"), ((3, 10), "takes 9")):
        with pytest.raises(LinkError, match=message):
            decode(quantiser.name, bytes(6), shape)


@pytest.mark.parametrize(
    "books",
    [[], [np.zeros((0, 2))], [np.zeros(3)], [np.zeros((257, 2))], [np.full((2, 2), np.nan)],
     [np.zeros((2, 1)), np.zeros((2, 4))]],
)  # fmt: skip
def test_what_is_no_codebook_is_refused(books):
    with pytest.raises(ValueError, match="codebook"):
        ProductQuantiser(books, np.zeros(5), np.eye(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(9)}, r"mean of shape \(9,\)"),
        ({"mean": np.full(10, np.inf)}, "mean"),
        ({"rotation": np.eye(9)}, r"rotation of shape \(9, 9\)"),
        ({"rotation": np.zeros(10)}, "rotation"),
        ({"rotation": np.full((10, 10), np.nan)}, "rotation"),
        ({"rotation": np.eye(10) * 1e30}, "orthonormal"),
        ({"rotation": np.eye(10) * 1.001}, "orthonormal"),
        ({"rotation": None}, "expected mean, rotation"),
        ({"codebook001": None}, "expected mean, rotation"),
        ({"words": np.zeros(1)}, "expected mean, rotation"),
    ],
)
def test_malformed_tensors_are_refused(change, message):
    tensors = learn(VECTORS, 3, words=20).to_tensors() | change
    with pytest.raises(ValueError, match=message):
        ProductQuantiser.from_tensors({name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_the_digest_covers_every_tensor():
    quantiser = learn(VECTORS, 3, words=20)
    tensors = quantiser.to_tensors()
    assert ProductQuantiser.from_tensors(tensors) == quantiser
    flipped = {"mean": tensors["mean"] + 1, "rotation": -tensors["rotation"], "codebook002": tensors["codebook002"] * 2}
    names = {ProductQuantiser.from_tensors(tensors | {name: array}).name for name, array in flipped.items()}
    assert len(names - {quantiser.name}) == 3


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match="vectors of 10 values"):
        learn(VECTORS, 3).encode(np.zeros((2, 9), np.float32), None)
    with pytest.raises(ValueError, match="cannot learn"):
        learn(VECTORS, 11)
