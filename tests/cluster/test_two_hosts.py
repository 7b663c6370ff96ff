"""The documented line for several machines, on two hosts: the weights of one process, and a host that dies."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.profiling.benchmarks.namespaces import Host
from tests.cluster.conftest import ROOT
from tests.integration import tiny

pytestmark = pytest.mark.cluster
HALVES = ("device", "cloud")
STILL = {"width": 16, "heads": 2, "dropout": 0.0, "frame_dropout": 0.0, "frame_noise": 0.0, "word_dropout": 0.0}
# A bias in front of a softmax changes nothing: its gradient is rounding alone, which Adam turns into whole steps.
IDLE = "network.text_encoder.score.bias"
# Every process has as many questions as the others, so that the mean of their gradients is that of all questions.
EVEN = {"clips": 1, "items_per_clip": 2, "context_clips": 3, "max_frames": 3, "max_words": 8, "eval_clips": 4}


def documented(host: Host) -> list[str]:
    """The multi-node command of the document, up to the subcommand, for one process on each of two hosts."""
    text = (ROOT / "docs/several_machines.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^torchrun (--nnodes 2 .*?) -m lit_mmpg", text, re.M)
    words = shlex.split(line.replace("HOST:", f"{host.name}:"))
    words[words.index("--nproc_per_node") + 1] = "1"
    return [sys.executable, "-m", "torch.distributed.run", *words, "-m", "lit_mmpg"]


def fit(config: Path, *more: str, nodes: int = 1, devices: int = 1) -> list[str]:
    """Arguments of the program for one half after the other, as the document has them."""
    strategy = ["--trainer.strategy", "ddp", "--trainer.num_nodes", str(nodes), "--trainer.devices", str(devices)]
    return ["fit", "--config", str(config), "--save_every_n_steps=1", *(strategy if nodes * devices > 1 else []), *more]


def start_both(hosts: tuple[Host, Host], folder: Path, arguments: list[str], seconds: float = 0) -> None:
    """Start the same command on both hosts, which share a folder; output goes to ``NAME.log`` beside it."""
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "LIT_MMPG_TEST_STEP_SECONDS": str(seconds)}
    for host in hosts:
        with (folder / f"{host.name[-1]}.log").open("wb") as log:
            host.start([*documented(hosts[0]), *arguments], cwd=folder, env=os.environ | more, stdout=log, stderr=log)


def end_both(hosts: tuple[Host, Host], folder: Path) -> list[int]:
    """Exit statuses of both."""
    codes = [host.processes[-1].wait(300) for host in hosts]
    for host in hosts:
        host.processes.clear()
    return codes


def logs(folder: Path) -> str:
    return "\n".join(f"== {path.name}\n{path.read_text()[-4000:]}" for path in sorted(folder.glob("?.log")))


def last(folder: Path) -> dict[str, dict[str, Any]]:
    """Half -> the last checkpoint of its only run."""
    found = [read_checkpoint(path) for path in sorted(folder.glob("outputs/*/*/checkpoints/last.ckpt"))]
    halves = {str(one["lit_mmpg"]["half"]): one for one in found}
    assert len(found) == len(halves), "one run for each half"
    return halves


def write_both(folder: Path, root: Path, batch: Mapping[str, int], network: Mapping[str, Any], **cloud: Any) -> Path:
    """Both halves' configuration, with steps that a test can stretch."""
    folder.mkdir()
    data = tiny.data_config(root, batch=dict(batch))
    trainer = tiny.trainer_config(max_epochs=2, callbacks=[{"class_path": "tests.integration.slow.Slow"}])
    model = tiny.device_config(network=dict(network))
    tiny.write_config(folder / "device.yaml", data=data, model=model, trainer=trainer)
    model = tiny.cloud_config(**cloud)
    return tiny.write_config(folder / "both.yaml", data=data, model=model, trainer=trainer, device_stage="device.yaml")


def alone(folder: Path, config: Path, devices: int = 1) -> dict[str, dict[str, Any]]:
    """The same on one host."""
    command = [sys.executable, "-m", "lit_mmpg", *fit(config, devices=devices)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return last(folder)


def test_two_hosts_train_what_one_process_trains(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    root = tiny.build_root(tmp_path / "data")
    # The posterior's sample is drawn in each process; without its loss nothing else is drawn.
    quiet = {"losses": {"reconstruction": 0.0, "kl": 0.0}}
    split = {"devices": 1, "eval_devices": 1, **EVEN}
    config = write_both(tmp_path / "two", root, split, STILL, **quiet)
    whole = write_both(tmp_path / "one", root, split | {"devices": 2, "eval_devices": 2}, STILL, **quiet)
    start_both(two_hosts, tmp_path / "two", fit(config, nodes=2))
    expected = alone(tmp_path / "one", whole)
    assert end_both(two_hosts, tmp_path / "two") == [0, 0], logs(tmp_path / "two")
    found = last(tmp_path / "two")
    for half in HALVES:
        assert found[half]["global_step"] == expected[half]["global_step"] > 10
        for name, value in expected[half]["state_dict"].items():
            if name == IDLE:
                continue
            torch.testing.assert_close(found[half]["state_dict"][name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_a_host_that_dies_and_comes_back_goes_on(two_hosts: tuple[Host, Host], tmp_path: Path) -> None:
    root = tiny.build_root(tmp_path / "data")
    batch, network = {"devices": 1, **EVEN}, {"width": 16, "heads": 2, "dropout": 0.2}
    whole = write_both(tmp_path / "one", root, batch, network)
    config = write_both(tmp_path / "two", root, batch, network)
    expected = alone(tmp_path / "one", whole, devices=2)
    folder = tmp_path / "two"
    start_both(two_hosts, folder, fit(config, nodes=2), seconds=0.4)
    deadline, step = time.monotonic() + 200, 0
    while step < 3:  # in the middle of the cloud half's first epoch
        assert time.monotonic() < deadline and two_hosts[1].processes[0].poll() is None, logs(folder)
        time.sleep(0.1)
        for path in folder.glob("outputs/both/*/checkpoints/last.ckpt"):
            try:
                checkpoint = read_checkpoint(path)
            except Exception:  # being written at this moment
                continue
            step = int(checkpoint["global_step"]) if checkpoint["lit_mmpg"]["half"] == "cloud" else 0
    two_hosts[1].kill()
    # The other one cannot go on alone and ends by itself.
    assert two_hosts[0].processes[0].wait(120) != 0, logs(folder)
    two_hosts[0].processes.clear()
    before = last(folder)
    assert 0 < before["cloud"]["global_step"] < expected["cloud"]["global_step"]
    start_both(two_hosts, folder, fit(config, "--ckpt_path", "last", nodes=2))
    assert end_both(two_hosts, folder) == [0, 0], logs(folder)
    found = last(folder)
    assert "resumed at step" in logs(folder)
    for half in HALVES:
        assert found[half]["lit_mmpg"]["run_id"] == before[half]["lit_mmpg"]["run_id"]
        assert found[half]["global_step"] == expected[half]["global_step"]
        for name, value in expected[half]["state_dict"].items():
            assert torch.equal(found[half]["state_dict"][name], value), (half, name)
