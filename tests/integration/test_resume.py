"""A fit that is killed in mid-epoch goes on in the same run and ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from tests import forked
from tests.integration import tiny
from tests.integration.conftest import PIXEL_NETWORK, Trained, pixel_data

Train = Callable[[str], Trained]
EPOCHS = 3


def command(config: Path, *more: str) -> list[str]:
    return ["fit", "--config", str(config), "--save_every_n_steps=1", *more]


def final_weights(folder: Path) -> tuple[dict[str, torch.Tensor], str, int]:
    (path,) = folder.glob("outputs/*/*/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(path)
    return checkpoint["state_dict"], checkpoint["lit_mmpg"]["run_id"], checkpoint["global_step"]


def kill_in_mid_epoch(folder: Path, config: Path, steps_per_epoch: int) -> int:
    """Kill the fit once a checkpoint inside its second epoch is on disk; returns that checkpoint's step."""
    environment = os.environ | {"LIT_MMPG_TEST_STEP_SECONDS": "0.3"}
    with (folder / "log").open("w") as log:
        process = forked.Process(command(config), cwd=folder, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    step = 0
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob("outputs/*/*/checkpoints/last.ckpt"):
            try:
                step = int(read_checkpoint(path)["global_step"])
            except Exception:  # being written at this moment
                continue
        if step > steps_per_epoch and step % steps_per_epoch:
            break
        time.sleep(0.02)
    assert process.poll() is None, "the fit ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return step


def test_killed_and_resumed_equals_uninterrupted(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("open_ended")
    model = tiny.cloud_config(run.device)
    # One batch per device group: several steps an epoch; the sleep leaves time to kill it there.
    batch = {"devices": 1, "clips": 2, "items_per_clip": 2, "context_clips": 3, "max_frames": 4, "max_words": 8}
    data = tiny.data_config(run.root, batch=batch)
    slow = {"class_path": "tests.integration.slow.Slow"}
    trainer = tiny.trainer_config(max_epochs=EPOCHS, callbacks=[slow])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    configs = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        configs[name] = tiny.write_config(tmp_path / name / "run.yaml", data=data, model=model, trainer=trainer)

    assert forked.run(command(configs["whole"]), cwd=tmp_path / "whole").returncode == 0
    expected, _, steps = final_weights(tmp_path / "whole")
    killed_at = kill_in_mid_epoch(tmp_path / "killed", configs["killed"], steps // EPOCHS)
    _, run_id, _ = final_weights(tmp_path / "killed")
    done = forked.run(command(configs["killed"], "--ckpt_path=last"), cwd=tmp_path / "killed")
    assert done.returncode == 0, done.stderr[-3000:]
    (resumed_at,) = [int(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if "resumed at step" in line]
    assert resumed_at >= killed_at > 0
    weights, resumed_run_id, resumed_steps = final_weights(tmp_path / "killed")
    assert resumed_run_id == run_id and resumed_steps == steps
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.soak
@pytest.mark.parametrize("half", ["device", "cloud"])
def test_going_on_from_any_step_trains_on_the_same_batches(
    half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On pixels, which the cloud half encodes once."""
    monkeypatch.chdir(tmp_path)
    data = pixel_data()
    model = tiny.device_config(network=PIXEL_NETWORK | {"dropout": 0.2})
    if half == "cloud":
        tiny.write_config(Path("device.yaml"), data=data, model=model, trainer=tiny.trainer_config())
        assert main(["fit", "--config", "device.yaml"]) == 0
        (device,) = Path("outputs/device").glob("*/checkpoints/best.ckpt")
        model = tiny.cloud_config(device.absolute())

    def fit(name: str, *more: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
        record = {"class_path": "tests.integration.slow.Record", "init_args": {"path": f"{name}.jsonl"}}
        every = {"dirpath": "every", "filename": "{step}", "every_n_train_steps": 1, "save_top_k": -1}
        keep = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every}
        trainer = tiny.trainer_config(max_epochs=3, callbacks=[record, *([keep] if name == "whole" else [])])
        config = tiny.write_config(Path(f"{name}.yaml"), data=data, model=model, trainer=trainer)
        assert main(["fit", "--config", str(config), "--save_every_n_steps=1", *more]) == 0
        (last,) = Path(f"outputs/{name}").glob("*/checkpoints/last.ckpt")
        batches = [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        return read_checkpoint(last)["state_dict"], batches

    expected, batches = fit("whole")
    length = len(batches) // 3
    orders = [[batch["clips"] for batch in batches if batch["epoch"] == epoch] for epoch in range(3)]
    assert len({json.dumps(order) for order in orders}) == 3
    assert length > 3
    for step in (2, length, length + 2):  # in mid-epoch, at the end of an epoch, in the middle of a later one
        weights, later = fit(f"from{step}", "--ckpt_path", f"every/step={step}.ckpt")
        assert later == batches[step:]
        for name, value in expected.items():
            assert torch.equal(weights[name], value), (step, name)
