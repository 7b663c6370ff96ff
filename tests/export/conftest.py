"""Device models of every task and form, exported once per test session; and one bundle made by the verbs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lit_mmpg.cli import main
from lit_mmpg.device.graphs import GraphSpec, graph_specs
from lit_mmpg.device.model import DeviceModelConfig, DeviceNetwork, DynamicConfig, Shapes
from lit_mmpg.onnx_graphs import export_graph
from tests.integration import tiny
from tests.integration.conftest import PIXEL_NETWORK, best_checkpoint, pixel_data, write_experiment
from tests.shared import made_once

MAX_FRAMES, OPTIONS = 5, 3


@dataclass(frozen=True)
class Exported:
    """A device model and its graphs."""

    network: DeviceNetwork
    specs: dict[str, GraphSpec]
    graphs: dict[str, onnx.ModelProto]

    def parameters(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {e.name: rng.normal(0, 0.5, e.shape).astype(np.float32) for e in self.network.spec}


def device_model(
    task: str,
    form: str | None = "low_rank",
    frame: tuple[int, ...] = (24,),
    words: int = 9,
    layers: tuple[...] = ("frame_projection", "head"),
    **options: object,
) -> DeviceNetwork:
    """A device model with random weights; what starts at zero is given values, so that nothing is left out."""
    torch.manual_seed(0)
    config = DeviceModelConfig(**{"width": 16, "heads": 2, "encoder_features": 20, "encoder_channels": 4} | options)
    dynamic = DynamicConfig(layers, form, 4) if form else None
    network = DeviceNetwork(Shapes(task, frame, 40, 18, words), config, dynamic).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            parameter.normal_(std=0.2)
    return network


@cache
def exported(task: str, form: str | None, frame: tuple[int, ...] = (24,)) -> Exported:
    return export_once(f"{task}_{form}_{len(frame)}", device_model(task, form, frame))


def export_once(name: str, network: DeviceNetwork) -> Exported:
    """Export a device model, once for all test processes."""
    specs = {spec.role: spec for spec in graph_specs(network, MAX_FRAMES, OPTIONS)}

    def make(folder: Path) -> None:
        for role, spec in specs.items():
            onnx.save(export_graph(spec, network), folder / f"{role}.onnx")

    folder = made_once(f"exported_{name}", make)
    return Exported(network, specs, {role: onnx.load(folder / f"{role}.onnx") for role in specs})


@dataclass(frozen=True)
class Made:
    """A trained pair with its bundle."""

    folder: Path
    device: Path
    cloud: Path
    bundle: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Train both halves on the tiny data and export the cloud half in every precision, once per kind of data."""
    done: dict[str, Made] = {}

    def make(kind: str = "features") -> Made:
        if kind not in done:
            template = made_once(f"bundle_of_{kind}", lambda folder: _train_and_export(folder, kind))
            folder = shutil.copytree(template, tmp_path_factory.mktemp(kind) / "project")
            device, cloud = (best_checkpoint(folder, half) for half in ("device", "cloud"))
            done[kind] = Made(folder, device, cloud, folder / "bundle")
        return done[kind]

    return make


def _train_and_export(folder: Path, kind: str) -> None:
    config = write_experiment(folder, tiny.build_root(folder / "data"), "open_ended")
    if kind == "pixels":
        data, trainer = pixel_data(), tiny.trainer_config()
        network = tiny.device_config(network=PIXEL_NETWORK)
        tiny.write_config(folder / "device.yaml", data=data, model=network, trainer=trainer)
        tiny.write_config(config, data=data, model=tiny.cloud_config(), trainer=trainer, device_stage="device.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(config)]) == 0
        precisions = ["--precisions", "fp32", "fp16", "int8_weight", "int8", "--keep-failed", "--torch"]
        cloud = best_checkpoint(folder, "cloud")
        assert main(["export", "--ckpt", str(cloud), "--output", "bundle", *precisions]) == 0


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ResNet with random weights, with as many pooled features as the tiny data has."""
    transformers = pytest.importorskip("transformers")
    target = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(target)
    transformers.MobileNetV2ImageProcessor(
        size={"height": 40, "width": 40}, do_center_crop=False, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]
    ).save_pretrained(target)
    return target
