"""The comparison on tiny data: cells are trained once, and rows are means over seeds with paired gains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.methods.comparison import work
from lit_mmpg.methods.comparison.cells import Cell, CellStore
from lit_mmpg.methods.comparison.plan import Comparison, TrainedRun, read_comparison
from lit_mmpg.methods.comparison.table import aggregate
from lit_mmpg.training.config import Request
from lit_mmpg.training.lightning_cli import CLI
from tests.integration import tiny
from tests.integration.conftest import write_experiment

WRONG = (
    ({"seeds": 3}, "seeds must be a list"),
    ({"seeds": "012"}, "seeds must be a list"),
    ({"seeds": [0.5]}, "must be int"),
    ({"seed_flags": "--x={seed}"}, "seed_flags must be a list"),
    ({"tests": ["clean"]}, "tests must be a mapping"),
    ({"tests": {"clean": "--x=1"}}, "tests.clean must be a list"),
    ({"baselines": "ridge"}, "baselines must be a list"),
    ({"claims": ["c"]}, "claims must be a mapping"),
    ({"reference": "b"}, "reference names row 'b'"),
    ({"frame_encoder": "mobilenet_v2"}, "frame_encoder must be a mapping"),
    ({"claims": {"c": {"text": "t", "method": "b", "rivals": ["a"]}}}, "claim 'c' names row 'b'"),
    ({"claims": {"c": {"text": "t", "method": "a", "rivals": ["a"], "margin": float("nan")}}}, "margin is nan"),
)
"""What is wrong in a file, and what is said."""


def write(folder: Path, **content: object) -> Path:
    return tiny.write_config(folder / "compare.yaml", **content)


def test_cells_are_trained_once_and_changed_data_or_flags_train_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are trained by two jobs at first, which compute what one process computes."""
    root = tiny.build_root(tmp_path / "data")
    write_experiment(tmp_path, root, "retrieval")
    runs = {
        "static": {"config": "device.yaml"},
        "cdc_mmpg": {"config": "both.yaml", "device_half": "static", "also": ["shuffled_device"]},
    }
    config = write(tmp_path, seeds=[0, 1], runs=runs, baselines=["ridge"])
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--config", str(config), "--output", "rows.json"]
    assert main([*arguments, "--jobs", "2"]) == 0
    out = capfd.readouterr().out
    assert "[seed 0] " in out and "[seed 1] " in out and out.count("finished before") == 4
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"static", "cdc_mmpg", "shuffled_device", "ridge"}
    assert {row["seeds"] for row in rows if row["method"] != "ridge"} == {2}
    gains = [r for r in rows if r["metric"] == "t2v/mean_log_rank_minus_static"]
    assert {r["method"] for r in gains} == {"cdc_mmpg", "shuffled_device", "ridge"}
    capfd.readouterr()
    assert main(arguments) == 0
    assert capfd.readouterr().out.count("finished before") == 5
    (tmp_path / "outputs" / "compare" / "compare" / "cdc_mmpg-seed1.json").unlink()
    assert main([*arguments[:3], "--finished", "--output", "part.json"]) == 0
    assert capfd.readouterr().out.count("finished before") == 4
    part = json.loads((tmp_path / "part.json").read_text())["rows"]
    assert {(row["method"], row["seeds"]) for row in part} == {
        ("static", 2),
        ("cdc_mmpg", 1),
        ("shuffled_device", 1),
        ("ridge", 1),
    }
    assert "fewer seeds have cdc_mmpg (1), shuffled_device (1)." in (tmp_path / "part.md").read_text()
    assert main([*arguments[:3], "--finished", "--seeds", "7"]) == 2
    assert "no cell is finished yet; leave --finished out" in capfd.readouterr().err
    assert main(arguments) == 0
    assert "training" not in capfd.readouterr().err
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    assert main([*arguments[:3], "--only", "ridge", "--output", "ridge.json"]) == 0
    assert {row["method"] for row in json.loads((tmp_path / "ridge.json").read_text())["rows"]} == {"ridge"}
    assert capfd.readouterr().out.count("finished before") == 1
    names = ("static-seed0", "static-seed1", "ridge-seed0")
    cells = [tmp_path / "outputs" / "compare" / "compare" / f"{name}.json" for name in names]
    by_jobs = [json.loads(cell.read_text())["rows"] for cell in cells]
    assert main([*arguments, "--only", "static", "ridge", "--fresh"]) == 0
    assert "finished before" not in capfd.readouterr().out
    assert [json.loads(cell.read_text())["rows"] for cell in cells] == by_jobs
    captions = root / "captions.csv"
    captions.write_text(captions.read_text().replace("rests upon", "stands on"))
    again = [*arguments, "--only", "static", "--seeds"]
    assert main([*again, "0"]) == 0
    assert "finished before" not in capfd.readouterr().out
    assert main([*again, "1", "--model.optimiser.learning_rate=0.001"]) == 0
    assert "finished before" not in capfd.readouterr().out


