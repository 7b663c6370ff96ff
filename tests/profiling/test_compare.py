"""``lit-mmpg profile compare``: intervals against independent references, limits, and two bundles in turns."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling import document as documents
from lit_mmpg.profiling.benchmarks import gate
from lit_mmpg.profiling.cli import main
from lit_mmpg.profiling.compare import Limit, compare_profiles, median_interval
from lit_mmpg.profiling.config import load_config
from lit_mmpg.profiling.harness import Harness, Instruments
from lit_mmpg.profiling.html import render_comparison
from lit_mmpg.profiling.interleave import compare_bundles, open_pipeline
from lit_mmpg.profiling.meters.latency import Latency
from lit_mmpg.runtime.bundle import Bundle
from tests.profiling.bundles import make_bundle

CONFIG = """
name: test
engines: [{engine: onnxruntime}]
scenarios: [answer]
latency: {warmup: 1, min_count: 40, min_time_s: 0.0, max_time_s: 5.0, attempts: 1}
measure_energy: false
measure_memory: false
"""


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, documents.Document]:
    folder = tmp_path_factory.mktemp("compare")
    bundle = make_bundle(folder / "bundle")
    (folder / "test.yaml").write_text(CONFIG)
    arguments = ["run", "--bundle", str(bundle), "--config", str(folder / "test.yaml"), "--output", str(folder)]
    assert main([*arguments, "--no-record"]) == 0
    return folder, bundle, documents.load(folder / "profile.json")


def with_samples(profile: documents.Document, samples_ms: np.ndarray, **fields: object) -> documents.Document:
    changed = copy.deepcopy(profile)
    for row in changed["rows"]:
        if row["status"] == "ok":
            row["latency"] = asdict(Latency.of_wall(list(samples_ms), 1.0, 0.0))
            row.update(copy.deepcopy(fields))
    changed["digest"] = documents.digest(changed)
    return changed


def noise(seed: int, scale: float = 1.0, count: int = 200) -> np.ndarray:
    return scale * np.random.default_rng(seed).lognormal(0.0, 0.1, count)


def test_a_profile_against_itself_passes_every_limit(profile) -> None:
    folder, _, document = profile
    path = str(folder / "profile.json")
    limits = [arg for name in ("p50_ms=0%", "p99_ms=0.0", "mean_ms=0%") for arg in ("--fail-on", name)]
    assert main(["compare", path, path, *limits, "--output", str(folder / "same")]) == 0
    comparison = json.loads((folder / "same/comparison.json").read_text())
    assert comparison["passed"] and len(comparison["rows"]) == sum(r["status"] == "ok" for r in document["rows"])
    assert all(row["figures"]["p50_ms"]["change"] == 0 for row in comparison["rows"])


def test_a_slower_profile_fails_by_name_and_the_page_says_so(profile, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, document = profile
    documents.save(with_samples(document, noise(0)), folder / "a.json")
    documents.save(with_samples(document, noise(1, 1.1)), folder / "b.json")
    files = [str(folder / "a.json"), str(folder / "b.json")]
    assert main(["compare", *files, "--fail-on", "p50_ms=5%", "--output", str(folder / "slow")]) == 1
    told = capsys.readouterr().out
    assert "FAILED: onnxruntime fp32 answer" in told and "p50_ms" in told
    page = (folder / "slow/comparison.html").read_text()
    assert 'class="badge bad">FAILED' in page and page.count("<circle") == len(document["rows"])
    assert main(["compare", *reversed(files), "--fail-on", "p50_ms=5%", "--output", str(folder / "fast")]) == 0


def test_the_interval_holds_the_true_change(profile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Correlated samples: an interval that took them as independent would hold it far less often."""
    document = profile[2]
    rng = np.random.default_rng(5)

    def correlated() -> np.ndarray:
        steps, value, found = rng.normal(0, 0.05, 400), 0.0, []
        for step in steps:
            value = 0.6 * value + step
            found.append(np.exp(value))
        return np.array(found)

    held = 0
    monkeypatch.setattr("lit_mmpg.profiling.compare.RESAMPLES", 200)
    for _ in range(40):
        a, b = with_samples(document, correlated()), with_samples(document, 1.03 * correlated())
        figure = compare_profiles(a, b, [])["rows"][0]["figures"]["p50_ms"]
        held += figure["low"] <= 0.03 <= figure["high"]
    assert held >= 33  # 95 % of 40 is 38; fewer than 33 has a chance of 1 in 500 at 93 %


