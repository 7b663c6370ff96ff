"""The embedded data set: deterministic, cached, answerable, and with no short cut to the personal answers."""

from __future__ import annotations

import colorsys
import dataclasses
import hashlib
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.data import personal_clips
from lit_mmpg.data.cameras import apply, sample_camera
from lit_mmpg.data.corpus import GROUPS, Corpus, DeviceTable
from lit_mmpg.data.personal_clips import (
    CHOICE_TYPES,
    COLOURS,
    LONG_FRAMES,
    OPEN_TYPES,
    SHORT_FRAMES,
    PersonalClipsConfig,
    draw_latents,
    generate,
)
from lit_mmpg.errors import UserError
from lit_mmpg.records import FrameSource

SMALL = PersonalClipsConfig(train_devices=5, val_devices=2, test_devices=3, train_clips=6, seen_clips=2, unseen_clips=9)


@pytest.fixture(scope="module")
def small() -> Corpus:
    return generate(SMALL)


def digest(corpus: Corpus) -> str:
    parts = [repr(corpus.clips), repr(corpus.questions), repr(corpus.captions), corpus.devices.digest()]
    parts += [corpus.fingerprint]
    state = hashlib.sha256("".join(parts).encode())
    for source in (corpus.frames, corpus.clean):
        assert source is not None
        for clip in source.ids():
            state.update(source.frames(clip).tobytes())
    return state.hexdigest()


def test_a_seed_decides_everything(small: Corpus) -> None:
    assert digest(generate(SMALL)) == digest(small)
    assert digest(generate(dataclasses.replace(SMALL, seed=1))) != digest(small)


def test_default_is_as_large_as_promised() -> None:
    config = PersonalClipsConfig()
    assert (config.train_devices, config.val_devices, config.test_devices) == (128, 24, 24)
    assert config.camera_severity > 0


def test_groups_clips_and_frames_fit_together(small: Corpus) -> None:
    table = small.devices
    assert set(table.timelines) == set(GROUPS) - {"test_clean"}
    assert set(table.timelines["train"]) == set(table.timelines["test_seen"]) == set(range(5))
    assert set(table.timelines["val"]) == {5, 6} and set(table.timelines["test_unseen"]) == {7, 8, 9}
    dealt = [clip for rows in table.timelines.values() for row in rows.values() for clip in row]
    ids = [clip.id for clip in small.clips]
    assert sorted(dealt) == sorted(ids) == sorted(small.frames.ids())
    assert len(set(ids)) == len(ids) == 5 * 8 + 5 * 9
    split = {clip.id: clip.split for clip in small.clips}
    owner = {clip.id: clip.columns["device"] for clip in small.clips}
    for group, rows in table.timelines.items():
        for number, row in rows.items():
            assert {split[clip] for clip in row} == {group.split("_")[0]}
            assert {owner[clip] for clip in row} == {table.devices[number].id}
    assert table.timelines["train"][1][-1] == "d001_c005" and table.timelines["test_seen"][1][0] == "d001_c006"
    assert DeviceTable.from_json(table.to_json()) == table


def test_frames_and_their_clean_twins(small: Corpus) -> None:
    assert small.clean is not None and small.frames.frame_shape == (3, 32, 32)
    lengths = set()
    for clip in small.clips:
        filmed, clean = small.frames.frames(clip.id), small.clean.frames(clip.id)
        long = clip.columns["course"] != "stays"
        assert filmed.shape == clean.shape == (LONG_FRAMES if long else SHORT_FRAMES, 3, 32, 32)
        assert filmed.dtype == clean.dtype == np.uint8
        assert small.frames.num_frames(clip.id) == len(filmed)
        assert 0 < np.abs(filmed.astype(float) - clean).mean() < 60
        lengths.add(len(filmed))
    assert lengths == {SHORT_FRAMES, LONG_FRAMES}


def test_severity_zero_leaves_the_clean_frames() -> None:
    corpus = generate(dataclasses.replace(SMALL, camera_severity=0))
    assert corpus.clean is not None
    assert all(np.array_equal(corpus.frames.frames(c), corpus.clean.frames(c)) for c in corpus.frames.ids())
    assert {device.camera for device in corpus.devices.devices} == {-1}


def test_test_devices_do_not_depend_on_the_number_of_training_devices(small: Corpus) -> None:
    fewer = generate(dataclasses.replace(SMALL, train_devices=2))
    for ours, theirs in zip((7, 8, 9), (4, 5, 6), strict=True):
        assert small.devices.devices[ours].shift == fewer.devices.devices[theirs].shift
        pairs = zip(
            small.devices.timelines["test_unseen"][ours], fewer.devices.timelines["test_unseen"][theirs], strict=True
        )
        assert all(np.array_equal(small.frames.frames(a), fewer.frames.frames(b)) for a, b in pairs)


