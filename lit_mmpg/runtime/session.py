"""A device without torch: a bundle, its engines, and answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lit_mmpg.data.vocabulary import Vocabulary
from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ENCODE, MODEL
from lit_mmpg.records import Question, subsample
from lit_mmpg.runtime.bundle import Arrays, Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.tasks import find_task

STATIC = "static"
"""What an answer calls its parameters where none are personal."""

MOST_NAMED = 10
"""Words that a note names."""

SETTLE_AFTER = 1000
"""Answers with the same parameters after which ONNX Runtime has them as constants: about as many repay the effort."""


class Runner(Protocol):
    """One graph, ready to run: what a session needs of an engine."""

    def infer(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs by name."""

    def load_parameters(self, parameters: Mapping[str, np.ndarray] | None) -> None:
        """Swap the personal parameters; ``None`` goes back to the static model.

        Raises:
            ValueError: If they do not match the specification; the former ones then stay in use.
        """

    def deactivate(self) -> None:
        """Free what there is."""


@dataclass(frozen=True)
class Answer:
    """Answer of the device model to one question.

    Attributes:
        text: The answer, or the chosen option.
        confidence: Its probability, 0 to 1 (softmax of the scores; not calibrated).
        ranking: The best answers with their probabilities, best first.
        scores: Scores of the options, or of all answers of the manifest, in their order.
        parameters: Digest of the personal parameters in use, or ``static``.
    """

    text: str
    confidence: float
    ranking: tuple[tuple[str, float], ...]
    scores: tuple[float, ...]
    parameters: str