def test_flags_of_all_runs_reach_every_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_experiment(tmp_path, tiny.build_root(tmp_path / "data"), "open_ended")
    (tmp_path / "own.ckpt").write_text("trained elsewhere")
    monkeypatch.chdir(tmp_path)
    row = {"method": "tent", "checkpoint": "own"}
    runs = {"own": {"config": "device.yaml", "checkpoint": "own.ckpt"}}
    comparison = read_comparison(str(write(tmp_path, runs=runs, adapted={"row": row})))
    data = ["--data.batch.eval_clips", "3"]
    cells = work.Work(
        comparison, CellStore(tmp_path), ["--trainer.max_epochs", "2", *data, "--trainer.logger", "false"]
    )
    asked: list[list[str]] = []

    def stop(*arguments: object) -> None:
        asked.append(next(argument for argument in arguments if isinstance(argument, list)))
        raise KeyError

    monkeypatch.setattr(work, "_selection", lambda checkpoint: {})
    monkeypatch.setattr(work, "measure_quietly", stop)
    monkeypatch.setattr(cells, "_load", stop)
    for name, finished in (("own", {}), ("row", {"own": Cell([], checkpoint="own.ckpt")})):
        with pytest.raises(KeyError):
            cells._cell(name, 0, finished)
    assert asked[0] == [
        "--ckpt_path",
        "own.ckpt",
        *data,
        "--tracking.run_name=own seed 0 test",
        "--trainer.logger=false",
    ]
    assert asked[1][:2] == data and len(asked[1]) % 2 == 0


def test_a_default_that_changed_makes_other_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_experiment(tmp_path, tiny.build_root(tmp_path / "data"), "retrieval")
    runs = {"static": {"config": "device.yaml"}, "cdc_mmpg": {"config": "both.yaml"}}
    comparison = read_comparison(write(tmp_path, runs=runs))
    monkeypatch.chdir(tmp_path)

    def digests() -> list[str]:
        cells = work.Work(comparison, CellStore(tmp_path), [])
        return [cells.digest(run, 0, cells.arguments(run, 0, {})) for run in comparison.runs.values()]

    before = digests()
    assert digests() == before
    parse = work.parse

    def later(request: Request) -> CLI:
        cli = parse(request)
        cli.record["model"]["init_args"]["label_smoothing"] = 0.1  # what another version has for all who write nothing
        return cli

    monkeypatch.setattr(work, "parse", later)
    assert not set(digests()) & set(before)


