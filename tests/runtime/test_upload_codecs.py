"""A device without torch uploads with every codec, product quantisation by the bundle's own codebooks among them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cloud.codebooks import from_checkpoint
from lit_mmpg.errors import UserError
from lit_mmpg.link import Upload, register
from lit_mmpg.link.product import learn
from lit_mmpg.runtime.bundle import CODEBOOKS, Bundle
from lit_mmpg.runtime.state import DeviceState
from tests.runtime.test_bundle import edit

CODECS = ("fp32", "fp16", "int8", "int7", "int6", "int4", "pq")


@pytest.fixture
def bundle(made) -> Bundle:
    return Bundle.open(made("features").bundle)


def filled(bundle: Bundle, codec: str | None) -> DeviceState:
    rng = np.random.default_rng(0)
    state = DeviceState(bundle, codec=codec)
    for frames in (3, 1, 4):
        state.see(rng.normal(size=(frames, bundle.manifest.frames.width)).astype(np.float32))
    return state


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_carries_the_context(bundle: Bundle, codec: str) -> None:
    sent = filled(bundle, codec).upload("kitchen")
    exact = filled(bundle, "fp32").upload("kitchen").anchors
    arrived = Upload.from_bytes(sent.to_bytes())
    assert arrived.codec == bundle.upload_codec(codec)
    if codec == "pq":  # each part is the nearest word of the checkpoint's own codebooks
        assert bundle.quantiser is not None
        words = bundle.quantiser.decode(bundle.quantiser.encode(exact, None), exact.shape, None)
        np.testing.assert_array_equal(arrived.anchors, np.where(arrived.anchor_mask[..., None], words, 0))
    else:
        limit = {"fp32": 0, "fp16": 2**-10, "int8": 1 / 250, "int7": 1 / 120, "int6": 1 / 60, "int4": 1 / 12}[codec]
        assert np.abs(arrived.anchors - exact).max() <= limit * np.abs(exact).max()


def test_the_bundle_holds_the_codebooks_of_its_checkpoint(made, bundle: Bundle, tmp_path: Path) -> None:
    assert bundle.quantiser is not None
    assert bundle.quantiser == from_checkpoint(read_checkpoint(made("features").cloud)["lit_mmpg"])
    assert filled(bundle, None).upload("kitchen").codec == "int8"
    with pytest.raises(UserError, match=r"unknown upload codec 'int5'; choose from .*int8, pq"):
        bundle.upload_codec("int5")
    copy = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    (copy / CODEBOOKS).write_bytes((copy / CODEBOOKS).read_bytes()[:-4] + b"1234")
    with pytest.raises(UserError, match=r"codebooks\.safetensors is truncated or was edited"):
        Bundle.open(copy)
    files = {name: sha256 for name, sha256 in bundle.manifest.files.items() if name != CODEBOOKS}
    edit(copy, files=files)
    with pytest.raises(UserError, match="holds no codebooks"):
        Bundle.open(copy).upload_codec("pq")


def test_a_process_without_torch_uploads_by_product_quantisation(bundle: Bundle) -> None:
    code = f"""
import sys
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.state import DeviceState
import numpy as np
bundle = Bundle.open({str(bundle.path)!r})
state = DeviceState(bundle, codec="pq")
state.see(np.ones((2, bundle.manifest.frames.width), np.float32))
print(state.upload("kitchen").codec)
assert not {{"torch", "lightning"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert bundle.quantiser is not None and done.stdout.strip() == bundle.quantiser.name


def test_codebooks_survive_their_file() -> None:
    quantiser = learn(np.random.default_rng(0).normal(size=(300, 10)).astype(np.float32), 3)
    data = safetensors_numpy.save(quantiser.to_tensors())
    assert type(quantiser).from_tensors(safetensors_numpy.load(data)) == quantiser


@pytest.mark.parametrize(("codec", "most"), [("int8", 2130), ("int7", 2048), ("pq", 256)])
def test_payload_of_a_full_context(codec: str, most: int) -> None:
    """16 clips of one anchor of 128 values. int8 cannot keep 2,048 bytes: its values alone take them."""
    rng = np.random.default_rng(0)
    quantiser = learn(rng.normal(size=(600, 128)).astype(np.float32), 12)
    register(quantiser)
    upload = Upload.encode(
        anchors=rng.normal(size=(16, 1, 128)),
        anchor_mask=np.ones((16, 1), bool),
        positions=np.full((16, 1), 0.5),
        num_frames=np.full(16, 40),
        device_id="kitchen",
        codec=quantiser.name if codec == "pq" else codec,
        checkpoint_digest="0" * 64,
        spec_digest="0" * 64,
    )
    assert Upload.from_bytes(upload.to_bytes()).payload_bytes == upload.payload_bytes <= most
    assert upload.payload_bytes == {"int8": 2130, "int7": 1874, "pq": 242}[codec]
