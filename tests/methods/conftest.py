"""Tiny data with an untrained device half on it: enough to check what a method computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from lit_mmpg.batch import Batch, Frames
from lit_mmpg.cloud.exchange import LinkConfig
from lit_mmpg.cloud.module import CloudConfig, CloudModule
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import Annotation, PersonalClipsData, VideoData
from lit_mmpg.data.devices import Dealing
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.model import DeviceModelConfig, DynamicConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.methods.adapted import Loaded
from lit_mmpg.methods.base import Subject
from tests.integration import tiny
from tests.integration.conftest import PIXEL_NETWORK, pixel_data, trained

World = Callable[[str], Loaded]

__all__ = ["trained"]


def make_data(root, task: str, **batch: int) -> VideoData:
    arguments = tiny.data_config(root, task)["init_args"]
    arguments["batch"] = BatchShape(**arguments["batch"] | batch)
    arguments["dealing"] = Dealing(**arguments["dealing"])
    for kind in ("questions", "captions"):
        arguments[kind] = [Annotation(**entry) for entry in arguments[kind]]
    data = VideoData(**arguments)
    data.setup(None)
    return data


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A device half with random weights on the tiny data, for a task."""
    root = tiny.build_root(tmp_path_factory.mktemp("methods"), {"train": 24, "val": 12, "test": 16})
    known: dict[str, Loaded] = {}

    def make(task: str) -> Loaded:
        if task not in known:
            data = make_data(root, task)
            torch.manual_seed(0)
            module = DeviceModule.for_data(data, network=DeviceModelConfig(width=16, heads=2))
            names = [device.id for device in data.device_table.devices]
            known[task] = Loaded(Subject(module, names), data, "none.ckpt")
        return known[task]

    return make


@pytest.fixture(scope="session")
def cloud_world(world: World) -> World:
    """A cloud half with random weights on the tiny data: its parameters differ between devices."""
    known: dict[str, Loaded] = {}

    def make(form: str) -> Loaded:
        if form not in known:
            static = world("open_ended")
            torch.manual_seed(1)
            module = CloudModule(
                static.data.meta,
                network=DeviceModelConfig(width=16, heads=2),
                dynamic=DynamicConfig(("frame_projection", "head"), form, 2),
                cloud=CloudConfig(latent=4, reasoner_hidden=16, embedding=8, adaptor_hidden=16),
                link=LinkConfig("fp32", "fp32"),
            )
            module.network.load_state_dict(static.subject.network.state_dict(), strict=False)
            with torch.no_grad():
                for generator in module.adaptor.layers.values():
                    for part in generator.generators:
                        part.weight.add_(0.2 * torch.randn(part.weight.shape))
            names = [device.id for device in static.data.device_table.devices]
            known[form] = Loaded(Subject(module, names), static.data, "none.ckpt")
        return known[form]

    return make


@pytest.fixture(scope="session")
def pixel_world(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A device half with random weights on very few, very small rendered clips."""
    arguments = pixel_data()["init_args"]
    data = PersonalClipsData(
        PersonalClipsConfig(**arguments["clips"]),
        cache_dir=str(tmp_path_factory.mktemp("clips")),
        batch=BatchShape(**arguments["batch"]),
    )
    data.setup(None)
    torch.manual_seed(0)
    module = DeviceModule(data.meta, DeviceModelConfig(**PIXEL_NETWORK))
    return Loaded(Subject(module, [device.id for device in data.device_table.devices]), data, "none.ckpt")


def take(batch: Batch, index: torch.Tensor) -> Batch:
    """Some devices of a batch."""

    def part(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value[index]
        return Frames(value.values[index], value.mask[index]) if isinstance(value, Frames) else value

    return dataclasses.replace(batch, **{f.name: part(getattr(batch, f.name)) for f in dataclasses.fields(batch)})
