"""Cells survive a kill at any moment: finished ones are not repeated, half-written ones are not trusted."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import lit_mmpg
from lit_mmpg.cli import main
from lit_mmpg.methods.comparison.cells import CellStore
from lit_mmpg.methods.comparison.code import code_here, code_lines, sources
from lit_mmpg.tracking.address import git_commit
from lit_mmpg.tracking.store import open_store
from tests import forked
from tests.integration import tiny
from tests.integration.conftest import write_experiment
from tests.methods.synthetic import answers, cell


def test_a_cell_is_whole_or_absent(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells")
    stored = cell({"m": answers(0.5, 0)}, seed=3, notes={"epochs": 2}, run_id="r", costs={"m": {"answer_s": 1.0}})
    began = store.begin("row.v1", 3, "digest")
    assert store.begin("row.v1", 3, "digest") == began  # the same work goes on
    assert store.load("row.v1", 3, "digest") is None
    store.save("row.v1", "digest", stored)
    found = store.load("row.v1", 3, "digest")
    assert found is not None and found.notes == stored.notes and found.costs == stored.costs and found.seed == 3
    for name, values in stored.items.items():
        np.testing.assert_array_equal(found.items[name], values)
    assert store.load("row.v1", 3, "other settings") is None
    assert store.begin("row.v1", 3, "digest") >= began  # saving ended the work before
    path = tmp_path / "cells" / "row.v1-seed3.json"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    assert store.load("row.v1", 3, "digest") is None
    path.write_text(whole)
    (tmp_path / "cells" / "row.v1-seed3.safetensors").write_bytes(b"torn")
    assert store.load("row.v1", 3, "digest") is None


def test_values_of_one_cell_never_stand_under_the_settings_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CellStore(tmp_path)
    store.save("row", "digest", cell({"m": answers(0.5, 0)}))
    monkeypatch.setattr("lit_mmpg.methods.comparison.cells.write_text", lambda *_: (_ for _ in ()).throw(OSError()))
    with pytest.raises(OSError):  # as a kill between its two files
        store.save("row", "digest", cell({"m": answers(0.9, 1)}))
    assert store.load("row", 0, "digest") is None


def test_a_cell_whose_checkpoint_is_gone_is_computed_again(tmp_path: Path) -> None:
    store = CellStore(tmp_path)
    store.save("row", "digest", cell({"m": answers(0.5, 0)}, checkpoint=str(tmp_path / "gone.ckpt")))
    assert store.load("row", 0, "digest") is None


def test_other_settings_or_fresh_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CellStore(tmp_path)
    clock = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr("lit_mmpg.methods.comparison.cells.time.time", lambda: next(clock))
    assert store.begin("row", 0, "a") == 1000
    assert store.begin("row", 0, "b") == 2000
    assert store.begin("row", 0, "b", fresh=True) == 3000
    assert store.begin("row", 0, "b") == 3000


def test_readings_of_the_test_split_are_counted_before_they_happen(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "new")
    assert store.reads() == []
    store.count_read("row", 0, "digest", "test")
    store.count_read("row", 0, "digest", "clean")
    assert [entry["split"] for entry in store.reads()] == ["test", "clean"]


def test_the_code_of_a_cell_is_noted_and_differences_are_said(tmp_path: Path) -> None:
    here = code_here()
    assert len(here["digest"]) == 64 and here["commit"] == (git_commit() or "")
    store, old, new = CellStore(tmp_path), {"commit": "c" * 40, "digest": "a" * 64}, {"commit": "", "digest": "b" * 64}
    store.save("row", "digest", cell({"m": answers(0.5, 0)}, code=old))
    found = store.load("row", 0, "digest")
    assert found is not None and found.code == old  # other code throws no finished cell away
    assert code_lines({"static": {0: old, 1: old}, "cdc": {0: old | {"commit": "d" * 40}}}) == []
    assert code_lines({"static": {0: old}}, always=True) == [
        f"All cells were made by code {'a' * 12} (commit {'c' * 12})."
    ]
    (line,) = code_lines({"static": {0: old, 1: new}, "adabn": {1: new, 2: {}}})
    assert "different code; --fresh makes them anew" in line
    assert f"by code {'a' * 12} (commit {'c' * 12}): static (0)" in line
    assert f"by code {'b' * 12}: static (1), adabn (1)" in line and "by code that was not noted: adabn (2)" in line


def test_code_that_makes_numbers_counts_and_code_that_draws_tables_does_not() -> None:
    package = Path(lit_mmpg.__file__).parent
    files = {path.relative_to(package).as_posix() for path in sources(package)}
    assert {"device/model.py", "cloud/module.py", "link/codecs.py", "data/readers/files.py", "statistics.py"} <= files
    assert {"methods/finetune.py", "methods/comparison/work.py", "training/stages.py", "metrics/accuracy.py"} <= files
    assert not {"methods/comparison/page.py", "pages/blocks.py", "serving/app.py", "runtime/device.py"} & files


def started_trainings(folder: Path) -> dict[str, list[str]]:
    """Row -> names of its training runs, from MLflow."""
    client = open_store(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")
    found: dict[str, list[str]] = {}
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()]):
        row = run.data.tags.get("lit_mmpg.row")
        if row and "test" not in run.info.run_name:
            found.setdefault(row, []).append(run.info.run_id)
    return found


def test_a_killed_comparison_goes_on_without_repeating_a_finished_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny.build_root(tmp_path / "data")
    write_experiment(tmp_path, root, "open_ended")
    runs = {"static": {"config": "device.yaml"}, "cdc_mmpg": {"config": "both.yaml", "device_half": "static"}}
    adapted = {"tent": {"method": "tent", "checkpoint": "static", "options": {"steps": [1], "learning_rate": 0.001}}}
    claims = {"better": {"text": "Better.", "method": "cdc_mmpg", "rivals": ["static", "tent"]}}
    config = tiny.write_config(tmp_path / "c.yaml", seeds=[0], runs=runs, adapted=adapted, claims=claims)
    with (tmp_path / "log").open("w") as log:
        process = forked.Process(["compare", "--config", str(config)], cwd=tmp_path, stdout=log, stderr=log)
    cells = tmp_path / "outputs" / "compare" / "c"
    deadline = time.monotonic() + 240
    while not (cells / "cdc_mmpg-seed0.started").is_file():
        assert time.monotonic() < deadline and process.poll() is None, "the comparison ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = (cells / "static-seed0.json").stat().st_mtime_ns
    assert not (cells / "cdc_mmpg-seed0.json").exists()
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--config", str(config), "--output", "report"]) == 0
    said = capsys.readouterr().out
    assert said.count("finished before") == 1 and "[undecided]" in said.replace("[does not hold]", "[undecided]")
    assert (cells / "static-seed0.json").stat().st_mtime_ns == kept
    trainings = started_trainings(tmp_path)
    assert len(trainings["static"]) == 1 and set(trainings) == {"static", "cdc_mmpg", "tent"}
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [entry["row"] for entry in report["test_reads"]] == ["static", "cdc_mmpg", "tent"]
    assert report["settings"]["tent"] == "episodic"
    # Every cell of the table is a child of the one parent run.
    client = open_store(report["store"]["uri"])
    parent = client.get_run(report["store"]["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["claim.better"] in ("undecided", "does not hold", "holds")
    for row, by_seed in report["runs"].items():
        run = client.get_run(by_seed["0"]["run_id"])
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id and run.data.tags["lit_mmpg.row"] == row
    artifacts = {entry.path for entry in client.list_artifacts(parent.info.run_id, "report")}
    assert artifacts == {f"report/report.{suffix}" for suffix in ("html", "md", "csv", "json", "result.json")}


def test_a_row_whose_layers_do_not_exist_is_named_before_the_row_trains_that_it_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_experiment(tmp_path, tiny.build_root(tmp_path / "data"), "open_ended")
    wrong = {"config": "both.yaml", "device_half": "static", "flags": ["--model.dynamic.layers=[heads]"]}
    config = tiny.write_config(tmp_path / "c.yaml", runs={"static": {"config": "device.yaml"}, "ours": wrong})
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--config", str(config), "--seeds", "0"]) == 2
    assert "c.yaml: run 'ours': model.dynamic.layers: ['heads'] do not exist" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_only_and_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    root = tiny.build_root(tmp_path / "data")
    write_experiment(tmp_path, root, "open_ended")
    runs = {
        "static": {"config": "device.yaml"},
        "cdc_mmpg": {"config": "both.yaml", "device_half": "static", "also": {"other": "shuffled_device"}},
        "upload_all": {"config": "both.yaml", "device_half": "static"},
    }
    adapted = {"tent": {"method": "tent", "checkpoint": "static"}}
    config = tiny.write_config(tmp_path / "c.yaml", runs=runs, adapted=adapted, claims={})
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--config", str(config), "--list"]) == 0
    said = capsys.readouterr().out
    assert "tent on static" in said and "test of cdc_mmpg" in said and not (tmp_path / "outputs" / "compare").exists()
    assert main(["compare", "--config", str(config), "--list", "--only", "other"]) == 0
    said = capsys.readouterr().out
    assert "static" in said and "cdc_mmpg" in said and "upload_all" not in said and "tent" not in said
    assert main(["compare", "--config", str(config), "--only", "nothing"]) == 2
    assert "no such row" in capsys.readouterr().err
