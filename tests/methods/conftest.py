"""Tiny data with an untrained device half on it: enough to check what a method computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import VideoData
from lit_mmpg.device.base import shapes_of
from lit_mmpg.device.initialise import InitialisationConfig, initialise
from lit_mmpg.device.model import DeviceModel, DeviceModelConfig
from lit_mmpg.device.module import DeviceModule
from lit_mmpg.methods.adapted import Loaded
from lit_mmpg.methods.base import Subject
from tests.integration import tiny
from tests.integration.conftest import trained

World = Callable[[str], Loaded]

__all__ = ["trained"]


def make_data(root, task: str) -> VideoData:
    arguments = tiny.data_config(root, task)["init_args"]
    arguments["batch"] = BatchShape(**arguments["batch"])
    from lit_mmpg.data.datamodule import Annotation
    from lit_mmpg.data.devices import Dealing

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
            module = DeviceModule(DeviceModelConfig(width=16, heads=2))
            module.network = DeviceModel(shapes_of(data.meta), module.network_config)
            initialise(module.network, data, InitialisationConfig())
            names = [device.id for device in data.device_table.devices]
            known[task] = Loaded(Subject(module, names), data, "none.ckpt")
        return known[task]

    return make