def test_rows_are_means_over_seeds_and_gains_are_paired() -> None:
    rng = np.random.default_rng(0)
    device, clip = np.repeat(np.arange(5), 8), np.arange(40)

    def cell(method: str, values: np.ndarray) -> Cell:
        row = {"method": method, "split": "test_unseen", "metric": "accuracy", "value": values.mean(), "own": True}
        items = {"accuracy": values, "device": device, "clip": clip}
        sent = {"upload_bytes": 10.0, "download_bytes": 20.0}
        return Cell([row | sent], {f"{method}|test_unseen|{k}": v for k, v in items.items()})

    static = [rng.random(40) for _ in range(3)]
    ours = [values + 0.1 + 0.01 * rng.random(40) for values in static]
    runs = {"static": TrainedRun("a"), "ours": TrainedRun("b", device_half="static")}
    comparison = Comparison(Path("c"), (0, 1, 2), runs)
    rows = aggregate(
        comparison, {"static": [cell("static", v) for v in static], "ours": [cell("cdc_mmpg", v) for v in ours]}
    )
    by = {(r["method"], r["metric"]): r for r in rows}
    assert by["ours", "accuracy"]["value"] == pytest.approx(np.mean(ours))
    gain = by["ours", "accuracy_minus_static"]
    assert gain["value"] == pytest.approx(np.mean(ours) - np.mean(static))
    # The methods differ far less from each other than items do: only a paired interval is this narrow.
    assert gain["high"] - gain["low"] < 0.01 < by["ours", "accuracy"]["high"] - by["ours", "accuracy"]["low"]
    assert gain["seeds"] == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"seeds": [0]}, "runs"),
        ({"runs": {"a": {"config": "device.yaml", "flag": []}}}, "flag"),
        ({"runs": {"a": {"config": "missing.yaml"}}}, "missing.yaml"),
        ({"runs": {"a": {"config": "{data}"}}}, "is a template; name the experiment of a data set"),
        ({"runs": {"a": {"config": "device.yaml", "flags": "--x=1"}}}, "runs.a.flags must be a list"),
        ({"runs": {"a": {"confg": "device.yaml"}}}, "no setting 'runs.a.confg'; did you mean 'config'"),
        ({"runs": {"a": {}}}, "runs.a lacks 'config'"),
        ({"runs": {"a": {"config": "device.yaml", "device_half": "b"}}}, "no earlier run"),
        ({"runs": {"a": {"config": "device.yaml"}}, "baselines": ["rigde"]}, "ridge"),
        ({"runs": {"a": {"config": "device.yaml"}}, "seed": [1]}, "seed"),
        ({"runs": {"a": {"config": "device.yaml"}}, "adapted": {"t": {"method": "tent", "checkpoint": "b"}}}, "no run"),
        ({"runs": {"a": {"config": "device.yaml"}}, "adapted": {"t": {"metod": "tent"}}}, "metod"),
        ({"runs": {"a": {"config": "device.yaml", "also": ["a"]}}}, "made twice"),
        ({"runs": {"a": {"config": "device.yaml"}}, "claims": {"c": {"text": "t", "method": "a"}}}, "no rivals"),
        ({"runs": {"a": {"config": "device.yaml"}}, "claims": {"c": {"rivals": ["a"], "metod": "a"}}}, "metod"),
        *(({"runs": {"a": {"config": "device.yaml"}}, **wrong}, said) for wrong, said in WRONG),
        *(({"runs": {name: {"config": "device.yaml"}}}, "a name is text") for name in ("a/b", "a|b", "", 1, True)),
    ],
)
def test_a_mistake_in_the_file_is_named(content: dict, said: str, tmp_path: Path) -> None:
    tiny.write_config(tmp_path / "device.yaml", trainer={})
    with pytest.raises(UserError, match=said):
        read_comparison(str(write(tmp_path, **content)))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"tests": {"clean": ["--data.imaginary=1"]}}, "imaginary"),
        ({"baselines": ["ridge"]}, "the ridge baseline needs data.task 'retrieval'"),
        ({"frame_encoder": {"nme": "x"}}, "frame_encoder is"),
        ({"options": {"steps": -1}}, "option steps of method 'tent' is -1; give one or a list as 1, 4, 16"),
        ({"options": {"learning_rate": []}}, "option learning_rate of method 'tent' is"),
        ({"options": {"labels": "x"}, "method": "finetune_head"}, "option labels is 'x'"),
        (
            {"options": {"where": "feature"}, "method": "adabn"},
            "is 'feature'; give one or a list as features",
        ),
        ({"seeds": [0, 1, 0]}, "seed 0 is given twice"),
        ({"seeds": [0, -1]}, "seed is -1"),
    ],
)
def test_what_would_fail_after_hours_fails_before_them(
    more: dict, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path, tmp_path / "data", "open_ended")
    row = {"method": more.pop("method", "tent"), "checkpoint": "static", "options": more.pop("options", {})}
    config = write(tmp_path, runs={"static": {"config": "device.yaml"}}, adapted={"row": row}, **more)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--config", str(config), "--trainer.logger=false"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1, err
    assert not list(tmp_path.rglob("*.ckpt"))