def test_beyond_a_limit_within_the_noise_is_unsure_and_passes(profile) -> None:
    document = profile[2]
    a, b = with_samples(document, noise(2, count=24)), with_samples(document, noise(3, 1.001, count=24))
    figure = compare_profiles(a, b, [])["rows"][0]["figures"]["p90_ms"]
    limit = Limit("p90_ms", max(0.0, figure["change"]) / 2, True)
    a, b = (a, b) if figure["change"] > 0 else (b, a)
    found = compare_profiles(a, b, [limit])
    assert found["passed"] and found["rows"][0]["figures"]["p90_ms"]["verdict"] in ("unsure", "within")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda p: p["rows"].clear(), "B has no such row"),
        (lambda p: [row.update(status="wrong", reason="differs") for row in p["rows"]], "B's row is wrong: differs"),
        (lambda p: [row.update(unit="frame") for row in p["rows"]], "B's of one frame"),
    ],
)
def test_a_lost_row_fails(profile, change, problem: str) -> None:
    document = profile[2]
    other = copy.deepcopy(document)
    change(other)
    found = compare_profiles(document, other, [])
    assert not found["passed"] and any(problem in text for text in found["problems"])
    assert "lost" in render_comparison(found)


def test_rows_that_differ_in_one_option_alone_are_never_mixed_up(profile) -> None:
    document = with_samples(profile[2], noise(0))
    twice = copy.deepcopy(document["rows"][0])
    twice["options"] = {**twice["options"], "threads": 2}
    twice["latency"] = asdict(Latency.of_wall(list(noise(0, 3.0)), 1.0, 0.0))
    document["rows"].append(twice)
    found = compare_profiles(document, document, [Limit.parse("p50_ms=1%")])
    assert found["passed"] and {row["figures"]["p50_ms"]["change"] for row in found["rows"]} == {0.0}


def test_a_limit_on_what_nobody_measured_fails(profile) -> None:
    found = compare_profiles(profile[2], profile[2], [Limit.parse("energy_j=5%")])
    assert found["problems"] == ["--fail-on energy_j=5%: no row of both has this figure"]


def test_a_limit_on_a_figure_that_one_row_of_b_lost_fails(profile) -> None:
    kept, gone = ({"throughput": {"mode": "Server", "answers_per_s": rate}} for rate in (9.0, None))
    a, b = with_samples(profile[2], noise(1), **kept), with_samples(profile[2], noise(1), **kept)
    for document in (a, b):
        document["rows"].append(copy.deepcopy(document["rows"][0]) | {"scenario": "server"})
    b["rows"][-1] |= gone
    found = compare_profiles(a, b, [Limit.parse("answers_per_s=5%")])
    assert not found["passed"] and "B's row has no answers_per_s" in found["problems"][0]
    assert compare_profiles(a, b, [Limit.parse("p50_ms=5%")])["passed"]


def test_other_conditions_and_settings_are_told(profile) -> None:
    a, b = copy.deepcopy(profile[2]), copy.deepcopy(profile[2])
    b["environment"] |= {"cpu_usable": 999, "packages": {}}
    b["config"]["throughput"] = {"streams": 99}
    told = "\n".join(compare_profiles(a, b, [])["remarks"])
    assert "environment.cpu_usable, environment.packages" in told and "config.throughput" in told
    assert "different" not in "".join(compare_profiles(a, a, [])["remarks"])


def test_joules_of_a_module_are_not_compared_with_those_of_a_board(profile) -> None:
    reading = {"source": "ina3221", "estimate": False, "reason": None, "scope_note": "", "notes": []}
    reading |= {"gross_j_per_unit": 1.0, "net_j_per_unit": 0.9, "bound_j_per_unit": 0.01, "net_bound_j_per_unit": 0.01}
    a, b = (with_samples(profile[2], noise(1), energy=[reading | {"scope": scope}]) for scope in ("board", "module"))
    b["bundle"] = b["bundle"] | {"task": "retrieval"}
    found = compare_profiles(a, b, [])
    for row in found["rows"]:
        assert row["figures"] and not any(name.startswith("energy") for name in row["figures"])
        assert any("ina3221 board and ina3221 module" in note for note in row["notes"])
    assert any(remark.startswith("different task: ") for remark in found["remarks"])
    assert "energy_j" in compare_profiles(a, a, [])["rows"][0]["figures"]


def test_energy_takes_the_bounds_of_both_and_never_an_estimate(profile) -> None:
    def reading(joules: float, estimate: bool = False) -> list[dict[str, object]]:
        return [{"source": "rapl", "estimate": estimate, "gross_j_per_unit": joules, "bound_j_per_unit": 0.1 * joules}
                | {"net_j_per_unit": joules / 2, "net_bound_j_per_unit": None}]  # fmt: skip

    a = with_samples(profile[2], noise(0), energy=reading(1.0))
    b = with_samples(profile[2], noise(0), energy=reading(1.5))
    figures = compare_profiles(a, b, [Limit.parse("energy_j=10%")])["rows"][0]["figures"]
    assert figures["energy_j"]["verdict"] == "worse"
    assert figures["energy_j"]["low"] == pytest.approx(1.35 / 1.1 - 1)
    assert figures["energy_j"]["high"] == pytest.approx(1.65 / 0.9 - 1)
    assert figures["energy_net_j"]["low"] is None
    b = with_samples(profile[2], noise(0), energy=reading(1.5, estimate=True))
    assert "energy_j" not in compare_profiles(a, b, [])["rows"][0]["figures"]


