"""The caption ridge and the start values that come from it, against independent solutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge as SklearnRidge

from lit_mmpg.data.datamodule import Annotation, VideoData
from lit_mmpg.data.devices import Dealing
from lit_mmpg.data.vocabulary import Vocabulary, tokenize, word_vectors
from lit_mmpg.device.base import shapes_of
from lit_mmpg.device.closed_form import CaptionInitialisation, caption_initialisation, fit_ridge, fit_tfidf
from lit_mmpg.device.contract import InitialisationConfig
from lit_mmpg.device.model import DeviceModelConfig, DeviceNetwork, initialise
from lit_mmpg.errors import UserError
from tests.integration.tiny import build_root

NOUNS = ["heron", "kettle", "lantern", "meadow", "ferry", "quilt", "saddle", "violin", "walnut", "beacon"]
VERBS = ["drifts", "glows", "rattles", "tilts", "wobbles"]
STRENGTH = 20.0


def make_pairs(clips: int = 40, dim: int = 9) -> tuple[np.ndarray, list[str]]:
    """Features and captions that have something to do with each other."""
    rng = np.random.default_rng(3)
    nouns, verbs = rng.integers(len(NOUNS), size=(clips, 2)), rng.integers(len(VERBS), size=clips)
    shown = np.zeros((clips, len(NOUNS) + len(VERBS)))
    for i in range(clips):
        shown[i, nouns[i]] = 1
        shown[i, len(NOUNS) + verbs[i]] = 1
    features = shown @ rng.standard_normal((shown.shape[1], dim)) + 0.3 * rng.standard_normal((clips, dim))
    captions = [f"the {NOUNS[a]} {VERBS[v]} near the {NOUNS[b]}" for (a, b), v in zip(nouns, verbs, strict=True)]
    return features, captions


def test_ridge_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y, new = rng.standard_normal((30, 6)) + 2, rng.standard_normal((30, 11)) - 1, rng.standard_normal((7, 6))
    ours, theirs = fit_ridge(x, y, STRENGTH), SklearnRidge(alpha=STRENGTH, solver="svd").fit(x, y)
    np.testing.assert_allclose(ours.weight, theirs.coef_.T, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.predict(new), theirs.predict(new) - y.mean(0), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.fitted, theirs.predict(x) - y.mean(0), rtol=1e-8, atol=1e-10)
    wide = rng.standard_normal((5, 40))  # more features than clips
    theirs = SklearnRidge(alpha=STRENGTH, solver="svd").fit(wide, y[:5])
    np.testing.assert_allclose(fit_ridge(wide, y[:5], STRENGTH).weight, theirs.coef_.T, rtol=1e-7, atol=1e-10)


def test_every_term_counts_unless_it_is_rare() -> None:
    sentences = ["the heron glows"] * 2 + ["the kettle glows"]
    assert set(fit_tfidf(sentences).vocabulary_) == {"the", "heron", "glows", "kettle"}
    assert set(fit_tfidf(sentences, min_count=2).vocabulary_) == {"the", "heron", "glows"}


def test_a_word_that_is_seen_once_gets_no_vector_where_there_is_enough_text() -> None:
    features, captions = make_pairs(100)
    captions[0] += " zeppelin"
    vocabulary = Vocabulary.build(captions)
    words = caption_initialisation(features, captions, captions, vocabulary, 8, STRENGTH).words
    assert not words[vocabulary.index("zeppelin")].any() and words[vocabulary.index("heron")].any()
    words = caption_initialisation(features[:9], captions[:9], captions[:9], vocabulary, 8, STRENGTH).words
    assert words[vocabulary.index("zeppelin")].any()


def start_values(width: int) -> tuple[np.ndarray, list[str], Vocabulary, CaptionInitialisation]:
    features, captions = make_pairs()
    vocabulary = Vocabulary.build(captions)
    return (
        features,
        captions,
        vocabulary,
        caption_initialisation(features, captions, captions, vocabulary, width, STRENGTH),
    )


def ridge_similarity(features: np.ndarray, captions: list[str], width: int, new: np.ndarray) -> np.ndarray:
    """Reduced-rank ridge from library parts: cosine of each caption's TF-IDF with the prediction for each clip."""
    tfidf = TfidfVectorizer(analyzer=tokenize)
    targets = tfidf.fit_transform(captions).toarray()
    ridge = SklearnRidge(alpha=STRENGTH, solver="svd").fit(features, targets)
    fitted = ridge.predict(features) - targets.mean(0)
    directions = np.linalg.svd(fitted, full_matrices=False)[2][: width - 1].T
    queries = targets @ directions
    predicted = (ridge.predict(new) - targets.mean(0)) @ directions
    queries, predicted = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, predicted))
    return queries @ predicted.T


@pytest.mark.parametrize("width", [4, 8, 10])
def test_the_start_ranks_as_the_reduced_rank_ridge(width: int) -> None:
    features, captions, vocabulary, start = start_values(width)
    new = np.random.default_rng(9).standard_normal((12, features.shape[1]))
    expected = ridge_similarity(features, captions, width, new)
    projected = new @ start.weight.T + start.bias
    sums = np.stack([sum(start.words[vocabulary.index(w)] for w in tokenize(c)) for c in captions])
    similarity = (sums / np.linalg.norm(sums, axis=1, keepdims=True)) @ (
        projected / np.linalg.norm(projected, axis=1, keepdims=True)
    ).T
    np.testing.assert_allclose(similarity, expected, atol=1e-6)


