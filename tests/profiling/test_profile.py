"""``lit-mmpg profile`` end to end on a bundle made by hand."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from lit_mmpg.cli import main as lit_mmpg
from lit_mmpg.errors import UserError
from lit_mmpg.files import find_config
from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling.cli import main
from lit_mmpg.profiling.config import SCENARIOS, load_config
from lit_mmpg.profiling.harness import Harness, Instruments
from lit_mmpg.profiling.html import render
from lit_mmpg.profiling.plan import make_plan
from lit_mmpg.profiling.schema import SCHEMA, problems
from lit_mmpg.profiling.tables import personalisation_lines, print_document
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.settings import to_plain
from tests.profiling.bundles import make_bundle

ROOT = Path(__file__).parents[2]
CONFIG = """
name: test
engines: [{engine: onnxruntime, precisions: [fp32]}]
scenarios: [answer, adapt, stream, sustained]
throughput: {duration_s: 0.05, probes: 3, p99_limit_ms: 10000.0}
latency: {warmup: 2, min_count: 8, min_time_s: 0.0, max_time_s: 5.0, attempts: 1}
stream: {clips: 6, adapt_every: 3}
sustained: {duration_s: 0.4, interval_s: 0.1}
measure_energy: false
links: [{name: lte, up_mbit_s: 6, down_mbit_s: 13, rtt_ms: 70, source: somewhere}]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "test.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def finished(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, documents.Document]:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "test.yaml").write_text(
        CONFIG.replace("[answer,", "[answer, personalise, offline, multistream, server, layers,")
    )
    arguments = ["run", "--bundle", str(bundle), "--config", str(folder / "test.yaml"), "--output", str(folder)]
    assert main([*arguments, "--no-record"]) == 0
    return folder, documents.load(folder / "profile.json")


def test_every_cell_has_a_finished_row_and_the_file_follows_its_schema(finished) -> None:
    _, profile = finished
    cells = [(r["scenario"], r["encoder_included"], r["status"]) for r in profile["rows"]]
    assert cells == [(s, e, "ok") for s in SCENARIOS if s != "finetune" for e in (False, True)]
    assert problems(profile) == [] and profile["state"] == "complete"
    jsonschema.validate(profile, SCHEMA)


def test_rows_are_verified_and_hold_raw_samples_and_memory(finished) -> None:
    _, profile = finished
    for row in profile["rows"]:
        if row["scenario"] == "layers":
            graphs = row["series"]["layers"]["graphs"]
            assert all(graph["layers"] and graph["roofline"]["bound"] for graph in graphs.values())
            continue
        assert row["verdicts"] and all(v["ok"] for v in row["verdicts"])
        wall = row["latency"]["wall"]
        assert wall["count"] == len(wall["samples_ms"]) > 0 and min(wall["samples_ms"]) >= 0
        assert row["latency"]["cold_ms"] > 0 and row["unit"]
        assert row["memory"]["peak_rss_bytes"] > row["memory"]["base_rss_bytes"] > 2**20
        assert ("encode" in row["roles"]) == row["encoder_included"]
        assert row["energy"] == []
        if row["scenario"] == "answer":
            assert list(row["stages"]) == ["copy_inputs", "compute", "copy_outputs"]
            assert set(row["build_ms"]) == set(row["roles"]) and min(row["build_ms"].values()) > 0
        lived = row["memory"]["clips"], row["memory"]["inference_rss_bytes"]
        assert lived[0] == (6 if row["scenario"] == "stream" else 0) and (lived[1] is None or lived[1] >= 0)
    assert profile["environment"]["packages"]["onnxruntime"]


def test_adaptation_counts_real_messages_and_names_what_it_did_not_measure(finished) -> None:
    _, profile = finished
    row = next(r for r in profile["rows"] if r["scenario"] == "adapt")
    upload, download = row["bytes"]["upload"], row["bytes"]["download"]
    # Three clips of two anchors, 8 wide, int8 with a scale of 2 B per clip; mask 1 B, positions 1 B, lengths 2 B each.
    assert upload["payload_bytes"] == 3 * 2 * 8 + 3 * 2 + 1 + 3 * 2 + 3 * 2
    assert download["payload_bytes"] == 2 * (12 * 2 + 2 * 8)
    assert upload["message_bytes"] > upload["payload_bytes"]
    assert list(row["stages"]) == ["take_clip", "make_upload", "cloud", "apply_download", "answer"]
    assert row["stages"]["cloud"] is None and any("absent, not zero" in note for note in row["notes"])
    total = sum(s["mean_ms"] for s in row["stages"].values() if s)
    assert row["latency"]["wall"]["mean_ms"] == pytest.approx(total, rel=1e-6)
    link = row["network"][0]
    bits = 8 * upload["message_bytes"] / 6e6 + 8 * download["message_bytes"] / 13e6
    assert link["time_ms"] == pytest.approx(70 + bits * 1e3) and link["energy_j"] is None and link["model"] is True


