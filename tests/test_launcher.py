"""What is answered at once where there is no cluster; tests/cluster has a real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lit_mmpg.cli import main


def test_options_that_do_not_fit_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    compare = ["compare", "--config", "configs/experiment/compare_demo.yaml"]
    extract = ["extract", "--videos", "none", "--encoder", "none", "--output", "f.h5"]

    def error(*words: str) -> str:
        assert main(list(words)) == 2
        return capsys.readouterr().err

    monkeypatch.setitem(sys.modules, "distributed", None)
    for command, other in ((compare, "--jobs"), (extract, "--workers")):
        assert f"{other} counts processes of this machine" in error(*command, "--launcher", "dask", other, "2")
        assert "add --launcher dask" in error(*command, "--cluster", "tcp://127.0.0.1:1")
        told = error(*command, "--launcher", "dask", "--cluster", "tcp://127.0.0.1:1")
        assert "needs the package distributed" in told and "[cluster]" in told
    monkeypatch.setitem(sys.modules, "distributed", sys)
    assert "which cluster?" in error(*compare, "--launcher", "dask")
    assert not list(tmp_path.iterdir())
