"""Product quantisation: a vector as the numbers of the nearest words of several small codebooks.

The last axis is cut into M parts that are as equal as possible (as ``numpy.array_split`` cuts); each part is replaced
by the number of its nearest word among at most 256, so a vector costs M bytes (Jégou, Douze and Schmid, "Product
Quantization for Nearest Neighbor Search", TPAMI 2011). The codebooks are learnt on what the training devices would
upload, and both halves hold them: they travel with the checkpoint and with the bundle, never with a message. The name
of the codec carries their digest, so messages of halves with different codebooks do not decode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from lit_mmpg.link.errors import LinkError

MAX_WORDS = 256
PQ = "pq"
"""What a configuration calls the codec; :attr:`ProductQuantiser.name` is what a message calls it."""


class ProductQuantiser:
    """Codec for vectors of one width.

    Args:
        codebooks: One ``[words, part]`` float array for each part of a vector, in order.

    Raises:
        ValueError: If a codebook is empty, too long, not two-dimensional or not finite, or the parts have not the
            widths of an even cut.
    """

    def __init__(self, codebooks: Sequence[np.ndarray]) -> None:
        self.codebooks = [np.ascontiguousarray(book, np.float32) for book in codebooks]
        if not self.codebooks:
            raise ValueError("product quantisation needs a codebook")
        for book in self.codebooks:
            if book.ndim != 2 or not 1 <= len(book) <= MAX_WORDS or not book.shape[1] or not np.isfinite(book).all():
                raise ValueError(f"a codebook of shape {book.shape} is no codebook of 1 to {MAX_WORDS} finite words")
        self.width = sum(book.shape[1] for book in self.codebooks)
        if [book.shape[1] for book in self.codebooks] != part_widths(self.width, len(self.codebooks)):
            raise ValueError(f"codebooks of widths {[b.shape[1] for b in self.codebooks]} are no even cut")
        digest = hashlib.sha256()
        for book in self.codebooks:
            digest.update(repr(book.shape).encode() + book.tobytes())
        self.name = f"{PQ}-{digest.hexdigest()[:16]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProductQuantiser) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """The codebooks by name, for a safetensors file."""
        return {f"codebook{m:03d}": book for m, book in enumerate(self.codebooks)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> ProductQuantiser:
        """Inverse of :meth:`to_tensors`.

        Raises:
            ValueError: If they are no codebooks.
        """
        if set(tensors) != {f"codebook{m:03d}" for m in range(len(tensors))}:
            raise ValueError(f"holds {sorted(tensors)}, expected codebook000 and so on")
        return cls([tensors[name] for name in sorted(tensors)])

    def encode(self, array: np.ndarray, axis: int | None) -> dict[str, np.ndarray]:
        """Codes ``[..., M]`` uint8 of vectors ``[..., H]``.

        Raises:
            ValueError: If the vectors have another width.
        """
        if not array.ndim or array.shape[-1] != self.width:
            raise ValueError(f"has the shape {array.shape}; this codebook is for vectors of {self.width} values")
        flat = array.reshape(-1, self.width)
        codes = np.empty((len(flat), len(self.codebooks)), np.uint8)
        start = 0
        for m, book in enumerate(self.codebooks):
            codes[:, m] = nearest(flat[:, start : start + book.shape[1]], book)
            start += book.shape[1]
        return {"": codes.reshape(*array.shape[:-1], -1)}

    def shape(self, parts: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """``[..., H]`` of codes that nobody has checked."""
        if set(parts) != {""}:
            raise LinkError(f"has parts {sorted(parts)}, expected the codes alone")
        codes = parts[""]
        if codes.dtype != np.uint8 or not codes.ndim or codes.shape[-1] != len(self.codebooks):
            raise LinkError(f"is {codes.dtype} {codes.shape}, expected uint8 [..., {len(self.codebooks)}]")
        return (*codes.shape[:-1], self.width)

    def decode(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors ``[..., H]`` from codes that nobody has checked."""
        vectors, codes, start = np.empty(self.shape(parts), np.float32), parts[""], 0
        if any((codes[..., m] >= len(book)).any() for m, book in enumerate(self.codebooks)):
            raise LinkError("holds a code beyond its codebook")
        for m, book in enumerate(self.codebooks):
            vectors[..., start : start + book.shape[1]] = book[codes[..., m]]
            start += book.shape[1]
        return vectors


def part_widths(width: int, parts: int) -> list[int]:
    """Widths of an even cut of ``width`` values into ``parts`` parts."""
    return [len(part) for part in np.array_split(np.arange(width), parts)]


def nearest(vectors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """``[N]`` index of the nearest word (Euclidean, the first of equals) for each of ``vectors [N, d]``."""
    exact, book = vectors.astype(np.float64), words.astype(np.float64)
    return np.argmin(np.square(book).sum(1) - 2.0 * exact @ book.T, axis=1)


def learn(vectors: np.ndarray, parts: int, words: int = MAX_WORDS, rounds: int = 12, seed: int = 0) -> ProductQuantiser:
    """Codebooks by k-means (Lloyd) on each part of given vectors, started at random vectors.

    A word that loses all its vectors starts again at the vector that is worst represented.

    Args:
        vectors: ``[N, H]``, at least one.
        parts: Number M of parts, 1 to H: bytes of an encoded vector.
        words: Words of a codebook; fewer where there are fewer different vectors.
        rounds: Rounds of Lloyd's algorithm.
        seed: Seed of the start.

    Raises:
        ValueError: If there are no vectors, or more parts than values.
    """
    if vectors.ndim != 2 or not len(vectors) or not 1 <= parts <= vectors.shape[1]:
        raise ValueError(f"cannot learn {parts} codebooks from vectors of shape {vectors.shape}")
    rng = np.random.default_rng(seed)
    return ProductQuantiser(
        [_k_means(part.astype(np.float64), words, rounds, rng) for part in np.array_split(vectors, parts, axis=1)]
    )


def _k_means(points: np.ndarray, words: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    different = np.unique(points, axis=0)
    if len(different) <= words:
        return different
    centres = different[rng.choice(len(different), words, replace=False)]
    for _ in range(rounds):
        owner = nearest(points, centres)
        count = np.bincount(owner, minlength=words)
        sums = np.stack([np.bincount(owner, column, words) for column in points.T], axis=1)
        centres = sums / np.maximum(count, 1)[:, None]
        empty = np.flatnonzero(count == 0)
        if len(empty):
            error = np.square(points - centres[owner]).sum(1)
            centres[empty] = points[np.argsort(error)[-len(empty) :]]
    return centres