def test_every_engine_says_what_new_parameters_cost(finished) -> None:
    profile = finished[1]
    rows = [row for row in profile["rows"] if row["scenario"] == "personalise"]
    assert len(rows) == 2
    for row in rows:
        found, stages = row["personalisation"], row["stages"]
        assert list(stages) == ["decode", "load", "first_answer"]
        first = found["first_right_answer_ms"]
        assert first["median"] == row["latency"]["wall"]["p50_ms"] > 0
        assert found["baked_by"] == "reload" and found["way"] == "inputs"
        assert found["baked_ratio_low"] <= found["baked_ratio"] <= found["baked_ratio_high"]
        assert found["download_bytes"] > 2 * (12 * 2 + 2 * 8)
    lines = personalisation_lines(profile["rows"])
    assert len(lines) == 2 and "to the first right answer, by inputs; from then on" in lines[0]


def test_throughput_has_the_names_of_mlperf(finished) -> None:
    found = {row["scenario"]: row["throughput"] for row in finished[1]["rows"] if row["encoder_included"]}
    modes = {name: value["mode"] for name, value in found.items() if value}
    assert modes == {"offline": "Offline", "multistream": "MultiStream", "server": "Server"}
    assert len(found["offline"]["blocks_per_s"]) == 20 and len(found["multistream"]["stream_answers"]) == 2
    assert [probe["kept"] and probe["count"] >= 100 for probe in found["server"]["probes"]] == [True] * 3
    assert all(found[name]["answers_per_s"] > 0 for name in modes)
    page = (finished[0] / "report.html").read_text()
    assert all(f"<h3>{mode}</h3>" in page for mode in modes.values())


def test_series_of_stream_and_sustained(finished) -> None:
    _, profile = finished
    rows = {r["scenario"]: r for r in profile["rows"]}
    stream = rows["stream"]["series"]["stream"]
    assert stream["adapted"] == [True, False, False] * 2 and len(stream["clip_ms"]) == 6
    sustained = rows["sustained"]["series"]["sustained"]
    assert len(sustained["time_s"]) == len(sustained["p50_ms"]) >= 3
    assert sustained["time_s"] == sorted(sustained["time_s"])


def test_page_is_self_contained_and_names_every_row(finished) -> None:
    folder, profile = finished
    page = (folder / "report.html").read_text()
    assert page == render(profile)
    for needle in ("Latency of an answer", "Adaptation", "As time goes by", "Right before fast", "not measured"):
        assert needle in page
    assert page.count("<script>") == page.count("<script") == 1 and "src=" not in page and "http" not in page


