from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_mmpg.cli import main
from lit_mmpg.data.vision import open_graph, run_graph
from lit_mmpg.errors import UserError
from lit_mmpg.export.encoder import pictures
from lit_mmpg.onnx_graphs import export_graph
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.runtime.verify import verify
from lit_mmpg.vision import keep_graph, load_vision_model
from tests.export.test_graphs import session

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(encoder_folder: Path) -> Path:
    return encoder_folder


def test_scaling_is_that_of_the_image_processor(folder):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    encoder = load_vision_model(str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 40)).astype(np.uint8)
    expected = processor(list(pixels), return_tensors="pt", do_resize=False)["pixel_values"]
    seen: list[torch.Tensor] = []
    encoder.module.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["pixel_values"]), with_kwargs=True)
    with torch.inference_mode():
        encoder.module(torch.from_numpy(pixels))
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)


def test_mistakes_are_answered(folder, tmp_path, made, capsys):
    with pytest.raises(UserError, match="is not a folder"):
        load_vision_model(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_vision_model(str(tmp_path))
    arguments = ["export", "--ckpt", str(made("features").cloud), "--output", str(tmp_path / "b")]
    assert main([*arguments, "--frames", str(tmp_path)]) == 2
    assert "--frame-encoder" in capsys.readouterr().err


def test_a_graph_for_any_size_resizes_as_torch_does(folder: Path, tmp_path: Path) -> None:
    encoder = keep_graph(str(folder), 32, tmp_path / "kept.onnx", any_size=True)
    run = open_graph(tmp_path / "kept.onnx")
    for size in ((1, 24, 40), (3, 50, 31)):
        pixels = np.random.default_rng(0).integers(0, 256, (size[0], 3, *size[1:])).astype(np.uint8)
        with torch.inference_mode():
            resized = torch.nn.functional.interpolate(torch.from_numpy(pixels).float(), (32, 32), mode="bilinear")
            expected = encoder.module(resized).numpy()
        np.testing.assert_allclose(run_graph(run, pixels), expected, rtol=1e-3, atol=1e-4)


def test_pictures_of_two_seeds_differ(folder):
    encoder = load_vision_model(str(folder))
    first, second = (pictures(None, encoder, 3, seed) for seed in (0, 1))
    assert first.shape == (3, 3, 40, 40) and first.dtype == np.uint8
    assert first.std() > 20 and not np.array_equal(first, second)


def data_folder() -> Path:
    root = os.environ.get("LIT_MMPG_DATA")
    if not root or not (Path(root) / "msrvtt").is_dir():
        pytest.skip("LIT_MMPG_DATA does not name a folder with msrvtt/")
    return Path(root)


def test_real_frames_give_the_features_that_were_extracted():
    """A real clip through the exported graph, against the stored features of its frames.

    They were computed with 8-bit activations from JPEG copies of these frames, which is where the rest comes from.
    """
    import h5py

    av = pytest.importorskip("av")
    from PIL import Image

    root = data_folder()
    model, video = root.parent / "models" / "mobilenet_v2_1.0_224", root / "videos" / "video7013.mp4"
    if not (model.is_dir() and video.is_file()):
        pytest.skip(f"{model} or {video} is not there")
    encoder = load_vision_model(str(model))
    assert encoder.features == 1280 and encoder.height == 224
    shown = (0, 86, 158, 218)
    with av.open(str(video)) as container:
        decoded = [f.to_image() for i, f in enumerate(container.decode(video=0)) if i in shown]
    resized = [np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) for image in decoded]
    pixels = np.stack(resized).transpose(0, 3, 1, 2).copy()
    (got,) = session(export_graph(encoder.spec())).run(["features"], {"pixels": pixels})
    with torch.inference_mode():
        np.testing.assert_allclose(got, encoder.module(torch.from_numpy(pixels)).numpy(), rtol=1e-3, atol=1e-3)
    with h5py.File(root / "msrvtt" / "frames_mobilenet_v2.h5") as file:
        expected, foreign = (file[name][:4].astype(np.float32) for name in ("video7013", "video7020"))
    assert cosine(got, expected).min() > 0.975
    assert cosine(got[:1], foreign).max() < 0.8


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return (left * right).sum(-1) / np.linalg.norm(left, axis=-1) / np.linalg.norm(right, axis=-1)


def test_bundle_starts_from_pixels(folder, made, tmp_path):
    pair = made("features")
    target = tmp_path / "b"
    arguments = ["--ckpt", str(pair.cloud), "--output", str(target), "--frame-encoder", str(folder)]
    assert main(["export", *arguments]) == 0
    bundle = Bundle.open(target)
    assert bundle.roles == ["model", "project", "encode"]
    assert (bundle.manifest.preprocessing.height, bundle.manifest.preprocessing.resize) == (40, "bilinear")
    assert bundle.info("encode").acceptance.source == "synthetic"
    with create_engine("onnxruntime", bundle, "encode") as engine:
        assert verify(engine).ok
    with pytest.raises(UserError, match="does not run the frame encoder"):
        create_engine("torch", bundle, "encode")