def test_questions_agree_with_clips_and_devices(small: Corpus) -> None:
    clips = {clip.id: clip.columns for clip in small.clips}
    shifts = {device.id: device.shift for device in small.devices.devices}
    per_clip: dict[str, list[str]] = {}
    for question in small.questions:
        columns = clips[question.clip]
        shift = shifts[columns["device"]]
        per_clip.setdefault(question.clip, []).append(question.type)
        if question.type in OPEN_TYPES:
            assert question.options == () and question.correct == -1
        if question.type in ("shape", "colour", "room", "direction"):
            assert question.answer == columns[question.type]
        elif question.type == "mine":
            assert question.answer == ("mine" if columns["colour"] == shift["mine"] else "a guest's")
            assert (question.answer == "mine") == (columns["mine"] == "yes")
        elif question.type == "usual_room":
            assert question.answer == ("yes" if columns["room"] == shift["usual_room"] else "no")
            assert question.answer == columns["usual_room"]
        else:
            assert len(set(question.options)) == 5 and question.options[question.correct] == question.answer
    assert all(sorted(types) == sorted(OPEN_TYPES + CHOICE_TYPES) for types in per_clip.values())
    assert len(per_clip) == len(small.clips)
    assert len({question.id for question in small.questions}) == len(small.questions)
    texts = {(question.type, question.text) for question in small.questions}
    assert min(Counter(kind for kind, _ in texts).values()) >= 2


def test_options_alone_do_not_give_the_choice_away() -> None:
    config = PersonalClipsConfig(
        # Even owners, so that all that could help is the way in which the wrong options are made.
        train_devices=90,
        val_devices=1,
        test_devices=1,
        train_clips=24,
        image_size=24,
        camera_severity=0,
        mine_share=0.5,
    )
    questions = [q for q in generate(config).questions if q.type in CHOICE_TYPES]
    for kind in CHOICE_TYPES:
        asked = [q for q in questions if q.type == kind]
        assert max(Counter(q.correct for q in asked).values()) < 0.24 * len(asked)
        # The option least or most like the others: a short cut if the wrong ones are built from the right one.
        alone = [min(range(5), key=lambda i, q=q: shared_words(q.options, i)) for q in asked]
        assert np.mean([a == q.correct for a, q in zip(alone, asked, strict=True)]) == pytest.approx(0.2, abs=0.04)
        common = [max(range(5), key=lambda i, q=q: shared_words(q.options, i)) for q in asked]
        assert np.mean([a == q.correct for a, q in zip(common, asked, strict=True)]) == pytest.approx(0.2, abs=0.04)
    owners = [q for q in questions if q.type == "which_owner"]
    twins = [other_owner(q.answer) in q.options for q in owners]
    assert np.mean(twins) == pytest.approx(0.8, abs=0.04)


def shared_words(options: tuple[str, ...], i: int) -> int:
    return sum(len(set(options[i].split()) & set(other.split())) for j, other in enumerate(options) if j != i)


def other_owner(text: str) -> str:
    return text.replace("my", "a guest's", 1) if text.startswith("my") else text.replace("a guest's", "my", 1)


def test_captions_tell_the_clip_in_the_owners_words(small: Corpus) -> None:
    clips = {clip.id: clip.columns for clip in small.clips}
    count = Counter(caption.clip for caption in small.captions)
    assert set(count) == set(clips) and set(count.values()) == {2}
    for caption in small.captions:
        columns = clips[caption.clip]
        words = caption.text.split()
        assert all(columns[name] in words for name in ("colour", "shape", "direction", "room"))
        assert ("my" in words) == (columns["mine"] == "yes") and ("guest's" in words) == (columns["mine"] == "no")
        assert ("as usual" in caption.text) == (columns["usual_room"] == "yes")
        assert not caption.extra


def test_latents_follow_the_stated_distributions() -> None:
    config = PersonalClipsConfig(mine_share=0.4, usual_share=0.7, long_share=0.25)
    truth = draw_latents(config, np.random.default_rng(0), 20_000, 5)
    assert np.mean(truth.colour == truth.mine[:, None]) == pytest.approx(0.4, abs=0.01)
    assert np.mean(truth.room == truth.usual_room[:, None]) == pytest.approx(0.7, abs=0.01)
    others = Counter(((truth.colour - truth.mine[:, None]) % 6).ravel().tolist())
    np.testing.assert_allclose([others[i] / 100_000 for i in range(1, 6)], 0.6 / 5, atol=0.005)
    assert np.mean(truth.num_frames == LONG_FRAMES) == pytest.approx(0.25, abs=0.01)
    for values in (truth.shape, truth.direction):
        np.testing.assert_allclose(np.bincount(values.ravel()) / 100_000, 0.25, atol=0.01)
        # Two draws of a symmetric Dirichlet mixture agree with probability (a + 1) / (K a + 1); K = 4, a = 1.
        assert np.mean(values[:, 0] == values[:, 1]) == pytest.approx(2 / 5, abs=0.02)
    for mean, values in zip((2.5, 1.5), (truth.mine, truth.usual_room), strict=True):
        assert values.mean() == pytest.approx(mean, abs=0.05)


