"""Product quantisation: a vector as the numbers of the nearest words of several small codebooks.

A vector is centred and rotated, and the result cut into M parts that are as equal as possible (as
``numpy.array_split`` cuts); each part is replaced by the number of its nearest word among at most 256, so a vector
costs M bytes (Jégou, Douze and Schmid, "Product Quantization for Nearest Neighbor Search", TPAMI 2011). The rotation is
that of the principal axes, dealt to the parts so that each gets its share of the variance (the parametric solution of
Ge, He, Ke and Sun, "Optimized Product Quantization", TPAMI 2014). Mean, rotation and codebooks are learnt on what the
training devices would upload, and both halves hold them: they travel with the checkpoint and with the bundle, never
with a message. The name of the codec carries their digest, so messages of halves with different ones do not decode.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lit_mmpg.link.errors import LinkError

MAX_WORDS = 256
_BLOCK = 4096  # vectors that are decoded at a time: float64 would take several times what a message may decode to
PQ = "pq"
"""What a configuration calls the codec; :attr:`ProductQuantiser.name` is what a message calls it."""


class ProductQuantiser:
    """Codec for vectors of one width.

    Args:
        codebooks: One ``[words, part]`` float array for each part of a rotated vector, in order.
        mean: ``[H]`` subtracted from a vector before it is rotated.
        rotation: ``[H, H]`` orthonormal; a vector ``x`` becomes ``(x - mean) @ rotation``.

    Raises:
        ValueError: If a codebook is empty, too long, not two-dimensional or not finite, the parts have not the widths
            of an even cut, or mean or rotation do not fit them.
    """

    def __init__(self, codebooks: Sequence[np.ndarray], mean: np.ndarray, rotation: np.ndarray) -> None:
        self.codebooks = [np.ascontiguousarray(book, np.float32) for book in codebooks]
        if not self.codebooks:
            raise ValueError("product quantisation needs a codebook")
        for book in self.codebooks:
            if book.ndim != 2 or not 1 <= len(book) <= MAX_WORDS or not book.shape[1] or not np.isfinite(book).all():
                raise ValueError(f"a codebook of shape {book.shape} is no codebook of 1 to {MAX_WORDS} finite words")
        self.width = sum(book.shape[1] for book in self.codebooks)
        if [book.shape[1] for book in self.codebooks] != part_widths(self.width, len(self.codebooks)):
            raise ValueError(f"codebooks of widths {[b.shape[1] for b in self.codebooks]} are no even cut")
        self.mean, self.rotation = (np.ascontiguousarray(array, np.float32) for array in (mean, rotation))
        if self.mean.shape != (self.width,) or not np.isfinite(self.mean).all():
            raise ValueError(f"a mean of shape {self.mean.shape} is none of {self.width} finite values")
        square = self.rotation.shape == (self.width, self.width)
        # Larger entries could not be orthonormal, and their products could overflow; NaN is not below 2 either.
        if not (square and (np.abs(self.rotation) < 2).all()) or not np.allclose(
            self.rotation.T @ self.rotation, np.eye(self.width), rtol=0, atol=1e-5
        ):
            raise ValueError(f"a rotation of shape {self.rotation.shape} is no orthonormal one of {self.width} values")
        digest = hashlib.sha256()
        for array in self.to_tensors().values():
            digest.update(repr(array.shape).encode() + array.tobytes())
        self.name = f"{PQ}-{digest.hexdigest()[:16]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProductQuantiser) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Mean, rotation and codebooks by name, for a file."""
        books = {f"codebook{m:03d}": book for m, book in enumerate(self.codebooks)}
        return {"mean": self.mean, "rotation": self.rotation, **books}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> ProductQuantiser:
        """Inverse of :meth:`to_tensors`.

        Raises:
            ValueError: If they are no codebooks with their mean and rotation.
        """
        books = [f"codebook{m:03d}" for m in range(len(tensors) - 2)]
        if set(tensors) != {"mean", "rotation", *books}:
            raise ValueError(f"holds {sorted(tensors)}, expected mean, rotation, codebook000 and so on")
        return cls([tensors[name] for name in books], tensors["mean"], tensors["rotation"])

    def num_bytes(self, shape: tuple[int, ...], axis: int | None) -> int:
        """Bytes of vectors ``[..., H]``: one for each codebook and vector.

        Raises:
            LinkError: If the vectors have another width.
        """
        if not shape or shape[-1] != self.width:
            raise LinkError(f"has the shape {list(shape)}; this codebook is for vectors of {self.width} values")
        return math.prod(shape[:-1]) * len(self.codebooks)

    def encode(self, array: np.ndarray, axis: int | None) -> bytes:
        """Codes ``[..., M]`` of vectors ``[..., H]``, a byte each.

        Raises:
            ValueError: If the vectors have another width.
        """
        if not array.ndim or array.shape[-1] != self.width:
            raise ValueError(f"has the shape {array.shape}; this codebook is for vectors of {self.width} values")
        flat = (array.reshape(-1, self.width).astype(np.float64) - self.mean) @ self.rotation
        codes = np.empty((len(flat), len(self.codebooks)), np.uint8)
        start = 0
        for m, book in enumerate(self.codebooks):
            codes[:, m] = nearest(flat[:, start : start + book.shape[1]], book)
            start += book.shape[1]
        return codes.tobytes()

    def decode(self, data: bytes, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
        """Vectors ``[..., H]`` from codes that nobody has checked.

        Raises:
            LinkError: If a code is beyond its codebook.
        """
        codes = np.frombuffer(data, np.uint8).reshape(-1, len(self.codebooks))
        if any((codes[:, m] >= len(book)).any() for m, book in enumerate(self.codebooks)):
            raise LinkError("holds a code beyond its codebook")
        vectors = np.empty((len(codes), self.width), np.float32)
        for start in range(0, len(codes), _BLOCK):
            block = codes[start : start + _BLOCK]
            words = np.concatenate([book[block[:, m]] for m, book in enumerate(self.codebooks)], axis=1)
            with np.errstate(over="ignore"):  # the receiver refuses what is infinite
                vectors[start : start + _BLOCK] = words.astype(np.float64) @ self.rotation.T + self.mean
        return vectors.reshape(shape)


def part_widths(width: int, parts: int) -> list[int]:
    """Widths of an even cut of ``width`` values into ``parts`` parts."""
    return [len(part) for part in np.array_split(np.arange(width), parts)]


def nearest(vectors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """``[N]`` index of the nearest word (Euclidean, the first of equals) for each of ``vectors [N, d]``."""
    exact, book = vectors.astype(np.float64), words.astype(np.float64)
    return np.argmin(np.square(book).sum(1) - 2.0 * exact @ book.T, axis=1)


def learn(
    vectors: np.ndarray, parts: int, words: int = MAX_WORDS, rounds: int = 12, seed: int = 0, rotate: bool = True
) -> ProductQuantiser:
    """Mean and principal axes of given vectors, and codebooks by k-means (Lloyd), started at random vectors.

    A word that loses all its vectors starts again at the vector that is worst represented.

    Args:
        vectors: ``[N, H]``, at least one.
        parts: Number M of parts, 1 to H: bytes of an encoded vector.
        words: Words of a codebook; fewer where there are fewer different vectors.
        rounds: Rounds of Lloyd's algorithm.
        seed: Seed of the start.
        rotate: ``False`` cuts the vectors as they are.

    Raises:
        ValueError: If there are no vectors, or more parts than values.
    """
    if vectors.ndim != 2 or not len(vectors) or not 1 <= parts <= vectors.shape[1]:
        raise ValueError(f"cannot learn {parts} codebooks from vectors of shape {vectors.shape}")
    exact, rng = vectors.astype(np.float64), np.random.default_rng(seed)
    step = _grid_step(exact)
    mean, rotation = np.zeros(exact.shape[1]), np.eye(exact.shape[1])
    if rotate:
        mean, rotation = exact.mean(axis=0), principal_axes(exact, parts, least=step**2)
    points = step * np.rint((exact - mean) @ rotation / step)
    books = [k_means(part, words, rounds, rng) for part in np.array_split(points, parts, axis=1)]
    return ProductQuantiser([step * np.rint(book / step) for book in books], mean, rotation)


def principal_axes(vectors: np.ndarray, parts: int, least: float) -> np.ndarray:
    """``[H, H]`` principal axes as columns, in the order of the parts that they are dealt to.

    In the order of falling variance, each axis goes to the part with room whose variances so far have the smallest
    product: parts of equal product have the smallest error together.

    Args:
        vectors: ``[N, H]``, at least one.
        parts: Number of parts of an even cut.
        least: Variances below this count as this.
    """
    centred = vectors - vectors.mean(axis=0)
    variance, axes = np.linalg.eigh(centred.T @ centred / len(vectors))
    logs = np.log(np.maximum(variance, least) / least)
    widths, load = part_widths(vectors.shape[1], parts), np.zeros(parts)
    dealt: list[list[int]] = [[] for _ in range(parts)]
    for axis in np.argsort(-logs, kind="stable"):
        part = min((m for m in range(parts) if len(dealt[m]) < widths[m]), key=lambda m: load[m])
        dealt[part].append(int(axis))
        load[part] += logs[axis]
    return np.ascontiguousarray(axes[:, [axis for part in dealt for axis in part]])


def _grid_step(vectors: np.ndarray) -> float:
    """Distance of the values that words may have.

    A word that is decoded and turned again has moved by about 2^-23 of its length: the vector and the rotation are
    rounded to float32. It must not come nearer to another word. A power of two, so that float32 holds words exactly.
    """
    longest = float(np.sqrt(np.square(vectors).sum(axis=1).max()))
    return float(2.0 ** (np.ceil(np.log2(longest)) - 21)) if longest > 0 else 1.0


def k_means(points: np.ndarray, words: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """``[words, d]`` centres of ``points [N, d]`` float64 after some rounds; the points where these are fewer."""
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