def test_the_start_survives_the_layer_norm() -> None:
    width = 8
    features, _, _, start = start_values(width)
    projected = features @ start.weight.T + start.bias
    np.testing.assert_allclose(projected.mean(1), 0, atol=1e-10)
    np.testing.assert_allclose(start.words.mean(1), 0, atol=1e-10)
    assert np.square(projected).mean() == pytest.approx(1)
    assert not start.words[:2].any()  # padding and the unknown word say nothing


def test_all_of_the_ridge_where_the_width_suffices() -> None:
    """With 15 directions of at most 9 that exist, nothing is reduced: the ranking is the full ridge's."""
    features, captions, vocabulary, start = start_values(16)
    tfidf = TfidfVectorizer(analyzer=tokenize)
    targets = tfidf.fit_transform(captions).toarray()
    predicted = SklearnRidge(alpha=STRENGTH, solver="svd").fit(features, targets).predict(features) - targets.mean(0)
    expected = targets @ (predicted / np.linalg.norm(predicted, axis=1, keepdims=True)).T
    projected = features @ start.weight.T + start.bias
    sums = np.stack([sum(start.words[vocabulary.index(w)] for w in tokenize(c)) for c in captions])
    similarity = sums @ (projected / np.linalg.norm(projected, axis=1, keepdims=True)).T
    for ours, theirs in zip(similarity, expected, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] == pytest.approx(1, abs=1e-6)


# -- the model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_root(tmp_path_factory.mktemp("tiny"))


def make_data(root: Path, task: str = "retrieval", captions: bool = True) -> VideoData:
    data = VideoData(
        str(root),
        "features.h5",
        "clips.csv",
        questions=[Annotation("qa_csv", "qa")],
        captions=[Annotation("captions_csv", "captions.csv")] if captions else [],
        dealing=Dealing(train_devices=4, val_devices=2, test_devices=2),
        min_count=1,
        task=task,
    )
    data.setup("fit")
    return data


def make_model(data: VideoData, width: int = 6) -> DeviceNetwork:
    torch.manual_seed(0)
    return DeviceNetwork(shapes_of(data.meta), DeviceModelConfig(width, heads=1, temporal=False)).eval()


def test_the_model_starts_with_the_ranking_of_the_ridge(root: Path) -> None:
    """One frame per clip: the mean of several goes through the norm one by one."""
    data, width = make_data(root), 6
    model = make_model(data, width)
    initialise(model, data, InitialisationConfig("captions", "captions", STRENGTH))
    mean, std = data.feature_statistics()
    features, _ = data.caption_pairs()
    start = caption_initialisation(
        (features - mean) / std,
        data.caption_pairs()[1],
        data.training_sentences(),
        data.vocabulary,
        width,
        STRENGTH,
    )
    # What the ridge says, without the model: project, no norm; sum of word vectors.
    projected = ((features - mean) / std) @ start.weight.T + start.bias
    captions = [text.text for text in data.texts("train")]
    sums = np.stack([sum(start.words[data.vocabulary.index(w)] for w in tokenize(c)) for c in captions])
    expected = (sums / np.linalg.norm(sums, axis=1, keepdims=True)) @ (
        projected / np.linalg.norm(projected, axis=1, keepdims=True)
    ).T
    with torch.no_grad():
        frames = torch.from_numpy(features).float().unsqueeze(1)
        mask = torch.ones(frames.shape[:2], dtype=torch.bool)
        video = model.embed_video(model.contextualise(model.project(model.encode(frames)), mask), mask)
        text = model.embed_text(torch.from_numpy(data.items("train").tokens[:, 0]).long())
    np.testing.assert_allclose((text @ video.T).numpy(), expected, atol=2e-4)


def test_the_answer_bias_is_the_prior_and_random_leaves_the_rest(root: Path) -> None:
    data = make_data(root, "open_ended")
    fresh, model = make_model(data), make_model(data)
    initialise(model, data, InitialisationConfig())
    probability = model.head.bias.softmax(0).detach().numpy()
    answers = data.items("train").answer
    count = np.array([(answers == a).sum() for a in range(len(data.answers))])
    np.testing.assert_allclose(probability, (count + 0.5) / (count + 0.5).sum(), rtol=1e-5)
    assert torch.equal(model.frame_projection.weight, fresh.frame_projection.weight)
    assert torch.equal(model.text_encoder.embedding.weight, fresh.text_encoder.embedding.weight)
    mean, std = data.feature_statistics()
    np.testing.assert_allclose(model.encoder.mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(model.encoder.std.numpy(), std, rtol=1e-5)


def test_words_from_cooccurrence(root: Path) -> None:
    data = make_data(root, "open_ended")
    model = make_model(data)
    initialise(model, data, InitialisationConfig(words="ppmi"))
    expected = word_vectors(data.training_sentences(), data.vocabulary, 6, seed=0) * 6**0.5
    np.testing.assert_allclose(model.text_encoder.embedding.weight.detach().numpy(), expected, rtol=1e-5)


def test_the_same_data_gives_the_same_start(root: Path) -> None:
    states = []
    for _ in range(2):
        data = make_data(root)
        model = make_model(data)
        initialise(model, data, InitialisationConfig("captions", "captions", STRENGTH))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_start_values_that_the_data_cannot_give(root: Path) -> None:
    data = make_data(root, "open_ended", captions=False)
    with pytest.raises(UserError, match="'captions' needs captions of the training clips"):
        initialise(make_model(data), data, InitialisationConfig(projection="captions"))
    data = make_data(root)
    with pytest.raises(UserError, match="ridge_strength is 0"):
        initialise(make_model(data), data, InitialisationConfig(projection="captions", ridge_strength=0.0))
