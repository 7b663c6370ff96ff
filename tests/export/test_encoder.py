from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_mmpg.cli import main
from lit_mmpg.data.vision import encoder_digest, encoder_folder, open_graph, run_graph
from lit_mmpg.errors import UserError
from lit_mmpg.export.encoder import pictures
from lit_mmpg.onnx_graphs import export_graph
from lit_mmpg.runtime.bundle import Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.runtime.verify import verify
from lit_mmpg.vision import build_vision_model, keep_graph, load_vision_model
from tests.export.test_graphs import session

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(encoder_folder: Path) -> Path:
    return encoder_folder


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 8}
SQUARE = {"height": 32, "width": 32}


def write_encoder(
    folder: Path, settings: dict[str, object], name: str = "preprocessor_config.json", **more: object
) -> Path:
    """A small vision transformer with settings of an image processor, as somebody wrote them."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**({"model_type": "vit", "image_size": 32} | SMALL | more))
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    (folder / name).write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("CLIP", {"crop_size": SQUARE}),  # what a file leaves out is what its class says
        ("MobileNetV2", {"size": SQUARE}),  # which its class would pad to 224
        ("ViT", {"size": 32, "image_mean": 0.4, "image_std": 0.2, "do_rescale": False}),
        ("MobileViT", {"crop_size": 32}),  # blue first, and not normalised
        ("EfficientNet", {"size": SQUARE, "rescale_factor": 1 / 127.5, "rescale_offset": True}),
        ("ConvNext", {"size": {"longest_edge": 32}, "do_normalize": False}),
    ],
)
def test_colours_are_those_of_the_image_processor(kind: str, settings: dict[str, object], tmp_path: Path) -> None:
    settings = {"image_processor_type": f"{kind}ImageProcessor", **settings}
    folder = write_encoder(tmp_path / "one", settings)
    encoder = load_vision_model(str(folder))
    assert (encoder.height, encoder.width) == (32, 32)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    given = list(pixels.transpose(0, 2, 3, 1))
    expected = processor(given, return_tensors="pt", do_resize=False, do_center_crop=False)["pixel_values"]
    seen: list[torch.Tensor] = []
    encoder.module.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["pixel_values"]), with_kwargs=True)
    with torch.inference_mode():
        encoder.module(torch.from_numpy(pixels))
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    # transformers of today writes the same into another file.
    other = write_encoder(tmp_path / "two", {"image_processor": settings}, "processor_config.json")
    assert load_vision_model(str(other)).description == encoder.description
    assert encoder_folder(str(other)) == other and encoder_digest(other) != encoder_digest(folder)


@pytest.mark.parametrize(
    ("settings", "config", "reason"),
    [
        ({"size": SQUARE, "image_std": [0.1, 0.2]}, {}, r"preprocessor_config.json.*3 elements"),
        ({"size": SQUARE, "rescale_factor": 0}, {}, "more than to scale"),
        ({"size": SQUARE, "rescale_factor": "1/255"}, {}, r"preprocessor_config.json"),
        ({"size": "32"}, {}, "size"),
        ({"size": {"height": -4, "width": 8}}, {}, "no features of pictures of -4 x 8"),
        ({"size": SQUARE}, {"model_type": "vit_mae"}, "other features of the same picture each time"),
        ({"size": SQUARE}, {"model_type": "pixtral"}, "no features of pictures"),  # all pictures as one sequence
        ({"size": SQUARE, "image_processor_type": "Own", "do_flip_channel_order": True}, {}, "Unrecognized image proc"),
    ],
)
def test_what_no_device_can_repeat_is_refused(
    settings: dict[str, object], config: dict[str, object], reason: str, tmp_path: Path
) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.5] * 3} | settings
    with pytest.raises(UserError, match=reason):
        load_vision_model(str(write_encoder(tmp_path, settings, **config)))


def test_nothing_is_kept_of_weights_that_are_replaced(tmp_path: Path) -> None:
    config = {"model_type": "levit", "hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "key_dim": [8] * 3}
    folder = write_encoder(tmp_path, {"crop_size": SQUARE}, depths=[1] * 3, patch_size=16, **config)
    encoder = load_vision_model(str(folder))
    before = json.dumps(encoder.description)
    again = build_vision_model(encoder.description, "x")
    assert json.dumps(encoder.description) == before, "what a checkpoint keeps would be no longer what it was"
    weights = {
        k: torch.rand_like(v) if "attention_bias" in k and v.is_floating_point() else v
        for k, v in encoder.module.state_dict().items()
    }
    for one in (encoder, again):
        one.module.load_state_dict(weights)
    pictures = torch.randint(0, 256, (1, 3, 32, 32))
    first = again.module(pictures)
    again.module.train().eval()
    assert torch.equal(again.module(pictures), first)


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


def test_bundle_starts_from_pixels(made, tmp_path):
    pair = made("features")
    target = tmp_path / "b"
    settings = {"crop_size": {"height": 40, "width": 40}}
    # Its features are a view of those of all places.
    folder = write_encoder(tmp_path / "e", settings, model_type="dinov2", hidden_size=12, image_size=40)
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
