"""What the benchmark of the memory of camera models trains: static models, and input layers that a device moves alone.

Static models, behind the encoder and in front of it, are trained on the artefacts of the same camera models that the
memory knows, frames and their clean twins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from lit_mmpg.device.closed_form import Ridge, fit_ridge, fit_tfidf
from lit_mmpg.forms.input_layer import InputLayer
from lit_mmpg.heartbeat import tell
from lit_mmpg.maps import Correction
from lit_mmpg.methods.evolution import SeparableCmaEs
from lit_mmpg.metrics.retrieval import ranks
from lit_mmpg.records import Question

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

RESTORER_EPOCHS = 4
"""Passes of a restoration network over the training clips."""
STRENGTHS = (3e3, 1e4, 3e4)
"""Penalties of the ridge, among which held-out training clips choose."""
MOST_ANSWERS = 1000
"""Answers that the static model of questions knows, the most frequent ones."""


SHARPNESS = (5.0, 10.0, 20.0, 40.0, 80.0)
"""Factors of cosines before a softmax over captions, among which held-out training clips choose."""
STEPS, GRID = 10, (9, 12)
"""Steps of descent on an input layer, and height and width of its gain and bias images."""
GENERATIONS, POPULATION, COARSE, BALANCE = 5, 16, (3, 4), 1.0
"""Of a search by forward passes: generations, candidates of each, its images, and the weight of moments in what it
minimises."""


class Head(nn.Module):
    """The static model behind the encoder: features brought back to clean ones, and a ridge to captions.

    Args:
        width: Width D of the features.
        hidden: Width of the residual network.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int, hidden: int = 512) -> None:
        super().__init__()
        self.correction = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        nn.init.zeros_(self.correction[2].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.correction[2].bias)  # type: ignore[arg-type]
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.ridge: Ridge | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[n, D]`` features to clean, standardised ones."""
        x = (features - self.mean) / self.std
        corrected: torch.Tensor = x + self.correction(x)
        return corrected

    def predict(self, features: np.ndarray) -> np.ndarray:
        """TF-IDF predictions of unit length, ``[n, terms]``."""
        assert self.ridge is not None
        with torch.no_grad():
            found = self.ridge.predict(self(torch.from_numpy(features).float()).numpy().astype(np.float64))
        unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit


def train_head(
    seen: np.ndarray, clean: np.ndarray, targets: np.ndarray, held: int, seed: int, epochs: int = 12
) -> tuple[Head, float]:
    """Train the static model on features of artefact and clean frames, with paired alignment.

    Args:
        seen: ``[n, D]`` features through artefacts; the same as ``clean`` for the model that never saw any.
        clean: ``[n, D]`` of the same clips.
        targets: ``[n, terms]`` TF-IDF of their captions.
        held: Clips at the end that stop the training early and choose the ridge.
        seed: Seed of the training.
        epochs: Most passes over the clips.

    Returns:
        The model, and its mean log-rank on the held-out clips through artefacts.
    """
    torch.manual_seed(seed)
    head = Head(seen.shape[1])
    pairs = [torch.from_numpy(x).float() for x in (np.concatenate([seen, clean]), np.concatenate([clean, clean]))]
    head.mean, head.std = pairs[1].mean(0), pairs[1].std(0) + 1e-3
    wanted = (pairs[1] - head.mean) / head.std
    place = torch.arange(len(pairs[0])) % len(seen) < len(seen) - held
    train, rest = place.nonzero()[:, 0], (~place).nonzero()[:, 0]
    if not np.array_equal(seen, clean):
        optimiser = torch.optim.AdamW(head.parameters(), 3e-4, weight_decay=0.05)
        best, state = float("inf"), {key: value.clone() for key, value in head.state_dict().items()}
        for epoch in range(epochs):
            tell("training the static model", epoch, epochs, "epochs")
            for batch in train[torch.randperm(len(train))].split(128):
                loss = (head(pairs[0][batch]) - wanted[batch]).square().mean()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            with torch.no_grad():
                error = float((head(pairs[0][rest]) - wanted[rest]).square().mean())
            if error < best:
                best, state = error, {key: value.clone() for key, value in head.state_dict().items()}
        head.load_state_dict(state)
    with torch.no_grad():
        features = head(pairs[0]).numpy().astype(np.float64)
    twice, chosen = np.concatenate([targets, targets]), []
    learnt, first = train.numpy(), rest.numpy()[:held]
    for strength in STRENGTHS:
        head.ridge = fit_ridge(features[learnt], twice[learnt], strength)
        chosen.append((float(log_ranks(head, seen[first], clean[first], targets[first]).mean()), strength, head.ridge))
    score, _, head.ridge = min(chosen, key=lambda entry: entry[0])
    return head, score


class QuestionHead(nn.Module):
    """The static model of open-ended questions: words and frame features, multiplied, then an answer.

    Args:
        width: Width D of the features.
        terms: Words of questions that it knows.
        answers: Answers that it knows.
        hidden: Width of the product.
    """

    def __init__(self, width: int, terms: int, answers: int, hidden: int = 256) -> None:
        super().__init__()
        self.words, self.frame = nn.Linear(terms, hidden), nn.Linear(width, hidden)
        self.answer = nn.Sequential(nn.GELU(), nn.Dropout(0.5), nn.Linear(hidden, answers))

    def forward(self, words: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, answers]`` for words ``[n, terms]`` and corrected, standardised features ``[n, D]``."""
        asked = self.words(words)
        logits: torch.Tensor = self.answer(asked + asked * self.frame(nn.functional.dropout(frame, 0.3, self.training)))
        return logits


