"""Two gloo processes on the CPU: both stages of both tasks, and the same metrics as one process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.cli import main
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.device.outputs import Outputs, answer_batch
from tests import forked
from tests.integration import tiny
from tests.integration.conftest import Trained, write_experiment

Train = Callable[[str], Trained]
DDP = ("--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.accelerator=cpu")


def lit_mmpg(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = forked.run(arguments, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.parametrize("task", ["open_ended", pytest.param("retrieval", marks=pytest.mark.soak)])
def test_both_stages_train_in_two_processes(task: str, trained: Train, tmp_path: Path) -> None:
    config = write_experiment(tmp_path, trained(task).root, task)
    done = lit_mmpg(tmp_path, "fit", "--config", str(config), *DDP)
    assert "sync_dist" not in done.stderr
    # One of the processes speaks, not both.
    assert [line.split(":")[0] for line in done.stdout.splitlines() if "preparing" in line] == [
        "device half",
        "cloud half",
    ]
    checkpoints = sorted(tmp_path.glob("outputs/*/*/checkpoints/best.ckpt"))
    assert len(checkpoints) == 2  # one run per stage, however many processes
    for path in checkpoints:
        assert torch.load(path, weights_only=True)["global_step"] > 0


@pytest.mark.parametrize(
    ("task", "verb"),
    [("open_ended", "test"), ("retrieval", "test"), ("retrieval", "validate")],
)
@pytest.mark.soak
def test_two_processes_measure_what_one_measures(
    task: str, verb: str, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(task)
    monkeypatch.chdir(run.folder)
    arguments = [verb, "--ckpt_path", str(run.cloud), "--output"]
    assert main([*arguments, str(tmp_path / "one.json")]) == 0
    lit_mmpg(run.folder, *arguments, str(tmp_path / "two.json"), *DDP)
    rows = [json.loads((tmp_path / f"{name}.json").read_text())["rows"] for name in ("one", "two")]
    one, two = ({(r["method"], r["split"], r["metric"]): r for r in table} for table in rows)
    assert one.keys() == two.keys()
    for key, row in one.items():
        for field in ("value", "low", "high"):
            assert two[key][field] == pytest.approx(row[field], abs=1e-6), key


def test_gradients_with_gathered_negatives_equal_one_process_on_the_whole_batch(trained: Train, tmp_path: Path) -> None:
    run = trained("retrieval")
    record = {"class_path": "tests.integration.slow.FirstStep", "init_args": {"folder": "first"}}
    still = {"width": 16, "heads": 2, "dropout": 0.0, "frame_dropout": 0.0, "frame_noise": 0.0, "word_dropout": 0.0}
    config = tiny.write_config(
        tmp_path / "run.yaml",
        data=tiny.data_config(run.root, "retrieval"),
        model=tiny.device_config(network=still),
        trainer=tiny.trainer_config(callbacks=[record]),
    )
    lit_mmpg(tmp_path, "fit", "--config", str(config), *DDP)
    first = [torch.load(tmp_path / "first" / f"{rank}.pt", weights_only=True) for rank in range(2)]

    (path,) = tmp_path.glob("outputs/*/*/checkpoints/best.ckpt")
    module = DeviceModule.load_from_checkpoint(path)
    module.load_state_dict(first[0]["weights"])
    batches, outputs = [], []
    for saved in first:
        frames = Frames(*saved["frames"])
        batches.append(Batch(frames, frames, **saved["batch"]))
        outputs.append(answer_batch(module.network, batches[-1], module.network.encode(frames.values)))
    assert not set(batches[0].clip[batches[0].clip >= 0].tolist()) >= set(
        batches[1].clip[batches[1].clip >= 0].tolist()
    )
    joined = replace(
        batches[0],
        **{
            name: torch.cat([getattr(b, name) for b in batches])
            for name in ("text_mask", "text_clip", "clip", "device")
        },
    )
    video, text = (torch.cat([getattr(o, name) for o in outputs]) for name in ("video", "text"))
    module.network.task.loss(module.network, joined, Outputs(video=video, text=text)).backward()
    alone = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for rank in range(2):
        assert alone.keys() == first[rank]["gradients"].keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(first[rank]["gradients"][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    assert max(float(gradient.abs().max()) for gradient in alone.values()) > 1e-3
