"""Closed forms between frame features and captions: the ridge baseline, and the initialisation that starts from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lit_mmpg.data.vocabulary import Vocabulary, tokenize

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

MAX_TERMS = 10_000
"""Most terms of the TF-IDF space: the closed form holds a dense clips x terms matrix."""


def fit_tfidf(sentences: Sequence[str], min_count: int = 1) -> TfidfVectorizer:
    """TF-IDF of training sentences, of the terms that stand in at least ``min_count`` of them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        tokenizer=tokenize, token_pattern=None, lowercase=False, min_df=min_count, max_features=MAX_TERMS
    ).fit(sentences)


@dataclass(frozen=True)
class Ridge:
    """Ridge regression from mean frame features to TF-IDF captions.

    Attributes:
        weight: ``[D, terms]``.
        feature_mean: ``[D]`` mean of the training features.
        fitted: ``[clips, terms]`` centred predictions on the training clips.
    """

    weight: np.ndarray
    feature_mean: np.ndarray
    fitted: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Centred TF-IDF predictions ``[n, terms]`` for mean features ``[n, D]``."""
        return (features - self.feature_mean) @ self.weight


def fit_ridge(features: np.ndarray, targets: np.ndarray, strength: float) -> Ridge:
    """Solve ``min |Y - X W|^2 + strength |W|^2`` on centred data.

    Args:
        features: ``[clips, D]`` float64.
        targets: ``[clips, terms]`` float64.
        strength: Ridge penalty, above 0.
    """
    mean = features.mean(0)
    x, y = features - mean, targets - targets.mean(0)
    weight = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)
    return Ridge(weight, mean, x @ weight)


@dataclass(frozen=True)
class CaptionInitialisation:
    """Start values with which the retrieval model ranks clips nearly as the ridge does.

    Attributes:
        weight: ``[H, D]`` of the frame projection.
        bias: ``[H]`` of the frame projection.
        words: ``[V, H]`` word vectors, IDF included.
    """

    weight: np.ndarray
    bias: np.ndarray
    words: np.ndarray


def caption_initialisation(
    features: np.ndarray,
    captions: Sequence[str],
    sentences: Sequence[str],
    vocabulary: Vocabulary,
    width: int,
    strength: float,
) -> CaptionInitialisation:
    """Reduced-rank ridge: projection and word vectors in the leading directions of the fitted captions.

    The directions are kept orthogonal to the all-ones vector, so the LayerNorm behind the projection only rescales and
    cosine similarities stay those of the (reduced-rank) ridge.

    Args:
        features: ``[clips, D]`` standardised mean features of the training clips.
        captions: One text per training clip.
        sentences: All training sentences, for TF-IDF.
        vocabulary: Vocabulary of the model.
        width: Width H.
        strength: Ridge penalty.
    """
    # A word that is seen once has a column that fits noise; the few dimensions here are better spent elsewhere.
    tfidf = fit_tfidf(sentences, min_count=2 if len(sentences) >= 100 else 1)
    ridge = fit_ridge(features.astype(np.float64), tfidf.transform(captions).toarray(), strength)
    _, directions = np.linalg.eigh(ridge.fitted.T @ ridge.fitted)
    rank = min(width - 1, directions.shape[1])
    directions = directions[:, ::-1][:, :rank]
    basis = np.linalg.svd(np.eye(width) - 1.0 / width)[0][:, :rank]  # orthonormal, orthogonal to all ones
    weight = basis @ (ridge.weight @ directions).T
    weight /= np.sqrt(np.square((features - ridge.feature_mean) @ weight.T).mean())
    words = np.zeros((len(vocabulary), width))
    for term, column in tfidf.vocabulary_.items():
        index = vocabulary.index(term)
        if index > 1:  # neither padding nor the unknown word
            words[index] = basis @ (directions[column] * tfidf.idf_[column])
    words /= np.sqrt(np.square(words).sum(1).mean() / width)
    return CaptionInitialisation(weight, -weight @ ridge.feature_mean, words)
