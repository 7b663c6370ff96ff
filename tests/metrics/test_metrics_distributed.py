"""Two gloo processes compute what one computes, although their shards are filled up with repeated items."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("gloo_worker.py")
ROOT = Path(__file__).parents[2]
WORLD = 2


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return json.loads(json.dumps(runpy.run_path(str(WORKER))["results"]()))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    outputs = [folder / f"{rank}.json" for rank in range(WORLD)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD), str(folder / "rendezvous"), str(outputs[rank])],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [json.loads(output.read_text()) for output in outputs]


@pytest.mark.parametrize("rank", range(WORLD))
@pytest.mark.parametrize("key", ["accuracy", "per_device", "retrieval", "ranks"])
def test_two_processes_equal_one(one: dict[str, Any], two: list[dict[str, Any]], key: str, rank: int) -> None:
    assert two[rank][key] == one[key]


def test_repeated_items_were_there_and_count_once(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    assert sum(result["local"] for result in two) == one["local"] + 1
    assert [result["distinct"] for result in two] == [one["distinct"]] * WORLD


def test_process_without_items_takes_part(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    assert [result["only_first_process"] for result in two] == [one["only_first_process"]] * WORLD


def test_states_are_local_again_afterwards(two: list[dict[str, Any]]) -> None:
    assert two[0]["local"] == two[1]["local"] < two[0]["distinct"]
