from __future__ import annotations

import json
import math
import os
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from lit_mmpg.data.readers import read_questions
from lit_mmpg.data.vocabulary import AnswerList, Vocabulary, tokenize, word_vectors
from lit_mmpg.errors import UserError

TEXTS = [
    "A goat eats the grass",
    "the goat and the dog sleep",
    "a dog chases a red ball, the ball rolls",
    "who rolls the ball?",
    "a red kite",
]


def test_tokenize() -> None:
    assert tokenize("The dog's 2 BALLS don't roll; O’Neil's_hat—é 3.5") == [
        *("the", "dog", "2", "balls", "dont", "roll"),
        *("oneil", "hat", "é", "3", "5"),
    ]
    assert tokenize(" ?! ") == []


@given(st.text())
def test_tokens_are_stable(text: str) -> None:
    tokens = tokenize(text)
    assert tokenize(" ".join(tokens)) == tokens
    assert all(token and token == token.lower() for token in tokens)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("क्या यह कुत्ता है?", ["क्या", "यह", "कुत्ता", "है"]),
        ("กิน", ["กิน"]),
        ("مُحَمَّد", ["مُحَمَّد"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("نمی\u200cخواهم", ["نمی\u200cخواهم"]),
        ("a❤\ufe0fb \u0301c", ["a", "b", "c"]),
        ("他在做什么?", ["他在做什么"]),
    ],
)
def test_words_of_all_scripts_are_whole(text: str, words: list[str]) -> None:
    assert tokenize(text) == words
    assert AnswerList.build(["café"], 10).index("Cafe\u0301") == 0


def test_vocabulary_is_ranked_by_frequency_then_alphabet() -> None:
    vocabulary = Vocabulary.build(TEXTS)
    # the 5, a 4, ball 3, then dog goat red rolls 2, then the single ones
    assert vocabulary.words[:7] == ("the", "a", "ball", "dog", "goat", "red", "rolls")
    assert list(vocabulary.words[7:]) == sorted(vocabulary.words[7:])
    assert vocabulary.words == Vocabulary.build(TEXTS[::-1]).words
    assert Vocabulary.build(TEXTS, min_count=2).words == vocabulary.words[:7]
    small = Vocabulary.build(TEXTS, max_size=4)
    assert small.words == ("the", "a") and len(small) == 4


def test_encode() -> None:
    vocabulary = Vocabulary.build(TEXTS, min_count=2)
    assert vocabulary.encode("The goat sings", 10) == [2, 6, 1]
    assert vocabulary.encode("The goat sings", 2) == [2, 6]
    assert vocabulary.encode("?", 5) == [1]


@given(st.text(max_size=60), st.integers(1, 12))
def test_encoded_indices_are_in_range(text: str, max_words: int) -> None:
    vocabulary = Vocabulary.build(TEXTS)
    indices = vocabulary.encode(text, max_words)
    assert 1 <= len(indices) <= max_words
    assert all(1 <= i < len(vocabulary) for i in indices)


def test_document_frequencies_give_the_idf_of_sklearn() -> None:
    def idf(vocabulary: Vocabulary) -> np.ndarray:
        return np.log((1 + vocabulary.num_documents) / (1 + np.array(vocabulary.document_frequency))) + 1

    vocabulary = Vocabulary.build(TEXTS)
    reference = TfidfVectorizer(analyzer=tokenize, vocabulary=list(vocabulary.words), smooth_idf=True).fit(TEXTS)
    np.testing.assert_allclose(idf(vocabulary)[1:], reference.idf_, rtol=1e-6)
    assert idf(vocabulary)[0] == pytest.approx(math.log(6) + 1)
    # every text but the last one loses a word at min_count 2, "kite" in the last one too
    assert idf(Vocabulary.build(TEXTS, min_count=2))[0] == pytest.approx(1.0)


def test_vocabulary_survives_json() -> None:
    vocabulary = Vocabulary.build(TEXTS)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary
    assert vocabulary not in (Vocabulary.build(TEXTS[1:]), Vocabulary.build(TEXTS, 2))


def test_vocabulary_of_nothing() -> None:
    for texts in ([], ["?"], ["one two"]):
        with pytest.raises(UserError, match="training texts"):
            Vocabulary.build(texts, min_count=2)


ANSWERS = ["dog", "Cat ", "cat", "cat", "dog", "hot  Air balloon", "emu"]


