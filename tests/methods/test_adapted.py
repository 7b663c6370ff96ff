"""Measuring methods on a real, tiny checkpoint: the same numbers as the trained model's own test."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from lit_mmpg.cli import main
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.errors import UserError
from lit_mmpg.methods.adapted import _Runner, evaluate_adapted, load
from lit_mmpg.methods.base import AdaptationMethod, Episode, Options
from lit_mmpg.methods.registry import _take, applicability, find_method, method_names
from lit_mmpg.tasks import find_task, task_names
from tests.integration.conftest import Trained
from tests.methods.conftest import World

Train = Callable[[str], Trained]


@pytest.mark.parametrize("task", ["open_ended", "retrieval"])
@pytest.mark.parametrize("half", ["device", "cloud"])
def test_the_checkpoint_as_it_is_measures_what_its_own_test_measures(
    task: str,
    half: str,
    trained: Train,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = trained(task)
    monkeypatch.chdir(run.folder)
    checkpoint = str(getattr(run, half))
    assert main(["test", "--ckpt_path", checkpoint, "--output", "own.json"]) == 0
    wanted = {"device": "static", "cloud": "cdc_mmpg"}[half]
    own = [row for row in json.loads(Path("own.json").read_text())["rows"] if row["method"] == wanted]
    own = [row for row in own if "_minus_" not in row["metric"]]
    result = evaluate_adapted(load(checkpoint), "unadapted", "as_it_is")
    assert {row["method"] for row in result.rows} == {"as_it_is"}
    found = {(row["split"], row["metric"]): row for row in result.rows}
    assert len(found) == len(own)
    for row in own:
        mine = found[row["split"], row["metric"]]
        assert mine["value"] == pytest.approx(row["value"], abs=1e-6), row
        if half == "cloud":
            assert mine["upload_bytes"] > 100 and mine["download_bytes"] > 100
        else:
            assert mine["upload_bytes"] == mine["download_bytes"] == 0


def test_options_are_chosen_on_validation_devices_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = world("open_ended")
    seen: list[str] = []
    plain = loaded.data.eval_batches

    def watched(group: str, *args: object, **kwargs: object) -> object:
        seen.append(group)
        return plain(group, *args, **kwargs)

    monkeypatch.setattr(loaded.data, "eval_batches", watched)
    result = evaluate_adapted(loaded, "tent", options={"learning_rate": [1e-3, 1e-2], "steps": 2})
    first_test = seen.index("test_unseen")
    assert set(seen[:first_test]) <= {"val", "train"} and "val" in seen[:first_test]
    assert len(result.sweep) == 2
    assert result.chosen["steps"] == 2
    best = max(result.sweep, key=lambda row: row["score"])
    assert result.chosen["learning_rate"] == best["learning_rate"]
    assert result.cost is not None and result.cost.adapt_flops > result.cost.answer_flops > 0


def test_a_score_that_is_no_number_is_never_chosen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _Runner.sweep

    def first_fails(self: _Runner, points: Sequence[Options]) -> list[dict]:
        return [{**row, "score": row["score"] if i else math.nan} for i, row in enumerate(plain(self, points))]

    monkeypatch.setattr(_Runner, "sweep", first_fails)
    result = evaluate_adapted(world("open_ended"), "tent", options={"learning_rate": [1e-3, 1e-2], "steps": 0})
    assert result.chosen["learning_rate"] == 1e-2


class Own(AdaptationMethod):
    """Somebody's own method, which does as its options say."""

    name, paper, setting = "own", "none", "episodic"
    grid = {"does": ("", "few", "narrow", "nothing", "nan", "train", "change")}  # noqa: RUF012

    def adapt(self, support: Episode, options: Options) -> dict:
        self.network.train(options["does"] == "train")
        if options["does"] == "change":
            next(self.network.parameters()).add_(1)
        return {}

    def respond(self, query: Episode, state: object, options: Options) -> Outputs:
        logits = self.subject.answer(query).logits
        assert logits is not None
        found = {
            "few": logits[:, :1],
            "narrow": logits[..., 1:],
            "nan": logits.index_fill(-1, torch.tensor([0]), math.nan),
            "nothing": None,
        }
        return Outputs(logits=found.get(options["does"], logits))