@dataclass(frozen=True)
class Answering:
    """The static model of questions behind that of features.

    Attributes:
        head: That of features.
        network: That of questions.
        words: TF-IDF of questions.
        answers: Answers by index.
    """

    head: Head
    network: QuestionHead
    words: TfidfVectorizer
    answers: tuple[str, ...]

    def right(
        self, features: np.ndarray, clips: Sequence[str], questions: Mapping[str, Sequence[Question]]
    ) -> np.ndarray:
        """Share of the questions about each clip that are answered rightly, ``[n]``; NaN for clips without any.

        Args:
            features: ``[n, D]`` of the clips.
            clips: Their ids.
            questions: Clip -> questions about it.
        """
        owner, asked = owned(clips, questions)
        found = np.full(len(clips), np.nan)
        if not asked:
            return found
        with torch.no_grad():
            frame = self.head(torch.from_numpy(features).float())[torch.from_numpy(owner)]
            logits = self.network.eval()(words_of(self.words, asked), frame)
        right = np.array([self.answers[i] for i in logits.argmax(1).tolist()]) == [q.answer for q in asked]
        count = np.bincount(owner, minlength=len(clips))
        found[count > 0] = np.bincount(owner, right, len(clips))[count > 0] / count[count > 0]
        return found


def owned(clips: Sequence[str], questions: Mapping[str, Sequence[Question]]) -> tuple[np.ndarray, list[Question]]:
    """All questions about some clips, and the index of the clip of each."""
    pairs = [(i, question) for i, clip in enumerate(clips) for question in questions.get(clip, ())]
    return np.array([i for i, _ in pairs], np.int64), [question for _, question in pairs]


def words_of(vectoriser: TfidfVectorizer, asked: Sequence[Question]) -> torch.Tensor:
    """``[n, terms]`` of some questions."""
    return torch.from_numpy(vectoriser.transform([q.text for q in asked]).toarray()).float()


