"""Pretrained encoders as a device model through the command line; their folders are gone once it is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import lit_mmpg
from lit_mmpg.cli import main
from lit_mmpg.device import DualEncoder
from lit_mmpg.export.source import open_source
from lit_mmpg.profiling.cli import main as profile
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.runtime.personal import PersonalDevice
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.verify import verify
from lit_mmpg.serving.in_process import CloudHere
from tests.device.test_dual import write_text, write_vision
from tests.integration import tiny
from tests.integration.conftest import pixel_data
from tests.integration.test_own_network import PROFILE


def test_from_folders_to_a_personal_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"vision": str(write_vision(Path("vision"), "vit")), "text": str(write_text(Path("text"))), "width": 16}
    network = {"class_path": "lit_mmpg.device.DualEncoder", "init_args": arguments}
    quick = tiny.trainer_config(logger=False, num_sanity_val_steps=0)
    data, model = pixel_data(), tiny.device_config(network=network)
    config = tiny.write_config(Path("device.yaml"), data=data, model=model, trainer=quick)
    assert main(["fit", "--config", str(config), "--trainer.default_root_dir=one"]) == 0
    (first,) = Path("one").rglob("best.ckpt")
    for folder in ("vision", "text"):
        shutil.rmtree(folder)
    layers = ["encoder.model.*.q_proj", "text_encoder.model.*.query", "frame_projection", "head"]
    dynamic = {"layers": layers, "form": "low_rank", "rank": 2, "input_layer": {"grid": [2, 2]}}
    model = tiny.cloud_config(first, dynamic=dynamic, optimiser={"learning_rate": 0.02})
    config = tiny.write_config(Path("cloud.yaml"), data=data, model=model, trainer=quick)
    assert main(["fit", "--config", str(config), "--trainer.default_root_dir=two"]) == 0
    (second,) = Path("two").rglob("best.ckpt")
    for checkpoint in (first, second):
        assert main(["test", "--ckpt_path", str(checkpoint), "--trainer.logger=false"]) == 0
    source = open_source(second)
    assert isinstance(source.network, DualEncoder) and source.network.encodes_personally
    assert main(["export", "--ckpt", str(second), "--output", "bundle", "--torch"]) == 0
    bundle = Bundle.open(Path("bundle"))
    for engine in ("onnxruntime", "torch"):
        for role in bundle.roles:
            with create_engine(engine, bundle, role) as active:
                assert verify(active).ok, (engine, role)
    Path("quick.yaml").write_text(PROFILE)
    assert profile(["run", "--bundle", "bundle", "--config", "quick.yaml", "--no-record", "--output", "profile"]) == 0
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (3, 3, 24, 24), dtype=np.uint8) for _ in range(2)]
    here = lit_mmpg.load(second).new_device("kitchen")
    state = DeviceState.open(bundle, None, "kitchen", "")
    with PersonalDevice(DeviceSession(bundle), state, CloudHere(source.cloud)) as device:
        static = device.answer(clips[0], "what is mine")
        for clip in clips:
            device.observe(clip)
            here.observe(clip)
        assert device.personalise().source == "cloud"
        here.personalise()
        personal = device.answer(clips[0], "what is mine")
        expected = here.answer(clips[0], "what is mine").scores
        np.testing.assert_allclose(personal.scores, expected, rtol=1e-3, atol=1e-4)
        assert not np.allclose(personal.scores, static.scores, atol=1e-6)
