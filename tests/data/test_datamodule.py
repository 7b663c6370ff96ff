"""The data modules on a tiny data set: items, vocabulary, groups, and what a checkpoint restores."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import Annotation, PersonalClipsData, VideoData
from lit_mmpg.data.devices import Dealing
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.base import AnsweringModule
from lit_mmpg.errors import UserError
from lit_mmpg.training.devices import device_rows
from tests.integration.conftest import pixel_data
from tests.integration.tiny import (
    COLOURS,
    FEATURES,
    SHAPES,
    build_root,
    cut_root,
    tiny_clips,
    write_features,
    write_rows,
)

BATCH = BatchShape(devices=2, clips=2, items_per_clip=2, context_clips=3, max_frames=4, max_words=8)
DEALING = Dealing(train_devices=4, val_devices=2, test_devices=2)
COLUMNS = ("video", "question", "answer", "qid", "type")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_root(tmp_path_factory.mktemp("tiny"))


def make_data(root: Path, task: str = "open_ended", **over: Any) -> VideoData:
    arguments: dict[str, Any] = {
        "clips": "clips.csv",
        "features": "features.h5",
        "questions": [Annotation("qa_csv", "qa")],
        "captions": [Annotation("captions_csv", "captions.csv"), Annotation("captions_csv", "shots.csv")],
        "dealing": DEALING,
        "batch": BATCH,
        "min_count": 1,
    }
    return VideoData(str(root), task=task, **(arguments | over))


def ready(root: Path, stage: str = "fit", **over: Any) -> VideoData:
    data = make_data(root, **over)
    data.setup(stage)
    return data


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_devices_are_listed_where_there_are_test_clips_alone(root: Path, tmp_path: Path) -> None:
    alone = cut_root(root, tmp_path / "cut", [clip.id for clip in tiny_clips() if clip.split == "test"])
    captions = [Annotation("captions_csv", "captions.csv")]
    data = ready(alone, "devices", captions=captions, batch=replace(BATCH, own_statistics=4))
    rows = device_rows(data)
    assert {row["group"] for row in rows} == {"test_unseen"}
    assert sum(row["items"] for row in rows) == 2 * sum(row["clips"] for row in rows) == 16
    with pytest.raises(UserError, match="no clip with"):
        ready(alone, "fit", captions=captions)


def test_items_are_the_questions_of_the_split(root: Path) -> None:
    data = ready(root)
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        items, texts = data.items(split), data.texts(split)
        assert len(texts) == len(items.answer) == 2 * count
        for clip, indices in items.by_clip.items():
            assert {texts[i].clip for i in indices} == {data.clip_ids[clip]}
            assert (items.clip[indices] == clip).all()
        for i, text in enumerate(texts):
            words = items.tokens[i, 0][items.tokens[i, 0] > 0].tolist()
            assert words == data.vocabulary.encode(text.text, BATCH.max_words)
            assert data.answers.answers[items.answer[i]] == text.answer
            assert data.kinds[items.kind[i]] == text.type
    assert set(data.answers.answers) == {*COLOURS, *SHAPES}
    assert data.kinds == ["form", "paint"]


def test_the_vocabulary_stands_on_training_sentences(root: Path, tmp_path: Path) -> None:
    before = ready(root).vocabulary
    other = build_root(tmp_path)
    for split in ("val", "test"):
        rows = rows_of(other / "qa" / f"{split}.csv")
        write_rows(other / "qa" / f"{split}.csv", COLUMNS, [[r[0], "quizzical gadget", *r[2:]] for r in rows[1:]])
    assert ready(other).vocabulary == before


def test_answers_outside_the_list_are_minus_one(root: Path) -> None:
    data = ready(root, max_answers=5)
    assert len(data.answers) == 5
    known = set(data.answers.answers)
    for i, text in enumerate(data.texts("train")):
        assert (data.items("train").answer[i] == -1) == (text.answer not in known)
    assert (data.items("train").answer == -1).any()


def test_retrieval_asks_captions_and_teaches_descriptions_too(root: Path) -> None:
    data = ready(root, task="retrieval")
    extra = data.items("train").extra
    assert extra.sum() == 48 and (~extra).sum() == 48
    for split in ("val", "test"):
        assert not data.items(split).extra.any() and len(data.texts(split)) == 16
    batch = next(iter(data.val_dataloader()))
    assert batch.text.shape[2] == 1 and batch.text_mask.all()


def test_a_training_validates_on_contexts_of_the_lengths_that_it_trains(root: Path) -> None:
    data = ready(root, batch=replace(BATCH, context_clips=2, fewest_context_clips=1))
    data.trainer = Trainer(logger=False, barebones=True)
    lengths = {}
    for fn in ("fit", "validate"):
        data.trainer.state.fn = TrainerFn(fn)
        lengths[fn] = {len(query.context) for query in data.val_dataloader().queries}
    assert lengths == {"fit": {1, 2}, "validate": {2}}


def test_every_loader_asks_what_it_should(root: Path) -> None:
    data = ready(root, stage="test")
    assert data.test_groups == ["test_unseen", "test_seen"]
    for loader in data.test_dataloader():
        counts = Counter(i for batch in loader for i in batch.item[batch.text_mask].tolist())
        assert counts == Counter(range(16))
    asked = {c for batch in data.train_dataloader() for c in batch.clip.flatten().tolist() if c >= 0}
    assert {data.clip_ids[c] for c in asked} == {c.id for c in tiny_clips() if c.split == "train"}


def test_seen_devices_take_their_training_clips_as_context(root: Path) -> None:
    data = ready(root, stage="test")
    vectors = {tuple(data.corpus.frames.frames(c.id)[0].tolist()): c for c in tiny_clips()}
    timelines = data.device_table.timelines
    for batch in data.eval_batches("test_seen"):
        for b, device in enumerate(batch.device.tolist()):
            first = [
                vectors[tuple(values.tolist())]
                for values, mask in zip(batch.context.values[b, :, 0], batch.context.mask[b, :, 0], strict=True)
                if mask
            ]
            assert [c.id for c in first] == list(timelines["train"].get(device, ()))[-BATCH.context_clips :]


def test_the_order_follows_the_seed_of_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def order(seed: str) -> list[list[int]]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        return [batch.clip.flatten().tolist() for batch in data.train_dataloader()]

    data = ready(root)
    assert order("1") == order("1") != order("2")


def test_statistics_and_caption_pairs_are_of_training_clips(root: Path) -> None:
    data = ready(root)
    train = [c.id for c in tiny_clips() if c.split == "train"]
    frames = np.concatenate([data.corpus.frames.frames(c) for c in train]).astype(np.float64)
    mean, std = data.feature_statistics()
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, frames.std(0) + 1e-3, rtol=1e-6)
    features, captions = data.caption_pairs()
    assert len(captions) == len(features) == 24
    np.testing.assert_allclose(features[0], data.corpus.frames.frames(train[0]).mean(0), rtol=1e-5)
    assert captions[0] == "a red ball rests upon the shelf some red ball rests upon the shelf"
    sentences = data.training_sentences()
    assert len(sentences) == 48 + 48 + 48


def test_frames_can_be_encoded_once(root: Path) -> None:
    data = ready(root)
    plain = next(iter(data.train_dataloader()))

    def encode(frames: np.ndarray) -> np.ndarray:
        return 2 * frames[:, :5]

    data.encode_once(encode, encode)
    encoded = next(iter(data.train_dataloader()))
    assert encoded.frames.values.shape[-1] == 5
    torch.testing.assert_close(encoded.frames.values, 2 * plain.frames.values[..., :5])
    data.encode_once(encode, None)
    contexts = next(iter(data.train_dataloader()))
    assert torch.equal(contexts.frames.values, plain.frames.values)
    assert torch.equal(contexts.context.values, encoded.context.values)
    data.encode_once(None, None)
    assert next(iter(data.train_dataloader())).frames.values.shape[-1] == FEATURES


def by_own_statistics(frames: np.ndarray, seen: np.ndarray, training: np.ndarray, prior: float) -> np.ndarray:
    """Independent reference: frames and what was seen before as ``[n, D]``, all training frames as ``[N, D]``."""
    share = len(seen) / (len(seen) + prior)
    mean, var = training.mean(0), (training.std(0) + 1e-3) ** 2
    here_mean = share * seen.mean(0) + (1 - share) * mean
    here_var = share * seen.var(0) + (1 - share) * var
    return (frames - here_mean) * np.sqrt((var + 1e-5) / (here_var + 1e-5)) + mean


def test_query_frames_are_standardised_by_what_the_device_has_seen(root: Path) -> None:
    """In training and test; the context, from which anchors come, stays as it is, and so do devices without any."""
    own = replace(BATCH, own_statistics=5)
    plain, data = ready(root), ready(root, batch=own)
    names = [c.id for c in tiny_clips() if c.split == "train"]
    training = np.concatenate([data.corpus.frames.frames(c) for c in names]).astype(np.float64)
    for raw, found in (
        (next(iter(plain.train_dataloader())), next(iter(data.train_dataloader()))),
        (next(iter(plain.eval_batches("test_unseen"))), next(iter(data.eval_batches("test_unseen")))),
    ):
        torch.testing.assert_close(found.context.values, raw.context.values)
        for b in range(len(raw.device)):
            seen = raw.context.values[b][raw.context.mask[b]].double().numpy()
            mask = raw.frames.mask[b]
            wanted = by_own_statistics(raw.frames.values[b][mask].double().numpy(), seen, training, 5)
            np.testing.assert_allclose(found.frames.values[b][mask], wanted, rtol=1e-4, atol=1e-4)
            assert not np.allclose(wanted, raw.frames.values[b][mask], atol=0.05)
            assert (found.frames.values[b][~mask] == 0).all()
    # A module that wants no context has its frames standardised all the same.
    alone = next(iter(data.eval_batches("test_unseen", with_context=False)))
    torch.testing.assert_close(alone.frames.values, found.frames.values)
    assert alone.context.values.shape[1] == 0
    collate = data.eval_batches("test_unseen").collate
    torch.testing.assert_close(
        collate.query_frames([[3]], 1, [0], [()]).values, collate.frames([[3]], 1, [0]).values, atol=1e-5, rtol=1e-5
    )


def test_training_moments_come_with_the_checkpoint(root: Path, tmp_path: Path) -> None:
    """Another root has other clips: they are brought to the moments of training, not to their own."""
    own = replace(BATCH, own_statistics=5)
    trained = ready(root, batch=own)
    data = make_data(build_root(tmp_path, {"train": 24, "val": 8, "test": 8}, seed=5), batch=own)
    data.use_meta(json.loads(json.dumps(trained.meta)))
    data.setup("test")
    mean, _ = trained.feature_statistics()
    moments = data.eval_batches("test_unseen").collate.own._training
    assert moments is not None
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    assert not np.allclose(moments.mean, data.feature_statistics()[0], rtol=1e-3)
    assert "own_statistics" not in ready(root).meta


def test_own_statistics_are_of_features(tmp_path: Path) -> None:
    arguments = pixel_data()["init_args"]
    batch = BatchShape(**arguments["batch"], own_statistics=16)
    data = PersonalClipsData(PersonalClipsConfig(**arguments["clips"]), str(tmp_path), batch=batch)
    with pytest.raises(UserError, match="own_statistics is 16, but the frames are pixels, not features; set it to 0"):
        data.setup("fit")
    with pytest.raises(UserError, match="own_statistics is -1; it must be at least 0"):
        replace(BATCH, own_statistics=-1).check()


def test_both_halves_standardise_alike(root: Path) -> None:
    plain, own = ready(root).meta, ready(root, batch=replace(BATCH, own_statistics=5)).meta
    AnsweringModule.check_meta(own, own)
    for trained, data, message in ((plain, own, "0, the data has 5"), (own, plain, "5, the data has 0")):
        with pytest.raises(UserError, match=f"trained with data.batch.own_statistics {message}; use the same"):
            AnsweringModule.check_meta(trained, data)


# -- a checkpoint's data -----------------------------------------------------------------------------------------


def test_meta_restores_vocabulary_answers_and_recipe(root: Path, tmp_path: Path) -> None:
    meta = ready(root).meta
    other = build_root(tmp_path, {"test": 12}, seed=5, first=100)
    rows = rows_of(other / "qa" / "test.csv")[1:]
    rows[0][2], rows[1][4] = "violet", "size"
    write_rows(other / "qa" / "test.csv", COLUMNS, rows)
    data = make_data(other, dealing=Dealing(train_devices=9, seed=7))
    data.use_meta(meta)
    data.setup("test")
    assert data.vocabulary.to_json() == meta["vocabulary"] and data.answers.to_json() == meta["answers"]
    assert data.device_table.recipe == meta["recipe"]
    assert data.test_groups == ["test_unseen"]
    assert data.items("test").answer[0] == -1 and (data.items("test").answer[1:] >= 0).all()
    # A type that the training never met is a type of its own, not the first of the known ones.
    assert data.kinds == ["form", "paint", "size"] and data.items("test").kind[1] == 2


def test_answers_that_the_checkpoint_hardly_knows_are_a_warning(root: Path, tmp_path: Path) -> None:
    meta = ready(root).meta
    other = build_root(tmp_path)
    rows = [[*r[:2], "mauve", *r[3:]] for r in rows_of(other / "qa" / "test.csv")[1:]]
    write_rows(other / "qa" / "test.csv", COLUMNS, rows)
    data = make_data(other)
    data.use_meta(meta)
    with pytest.warns(UserWarning, match=r"covers 0.0% of these answers; answers outside the list count as wrong"):
        data.setup("test")
    assert (data.items("test").answer == -1).all()


@pytest.mark.parametrize(
    ("changed", "over", "message"),
    [
        ({"frame_shape": [7]}, {}, r"shape \(12,\).*trained on \(7,\).*data.features"),
        ({"task": "retrieval"}, {}, "trained for task 'retrieval', data.task is 'open_ended'"),
        ({"max_words": 4}, {}, "data.batch.max_words is 8, the checkpoint was trained with 4"),
        ({"own_statistics": {"prior": 3}}, {}, "data.batch.own_statistics is 0, the checkpoint was trained with 3"),
        ({}, {"batch": replace(BATCH, own_statistics=2)}, "own_statistics is 2, the checkpoint was trained with 0"),
        ({"recipe": {"kind": "personal_clips", "seed": 0}}, {}, r"dealt in another way \(personal_clips\)"),
    ],
)
def test_data_that_a_checkpoint_does_not_fit(
    root: Path, changed: dict[str, Any], over: dict[str, Any], message: str
) -> None:
    meta = ready(root).meta | changed
    data = make_data(root, **over)
    data.use_meta(meta)
    with pytest.raises(UserError, match=message):
        data.setup("test")


# -- files that do not fit together ------------------------------------------------------------------------------


def test_clips_may_be_called_otherwise_than_their_features(tmp_path: Path) -> None:
    root = build_root(tmp_path)
    with h5py.File(root / "features.h5") as file:
        features = {f"video{name.removeprefix('clip')}": dataset[()] for name, dataset in file.items()}
    write_features(root / "features.h5", features)
    for path in (root / "clips.csv", *(root / "qa").iterdir()):
        header, *rows = rows_of(path)
        write_rows(path, header, [[row[0].removeprefix("clip"), *row[1:]] for row in rows])
    for name in ("captions.csv", "shots.csv"):
        header, *rows = rows_of(root / name)
        write_rows(root / name, header, [[row[0].replace("clip", "video"), *row[1:]] for row in rows])
    data = ready(root)
    assert data.clip_ids[0] == "video000" and len(data.texts("train")) == 48


def test_videos_outside_the_clip_list(tmp_path: Path) -> None:
    root = build_root(tmp_path)
    header, *rows = rows_of(root / "clips.csv")
    write_rows(root / "clips.csv", header, rows[2:])
    with pytest.raises(UserError, match=r"clips.csv: 2 videos .* not in the clip list, first clip000, clip001"):
        ready(root)
    data = ready(root, drop_missing=True)
    assert len(data.clip_ids) == 38 and len(data.texts("train")) == 44


def test_one_clip_by_two_names_is_in_one_split(tmp_path: Path) -> None:
    root = build_root(tmp_path)
    with (root / "clips.csv").open("a") as file:
        file.write("clip003.mp4,test,red\n")
    message = r"clips.csv, line 42: 'clip003.mp4' \(test\) is the clip that line 5 lists as 'clip003' \(train\)"
    with pytest.raises(UserError, match=message):
        ready(root)
    with (root / "qa/test.csv").open("a") as file:
        file.write("clip003.mp4,q,red,x,paint\n")
    with pytest.raises(
        UserError, match=r"'clip003' has questions in 'train' and in 'test' \(.*train.csv.*test.csv, line"
    ):
        ready(root, clips=None)
    with h5py.File(root / "features.h5", "a") as features:  # extracted by both names
        features["clip003.mp4"] = features["clip003"][:]
    with pytest.raises(UserError, match=message):
        ready(root)
    with pytest.raises(UserError, match=r"'clip003.mp4' has questions in 'train' and in 'test'"):
        ready(root, clips=None)


def test_the_fingerprint_covers_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    root = build_root(tmp_path)
    first = ready(root).fingerprint
    (root / ".DS_Store").write_bytes(b"x")
    (root / "qa/notes.txt").write_text("x")
    (root / "videos").mkdir()
    (root / "videos/clip000.mp4").write_bytes(b"x")
    assert ready(root).fingerprint == first
    text = (root / "qa/val.csv").read_text()
    (root / "qa/val.csv").write_text(text.replace("red", "blue"))
    assert ready(root).fingerprint != first


def test_groups_that_are_not_tested_are_named(root: Path) -> None:
    data = make_data(root)
    data.use_meta({**ready(root).meta, "fingerprint": "of other data"})
    with pytest.warns(UserWarning, match=r"devices of group 'test_seen' are not tested: this is other data"):
        data.setup("test")
    assert data.test_groups == ["test_unseen"]


def test_devices_that_all_have_training_clips(root: Path) -> None:
    """Nobody is held out: new clips of the training devices are validated, tested and answered, from their history."""
    dealing = Dealing(kind="column", unseen_share=0.0)
    data = ready(root, stage="test", dealing=dealing)
    assert data.test_groups == ["test_seen"] and data.new_group == "test_seen"
    assert {len(rows) for rows in data.device_table.timelines["train"].values()} == {6}
    split = {i: clip.split for i, clip in enumerate(data.corpus.clips)}
    for loader in (data.eval_batches("val"), data.predict_dataloader()):
        assert loader.queries and all(split[c] == "train" for query in loader.queries for c in query.context)


def test_without_a_clip_list_the_questions_decide(root: Path) -> None:
    dealing = Dealing(column="clusters", clusters=4, train_devices=4, val_devices=2, test_devices=2)
    data = ready(root, clips=None, dealing=dealing)
    assert Counter(c.split for c in data.corpus.clips) == {"train": 24, "val": 8, "test": 8}
    with pytest.raises(UserError, match=r"split 40 videos with captions belong.*data\.clips"):
        ready(root, task="retrieval", clips=None, questions=[], dealing=dealing)


def test_a_dealing_that_leaves_a_group_without_questions(tmp_path: Path) -> None:
    root = build_root(tmp_path)
    header, *rows = rows_of(root / "clips.csv")
    # Clips of validation show one colour only: whichever is held out for validation, most show another.
    write_rows(root / "clips.csv", header, [[*r[:2], "red" if r[1] == "val" else r[2]] for r in rows])
    dealings = [Dealing(kind="column", unseen_share=0.25, seed=seed) for seed in range(8)]
    messages = []
    for dealing in dealings:
        try:
            ready(root, dealing=dealing)
        except UserError as error:
            messages.append(str(error))
    assert messages and len(messages) < len(dealings)
    assert all(
        "no device of group 'val' has a clip with open-ended questions; change data.dealing" in m for m in messages
    )


@pytest.mark.parametrize(("stage", "split"), [("fit", "train"), ("fit", "val"), ("validate", "val"), ("test", "test")])
def test_an_empty_split(tmp_path: Path, stage: str, split: str) -> None:
    counts = {name: count for name, count in {"train": 24, "val": 8, "test": 8}.items() if name != split}
    root = build_root(tmp_path, counts)
    with pytest.raises(UserError, match=f"{root}: split '{split}' has no clip with open-ended questions"):
        ready(root, stage=stage)
    with pytest.raises(UserError, match="has no clip with multiple-choice questions"):
        ready(root, stage=stage, task="multiple_choice")


def test_an_answer_list_that_is_too_short(root: Path) -> None:
    with pytest.raises(UserError, match=r"covers 33.3% of the training answers.*data.max_answers"):
        ready(root, max_answers=2)


def test_a_device_that_nobody_knows(root: Path) -> None:
    data = ready(root, stage="predict")
    data.predict_device = "test01"
    with pytest.raises(UserError, match=r"--device test01: .* did you mean 'test00[01]'"):
        data.predict_dataloader()
    data.predict_device = "test001"
    loader = data.predict_dataloader()
    names = {data.device_table.devices[d].id for batch in loader for d in batch.device.tolist()}
    assert names == {"test001"}
