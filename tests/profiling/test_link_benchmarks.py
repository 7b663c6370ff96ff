"""Benchmarks of the link: they run on a small checkpoint, and their tables say what they claim."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_mmpg import results
from lit_mmpg.profiling.benchmarks import codebooks, codecs, policies, privacy
from lit_mmpg.profiling.benchmarks.policies import choose, point, skip_at_random
from lit_mmpg.profiling.benchmarks.streams import Stream, follow, static, streams
from lit_mmpg.profiling.benchmarks.trained import load, write_results
from lit_mmpg.runtime.policies import Always, Drift, EveryN
from tests.export.conftest import made

__all__ = ["made"]


def stream(seed: int = 0, size: int = 12) -> Stream:
    rng = np.random.default_rng(seed)
    right = np.tril(rng.random((size, size + 1)), 0)
    right[np.triu_indices(size, 1, size + 1)] = np.nan
    confidence = np.where(np.isnan(right)[..., None], np.nan, rng.random((size, size + 1, 2)))
    return Stream("a then b", size // 2, rng.normal(size=(size, 3)), right, confidence, 4)


def test_random_skipping_is_what_many_coins_give() -> None:
    s = stream()
    size, first, requests = len(s), 3, 0.4
    expected = skip_at_random(s, requests, first)
    coin = (requests * size - 1) / (size - first - 1)
    rng = np.random.default_rng(1)
    total = np.zeros(size)
    for _ in range(20000):
        current, right = 0, np.zeros(size)
        for t in range(size):
            if t == first or (t > first and rng.random() < coin):
                current = t
            right[t] = s.right[t, current]
        total += right
    np.testing.assert_allclose(expected.right, total / 20000, atol=0.01)
    assert expected.asked.mean() == pytest.approx(requests)


def test_walks_use_the_parameters_of_the_last_request() -> None:
    s = stream()
    always = follow(s, Always())
    assert not always.asked[0] and always.asked[1:].all()
    np.testing.assert_array_equal(always.right, [s.right[t, t] for t in range(len(s))])
    third = follow(s, EveryN(3))
    assert np.flatnonzero(third.asked).tolist() == [1, 4, 7, 10]
    assert third.right[6] == s.right[6, 4]
    never = follow(s, Drift(1e9, first=10**9))
    np.testing.assert_array_equal(never.right, static(s))
    full = point("always", [always], [always], [static(s)])
    assert full.share == pytest.approx(1) and point("never", [never], [always], [static(s)]).share == pytest.approx(0)
    cheap = policies.Point("cheap", 0.1, 0.9, 0.96, 0, 1)
    assert choose([full, cheap]) == cheap


@pytest.fixture(scope="module")
def checkpoint(made) -> str:
    return str(made("pixels").cloud)


def test_a_clip_is_answered_with_clips_before_it_only(checkpoint: str) -> None:
    trained = load(checkpoint, [])
    made_of = streams(trained, "test_unseen")
    for s in made_of:
        known = np.isfinite(s.right)
        for t in range(len(s)):
            assert known[t, : t + 1].all() and not known[t, t + 1 :].any()
    # The static answers of a stream are those of the model without parameters, whatever precedes.
    first, second = made_of[0], made_of[1]
    np.testing.assert_array_equal(static(first)[first.change :], static(second)[: second.change])


@pytest.mark.parametrize("benchmark", [codecs, policies, privacy])
def test_benchmarks_write_their_files(
    benchmark, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = benchmark.__name__.rsplit(".", 1)[1]
    if benchmark is privacy:
        monkeypatch.setattr(privacy, "STEPS", 20)
        monkeypatch.setattr(privacy, "EARLY", 2)
    assert benchmark.main(["--ckpt", checkpoint, "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert (tmp_path / f"{name}.md").read_text().count("|") > 20 and result["checkpoint"] == checkpoint
    if benchmark is codecs:
        rows = {row["codecs"]: row for row in result["rows"]}
        assert rows["fp32/fp32"]["minus_fp32"] == 0
        up = [rows[f"{c}/fp16"]["upload_payload_bytes"] for c in ("fp32", "fp16", "int8", "int7", "int6", "int4")]
        assert up == sorted(up, reverse=True)
        for row in rows.values():
            for d in ("upload", "download"):
                if f"{d}_wire_bytes" in row:
                    assert row[f"{d}_payload_bytes"] < row[f"{d}_message_bytes"] < row[f"{d}_wire_bytes"]
    if benchmark is privacy:
        assert [row["noise"] for row in result["rows"] if row["noise"]] == [0.25, 0.5, 1.0, 2.0]


def test_codebooks_are_measured_on_validation_devices(checkpoint: str, tmp_path: Path) -> None:
    file = tmp_path / "codebooks.json"
    codebooks.main(["--ckpt", checkpoint, checkpoint, "--bytes", "1", "4", "999", "--output", str(file)])
    result = results.load(tmp_path)["codebooks"]
    assert result["test_reads"] == 0 and str(tmp_path) not in file.read_text()
    assert [(row["bytes"], row["checkpoints"]) for row in result["values"]] == [(1, 2), (4, 2)]
    for name in ("plain_error", "rotated_error", "residual_error"):
        few, many = (row[name] for row in result["values"])
        assert 0 < many <= few  # equal for residual ones: 24 anchors are all words of the first codebook


def test_residual_codebooks_quantise_what_is_left() -> None:
    rng = np.random.default_rng(0)
    seen, unseen = rng.normal(size=(2, 2000, 8))
    errors = codebooks.residual_errors(seen, unseen, 3)
    assert list(errors) == [1, 2, 3]
    assert errors[3] < errors[2] < errors[1] < np.square(unseen - seen.mean(0)).sum()
    # Fewer vectors than words: the first codebook holds them all and leaves nothing.
    assert codebooks.residual_errors(seen[:9], seen[:9], 1)[1] == pytest.approx(0, abs=1e-12)


def test_an_inversion_finds_what_is_there_and_nothing_in_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "STEPS", 500)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(400, 12, generator=generator)
    clip = torch.arange(400)
    told = privacy.invert(pictures[:300], pictures[:300], pictures[300:], pictures[300:], clip[300:])
    blind = torch.randn(400, 12, generator=generator)
    untold = privacy.invert(blind[:300], pictures[:300], blind[300:], pictures[300:], clip[300:])
    assert told["explained"] > 0.9 and told["found"] > 0.9
    assert untold["explained"] < 0.1 and untold["found"] < 0.1


def test_a_device_half_has_no_link(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert codecs.main(["--ckpt", str(made("pixels").device)]) == 2
    assert "cloud half" in capsys.readouterr().err
    json_file, text_file = write_results(tmp_path / "new", "x", {"a": 1}, "text")
    assert json.loads(json_file.read_text()) == {"a": 1} and text_file.read_text() == "text\n"
