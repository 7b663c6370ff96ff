"""The command for machines with a GPU: what it does without one, and that no check costs another."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lit_mmpg.profiling.benchmarks import verify_gpu
from lit_mmpg.profiling.benchmarks.verify_gpu import FAILED, MISSING, NO_GPU, VERIFIED, child, main, run_check
from lit_mmpg.runtime.engines import engine_class
from tests.profiling.bundles import make_bundle


def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify_gpu, "no_gpu", lambda: "there is no NVIDIA GPU")
    assert main(["--output", str(tmp_path / "out")]) == NO_GPU == 3
    assert capsys.readouterr().out == "verify-gpu: nothing was verified: there is no NVIDIA GPU\n"
    assert not (tmp_path / "out").exists()


def test_an_engine_is_verified_or_fails_with_its_reason(tmp_path):
    for name, wrong, status in (("right", False, VERIFIED), ("wrong", True, FAILED)):
        make_bundle(tmp_path / name / "bundle", wrong=wrong)
        result = child("onnxruntime by reload", tmp_path / name, "cpu")
        assert result.status == status, result.reason
        assert wrong == ("model fp32: relative error" in (result.reason or ""))
    assert child("onnxruntime by reload", tmp_path / "right", "cpu").figures["model fp32"]["load_ms"] > 0
    assert "holds no weights for torch" in (child("torch by inputs", tmp_path / "right", "cpu").reason or "")
    named = verify_gpu.checks("cuda")
    assert {"tensorrt by inputs", "tensorrt by refit", "onnxruntime_tensorrt by reload", "torch_aoti by inputs"} <= set(
        named
    )


def test_a_check_that_hangs_crashes_or_lacks_something_costs_no_other(tmp_path, capsys, monkeypatch):
    crashed = run_check("NVML", tmp_path, "no such device", 60)
    assert crashed.status == FAILED and "ended with status 2: " in (crashed.reason or "")
    (tmp_path / "sitecustomize.py").write_text("import time; time.sleep(600)")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        hung = run_check("profile run", tmp_path, "cpu", 1.0)
    assert hung.status == FAILED and hung.reason == "ended after 1 s, its limit"
    assert run_check("profile run", tmp_path, "cpu", 0.5).reason == "not run: the time for all checks is over"

    monkeypatch.setattr(verify_gpu.metadata, "version", lambda _: "2.5.1+cu121")
    output = tmp_path / "out"
    assert main(["--device", "cpu", "--only", "onnxruntime by inputs", "profile run", "--output", str(output)]) == 1
    document = json.loads((output / "verify_gpu.json").read_text())
    assert [check["status"] for check in document["checks"]] == [FAILED, FAILED]
    assert document["counts"] == {VERIFIED: 0, FAILED: 2, MISSING: 0}
    assert document["torch"]["installed"] == "2.5.1+cu121" and document["torch"]["agrees"] is False
    assert document["command"].startswith("python -m lit_mmpg.profiling.benchmarks.verify_gpu --device cpu")
    assert document["environment"]["cpu"] and "commit" in document
    text = capsys.readouterr().out
    assert (
        "note: torch 2.5.1+cu121 is here; the package asks for >=2.13" in text and "there is no bundle to run" in text
    )

    reason = engine_class("onnxruntime_tensorrt").requirements()
    if reason:
        result = child("onnxruntime_tensorrt by inputs", tmp_path, "cuda")
        assert (result.status, result.reason) == (MISSING, reason)


@pytest.mark.soak
def test_every_check_that_a_processor_can_run(tmp_path):
    assert main(["--device", "cpu", "--output", str(tmp_path)]) == 0
    checks = {c["name"]: c for c in json.loads(Path(tmp_path / "verify_gpu.json").read_text())["checks"]}
    assert all(check["status"] == VERIFIED for name, check in checks.items() if name != "NVML"), checks
    assert checks["training step"]["figures"]["cloud half"]["gradient_error"] == 0
