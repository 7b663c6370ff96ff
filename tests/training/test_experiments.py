from __future__ import annotations

from pathlib import Path

import pytest

from lit_mmpg.training.config import read_request, shipped_configs
from lit_mmpg.training.lightning_cli import CLI

EXPERIMENTS = sorted((shipped_configs() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_shipped_experiment_parses(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIT_MMPG_DATA", str(tmp_path))
    request = read_request("fit", ["--config", str(path)])
    assert CLI(request).record["model"]["class_path"].startswith("lit_mmpg.")
    stage = request.options["device_stage"]
    if stage is not None:
        assert CLI(request.derive(Path(stage))).record["model"]["class_path"] == "lit_mmpg.device.module.DeviceModule"