def train_answering(
    head: Head,
    seen: np.ndarray,
    clean: np.ndarray,
    clips: Sequence[str],
    questions: Mapping[str, Sequence[Question]],
    seed: int,
    epochs: int = 15,
) -> Answering:
    """Train the static model of questions on clips through artefacts and on clean ones.

    Args:
        head: The static model of features, which stays as it is.
        seen: ``[n, D]`` features through artefacts.
        clean: ``[n, D]`` of the same clips.
        clips: Their ids; the last eighth of those that have questions ends the training.
        questions: Clip -> questions about it.
        seed: Seed of the training.
        epochs: Most passes over the questions.
    """
    torch.manual_seed(seed)
    owner, asked = owned(clips, questions)
    frequent = Counter(question.answer for question in asked).most_common(MOST_ANSWERS)
    answers = tuple(answer for answer, _ in frequent)
    vectoriser = fit_tfidf([question.text for question in asked], min_count=2)
    words, index = words_of(vectoriser, asked), {answer: i for i, answer in enumerate(answers)}
    wanted = torch.tensor([index.get(question.answer, -1) for question in asked])
    with torch.no_grad():
        frames = [head(torch.from_numpy(x).float()) for x in (seen, clean)]
    known = np.unique(owner)
    last = owner >= known[-len(known) // 8]
    train = torch.from_numpy(np.flatnonzero(~last & (wanted.numpy() >= 0)))
    rest, of = torch.from_numpy(np.flatnonzero(last)), torch.from_numpy(owner)
    network = QuestionHead(seen.shape[1], words.shape[1], len(answers))
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.05)
    best, state = -1.0, network.state_dict()
    for epoch in range(epochs):
        tell("training the static model of questions", epoch, epochs, "epochs")
        network.train()
        for batch in train[torch.randperm(len(train))].split(256):
            shown = torch.where(torch.rand(len(batch), 1) < 0.5, frames[0][of[batch]], frames[1][of[batch]])
            loss = nn.functional.cross_entropy(network(words[batch], shown), wanted[batch], label_smoothing=0.1)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.no_grad():
            told = network.eval()(words[rest], frames[0][of[rest]]).argmax(1)
        score = float((told == wanted[rest]).float().mean())
        if score > best:
            best, state = score, {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    return Answering(head, network, vectoriser, answers)


class Restorer(nn.Module):
    """A static network that takes artefacts out of frames; it is told places, so that it may learn maps by heart.

    Args:
        width: Channels at half the size; twice and four times as many at a quarter and at an eighth.
    """

    def __init__(self, width: int) -> None:
        super().__init__()

        def layer(before: int, after: int, stride: int = 1) -> nn.Module:
            return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.ReLU())

        self.whole = nn.Sequential(nn.PixelUnshuffle(2), layer(20, width), layer(width, width))
        self.down_half, self.down_quarter = layer(width, 2 * width, 2), layer(2 * width, 4 * width, 2)
        self.middle = layer(4 * width, 4 * width)
        self.up_half, self.up_whole = layer(6 * width, 2 * width), layer(3 * width, width)
        last = nn.Conv2d(width, 12, 3, 1, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.last = nn.Sequential(last, nn.PixelShuffle(2))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames ``[n, 3, H, W]`` of about unit size, likewise without artefacts."""
        axes = [torch.linspace(-1, 1, size) for size in frames.shape[-2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(frames), -1, -1, -1)
        whole: torch.Tensor = self.whole(torch.cat([frames, places], 1))
        half: torch.Tensor = self.down_half(whole)
        found: torch.Tensor = self.middle(self.down_quarter(half))
        for join, finer in ((self.up_half, half), (self.up_whole, whole)):
            found = join(torch.cat([nn.functional.interpolate(found, size=finer.shape[-2:]), finer], 1))
        restored: torch.Tensor = frames + self.last(found)
        return restored

    @torch.no_grad()
    def restore(self, frames: np.ndarray) -> np.ndarray:
        """Restored frames ``[n, 3, H, W]`` uint8."""
        restored = self(torch.from_numpy(frames).float() / 64 - 2)
        whole: np.ndarray = ((restored + 2) * 64).round().clamp(0, 255).byte().numpy()
        return whole


def train_restorer(seen: np.ndarray, clean: np.ndarray, width: int, seed: int) -> Restorer:
    """Train one of this width on frames ``[n, 3, H, W]`` through artefacts, and one in four clean ones."""
    torch.manual_seed(seed)
    network = Restorer(width)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.01)
    steps = RESTORER_EPOCHS * -(-len(seen) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps)
    shown = np.where(np.arange(len(seen))[:, None, None, None] % 4, seen, clean)
    for epoch in range(RESTORER_EPOCHS):
        tell("training the restoration network", epoch, RESTORER_EPOCHS, "epochs")
        for batch in torch.randperm(len(seen)).split(16):
            given, wanted = (torch.from_numpy(x[batch.numpy()]).float() / 64 - 2 for x in (shown, clean))
            # Absolute errors would keep it where it begins: most places are right as they are.
            loss = (network(given) - wanted).square().mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    return network.eval()


@dataclass(frozen=True)
class Movable:
    """What moves an input layer of gain and bias images by a device's own frames, in front of the static model.

    Attributes:
        encoder: Pixels ``[n, 3, H, W]`` to features ``[n, D]``, with gradients.
        forward: The same for uint8 pixels, without gradients and faster.
        head: The static model.
        texts: ``[n, terms]`` TF-IDF of the captions of the training clips, of unit length.
        clean: ``[n, D]`` features of these clips.
        held: Clips at the end by which the sharpness of the softmax over captions is chosen.
        seed: Seed of the search.
    """

    encoder: Callable[[torch.Tensor], torch.Tensor]
    forward: Callable[[np.ndarray], np.ndarray]
    head: Head
    texts: torch.Tensor
    clean: torch.Tensor
    held: int
    seed: int = 0
    _sharpness: list[float] = field(default_factory=list)

    def _cosines(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        ridge = self.head.ridge
        assert ridge is not None
        weight, mean = (torch.from_numpy(x).float() for x in (ridge.weight, ridge.feature_mean))
        return nn.functional.normalize((self.head(features) - mean) @ weight, dim=1) @ texts.T

    def _logits(self, features: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        if not self._sharpness:
            with torch.no_grad():
                cosines = self._cosines(self.clean[-self.held :], self.texts[-self.held :])
            own = torch.arange(len(cosines))
            losses = [float(nn.functional.cross_entropy(factor * cosines, own)) for factor in SHARPNESS]
            self._sharpness.append(SHARPNESS[int(np.argmin(losses))])
        return self._sharpness[0] * self._cosines(features, texts)

    def entropy(self, features: torch.Tensor) -> torch.Tensor:
        """Mean entropy of the distributions over the training captions (Tent, Wang et al. 2021)."""
        logs = self._logits(features, self.texts).log_softmax(1)
        return -(logs.exp() * logs).sum(1).mean()

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """Distance of the moments of some features to those of the training clips."""
        mean, spread = self.clean.mean(0), self.clean.std(0) + 1e-3
        apart = ((features.mean(0) - mean) / spread, (features.std(0, correction=0) - spread) / spread)
        return torch.stack([part.square().mean() for part in apart]).sum()

    def surprise(self, features: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Mean surprise at the captions of the frames, ``[n, terms]``, among those of the training clips."""
        own = torch.arange(len(features))
        return nn.functional.cross_entropy(self._logits(features, torch.cat([captions, self.texts])), own)

    def descend(
        self, frames: np.ndarray, loss: Callable[[torch.Tensor], torch.Tensor], rate: float, steps: int = STEPS
    ) -> Correction:
        """Move the images by Adam, so that the loss of the features of uint8 frames ``[C, 3, H, W]`` falls."""
        layer, pixels = InputLayer(grid=GRID, use=("gain", "bias")), torch.from_numpy(frames).float() / 127.5 - 1
        own = [torch.zeros(part.shape, requires_grad=True) for part in layer.parts()]
        optimiser = torch.optim.Adam(own, rate)
        for _ in range(steps):
            shown = layer.apply(pixels, own, None).clamp(-1, 1)
            optimiser.zero_grad()
            loss(self.encoder(127.5 * (shown + 1))).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        gain, bias = (tensor.detach().numpy() for tensor in own)
        return Correction.of({"gain": gain, "bias": bias}, *frames.shape[-2:])

    @torch.no_grad()
    def search(self, frames: np.ndarray, step: float) -> Correction:
        """Search by forward passes for small entropy and familiar moments (FOA, Niu et al. 2024)."""

        def correction(images: torch.Tensor) -> Correction:
            gain, bias = images.reshape(2, 3, *COARSE).numpy()
            return Correction.of({"gain": gain, "bias": bias}, *frames.shape[-2:])

        def value(seen: np.ndarray) -> torch.Tensor:
            features = torch.from_numpy(self.forward(seen))
            return self.entropy(features) + BALANCE * self.distance(features)

        size = 6 * COARSE[0] * COARSE[1]
        search = SeparableCmaEs(1, size, step, POPULATION, self.seed, value(frames)[None])
        for _ in range(GENERATIONS):
            candidates = search.ask()
            values = [value(correction(images)(frames)) for images in candidates[0]]
            search.tell(candidates, torch.stack(values)[None])
        return correction(search.best[0])


def log_ranks(head: Head, features: np.ndarray, clean: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Log-rank of each clip ``[n]``, asked for by its caption, among clean ones of all others.

    The others are clean in every row, so that what is done for one device moves no other's ranks.

    Args:
        head: The static model.
        features: ``[n, D]`` of the clips as their devices see them.
        clean: ``[n, D]`` of the same clips without any artefact.
        texts: ``[n, terms]`` TF-IDF of their captions, of unit length.
    """
    similarity = texts @ head.predict(clean).T
    np.fill_diagonal(similarity, (texts * head.predict(features)).sum(1))
    return ranks(torch.from_numpy(similarity), torch.arange(len(texts))).log().numpy()