def test_page_can_be_made_again(finished, tmp_path: Path) -> None:
    folder, _ = finished
    assert main(["report", str(folder / "profile.json"), "--output", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == (folder / "report.html").read_text()


def test_the_page_never_takes_the_place_of_a_profile(finished, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(kept := (finished[0] / "profile.json").read_bytes())
    with pytest.raises(UserError, match=r"ends in \.html"):
        main(["report", str(file), "--output", str(file)])
    assert file.read_bytes() == kept


def test_a_run_without_a_row_leaves_the_profile_of_before(bundle, config, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "profile.json").write_text("of before")

    def interrupted(self: Harness, cell: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Harness, "measure", interrupted)
    asked = ["run", "--bundle", str(bundle), "--config", str(config), "--output", str(tmp_path), "--no-record"]
    assert main(asked) == 130 and "as it was" in capsys.readouterr().err
    assert (tmp_path / "profile.json").read_text() == "of before" and not (tmp_path / "report.html").exists()


def test_a_bundle_that_is_replaced_between_cells_is_no_figure_of_the_first(config: Path, tmp_path: Path) -> None:
    made = Bundle.open(make_bundle(tmp_path / "bundle"))
    settings = load_config(config, ["scenarios=[answer]", "encoder=without", "measure_memory=false"])
    harness, (cell, *_) = Harness(made, settings, Instruments.open(tmp_path)), make_plan(settings, made)
    assert harness.measure(cell)["status"] == "ok"
    shutil.rmtree(made.path)
    make_bundle(made.path, "another")
    row = harness.measure(cell)
    assert row["status"] == "failed" and "was replaced while it was measured" in row["reason"]


def test_a_wrong_engine_is_reported_and_not_timed(tmp_path: Path, config: Path, capsys) -> None:
    wrong = make_bundle(tmp_path / "wrong", wrong=True)
    arguments = ["run", "--bundle", str(wrong), "--config", str(config), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--scenarios", "answer", "--no-record"]) == 1
    profile = documents.load(tmp_path / "out" / "profile.json")
    for row in profile["rows"]:
        assert row["status"] == "wrong" and row["latency"] is None and row["energy"] == []
        assert "relative error" in row["reason"]
    assert "WRONG" in capsys.readouterr().out
    assert "not right and were not timed" in (tmp_path / "out" / "report.html").read_text()


def test_what_the_bundle_lacks_is_listed_with_the_remedy(bundle: Path, config: Path, tmp_path: Path) -> None:
    override = "engines=[{engine: onnxruntime, precisions: [fp32, int8]}]"
    plan = make_plan(load_config(config, [override]), Bundle.open(bundle))
    absent = {cell.precision: cell.absent for cell in plan}
    assert absent["fp32"] is None and "export with --precisions int8" in absent["int8"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engines=[{engine: onnxruntme}]", "did you mean 'onnxruntime'"),
        ("engines=[{engine: onnxruntime, options: {thread: 2}}]", "has no option thread"),
        ("engines=[{engine: onnxruntime, options: {threads: -1}}]", "threads is -1"),
        ("engines=[{engine: onnxruntime, options: {keep: 'no'}}]", "'onnxruntime': keep must be bool, not 'no'"),
        ("engines=[{engine: onnxruntime, precisions: [fp64]}]", "fp64"),
        ("latency.min_counts=3", "did you mean 'min_count'"),
        ("latency.min_count=many", "latency.min_count must be int"),
        ("scenarios=[anwser]", "anwser"),
        ("engines=[{engine: onnxruntime, options: {threads: 100000}}]", "threads is 100000; it must be between"),
        ("batches=[0]", "batches"),
        ("batches=[1000000000000]", "must be numbers between 1 and 65536"),
        ("throughput.streams=100000", "throughput.streams is 100000"),
        ("stream.clips=1000000000000", "stream.clips is 1000000000000"),
        ("sustained.interval_s=1.0e-300", "sustained.interval_s is 1e-300"),
        ("batches=[1, 2, 1]", "batches: 1 is there twice"),
        ("engines=[{engine: onnxruntime}, {engine: onnxruntime}]", "engines: onnxruntime fp32 is there twice"),
        ("name=../up", "names the folder of the results"),
        ("sustained.duration_s=.inf", "sustained.duration_s is inf"),
        ("energy.quiet_fraction=2", "energy.quiet_fraction is 2.0; it must be between 0 and 1"),
        ("links=[{name: x, up_mbit_s: 1, down_mbit_s: 1, rtt_ms: 1, source: y, tail_s: -1}]", "links: x: tail_s is -1"),
        ("stream.adapt_every=99", "adapt_every"),
        ("links=[{name: x, up_mbit_s: 0, down_mbit_s: 1, rtt_ms: 1, source: y}]", "positive rates"),
        ("nonsense", "write key=value"),
    ],
)
def test_mistakes_are_answered_before_anything_runs(bundle, config, tmp_path, override, message) -> None:
    arguments = ["run", "--bundle", str(bundle), "--config", str(config), "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=message):
        main([*arguments, "--set", override])
    assert not (tmp_path / "out").exists()


def test_mistakes_reach_the_screen_as_one_line(config: Path, tmp_path: Path, capsys) -> None:
    assert lit_mmpg(["profile", "run", "--bundle", str(tmp_path / "none"), "--config", str(config)]) == 2
    assert capsys.readouterr().err.startswith("error: bundle ")


def test_truncated_edited_and_newer_files_are_refused(finished, tmp_path: Path) -> None:
    text = (finished[0] / "profile.json").read_text()
    file = tmp_path / "profile.json"
    newer = json.loads(text) | {"schema_version": 99}
    edited = json.loads(text)
    edited["rows"][0]["latency"]["wall"]["p50_ms"] /= 2
    lacking = json.loads(text)
    del lacking["rows"][0]["status"]
    cases = {
        text[: len(text) // 2]: "truncated",
        json.dumps(edited): "digest differs",
        json.dumps(newer): "update lit-mmpg",
        json.dumps(lacking): "lacks 'status'",
        "{}": "no profile",
        re.sub(r'"p50_ms": [0-9.e-]+', '"p50_ms": NaN', text): "holds NaN",
        re.sub(r'"p50_ms": [0-9.e-]+', '"p50_ms": 1e400', text): r"rows\[0\].*p50_ms is no possible figure",
        re.sub(r'"p50_ms": [0-9.e-]+', '"p50_ms": 1' + 400 * "0", text): "no possible figure",
    }
    for key in ("options", "latency", "energy", "series", "stages", "memory"):
        lacking = json.loads(text)
        del lacking["rows"][0][key]
        cases[json.dumps(lacking)] = f"lacks '{key}'"
    for content, message in cases.items():
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            documents.load(file)
    file.write_text("\ufeff" + text)
    assert documents.load(file)["digest"] == json.loads(text)["digest"]
    with pytest.raises(UserError, match="is a folder"):
        documents.load(tmp_path)


@pytest.mark.parametrize("command", [["report"], ["compare"]])
def test_a_field_of_another_kind_is_one_error_that_names_the_file(finished, tmp_path: Path, command, capsys) -> None:
    document, file = json.loads((finished[0] / "profile.json").read_text()), tmp_path / "strange.json"
    for row in document["rows"]:
        if row["status"] == "ok":
            row["memory"] = {"peak_rss_bytes": "many"}
            row["throughput"] = {"mode": "Offline", "answers_per_s": 3.0, "probes": [{"rate_per_s": 1}]}
            row["engine"], row["state_before"] = "[/x]", {"memory": []}
            row["precision"] = "[b]"
    document["digest"] = documents.digest(document)
    file.write_text(json.dumps(document))
    files = [str(file), str(file)] if command == ["compare"] else [str(file)]
    assert lit_mmpg(["profile", *command, *files, "--output", str(tmp_path / "out.html")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {file}")


def test_brackets_of_a_profile_are_text_on_the_screen(finished, tmp_path: Path, capsys) -> None:
    document, file = json.loads((finished[0] / "profile.json").read_text()), tmp_path / "brackets.json"
    document["name"] = "[/name]"
    for row in document["rows"]:
        row |= {"engine": "[/x]", "precision": "[b]"}
    document["digest"] = documents.digest(document)
    file.write_text(json.dumps(document))
    assert lit_mmpg(["profile", "compare", str(file), str(file), "--output", str(tmp_path)]) == 0
    assert "[/x]" in capsys.readouterr().out
    print_document(document)
    shown = capsys.readouterr().out
    assert "[/name]" in shown and "[/x]" in shown and "[b]" in shown


def start(bundle: Path, config: Path, output: Path, *more: str, prelude: str = "") -> subprocess.Popen[str]:
    arguments = ["run", "--bundle", str(bundle), "--config", str(config), "--output", str(output), "--no-record", *more]
    code = f"{prelude}\nimport sys; from lit_mmpg.cli import main; sys.exit(main(['profile', *sys.argv[1:]]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_finished_rows(bundle: Path, config: Path, tmp_path: Path, number: int) -> None:
    output = tmp_path / "out"
    process = start(bundle, config, output, "--scenarios", "answer", "sustained", "--set", "sustained.duration_s=60")
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if (output / "profile.json").exists() and len(documents.load(output / "profile.json")["rows"]) == 2:
                break
            time.sleep(0.1)
        time.sleep(0.3)
        process.send_signal(number)
        _, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130, err
    profile = documents.load(output / "profile.json")
    assert profile["state"] == "interrupted" and [r["status"] for r in profile["rows"]] == ["ok", "ok"]
    assert "2 of 4 rows are finished and kept" in err and (output / "report.html").exists()


def test_engines_are_built_kept_listed_and_loaded(bundle: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    cache = tmp_path / "kept"
    settings = ["--set", f"engines=[{{engine: onnxruntime, options: {{cache: '{cache}'}}}}, {{engine: torch}}]"]
    command = ["--bundle", str(bundle), "--config", "configs/profile/demo.yaml", *settings]

    def states(name: str) -> tuple[int, list[str], str]:
        status = main(["engines", name, *command])
        text = capsys.readouterr().out
        rows = [line.split("│")[1:6] for line in text.splitlines() if line.startswith("│ onnxruntime")]
        return status, [cells[3].strip() for cells in rows], " ".join(text.split())

    assert states("load")[:2] == (1, ["does not fit"] * 3)
    assert states("build")[:2] == (0, ["built"] * 3) and states("build")[:2] == (0, ["kept"] * 3)
    status, found, text = states("load")
    assert (status, found) == (0, ["loaded"] * 3) and "keeps nothing" in text
    assert main(["engines", "list", "--cache", str(cache), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {(kept["label"]["role"], kept["fits_here"]) for kept in told} == {
        (r, True) for r in ("model", "project", "encode")
    }
    monkeypatch.setattr("lit_mmpg.sysfs.processor_name", lambda root: "another processor")
    assert main(["engines", "list", "--cache", str(cache)]) == 0
    assert "this is another processor" in " ".join(capsys.readouterr().out.replace("│", "").split())
    assert states("load")[:2] == (1, ["does not fit"] * 3)


def test_a_full_disk_costs_no_row(bundle: Path, config: Path, tmp_path: Path) -> None:
    # The system refuses files of more than 24 KiB with EFBIG: the first row fits, more do not.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (24 * 1024, 24 * 1024))"
    output = tmp_path / "out"
    process = start(bundle, config, output, "--set", "latency.min_count=60", prelude=limit)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    kept = documents.load(output / "profile.json")
    assert 1 <= len(kept["rows"]) < 8 and kept["rows"][0]["status"] == "ok"
    assert "cannot be written" in out and "free some space" in err
    assert out.count("onnxruntime") >= 8  # every row is on the screen
    assert not list(output.glob(".profile*"))  # no half file is left


def test_a_folder_that_refuses_writing_gets_a_spare_file(finished, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "spare"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "spare").mkdir()
    (tmp_path / "file").write_text("")
    written = documents.save(dict(finished[1]), tmp_path / "file" / "profile.json")
    assert written.parent == tmp_path / "spare" and documents.load(written)["rows"]


def test_engines_and_schema_are_printed(capsys) -> None:
    assert main(["engines"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_python_m_profiling(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lit_mmpg.profiling", "import", "nowhere.json"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: nowhere.json does not exist"), done.stderr


BOARDS = ("orin_nano", "orin_nx", "agx_orin", "thor")
CONFIGS = {path.stem: path for path in (ROOT / "configs" / "profile").glob("*.yaml") if path.stem != "links"}
CONFIGS |= {board: CONFIGS["jetson"].with_name(f"jetson.yaml#{board}") for board in BOARDS}
CONFIGS.pop("jetson")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_shipped_configs(name: str, bundle: Path) -> None:
    path = CONFIGS[name]
    config = load_config(path)
    assert make_plan(config, Bundle.open(bundle))  # every engine, precision and option exists
    assert config.name == name and [link.name for link in config.links] == ["Wi-Fi", "LTE", "5G"]
    assert load_config(path, [f"engines={json.dumps(to_plain(config.engines))}"]) == config


def test_ahead_of_time_compilation_is_reported_and_not_timed(
    bundle: Path, config: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("tensorrt_rtx")
    override = "engines=[{engine: tensorrt_rtx, compile_only: true}]"
    arguments = ["run", "--bundle", str(bundle), "--config", str(config), "--output", str(tmp_path), "--no-record"]
    assert main([*arguments, "--set", override]) == 0
    (row,) = documents.load(tmp_path / "profile.json")["rows"]  # one row for all scenarios and paths
    assert row["status"] == "compiled" and row["latency"] is None and row["energy"] == []
    assert set(row["engine_details"]["compiled_bytes"]) == {"model", "project", "encode"}
    assert row["memory"]["engine_bytes"] > 1000 and "not run" in row["reason"]
    assert "compiled" in capsys.readouterr().out


def test_an_engine_without_a_gpu_is_listed_with_its_reason(bundle: Path, config: Path) -> None:
    overrides = ["engines=[{engine: onnxruntime_cuda}, {engine: torch, compile_only: true}]", "scenarios=[finetune]"]
    plan = make_plan(load_config(config, [overrides[0]]), Bundle.open(bundle))
    reasons = {cell.engine: cell.absent for cell in plan}
    assert "CUDAExecutionProvider" in reasons["onnxruntime_cuda"] or reasons["onnxruntime_cuda"] is None
    assert "remove compile_only" in reasons["torch"]
    (cell,) = make_plan(load_config(config, overrides), Bundle.open(bundle))
    assert (cell.engine, cell.scenario, cell.encoder) == ("torch", "finetune", False)


def test_all_boards_are_there() -> None:
    assert CONFIGS.keys() >= {"generic_cpu", "cuda_pc", *BOARDS}
    with pytest.raises(UserError, match=r"orin_nano\.yaml does not exist; it is .*jetson\.yaml#orin_nano"):
        find_config("configs/profile/orin_nano.yaml")
    with pytest.raises(
        UserError, match=r"jetson\.yaml: name a variant, for example .*#orin_nano; it has orin_nano, orin_nx"
    ):
        load_config(find_config("configs/profile/jetson.yaml"))
