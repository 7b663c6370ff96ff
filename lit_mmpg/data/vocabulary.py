"""Words and answers, all fitted on training texts only: vocabulary, answer list and word vectors. No torch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError

UNKNOWN = 1
NUM_SPECIAL = 2
"""Padding, which is 0, and what is unknown."""
CONTEXT_SMOOTHING = 0.75

_APOSTROPHES = str.maketrans("’‘`´", "''''")
_POSSESSIVE = re.compile(r"'s(?![^\W_])")
_WORD = re.compile(r"[^\W_]+")


def tokenize(text: str) -> list[str]:
    r"""Words and numbers of a text, in lower case and composed (Unicode's NFC).

    A possessive or short ``'s`` is dropped (``dog's`` -> ``dog``), other apostrophes join (``don't`` -> ``dont``);
    everything else that is neither a letter nor a digit separates. Marks belong to the letter before them.

    Example:
        >>> tokenize("Is that the dog's cafe\u0301?"), tokenize("की ki")
        (['is', 'that', 'the', 'dog', 'café'], ['की', 'ki'])
    """
    text = _POSSESSIVE.sub("", _composed(text.lower()).translate(_APOSTROPHES)).replace("'", "")
    return _WORD.findall(text) if text.isascii() else _words(text).split()


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@lru_cache(maxsize=4096)
def _goes_on(character: str) -> bool:
    """Whether a word goes on over a character that is no letter: a mark of one, or an invisible joiner."""
    return unicodedata.category(character) in ("Mn", "Mc") or character in "\u200c\u200d"


def _words(text: str) -> str:
    """The text with blanks for all that is part of no word."""
    kept, inside = [], False
    for character in text:
        inside = character.isalnum() or (inside and _goes_on(character))
        kept.append(character if inside else " ")
    return "".join(kept)


@dataclass(frozen=True)
class Vocabulary:
    """Words of the training texts; index 0 is padding, 1 any unknown word, 2 the most frequent word.

    Attributes:
        words: The words from index 2 on, most frequent first, ties in alphabetical order.
        document_frequency: For the unknown word and then for each of ``words``, the number of training texts that
            contain it; for the unknown word those that contain any word outside the list.
        num_documents: Number of training texts.
    """

    words: tuple[str, ...]
    document_frequency: tuple[int, ...]
    num_documents: int

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 1, max_size: int | None = None) -> Vocabulary:
        """Counts the words of training texts.

        Args:
            texts: Training texts.
            min_count: A word must occur at least this often.
            max_size: Upper bound of the length, padding and unknown included.

        Raises:
            UserError: If no word remains.
        """
        documents = [tokenize(text) for text in texts]
        counts = Counter(word for document in documents for word in document)
        ranked = sorted((word for word in counts if counts[word] >= min_count), key=lambda w: (-counts[w], w))
        if max_size is not None:
            ranked = ranked[: max(0, max_size - NUM_SPECIAL)]
        if not ranked:
            raise UserError(
                f"no word occurs {min_count} times in the {len(documents)} training texts; lower data.min_count"
            )
        index = {word: i + NUM_SPECIAL for i, word in enumerate(ranked)}
        frequency = [0] * (len(ranked) + 1)
        for document in documents:
            for i in {index.get(word, UNKNOWN) for word in document}:
                frequency[i - UNKNOWN] += 1
        return cls(tuple(ranked), tuple(frequency), len(documents))

    def __len__(self) -> int:
        return len(self.words) + NUM_SPECIAL

    @cached_property
    def _index(self) -> dict[str, int]:
        return {word: i + NUM_SPECIAL for i, word in enumerate(self.words)}

    def index(self, word: str) -> int:
        """Index of a word, 1 if unknown."""
        return self._index.get(word, UNKNOWN)

    def encode(self, text: str, max_words: int) -> list[int]:
        """Indices of the first ``max_words`` words of a text.

        A text without any word becomes one unknown word, so that no sequence is empty.
        """
        return [self.index(word) for word in tokenize(text)[:max_words]] or [UNKNOWN]

    def to_json(self) -> dict[str, Any]:
        """Plain data, saved with checkpoints and bundles."""
        return {
            "words": list(self.words),
            "document_frequency": list(self.document_frequency),
            "num_documents": self.num_documents,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Vocabulary:
        """Inverse of :meth:`to_json`."""
        return cls(
            tuple(map(str, data["words"])), tuple(map(int, data["document_frequency"])), int(data["num_documents"])
        )


@dataclass(frozen=True)
class AnswerList:
    """The most frequent training answers, which an open-ended head can give.

    Attributes:
        answers: Normalised answers, most frequent first, ties in alphabetical order.
    """

    answers: tuple[str, ...]

    @classmethod
    def build(cls, training_answers: Iterable[str], size: int) -> AnswerList:
        """The ``size`` most frequent answers.

        Raises:
            UserError: If there is no answer.
        """
        counts = Counter(map(normalise_answer, training_answers))
        ranked = sorted(counts, key=lambda answer: (-counts[answer], answer))[:size]
        if not ranked:
            raise UserError("no training answers to build the answer list from; check the training split")
        return cls(tuple(ranked))

    def __len__(self) -> int:
        return len(self.answers)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {answer: i for i, answer in enumerate(self.answers)}

    def index(self, answer: str) -> int:
        """Index of an answer, -1 if it is not in the list."""
        return self._index.get(normalise_answer(answer), -1)

    def coverage(self, answers: Iterable[str]) -> float:
        """Fraction of answers (with repetition) that are in the list; 0 where there are none."""
        known = [self.index(answer) >= 0 for answer in answers]
        return sum(known) / len(known) if known else 0.0

    def check_coverage(self, training_answers: Iterable[str], minimum: float = 0.5) -> None:
        """Refuses a list that leaves too many training answers out.

        Raises:
            UserError: If it covers a smaller fraction than ``minimum``.
        """
        covered = self.coverage(training_answers)
        if covered < minimum:
            raise UserError(
                f"the answer list ({len(self)} answers) covers {covered:.1%} of the training answers, "
                f"at least {minimum:.0%} is needed; raise data.max_answers"
            )

    def coverage_warning(self, test_answers: Iterable[str], minimum: float = 0.5) -> str | None:
        """What to tell the user where tested answers are covered by less than ``minimum``; None where all is well."""
        covered = self.coverage(test_answers)
        if covered >= minimum:
            return None
        return (
            f"the answer list ({len(self)} answers, as trained) covers {covered:.1%} of these answers; "
            "answers outside the list count as wrong"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data, saved with checkpoints and bundles."""
        return {"answers": list(self.answers)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AnswerList:
        """Inverse of :meth:`to_json`."""
        return cls(tuple(map(str, data["answers"])))


def normalise_answer(answer: str) -> str:
    """An answer in lower case with single spaces, composed (Unicode's NFC)."""
    return " ".join(_composed(answer.lower()).split())


def word_vectors(texts: Sequence[str], vocabulary: Vocabulary, dim: int, seed: int) -> np.ndarray:
    """Word vectors from the training texts themselves: a factorisation of the PPMI matrix.

    Two words co-occur once for each text that contains both. The positive pointwise mutual information
    ``max(0, ln(p(w, c) / (p(w) p(c)^0.75 / Z)))`` is factorised by a truncated SVD ``U S V^T``; a word's vector is its
    row of ``U sqrt(S)``, scaled to length 1 (Levy, Goldberg and Dagan, TACL 2015: shifted context distribution and
    symmetric eigenvalue weighting).

    Args:
        texts: Training texts.
        vocabulary: The words; those outside share the row of the unknown word.
        dim: Length of a vector; beyond the rank of the matrix the columns are zero.
        seed: Seed of the randomised SVD.

    Returns:
        ``[V, dim]`` float32; zero for padding and for words that never occur together with another one.
    """
    from scipy import sparse
    from sklearn.utils.extmath import randomized_svd

    size = len(vocabulary)
    documents = [sorted({vocabulary.index(word) for word in tokenize(text)}) for text in texts]
    columns = np.fromiter((i for document in documents for i in document), np.int64)
    rows = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    occurs = sparse.csr_matrix((np.ones(len(columns)), (rows, columns)), shape=(len(documents), size))
    together = (occurs.T @ occurs).tocoo()
    apart = together.row != together.col
    row, column, count = together.row[apart], together.col[apart], together.data[apart]
    vectors = np.zeros((size, dim), np.float32)
    if not len(count):
        return vectors
    marginal = np.bincount(row, weights=count, minlength=size)
    context = marginal**CONTEXT_SMOOTHING
    information = np.log(count / marginal[row] / (context[column] / context.sum()))
    positive = np.maximum(information, 0.0)
    if not positive.any():
        return vectors
    matrix = sparse.csr_matrix((positive, (row, column)), shape=(size, size))
    rank = min(dim, size)
    left, singular, _ = randomized_svd(matrix, n_components=rank, random_state=seed)
    # Rows and directions without information hold rounding noise, which scaling to length 1 would blow up.
    found = left * np.sqrt(np.where(singular > 1e-9 * singular[0], singular, 0.0))
    length = np.linalg.norm(found, axis=1, keepdims=True)
    meaningful = length > 1e-6 * length.max()
    vectors[:, :rank] = np.divide(found, length, out=np.zeros_like(found), where=meaningful)
    return vectors