class DeviceSession(AbstractContextManager["DeviceSession"]):
    """The device half of a bundle, ready to answer. Close it, or use it as a context manager.

    Args:
        bundle: The bundle.
        engine: Name of the engine of the device model.
        precision: Precision of the device model; all other graphs run in fp32.
        options: Options of the engine.

    Raises:
        UserError: If the bundle lacks a graph, or the engine cannot run here.
    """

    def __init__(self, bundle: Bundle, engine: str = "onnxruntime", precision: str = "fp32", **options: Any) -> None:
        self.bundle, self.manifest = bundle, bundle.manifest
        self._engine, self._options = engine, options
        self._engines: dict[str, Runner] = {}
        self._vocabulary = Vocabulary.from_json(self.manifest.vocabulary)
        self._open("model", precision)
        self._loaded: Mapping[str, np.ndarray] | None = None
        self._encoding: Mapping[str, np.ndarray] | None = None
        self._digest: str | None = None
        self.alignment: tuple[np.ndarray, np.ndarray] | None = None
        """Scale and shift ``[D]`` of the features of clips that are asked about; see :meth:`DeviceState.alignment`."""

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines."""
        for engine in self._engines.values():
            engine.deactivate()
        self._engines, self._loaded, self._encoding, self._digest = {}, None, None, None

    def _open(self, role: str, precision: str = "fp32") -> Runner:
        if role not in self._engines:
            self._engines[role] = self._make(role, precision)
        return self._engines[role]

    def _make(self, role: str, precision: str) -> Runner:
        usual = {"settle_after": SETTLE_AFTER} if self._engine == "onnxruntime" else {}
        engine = create_engine(self._engine, self.bundle, role, precision, **(usual | self._options))
        engine.activate()
        return engine

    # -- frames --------------------------------------------------------------------------------------------------

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width at which pictures enter :meth:`encode`.

        Raises:
            UserError: If the bundle holds no frame encoder.
        """
        if self.manifest.preprocessing is None:
            raise UserError(
                f"{self.bundle.path} holds no frame encoder; export with --frame-encoder, load a checkpoint with "
                "frame_encoder=..., or give features instead of videos"
            )
        return self.manifest.preprocessing.height, self.manifest.preprocessing.width

    @property
    def encodes_personally(self) -> bool:
        """Whether the frame encoder takes personal parameters, so that features depend on whose they are."""
        return len(self.bundle.spec.of(ENCODE)) > 0

    def encode(self, pixels: np.ndarray, personal: bool = False) -> np.ndarray:
        """Frame features ``[T, D]`` of ``[T, 3, H, W]`` uint8 RGB pictures of :attr:`picture_size`.

        Args:
            pixels: The pictures.
            personal: With the personal parameters in use, as for a clip that is asked about; else as the static model
                does, which is how contexts are encoded.
        """
        engine = self._open("encode")
        wanted = self._loaded if personal else None
        if self.encodes_personally and wanted is not self._encoding:
            engine.load_parameters(wanted)
            self._encoding = wanted
        return engine.infer({"pixels": np.ascontiguousarray(pixels)})["features"]

    def asked(self, clip: np.ndarray) -> np.ndarray:
        """Features ``[T, D]`` of a clip that is asked about, which is given as such or as pixels ``[T, 3, H, W]``.

        Raises:
            UserError: If the encoder is personal, and what it is given are features of the static one.
        """
        if clip.ndim == 4:
            return self.encode(clip[subsample(len(clip), self.manifest.frames.max_frames)], personal=True)
        if self.encodes_personally and self.adapted:
            raise UserError(
                f"{self.bundle.path}: the frame encoder is personal, so features do not tell what was seen; give the "
                "video or its frames"
            )
        return clip

    def project(self, features: np.ndarray) -> np.ndarray:
        """What may be uploaded of each frame: ``[T, D]`` to ``[T, H]``."""
        return self._open("project").infer({"features": np.ascontiguousarray(features, np.float32)})["projected"]

    @property
    def searches(self) -> bool:
        """Whether the model finds clips, and answers no questions."""
        return find_task(self.manifest.task).searches

    # -- answers -------------------------------------------------------------------------------------------------

    def swap(self, parameters: Mapping[str, np.ndarray] | None) -> None:
        """Load personal parameters; ``None`` goes back to the static model.

        Raises:
            ValueError: If they do not match the specification; the former ones stay in use.
        """
        spec, model = self.bundle.spec, self._open("model")
        if parameters is not None and len(spec):
            spec.validate(parameters)  # before any graph has new ones
        if parameters is None or not len(spec) or len(spec.of(MODEL)):
            model.load_parameters(parameters)
        self._loaded, self._digest = parameters, None  # the encoder gets its own when it is asked next

    @property
    def adapted(self) -> bool:
        """Whether personal parameters are in use."""
        return self._loaded is not None

    @property
    def digest(self) -> str | None:
        """Digest of the personal parameters in use (:meth:`ParameterSpec.tensors_digest`); ``None``: static model."""
        if self._digest is None and self._loaded is not None:
            self._digest = self.bundle.spec.tensors_digest(self._loaded)
        return self._digest

    def _clip(self, features: np.ndarray) -> dict[str, np.ndarray]:
        if features.ndim != 2 or features.shape[1] != self.manifest.frames.features:
            raise UserError(
                f"frame features have shape {features.shape}, the bundle takes [T, {self.manifest.frames.features}]"
            )
        features = features[subsample(len(features), self.manifest.frames.max_frames)]
        if self.alignment is not None:
            scale, shift = self.alignment
            features = features * scale + shift
        frames = np.ascontiguousarray(features[None], np.float32)
        return {"frames": frames, "frame_mask": np.ones(frames.shape[:2], bool)}

    def _tokens(self, texts: Sequence[str]) -> np.ndarray:
        rows = [self._vocabulary.encode(text, self.manifest.max_words) for text in texts]
        tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return tokens

    def note_on_words(self, texts: Iterable[str]) -> list[str]:
        """A note on the words that the model has never seen, of a text without any word all of it; or nothing."""
        from lit_mmpg.data.vocabulary import UNKNOWN, tokenize

        words = (word for text in dict.fromkeys(texts) for word in tokenize(text) or [text.strip()])
        unknown = list(dict.fromkeys(word for word in words if self._vocabulary.index(word) == UNKNOWN))
        more = ", ..." if len(unknown) > MOST_NAMED else ""
        return [f"words the model has never seen: {', '.join(unknown[:MOST_NAMED])}{more}"] if unknown else []

    def answer(self, features: np.ndarray, question: str, options: Sequence[str] = ()) -> Answer:
        """Answer one question about one clip.

        Args:
            features: ``[T, D]`` frame features, or pixels as :meth:`encode` takes them; so for the other methods.
            question: The question.
            options: Candidate answers; for a multiple-choice model only, which needs at least two.

        Raises:
            UserError: If the bundle does not answer questions of this kind.
        """
        task = find_task(self.manifest.task)
        if self.searches:
            raise UserError(f"{self.bundle.path} finds clips, it answers no questions; use 'lit-mmpg search'")
        if task.takes_options != bool(options):
            wanted = "needs options to choose from" if task.takes_options else "answers freely; leave options out"
            raise UserError(f"{self.bundle.path}: its model {wanted}")
        if not all(str(option).strip() for option in options):
            raise UserError(f"options {list(options)}: one is empty; give each a word, or leave it out")
        asked = Question("", question, "", "", options=tuple(options))
        texts = task.candidates(asked)
        inputs = {**self._clip(self.asked(features)), "text": self._tokens(texts)[None]}
        scores = self._open("model").infer(inputs)["scores"][0].astype(np.float64)
        ranking = tuple(task.decode(scores, options, self.manifest.answers)[:5])
        return Answer(ranking[0][0], ranking[0][1], ranking, tuple(scores.tolist()), self.digest or STATIC)

    def embed_video(self, features: np.ndarray) -> np.ndarray:
        """Unit-length embedding ``[H]`` of one clip (retrieval)."""
        return self.embed_features(self.asked(features))

    def embed_features(self, features: np.ndarray) -> np.ndarray:
        """As :meth:`embed_video`, of what :meth:`asked` gave."""
        self._require_retrieval()
        return self._open("model").infer(self._clip(features))["embedding"][0]

    def embed_text(self, text: str) -> np.ndarray:
        """Unit-length embedding ``[H]`` of one sentence (retrieval)."""
        self._require_retrieval()
        return self._open("text").infer({"text": self._tokens([text])})["embedding"][0]

    def outputs(self, features: np.ndarray, questions: np.ndarray | None) -> np.ndarray:
        """What the model computes for one clip, as it is.

        Args:
            features: ``[T, D]`` frame features.
            questions: ``[Q, O, L]`` words of questions; ``None`` for retrieval.

        Returns:
            Scores ``[Q, A]``, or the embedding ``[1, H]``.
        """
        inputs = self._clip(self.asked(features))
        if questions is not None:
            inputs = {name: np.repeat(array, len(questions), 0) for name, array in inputs.items()} | {"text": questions}
        return next(iter(self._open("model").infer(inputs).values()))

    def _require_retrieval(self) -> None:
        if not self.searches:
            raise UserError(f"{self.bundle.path} answers questions, it does not search; use 'lit-mmpg answer'")
