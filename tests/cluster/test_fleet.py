"""A few devices through everything that can happen to a fleet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lit_mmpg.profiling.benchmarks import fleet
from lit_mmpg.profiling.benchmarks.namespaces import why_not
from tests.serving.making import make_cloud_checkpoint

pytestmark = pytest.mark.cluster


def test_a_fleet_lives_through_death_rollout_and_outage(tmp_path: Path) -> None:
    missing = [name for name in ("nginx", "openssl") if shutil.which(name) is None]
    if (reason := why_not()) is not None or missing:
        pytest.skip(reason or f"{missing[0]} is not installed here")
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    checkpoints = [make_cloud_checkpoint(old), make_cloud_checkpoint(new, optimiser={"learning_rate": 0.01})]
    words = ["--ckpt", *map(str, checkpoints), "--devices", "6", "--seconds", "8", "--outage-s", "3"]
    assert fleet.main([*words, "--output", str(tmp_path / "fleet")]) == 0
    report = json.loads((tmp_path / "fleet/report.json").read_text())
    found = report["figures"]
    assert set(found["links"]) == set(fleet.LINKS) and len(report["rows"]) == 3
    for name, row in found["links"].items():
        assert row["new"]["p50_ms"] > row["kept"]["p50_ms"] > 2 * fleet.LINKS[name].delay_ms
        for i in (0, 1):  # the kernel counts more than what we hand it
            assert row["new"]["link_bytes"][i] > row["new"]["wire_bytes"][i] > row["new"]["payload_bytes"][i] > 0
    assert found["steady"]["counts"]["own"] > 6 and found["steady"]["adaptations_per_s_and_core"] > 0
    assert found["rollout"]["devices_on_the_new_checkpoint"] == 6
    assert found["rollout"]["counts"]["refetched"] == 6
    assert any(key.startswith("failed") for key in found["outage"]["during"]["counts"])
    assert found["million"]["cores_at_peak"] > 0


def test_what_must_not_happen_is_told() -> None:
    phase = {"wrong": 0, "devices_without_an_adaptation": 0, "devices": 4, "devices_on_the_new_checkpoint": 4}
    found = {name: dict(phase) for name in ("steady", "death", "rollout")}
    found["outage"] = {"during": phase | {"devices_without_an_adaptation": 4}, "after": dict(phase)}
    assert fleet.problems(found) == []
    found["death"]["wrong"] = 1
    found["rollout"]["devices_on_the_new_checkpoint"] = 3
    found["outage"]["after"]["devices_without_an_adaptation"] = 2
    assert [line.partition(":")[0] for line in fleet.problems(found)] == ["death", "outage, after", "rollout"]
