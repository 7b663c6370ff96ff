"""LightningDataModules: a corpus, dealt to devices, as batches of devices x clips."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lit_mmpg.batch import Frames
from lit_mmpg.data import personal_clips, readers
from lit_mmpg.data.batches import BatchShape, Collator, EvalBatches, FrameGatherer, Group, Items, TrainBatches
from lit_mmpg.data.corpus import STAGE_GROUPS, Corpus, DeviceTable, Texts, check_encoder, check_groups, choose_texts
from lit_mmpg.data.devices import Dealing, deal
from lit_mmpg.data.features import FeatureFile
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.data.statistics import OwnStatistics
from lit_mmpg.data.video_files import Annotation, VideoFiles
from lit_mmpg.data.vocabulary import AnswerList, Vocabulary
from lit_mmpg.errors import UserError
from lit_mmpg.records import SPLITS, Caption, Clip, FilmedFrames, FrameSource, Question
from lit_mmpg.settings import Remembering, to_plain, within
from lit_mmpg.tasks import find_task

_log = logging.getLogger(__name__)


class DeviceData(Remembering, L.LightningDataModule, ABC):
    """Common part of the data modules: vocabulary, answers, items and loaders over a :class:`Corpus`.

    Args:
        task: Name of the task: ``open_ended``, ``multiple_choice``, ``retrieval``, or one that a package adds.
        batch: Batch shape.
        max_answers: Length of the answer list (open-ended). This and the next two are settings of a training; a test
            uses the answer list and the vocabulary of the checkpoint.
        min_count: Words that occur less often in the training texts are unknown.
        max_vocabulary: Largest number of words in the vocabulary.
    """

    gallery: Literal["mixed", "device"] = "mixed"
    """Where retrieval ranks: among the clips of all devices, or (where devices share clips) among those of its own."""

    def __init__(
        self,
        task: str = "open_ended",
        batch: BatchShape = BatchShape(),
        max_answers: int = 1000,
        min_count: int = 2,
        max_vocabulary: int = 20_000,
    ) -> None:
        super().__init__()
        # Lightning puts them into every checkpoint of a training on this data.
        self.save_hyperparameters(self.settings(), logger=False)
        self.task, self.batch = find_task(task, "data.task").name, batch
        self._brings = (True, False)
        self.max_answers, self.min_count, self.max_vocabulary = max_answers, min_count, max_vocabulary
        self._corpus: Corpus | None = None
        self._trained: dict[str, Any] | None = None
        self._stage: str | None = None
        self._texts: dict[str, Texts] = {}
        self._items: dict[str, Items] = {}
        self.predict_device: str | None = None
        """Id of the one device to answer for; ``None`` for all unseen test devices."""
        self._statistics: dict[str, Any] = {}
        self.encode_once(None, None)

    # -- what a checkpoint restores ------------------------------------------------------------------------------

    def use_meta(self, meta: dict[str, Any]) -> None:
        """Take vocabulary, answers, question types, dealing recipe and clusters as a checkpoint was trained with.

        Call it before :meth:`setup`. The data at hand may be another root, which needs test clips alone: unknown
        answers then count as wrong.
        """
        self._trained = meta

    @property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint must remember of the data: plain, JSON-able values."""
        return {
            "task": self.task,
            "frame_shape": list(self.corpus.frames.frame_shape),
            "vocabulary": self.vocabulary.to_json(),
            "words": len(self.vocabulary),
            "answers": self.answers.to_json(),
            "answer_count": len(self.answers),
            "max_words": self.batch.max_words,
            "batch": to_plain(self.batch),
            "kinds": self.kinds,
            "recipe": self.corpus.devices.recipe,
            "learnt": self.corpus.devices.learnt,
            "fingerprint": self.corpus.fingerprint,
            "conditions": 0 if self.corpus.conditions is None else int(self.corpus.conditions.shape[1]),
            **({"own_statistics": self._statistics} if self._statistics else {}),
            **({"extracted": self.corpus.made} if self.corpus.made else {}),
        }

    # -- the corpus ----------------------------------------------------------------------------------------------

    @abstractmethod
    def build_corpus(self) -> Corpus:
        """Read or render the clips and deal them to devices."""

    @property
    def corpus(self) -> Corpus:
        """The corpus; built at first use."""
        if self._corpus is None:
            self._corpus = self.build_corpus()
        return self._corpus

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the data's content."""
        return self.corpus.fingerprint

    @property
    def device_table(self) -> DeviceTable:
        """Which device holds which clips."""
        return self.corpus.devices

    def setup(self, stage: str | None = None) -> None:
        """Build the corpus, the vocabulary and the answer list; check that they fit the checkpoint and the stage.

        Raises:
            UserError: If the data is faulty, or does not fit the checkpoint or the stage.
        """
        if self._items:
            return
        self.batch.check()
        sizes = {name: getattr(self, name) for name in ("max_answers", "min_count", "max_vocabulary")}
        within("data.", 1, **sizes)
        self._stage = stage
        corpus = self.corpus
        self.clip_ids = [clip.id for clip in corpus.clips]
        self._clip_index = {name: i for i, name in enumerate(self.clip_ids)}
        self._texts = choose_texts(self.task, corpus.clips, corpus.questions, corpus.captions)
        if self._trained is not None:
            self._restore(self._trained)
        check_groups(stage, self.task, self._texts, self.device_table, self._where())
        if self._trained is None:
            self._fit_vocabulary(self._texts["train"])
        self._check_answers(stage)
        self._statistics = {} if stage == "devices" else self._own_statistics()
        self._items = {split: self._build_items(texts) for split, texts in self._texts.items()}
        taught = self._items["train"].answer
        if self._trained is None and find_task(self.task).answer_list and len(taught) and taught.max() < 0:
            raise UserError(
                f"{self._where()}: no training text of task '{self.task}' has an answer of the answer list, so nothing "
                "would be learnt; its answers and its target are to be the same texts"
            )
        if stage == "test":
            self._tell_left_out()

    def training_sentences(self) -> list[str]:
        """Every sentence of the training clips, whatever the task: the vocabulary and word vectors stand on them."""
        train = {clip.id for clip in self.corpus.clips if clip.split == "train"}
        sentences = [c.text for c in self.corpus.captions if c.clip in train]
        for question in self.corpus.questions:
            if question.clip in train:
                sentences.append(" ".join([question.text, *question.options]) if question.options else question.text)
        return sentences

    def _fit_vocabulary(self, train: Texts) -> None:
        sentences = self.training_sentences()
        if sentences or self._stage != "devices":
            self.vocabulary = Vocabulary.build(sentences, self.min_count, self.max_vocabulary)
        else:  # test clips alone can be listed, though nothing can be learnt from them
            self.vocabulary = Vocabulary((), (0,), 0)
        answers = find_task(self.task).answers(train)
        self.answers = AnswerList.build(answers, self.max_answers) if answers else AnswerList(())
        self.kinds = self._found_kinds() or [""]

    def _found_kinds(self) -> list[str]:
        return sorted({q.type for texts in self._texts.values() for q in texts if isinstance(q, Question)})

    def _restore(self, meta: dict[str, Any]) -> None:
        if meta["task"] != self.task:
            raise UserError(
                f"the checkpoint was trained for task '{meta['task']}', data.task is '{self.task}'; use the same"
            )
        check_encoder(meta, self.corpus.made)
        shape = tuple(meta["frame_shape"])
        if shape != tuple(self.corpus.frames.frame_shape):
            raise UserError(
                f"{self._where()}: the frames have shape {tuple(self.corpus.frames.frame_shape)}, the checkpoint was "
                f"trained on {shape}; extract features with the same encoder (data.features)"
            )
        if self.batch.max_words > meta["max_words"]:
            raise UserError(
                f"data.batch.max_words is {self.batch.max_words}, the checkpoint was trained with {meta['max_words']}; "
                "longer texts are beyond it"
            )
        self.vocabulary = Vocabulary.from_json(meta["vocabulary"])
        self.answers = AnswerList.from_json(meta["answers"])
        self.kinds = [*meta["kinds"], *(kind for kind in self._found_kinds() if kind not in meta["kinds"])]

    def _own_statistics(self) -> dict[str, Any]:
        """What standardises the features of devices, as a checkpoint keeps it; empty where nothing does."""
        prior = self.batch.own_statistics
        known: dict[str, Any] = (self._trained or {}).get("own_statistics", {})
        if self._trained is not None and known.get("prior", 0) != prior:
            raise UserError(
                f"data.batch.own_statistics is {prior}, the checkpoint was trained with {known.get('prior', 0)}; use "
                "the same"
            )
        if not prior or known:
            return known
        if len(self.corpus.frames.frame_shape) != 1:
            raise UserError(
                f"{self._where()}: data.batch.own_statistics is {prior}, but the frames are pixels, not features; set "
                "it to 0, or extract features"
            )
        mean, deviation = self.feature_statistics()
        return {"prior": prior, "mean": mean.tolist(), "deviation": deviation.tolist()}

    def _where(self) -> str:
        """What the data is called in messages."""
        return "data"

    def _check_answers(self, stage: str | None) -> None:
        task = find_task(self.task)
        if not task.answer_list:
            return
        given = {split: task.answers(texts) for split, texts in self._texts.items()}
        if self._trained is None and given["train"]:
            self.answers.check_coverage(given["train"])
        elif self._trained is not None and stage == "test":
            warning = self.answers.coverage_warning(given["test"])
            if warning:
                rank_zero_warn(f"{self._where()}: {warning}")

    def _build_items(self, texts: Texts) -> Items:
        task, kind_of = find_task(self.task), {name: i for i, name in enumerate(self.kinds)}
        rows: list[list[list[int]]] = []
        answer = np.zeros(len(texts), np.int64)
        kind = np.zeros(len(texts), np.int64)
        clip = np.zeros(len(texts), np.int64)
        most = len(self.answers) if task.answer_list else 2**31
        for i, text in enumerate(texts):
            clip[i] = self._clip_index[text.clip]
            candidates, target = task.candidates(text), task.target(text, self.answers.index)
            listed = isinstance(candidates, list | tuple) and all(isinstance(c, str) for c in candidates)
            if not listed or (len(candidates) != 1 and not task.takes_options) or not candidates:
                raise UserError(
                    f"task '{task.name}': candidates of {text} are {candidates!r}; needed is a list of texts, of one "
                    "where the task takes no options"
                )
            if not isinstance(target, int | np.integer) or not -1 <= target < most:
                raise UserError(
                    f"task '{task.name}': target of {text} is {target!r}; needed is a whole number below {most}, or -1"
                )
            rows.append([self.vocabulary.encode(words, self.batch.max_words) for words in candidates])
            answer[i] = target
            kind[i] = kind_of.get(text.type, 0) if isinstance(text, Question) else 0
        options = max((len(row) for row in rows), default=1)
        tokens = np.zeros((len(rows), options, self.batch.max_words), np.int32)
        for i, row in enumerate(rows):
            for o, words in enumerate(row):
                tokens[i, o, : len(words)] = words
        extra = np.array([isinstance(text, Caption) and text.extra for text in texts], bool)
        return Items(tokens, answer, kind, extra, clip)

    # -- loaders -------------------------------------------------------------------------------------------------

    def items(self, split: str) -> Items:
        """The text items of a split."""
        return self._items[split]

    def texts(self, split: str) -> Texts:
        """The questions or captions behind the items of a split, in the order of their indices."""
        return self._texts[split]

    def feature_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation ``[D]`` of the frame features of the training clips."""
        source = self.corpus.frames
        count, total, square = 0, 0.0, 0.0
        for clip in self.corpus.clips:
            if clip.split == "train":
                frames = source.frames(clip.id).astype(np.float64)
                count, total, square = count + len(frames), total + frames.sum(0), square + np.square(frames).sum(0)
        if not count:
            raise UserError(f"{self._where()}: split 'train' has no clips; add some to the clip list")
        mean = np.asarray(total) / count
        variance = np.asarray(square) / count - np.square(mean)
        return mean, np.sqrt(np.maximum(variance, 0)) + 1e-3

    def caption_pairs(self, split: str = "train") -> tuple[np.ndarray, list[str]]:
        """Mean frame features ``[n, D]`` of the clips of a split that have a caption, and those captions."""
        own: dict[str, list[str]] = defaultdict(list)
        for caption in self.corpus.captions:
            if not caption.extra:
                own[caption.clip].append(caption.text)
        clips = [clip for clip in self.corpus.clips if clip.split == split and clip.id in own]
        if not clips:
            return np.zeros((0, 0)), []
        return _mean_features(self.corpus.frames, clips).astype(np.float64), [" ".join(own[clip.id]) for clip in clips]

    def training_contexts(self, most: int = 4096) -> Iterator[Frames]:
        """Clips of the training devices as their contexts show them, at most ``most`` of them, evenly over devices.

        Yields:
            ``[1, C, T, ...]`` clips of one device, without overlap.
        """
        gather = self._gatherer(self.corpus.frames, self._encode_contexts, self.corpus.filmed)
        timelines = {device: clips for device, clips in self._timelines("train").items() if len(clips)}
        share, size = max(1, most // max(1, len(timelines))), self.batch.context_clips
        for device, clips in timelines.items():
            for start in range(0, min(share, len(clips)), size):
                chosen = clips[start : min(start + size, share)].tolist()
                yield gather([chosen], len(chosen), [device])

    def encode_once(
        self, contexts: Callable[[np.ndarray], np.ndarray] | None, asked: Callable[[np.ndarray], np.ndarray] | None
    ) -> None:
        """Hand out what a frozen encoder makes of frames, each computed once; ``None`` goes back to pixels.

        Encoding again in every epoch would be most of the cost of a training.

        Args:
            contexts: ``[n, 3, H, W]`` pixels of contexts, and of clean twins, to ``[n, D]`` features.
            asked: Those of the clips that are asked about to whatever the model goes on from, ``[n, ...]``.
        """
        self._encode_contexts, self._encode_asked = contexts, asked
        self._encoded: dict[tuple[int, object], FrameSource] = {}

    def training_frames(self) -> int:
        """About how many frames of query clips one epoch of training brings."""
        source, batches = self.corpus.frames, self.train_dataloader()
        clips = {clip for row in batches.asked.values() for clip in row.tolist()}
        lengths = [min(source.num_frames(self.clip_ids[clip]), self.batch.max_frames) for clip in clips]
        rows = len(batches) * self.batch.devices * self.batch.clips
        return round(rows * sum(lengths) / max(1, len(lengths)))

    def _timelines(self, group: str) -> dict[int, np.ndarray]:
        return self._indices(self.corpus.devices.timelines.get(group, {}))

    def _histories(self, group: str) -> dict[int, np.ndarray] | None:
        """Clips that may serve as context, for the groups whose context does not come from their own timelines."""
        rows = self.corpus.devices.histories.get(group)
        if rows is not None:
            return self._indices(rows)
        return self._timelines("train") if group == "test_seen" else None

    def _indices(self, rows: Mapping[int, Sequence[str]]) -> dict[int, np.ndarray]:
        return {d: np.array([self._clip_index[c] for c in clips], np.int64) for d, clips in rows.items() if clips}

    def bring(self, context: bool = True, clean: bool = False) -> None:
        """Say what batches bring beside the query clips: what nobody uses need not be gathered.

        Args:
            context: The recent clips of the devices.
            clean: The clean twins of the query clips, in training.
        """
        self._brings = (context, clean)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _collator(self, split: str, with_context: bool, with_clean: bool) -> Collator:
        clean = self.clean_frames() if with_clean else None
        contexts = self._gatherer(self.corpus.frames, self._encode_contexts, self.corpus.filmed)
        asked = self.corpus.corrected or self.corpus.filmed
        frames = self._gatherer(self.corpus.frames, self._encode_asked, asked)
        own = OwnStatistics(self._statistics)
        return Collator(self._items[split], frames, clean, self.batch, with_context, own, contexts)

    def clean_frames(self) -> FrameGatherer | None:
        """Where the clean twins of all frames come from; None for data without them."""
        return None if self.corpus.clean is None else self._gatherer(self.corpus.clean, self._encode_contexts)

    def _gatherer(
        self, source: FrameSource, encode: Callable[[np.ndarray], np.ndarray] | None, filmed: FilmedFrames | None = None
    ) -> FrameGatherer:
        if encode is not None:
            key = (id(source), encode)
            if key not in self._encoded:
                count = len(source.values)
                _log.info("encoding %d frames of %d clips once, for the whole training", count, len(source.ids()))
                self._encoded[key] = source.encoded(encode)
            source = self._encoded[key]
        return FrameGatherer(source, self.clip_ids, self.batch.max_frames, filmed)

    def train_dataloader(self) -> TrainBatches:
        """Training batches, with what :meth:`bring` says."""
        collate = self._collator("train", *self._brings)
        # The seed that Lightning was given; the order then differs between seeds, the devices do not.
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        epochs = getattr(self.trainer, "max_epochs", None)
        known = epochs if epochs and epochs > 0 else None
        return TrainBatches(self._timelines("train"), collate, self.batch, seed, *self._ranks(), epochs=known)

    def eval_batches(
        self,
        group: str,
        with_context: bool = True,
        with_foreign: bool = False,
        context_clips: int | Sequence[int] | None = None,
    ) -> EvalBatches:
        """Evaluation batches of one group of the device table.

        Args:
            group: Its name.
            with_context: Whether contexts are gathered.
            with_foreign: Whether those of another device are, too.
            context_clips: Replaces the configured number; of several numbers contexts take one after the other.
        """
        split = {"train": "train", "val": "val"}.get(group, "test")
        collate = self._collator(split, with_context, False)
        return EvalBatches(
            self._timelines(group),
            self._histories(group),
            collate,
            self.batch,
            with_foreign and with_context,
            *self._ranks(),
            self.group(group),
            (context_clips,) if isinstance(context_clips, int) else context_clips,
        )

    def group(self, name: str) -> Group:
        """What is asked of a group of the device table, for an evaluation.

        Args:
            name: ``train``, ``val``, or a group of test devices.
        """
        split = {"train": "train", "val": "val"}.get(name, "test")
        return Group(
            name,
            self.task,
            self.kinds,
            self.items(split).clip,
            self.gallery,
            [device.id for device in self.device_table.devices],
            self.clip_ids,
            self.texts(split),
            self.answers,
            self.corpus.conditions,
        )

    def val_dataloader(self) -> EvalBatches:
        """Unseen validation devices; in a training with contexts of the lengths that are trained."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return self.eval_batches("val", self._brings[0], context_clips=self.batch.lengths() if fitting else None)

    @property
    def test_groups(self) -> list[str]:
        """Groups that :meth:`test_dataloader` returns, in order."""
        return [group for group, reason in self._judged_groups() if reason is None]

    def _judged_groups(self) -> Iterator[tuple[str, str | None]]:
        """Groups of test devices, and why one cannot be tested; ``None`` where it can."""
        asked = self._items["test"].by_clip
        # On other data than it was trained on, a checkpoint has seen none of the devices.
        foreign = self._trained is not None and self._trained["fingerprint"] != self.fingerprint
        for group in ("test_unseen", "test_seen", "test_clean"):
            timelines = self._timelines(group)
            if not timelines:
                continue
            if foreign and group == "test_seen":
                yield group, "this is other data than the checkpoint was trained on, which has seen none of its devices"
            elif any(c in asked for clips in timelines.values() for c in clips):
                yield group, None
            else:
                yield group, "nothing is asked about their clips"

    def _tell_left_out(self) -> None:
        for group, reason in self._judged_groups():
            if reason is not None:
                rank_zero_warn(
                    f"{self._where()}: the {len(self._timelines(group))} devices of group '{group}' are not tested: "
                    f"{reason}"
                )

    def test_dataloader(self) -> list[EvalBatches]:
        """Unseen devices, then seen devices with new clips, where both exist."""
        return [self.eval_batches(group, self._brings[0], with_foreign=True) for group in self.test_groups]

    def predict_dataloader(self) -> EvalBatches:
        """The unseen test devices (where there are none, the seen ones): all, or the one that ``predict_device`` names.

        Raises:
            UserError: If there is no such device.
        """
        group = self.new_group
        loader = self.eval_batches(group, self._brings[0])
        if self.predict_device is not None:
            loader.keep_device(self._find_device(self.predict_device, group))
        return loader

    @property
    def new_group(self) -> str:
        """The group whose devices are newest to a training: unseen test devices, or seen ones where all are seen."""
        return "test_unseen" if self._timelines("test_unseen") else "test_seen"

    def _find_device(self, name: str, group: str) -> int:
        names = {device.id: i for i, device in enumerate(self.device_table.devices)}
        present = [device for device, i in names.items() if i in self._timelines(group)]
        if name not in present:
            close = difflib.get_close_matches(name, present, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"it holds {', '.join(present[:5])} ..."
            raise UserError(f"--device {name}: the device table has no unseen test device of that name; {hint}")
        return names[name]


class PersonalClipsData(DeviceData):
    """The embedded default data: rendered clips of devices that differ in camera, in what they film and what they mean.

    Args:
        clips: Settings of the generator.
        cache_dir: Where rendered clips are kept; ``None`` means ``outputs/cache``.
        task: See :class:`DeviceData`, as all further arguments.
    """

    def __init__(
        self,
        clips: PersonalClipsConfig = PersonalClipsConfig(),
        cache_dir: str | None = None,
        task: str = "open_ended",
        batch: BatchShape = BatchShape(),
        max_answers: int = 1000,
        min_count: int = 1,
        max_vocabulary: int = 20_000,
    ) -> None:
        super().__init__(task, batch, max_answers, min_count, max_vocabulary)
        self.clips = clips
        self.cache_dir = Path(cache_dir or "outputs/cache")

    def build_corpus(self) -> Corpus:
        """Render the clips, or load them from the cache."""
        return personal_clips.generate(self.clips, self.cache_dir)


class VideoData(DeviceData):
    """Video data of the user: a clip list, frame features and annotations in public layouts.

    Args:
        root: Folder of the data set.
        features: Frame features, relative to the root: HDF5 or a folder of ``.npy``.
        clips: CSV with the columns ``video`` and ``split``, relative to the root; without it the questions decide the
            splits.
        questions: Questions.
        captions: Captions; more than one file may be given.
        dealing: How clips are dealt to devices.
        drop_missing: Leave out clips without features instead of stopping.
        task: See :class:`DeviceData`, as all further arguments.
    """

    def __init__(
        self,
        root: str,
        features: str,
        clips: str | None = None,
        questions: list[Annotation] | None = None,
        captions: list[Annotation] | None = None,
        dealing: Dealing = Dealing(),
        drop_missing: bool = False,
        task: str = "open_ended",
        batch: BatchShape = BatchShape(),
        max_answers: int = 1000,
        min_count: int = 2,
        max_vocabulary: int = 20_000,
    ) -> None:
        super().__init__(task, batch, max_answers, min_count, max_vocabulary)
        self.root, self.features, self.dealing = Path(os.path.expanduser(root)), features, dealing
        self.files = VideoFiles(self.root, clips, questions or [], captions or [], drop_missing)

    def build_corpus(self) -> Corpus:
        """Read the files, check that they fit together and deal the clips."""
        readers.require_path(self.root, "data.root")
        _log.info("reading clips, annotations and features from %s", self.root)
        with readers.recording() as read:
            listed = FeatureFile(self.files.at(self.features))
            records = self.files.read(listed, self._needed())
            source = listed.load({clip.id for clip in records.clips})
        learnt = (self._trained or {}).get("learnt")
        table = deal(records.clips, self._recipe(), lambda: _mean_features(source, records.clips), learnt)
        return Corpus(
            clips=records.clips,
            frames=source,
            questions=records.questions,
            captions=records.captions,
            devices=table,
            fingerprint=readers.fingerprint_files(read | records.files),
            made=listed.made,
        )

    def _needed(self) -> tuple[str, ...]:
        """Splits that must be whole: all of them in training; a checkpoint is measured on those that are asked."""
        trained = self._trained is not None and self._stage != "fit"
        return tuple(STAGE_GROUPS.get(self._stage or "test", ())) if trained else SPLITS

    def _recipe(self) -> Dealing:
        """The recipe as trained, where a checkpoint gave one."""
        if self._trained is None:
            return self.dealing
        recipe = self._trained["recipe"]
        if set(recipe) != {entry.name for entry in dataclasses.fields(Dealing)}:
            raise UserError(
                f"{self._where()}: the checkpoint was trained on data that is dealt in another way "
                f"({recipe.get('kind', 'unknown')}); name data of that kind (data.class_path), or train on this data"
            )
        return Dealing(**recipe)

    def _where(self) -> str:
        return f"data.root {self.root}"


def _mean_features(source: FrameSource, clips: Sequence[Clip]) -> np.ndarray:
    return np.stack([source.frames(clip.id).astype(np.float32).mean(0) for clip in clips])