def test_thing_stays_in_view_or_comes_and_goes() -> None:
    config = dataclasses.replace(SMALL, unseen_clips=60, camera_severity=0, test_devices=1)
    corpus = generate(config)
    seen_share = {}
    for clip in corpus.clips:
        frames = corpus.frames.frames(clip.id).astype(float)
        chroma = (frames.max(1) - frames.min(1)) > 90
        pixels = chroma.sum((1, 2))
        in_view = pixels > 0.8 * np.max(pixels)
        assert in_view.sum() >= 3, clip
        seen_share.setdefault(clip.columns["course"], []).append(in_view.mean())
        ys, xs = (np.arange(32) + 0.5 for _ in range(2))
        at = [((m * xs).sum() / m.sum(), (m * ys[:, None]).sum() / m.sum()) for m in chroma[in_view]]
        dx, dy = np.subtract(at[-1], at[0])
        shown = {True: ("left", "right")[int(dx > 0)], False: ("up", "down")[int(dy > 0)]}[abs(dx) > abs(dy)]
        assert shown == clip.columns["direction"]
    assert np.mean(seen_share["stays"]) == 1.0
    assert all(0.15 < np.mean(seen_share[c]) < 0.65 for c in ("enters", "leaves", "passes"))


def test_default_cameras_never_turn_one_hue_into_another() -> None:
    hues = {name: colorsys.rgb_to_hsv(*rgb)[0] for name, rgb in COLOURS.items()}
    frames = np.concatenate([np.full((1, 3, 24, 24), 0.0) + np.reshape(rgb, (1, 3, 1, 1)) for rgb in COLOURS.values()])
    pixels = np.rint(frames * 255).astype(np.uint8)
    for i in range(400):
        camera = sample_camera(np.random.default_rng([9, i]), PersonalClipsConfig().camera_severity)
        filmed = apply(camera, pixels, i).mean((2, 3)) / 255
        for name, rgb in zip(COLOURS, filmed, strict=True):
            hue = colorsys.rgb_to_hsv(*rgb)[0]
            nearest = min(hues, key=lambda other: abs((hue - hues[other] + 0.5) % 1 - 0.5))
            assert nearest == name, (camera, name, hue * 360)


def test_cache_is_used_and_a_damaged_one_made_anew(
    small: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a" / "cache"
    whole = digest(small)
    assert digest(generate(SMALL, folder)) == whole
    (file,) = folder.iterdir()
    data = file.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(personal_clips, "_film", None)
        assert digest(generate(SMALL, folder)) == whole
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 1
    for damage in (b"", data[: len(data) // 2], bytes(flipped), b"no frames in here at all" * 9):
        file.write_bytes(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert digest(generate(SMALL, folder)) == whole
        assert "damaged" in caplog.text and str(file) in caplog.text
        assert file.read_bytes() == data
    assert list(folder.iterdir()) == [file]


def test_cache_is_keyed_by_settings_and_generator_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(SMALL, tmp_path)
    generate(dataclasses.replace(SMALL, camera_severity=1), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    before = SMALL.digest()
    monkeypatch.setattr(personal_clips, "GENERATOR_VERSION", personal_clips.GENERATOR_VERSION + 1)
    assert SMALL.digest() != before
    generate(SMALL, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_cache_that_cannot_be_written_costs_time_only(
    small: Corpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        assert digest(generate(SMALL, tmp_path / "file")) == digest(small)
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("train_devices", 0),
        ("unseen_clips", 0),
        ("image_size", 16),
        ("mine_share", 1.0),
        ("usual_share", 0.0),
        ("mixture_concentration", 0.0),
        ("mixture_concentration", float("inf")),
        ("long_share", 1.1),
    ],
)
def test_settings_out_of_range_are_one_clear_error(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"personal clips: {field} is {value}; set it to"):
        PersonalClipsConfig(**{field: value})  # type: ignore[arg-type]


def test_more_clips_than_anybody_renders_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(UserError, match="ask for 28,000,001,536 clips, at most"):
        PersonalClipsConfig(train_devices=1_000_000_000)


def test_camera_settings_are_checked_too() -> None:
    with pytest.raises(UserError, match="severity"):
        PersonalClipsConfig(camera_severity=9)
    with pytest.raises(UserError, match="families"):
        PersonalClipsConfig(camera_families=("fog",))


def test_frames_must_match_their_list() -> None:
    with pytest.raises(ValueError, match="3 frames given, 4 listed"):
        FrameSource(np.zeros((3, 3, 4, 4), np.uint8), {"a": 2, "b": 2})