def test_what_a_method_of_ones_own_must_not_do_is_refused(world: World) -> None:
    loaded = copy.deepcopy(world("open_ended"))
    for does, said in (
        ("few", r"'own' answers by logits \(2, 1, \d+\); .* for each text \(2, 8\)"),
        ("narrow", r"'own' answers by \d+ logits where there are \d+ answers"),
        ("nothing", "'own' answers by Outputs; respond returns Outputs, with"),
        ("train", "method 'own' changes the checkpoint"),
        ("change", "method 'own' changes the checkpoint"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate_adapted(loaded, Own, options={"does": does})
    found = evaluate_adapted(loaded, Own, options={"does": "nan"})
    assert {row["value"] for row in found.rows if row["metric"] == "accuracy"} == {0.0}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("setting", "onlien", "its setting is 'onlien' and not among floor, episodic"),
        ("knows", "labeled", "its knows is 'labeled'"),
        ("needs", "classes", "its needs and parts are tuples of texts"),
        ("grid", {"does": ()}, "its grid has no tuple of values for does"),
    ],
)
def test_a_method_that_says_nothing_known_is_refused(world: World, field: str, value: object, said: str) -> None:
    assert _take("own", Own) is Own
    wrong = type("Wrong", (Own,), {field: value})
    with pytest.raises(TypeError, match=said):
        _take("own", wrong)
    with pytest.raises(UserError, match=f"the method Wrong cannot be used: {said}"):
        evaluate_adapted(world("open_ended"), wrong)


@pytest.mark.parametrize("task", ["open_ended", "retrieval"])
@pytest.mark.parametrize("method", ["tent_online", "t3a_online", "tda_online"])
def test_online_methods_answer_each_device_by_its_own_stream(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str, task: str
) -> None:
    """All items once, labels hidden, and no device changed by others."""
    kind, loaded = find_method(method), world(task)
    if kind.not_for_task(find_task(task)) is not None:
        return
    plain = kind.respond
    asked: list[bool] = []

    def watched(self: AdaptationMethod, query: Episode, *rest: object) -> Outputs:
        asked.append(bool((query.batch.answer == -1).all() and not query.batch.item.any()))
        found = plain(self, query, *rest)  # type: ignore[arg-type]
        answers.append(found.video[query.batch.clip >= 0] if found.logits is None else found.logits)
        return found

    monkeypatch.setattr(kind, "respond", watched)
    options = {name: values[-1] for name, values in kind.grid.items()}

    def measure(at_once: int) -> dict[str, float]:
        monkeypatch.setattr(kind, "at_once", at_once)
        answers.clear()
        found = evaluate_adapted(loaded, method, options=options, groups=["test_unseen"])
        assert found.setting == "online" and found.cost is not None and found.cost.answer_flops > 0
        items = found.evaluation.items("test_unseen", method)  # type: ignore[union-attr]
        values = items.values[find_task(task).primary.name]
        return dict(zip(zip(items.device, items.item, strict=True), values, strict=True))

    answers: list[torch.Tensor] = []
    together = measure(8)
    assert all(asked) and all(bool(part.isfinite().all()) for part in answers)
    unadapted = evaluate_adapted(loaded, "unadapted", groups=["test_unseen"]).evaluation
    static = unadapted.items("test_unseen", "unadapted")  # type: ignore[union-attr]
    assert set(together) == set(zip(static.device, static.item, strict=True))
    assert measure(1) == pytest.approx(together, abs=1e-5)


def test_a_stream_needs_clips_that_are_not_their_own_context(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = world("open_ended")
    monkeypatch.setattr(loaded.data, "batch", dataclasses.replace(loaded.data.batch, context="clip"))
    assert "no stream" in str(evaluate_adapted(loaded, "tda_online").reason)


def test_unknown_methods_and_options_are_named(world: World) -> None:
    with pytest.raises(UserError, match="no method 'tend'"):
        evaluate_adapted(world("open_ended"), "tend")
    with pytest.raises(UserError, match="has no option"):
        evaluate_adapted(world("open_ended"), "tent", options={"rate": 1})


def test_every_method_says_why_it_does_not_apply(world: World) -> None:
    for row in applicability():
        assert row["paper"] and row["setting"] and all(row[task] for task in task_names())
        for task in ("open_ended", "retrieval"):
            loaded = world(task)
            reason = find_method(row["method"]).not_for(loaded.subject, loaded.data)
            if row[task] != "yes":
                assert reason == row[task]
            if reason is not None:
                result = evaluate_adapted(loaded, row["method"])
                assert result.reason == reason and result.evaluation is None and not result.rows


def test_the_matrix_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["methods", "--output", str(tmp_path / "matrix.json")]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in method_names()) and "Wang et al. 2021" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["methods", "tent", "t3a", "--json"]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["tent", "t3a"]
    assert len(json.loads((tmp_path / "matrix.json").read_text())["rows"]) == len(method_names())