def test_answer_list() -> None:
    answers = AnswerList.build(ANSWERS, 3)
    assert answers.answers == ("cat", "dog", "emu")  # "emu" before "hot air balloon": tie, alphabet
    assert answers.index("CAT") == 0 and answers.index("yak") == -1
    assert answers.coverage(ANSWERS) == pytest.approx(6 / 7)
    assert answers.coverage([]) == 0
    assert AnswerList.build(ANSWERS, 10).index("Hot air  balloon") == 3
    assert AnswerList.from_json(json.loads(json.dumps(answers.to_json()))) == answers
    assert answers != AnswerList.build(ANSWERS, 2)
    with pytest.raises(UserError, match="no training answers"):
        AnswerList.build([], 3)


@pytest.mark.parametrize("order", list(permutations(["pear", "apple", "fig"])))
def test_ties_do_not_depend_on_the_order(order: tuple[str, ...]) -> None:
    assert AnswerList.build(order, 2).answers == ("apple", "fig")


def test_answer_list_that_covers_too_little() -> None:
    answers = AnswerList.build(["a"], 1)
    answers.check_coverage(["a", "b"])
    with pytest.raises(UserError, match=r"\(1 answers\) covers 33.3% of the training answers, at least 50%"):
        answers.check_coverage(["a", "b", "c"])
    assert answers.coverage_warning(["a", "b"]) is None
    warning = answers.coverage_warning(["a", "b", "c"])
    assert warning is not None and "33.3%" in warning and "count as wrong" in warning


def reference_ppmi(vocabulary: Vocabulary) -> np.ndarray:
    """Positive pointwise mutual information by loops over pairs of words, smoothed contexts (exponent 3/4)."""
    size = len(vocabulary)
    count = np.zeros((size, size))
    for text in TEXTS:
        present = set(vocabulary.encode(text, 100))
        for w in present:
            for c in present - {w}:
                count[w, c] += 1
    matrix = np.zeros((size, size))
    total = count.sum()
    context_total = sum(count[:, c].sum() ** 0.75 for c in range(size))
    for w in range(size):
        for c in range(size):
            if count[w, c]:
                p_word, p_context = count[w].sum() / total, count[:, c].sum() ** 0.75 / context_total
                matrix[w, c] = max(0.0, math.log(count[w, c] / total / (p_word * p_context)))
    return matrix


@pytest.mark.parametrize("min_count", [1, 2])
def test_word_vectors_factorise_the_ppmi_matrix(min_count: int) -> None:
    vocabulary = Vocabulary.build(TEXTS, min_count)
    size = len(vocabulary)
    vectors = word_vectors(TEXTS, vocabulary, size + 3, seed=0)
    matrix = reference_ppmi(vocabulary)
    # the Gram matrix of U sqrt(S) is the square root of M M^T, whatever the signs of the singular vectors
    eigenvalues, eigenvectors = np.linalg.eigh(matrix @ matrix.T)
    gram = (eigenvectors * np.sqrt(np.maximum(eigenvalues, 0))) @ eigenvectors.T
    seen = np.diag(gram) > 1e-6
    length = np.sqrt(np.diag(gram)[seen])
    np.testing.assert_allclose(
        (vectors @ vectors.T)[np.ix_(seen, seen)], gram[np.ix_(seen, seen)] / np.outer(length, length), atol=1e-4
    )
    assert vectors.dtype == np.float32 and vectors.shape == (size, size + 3)
    assert not vectors[0].any() and not vectors[:, size:].any()
    assert vectors[1].any() == (min_count == 2)


def test_word_vectors_are_deterministic_and_may_be_short() -> None:
    vocabulary = Vocabulary.build(TEXTS)
    short = word_vectors(TEXTS, vocabulary, 3, seed=5)
    np.testing.assert_array_equal(short, word_vectors(TEXTS, vocabulary, 3, seed=5))
    np.testing.assert_allclose(np.linalg.norm(short[2:], axis=1), 1, atol=1e-5)
    assert not word_vectors(["goat", "dog"], vocabulary, 3, seed=0).any()


@pytest.mark.skipif("LIT_MMPG_DATA" not in os.environ, reason="LIT_MMPG_DATA does not name the folder of real data")
def test_real_msrvtt_words_and_answers() -> None:
    by_split = read_questions("qa_csv", Path(os.environ["LIT_MMPG_DATA"]) / "msrvtt" / "qa")
    texts = [question.text for question in by_split["train"]]
    vocabulary = Vocabulary.build(texts, min_count=2)
    assert 2000 < len(vocabulary) < 6000
    answers = AnswerList.build((q.answer for q in by_split["train"]), 1000)
    answers.check_coverage([q.answer for q in by_split["train"]])
    assert answers.coverage_warning([q.answer for q in by_split["test"]]) is None
    vectors = word_vectors(texts, vocabulary, 64, seed=0)
    near = np.argsort(-vectors @ vectors[vocabulary.index("cooking")])[1:30]
    assert {"kitchen", "pan", "food", "chef", "dish"} & {vocabulary.words[i - 2] for i in near if i >= 2}
