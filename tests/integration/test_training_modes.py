"""An adapted network in mixed precision, compiled, and in two processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cloud.module import CloudModule
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.contract import DynamicConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.errors import UserError
from lit_mmpg.forms.input_layer import InputLayer
from tests.integration import tiny
from tests.integration.conftest import pixel_data
from tests.integration.test_own_network import FORM, LAYERS, Residual


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PersonalClipsData:
    settings = pixel_data()["init_args"]
    clips = PersonalClipsConfig(**settings["clips"])
    return PersonalClipsData(clips, str(tmp_path_factory.mktemp("clips")), batch=BatchShape(**settings["batch"]))


@pytest.fixture(scope="module")
def device_ckpt(data: PersonalClipsData, tmp_path_factory: pytest.TempPathFactory) -> str:
    module = DeviceModule.for_data(data, network=partial(Residual, width=8))
    path = tmp_path_factory.mktemp("device") / "device.ckpt"
    trainer = quick(max_steps=1)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(path)
    return str(path)


def quick(**over: Any) -> L.Trainer:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    few = {"num_sanity_val_steps": 0, "limit_val_batches": 1, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, **(silent | few | {"max_epochs": 1} | over))


def cloud(data: PersonalClipsData, device_ckpt: str, form: Any = FORM) -> CloudModule:
    torch.manual_seed(0)
    dynamic = DynamicConfig(tuple(LAYERS), form, 2, InputLayer(grid=(2, 2), use=("gain", "bias", "colour")))
    return CloudModule.for_data(data, device_ckpt=device_ckpt, dynamic=dynamic)


def trained(module: CloudModule, data: PersonalClipsData, compiled: bool = False, **over: Any) -> dict[str, float]:
    torch.manual_seed(0)
    trainer = quick(**over)
    trainer.fit(torch.compile(module, backend="aot_eager") if compiled else module, datamodule=data)
    for name, layer in module.adaptor.layers.items():
        generators = layer.get_submodule("generators")
        assert all(bool(g.get_parameter("weight").any()) for g in generators.children()), name
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_mixed_precision_trains_what_full_precision_does(data: PersonalClipsData, device_ckpt: str) -> None:
    full = trained(cloud(data, device_ckpt), data)
    module = cloud(data, device_ckpt)
    mixed = trained(module, data, precision="bf16-mixed")
    assert (
        mixed["train/loss"] == pytest.approx(full["train/loss"], rel=0.02) and mixed["train/loss"] != full["train/loss"]
    )
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert mixed["val/upload_bytes"] == full["val/upload_bytes"], "what crosses the link does not change"
    for form in ("full", "core"):
        trained(cloud(data, device_ckpt, {"*norm": "full", "time": "full", "*": form}), data, precision="bf16-mixed")


def test_contexts_are_encoded_once_where_the_encoder_is_personal(
    data: PersonalClipsData, device_ckpt: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "lit_mmpg"):
        once = trained(cloud(data, device_ckpt), data)
    said = r"520 frames once, about .* for contexts; each epoch encodes \d{3} frames anew .*from input on.*, about \S+ "
    assert re.search(said, caplog.text)
    monkeypatch.setattr(data, "encode_once", lambda contexts, asked: None)
    again = trained(cloud(data, device_ckpt), data)
    assert once["train/loss"] == pytest.approx(again["train/loss"], rel=1e-5)


def test_what_comes_before_the_first_dynamic_layer_is_computed_once(
    data: PersonalClipsData, device_ckpt: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def late() -> CloudModule:
        torch.manual_seed(0)
        dynamic = DynamicConfig(("block.conv2", "head"), "low_rank", 2)
        return CloudModule.for_data(data, device_ckpt=device_ckpt, dynamic=dynamic)

    with caplog.at_level("INFO", "lit_mmpg"):
        once = trained(late(), data)
    said = (
        r"each epoch encodes \d{3} frames from block.conv2 on with personal parameters, what comes before is kept \(\d"
    )
    assert re.search(said, caplog.text)
    assert next(iter(data.train_dataloader())).frames.values.dtype == torch.uint8, "pixels again"
    monkeypatch.setattr("lit_mmpg.device.base.MOST_KEPT_BYTES", 1000)
    caplog.clear()
    with caplog.at_level("INFO", "lit_mmpg"):
        again = trained(late(), data)
    assert "from block.conv2 on), since what comes before would take" in caplog.text
    for name in ("train/loss", "val/loss"):
        if name in once:
            assert once[name] == pytest.approx(again[name], rel=1e-5)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_weights_in_another_precision_are_refused(precision: str, data: PersonalClipsData, device_ckpt: str) -> None:
    with pytest.raises(UserError, match=f"precision is {precision}, but .*use bf16-mixed"):
        quick(precision=precision).fit(cloud(data, device_ckpt), datamodule=data)


@pytest.mark.soak
def test_a_compiled_module_trains_what_a_plain_one_does(data: PersonalClipsData, device_ckpt: str) -> None:
    plain = trained(cloud(data, device_ckpt), data, limit_train_batches=2)
    compiled = trained(cloud(data, device_ckpt), data, compiled=True, limit_train_batches=2)
    assert compiled["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-4)


@pytest.mark.soak
def test_two_processes_train_an_adapted_network(tmp_path: Path) -> None:
    trainer = tiny.trainer_config(logger=False, num_sanity_val_steps=0, devices=2, strategy="ddp")
    network = {"class_path": "tests.integration.test_own_network.Residual", "init_args": {"width": 8}}
    model = tiny.device_config(network=network)
    tiny.write_config(tmp_path / "device.yaml", data=pixel_data(), model=model, trainer=trainer)
    model = tiny.cloud_config(dynamic={"layers": LAYERS, "form": FORM, "rank": 2, "input_layer": {"grid": [2, 2]}})
    both = tiny.write_config(
        tmp_path / "both.yaml", data=pixel_data(), model=model, trainer=trainer, device_stage="device.yaml"
    )
    command = [sys.executable, "-m", "lit_mmpg", "fit", "--config", str(both)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    (path,) = [p for p in tmp_path.rglob("best*.ckpt") if read_checkpoint(p)["lit_mmpg"]["half"] == "cloud"]
    weights = {k: v for k, v in read_checkpoint(path)["state_dict"].items() if ".generators." in k and "weight" in k}
    assert weights and all(bool(tensor.any()) for tensor in weights.values())