def test_the_ratio_to_baked_parameters_is_compared_by_its_own_interval(profile) -> None:
    def ratio(low: float, middle: float, high: float) -> documents.Document:
        found = {"baked_ratio": middle, "baked_ratio_low": low, "baked_ratio_high": high}
        return with_samples(profile[2], noise(0), personalisation=found)

    def verdict(b: documents.Document) -> str:
        row = compare_profiles(ratio(1.0, 1.02, 1.04), b, [Limit.parse("baked_ratio=5%")])["rows"][0]
        return str(row["figures"]["baked_ratio"]["verdict"])

    assert verdict(ratio(1.18, 1.2, 1.22)) == "worse" and verdict(ratio(0.9, 1.2, 1.5)) == "unsure"
    assert verdict(ratio(1.0, 1.03, 1.06)) == "within"


def test_the_interval_of_a_median_has_its_coverage() -> None:
    from scipy.stats import binom

    for count in range(6, 30):
        values = list(range(count))
        _, low, high = median_interval(values)
        rank = values.index(low)  # values below the interval
        assert high == count - 1 - rank
        assert 1 - 2 * binom.cdf(rank, count, 0.5) >= 0.95
        assert 1 - 2 * binom.cdf(rank + 1, count, 0.5) < 0.95
    assert median_interval([1.0] * 5)[1] is None


def test_two_bundles_in_turns(profile) -> None:
    """Four times the work is found, whatever the machine does meanwhile."""
    folder, path, _ = profile
    config = load_config(folder / "test.yaml", ["encoder=without", "latency.min_count=20"])
    harness = Harness(Bundle.open(path), config, Instruments(*[object(), [], []]))  # type: ignore[arg-type]

    def twice(harness: Harness, cell: object) -> object:
        pipeline = open_pipeline(harness, cell)  # type: ignore[arg-type]
        once = pipeline.answer
        pipeline.answer = lambda: [once() for _ in range(4)]  # type: ignore[assignment,method-assign,return-value]
        return pipeline

    limit = [Limit.parse("p50_ms=50%")]
    slow = compare_bundles(harness, harness, limit, 6, open_b=twice)  # type: ignore[arg-type]
    assert not slow["passed"] and slow["rows"][0]["figures"]["p50_ms"]["low"] > 0.5
    assert len(slow["rows"][0]["round_ratios"]["p50_ms"]) == 6


def test_the_benchmark_of_the_gate_goes_on_where_it_was_interrupted(
    profile, tmp_path: Path, monkeypatch, capsys
) -> None:
    kept = tmp_path / "runs.jsonl"
    command = ["--bundle", str(profile[1]), "--runs", "2", "--kept", str(kept), "--output", str(tmp_path / "gate.json")]
    done: list[bool] = []

    def compared(a, b, limits, rounds, open_b) -> dict[str, object]:
        if len(done) == 3:
            raise KeyboardInterrupt
        slower = open_b is not open_pipeline
        done.append(slower)
        figure = {"change": 0.1 * slower, "low": 0.1 * slower, "high": 0.1 * slower}
        return {"passed": not slower, "rows": [{"figures": {"p50_ms": figure}}]}

    monkeypatch.setattr(gate, "compare_bundles", compared)
    assert gate.main(command) == 130 and "3 of 4 runs are kept" in capsys.readouterr().err
    kept.write_text(kept.read_text() + '{"planted": tr')  # killed while it wrote
    done.clear()
    assert gate.main(command) == 0
    assert done == [True] and "3 of 4 runs are in" in capsys.readouterr().out
    assert [run["planted"] for run in json.loads((tmp_path / "gate.json").read_text())["values"]] == [False, True] * 2
    assert gate.main([*command, "--limit", "7"]) == 2 and "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--fail-on", "p50=5%"], "did you mean 'p50_ms'"),
        (["--fail-on", "p50_ms"], "write FIGURE=LIMIT"),
        (["--fail-on", "p50_ms=-1%"], "write FIGURE=LIMIT"),
        (["--config", "x.yaml"], "add --interleave"),
        (["--interleave", "--rounds", "3"], "at least 6"),
        (["--interleave", "--output", f"{__file__}/none"], "cannot be written"),
    ],
)
def test_mistakes(profile, arguments: list[str], told: str) -> None:
    folder, bundle, _ = profile
    where = [str(bundle)] * 2 if "--interleave" in arguments else [str(folder / "profile.json")] * 2
    with pytest.raises(UserError, match=told):
        main(["compare", *where, *arguments])
