"""What is not the default: a correction, a projection of its own for the anchors, other dynamic layers, cameras."""

from __future__ import annotations

import csv
import io
import json
import shutil
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from lit_mmpg.batch import Frames
from lit_mmpg.cli import main
from lit_mmpg.data.images import ImageFrames
from lit_mmpg.data.vision import FrameEncoder
from lit_mmpg.device.outputs import answer_batch
from lit_mmpg.errors import UserError
from lit_mmpg.export.precision import convert
from lit_mmpg.export.reference import expected_outputs, static_parameters
from lit_mmpg.export.source import Source, open_source
from lit_mmpg.export.write import bundle_folder, write_manifest
from lit_mmpg.methods.adapted import evaluate_adapted, load
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.runtime.adaptation import take_in
from lit_mmpg.runtime.bundle import MOMENTS, Bundle, file_digest
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.runtime.manifest import PRECISIONS, OwnStatistics
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState
from lit_mmpg.runtime.verify import verify
from tests.export.conftest import Exported, device_model, export_once
from tests.export.test_graphs import random_inputs, session
from tests.integration import tiny
from tests.integration.conftest import best_checkpoint

CASES: dict[str, tuple[str, str, tuple[str, ...], dict[str, object]]] = {
    "correction": ("retrieval", "low_rank", ("correction",), {"correction": 24, "temporal": False}),
    "context": ("open_ended", "core", ("correction", "fusion"), {"correction": 24, "context_width": 6}),
    "film": ("multiple_choice", "film", ("frame_projection", "head"), {"context_width": 6}),
    "shift": ("open_ended", "shift", ("frame_projection",), {}),
}


NAMES = [name if name in ("correction", "film") else pytest.param(name, marks=pytest.mark.soak) for name in CASES]


@cache
def exported(name: str) -> Exported:
    task, form, layers, options = CASES[name]
    return export_once(name, device_model(task, form, layers=layers, **options))


@pytest.mark.parametrize("name", NAMES)
def test_onnx_computes_what_torch_computes(name: str) -> None:
    case = exported(name)
    static = static_parameters(case.network)
    for role, spec in case.specs.items():
        run = session(case.graphs[role])
        for seed, (rows, frames, words) in enumerate([(1, 1, 1), (3, 8, 4)]):
            inputs = random_inputs(case, role, rows, frames, words)
            own = case.parameters(seed) if spec.personal else {}
            expected = expected_outputs(spec, case.network, inputs, own)[spec.output]
            (got,) = run.run([spec.output], {**inputs, **own})
            np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)
            if spec.personal:
                plain = expected_outputs(spec, case.network, inputs, {})[spec.output]
                (got,) = run.run([spec.output], {**inputs, **static})
                np.testing.assert_allclose(got, plain, rtol=2e-4, atol=2e-5)
                assert np.abs(expected - plain).max() > 1e-3, "the parameters are not used"


@pytest.mark.parametrize("name", NAMES)
def test_project_makes_what_the_cloud_is_trained_on(name: str) -> None:
    case = exported(name)
    features = torch.randn(7, 24, generator=torch.Generator().manual_seed(0))
    expected = case.network.anchor_features(case.network.encode(features)).numpy()
    (got,) = session(case.graphs["project"]).run(["projected"], {"features": features.numpy()})
    assert got.shape == (7, case.network.anchor_width)
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_builds_every_variant(name: str, precision: str) -> None:
    engines = pytest.importorskip("lit_mmpg.runtime.engines.tensorrt")
    library = engines.Library(pytest.importorskip("tensorrt_rtx"))
    case = exported(name)
    for role, graph in case.graphs.items():
        personal = [case.parameters(seed) if case.specs[role].personal else {} for seed in range(2)]
        samples = [{**random_inputs(case, role, 4, 5, 6), **own} for own in personal]
        data = convert(graph, precision, samples).SerializeToString()
        engine, _ = engines.build_engine(library, data, {"B": 4, "N": 8, "T": 5, "L": 9, "O": 3})
        assert len(engine) > 10_000


# -- clips that simulated cameras film ---------------------------------------------------------------------------------

FRAME = (12, 16)


def write_frames(root: Path) -> Path:
    """Coloured frames, captions and splits of some clips."""
    rng = np.random.default_rng(0)
    clips = [(f"{split}{i}", split) for split, count in (("train", 8), ("val", 4), ("test", 4)) for i in range(count)]
    with zipfile.ZipFile(root / "frames.zip", "w") as archive:
        for clip, _ in clips:
            colour = rng.integers(30, 226, 3)
            for t in range(int(rng.integers(2, 5))):
                picture = np.clip(colour + rng.normal(0, 25, (*FRAME, 3)), 0, 255).astype(np.uint8)
                with io.BytesIO() as file:
                    Image.fromarray(picture).save(file, "PNG")
                    archive.writestr(f"{clip}/f{t:03d}.png", file.getvalue())
    tables = {
        "clips.csv": [("video", "split"), *clips],
        "captions.csv": [("video", "caption"), *((clip, f"a scene called {clip}") for clip, _ in clips)],
    }
    for name, rows in tables.items():
        with (root / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return root


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> tuple[Source, Bundle]:
    """A pair of halves trained through cameras, with a correction, a context projection and own statistics."""
    folder = tmp_path_factory.mktemp("filmed")
    (folder / "data").mkdir()
    data = {
        "class_path": "CameraClipsData",
        "init_args": {
            "task": "retrieval",
            "root": str(write_frames(folder / "data")),
            "clips": "clips.csv",
            "frames": "frames.zip",
            "encoder": str(encoder_folder),
            "image_size": 40,
            "captions": [{"layout": "captions_csv", "path": "captions.csv"}],
            "cameras": {
                "pool": 6,
                "train": 4,
                "seen": 1,
                "val": 2,
                "test": 3,
                "clean": 1,
                "clips_per_camera": 3,
                "history": 2,
            },
            "batch": {"devices": 2, "clips": 2, "items_per_clip": 1, "context_clips": 2, "max_frames": 3}
            | {"max_words": 5, "eval_devices": 2, "eval_clips": 4, "own_statistics": 4},
            "min_count": 1,
            "cache_dir": str(folder / "cache"),
        },
    }
    device = tiny.device_config(
        network={"width": 16, "heads": 2, "temporal": False, "correction": 20, "context_width": 6}, alignment=1.0
    )
    cloud = tiny.cloud_config(dynamic={"layers": ["correction"], "form": "low_rank", "rank": 2})
    tiny.write_config(folder / "device.yaml", data=data, model=device, trainer=tiny.trainer_config())
    config = tiny.write_config(
        folder / "both.yaml", data=data, model=cloud, trainer=tiny.trainer_config(), device_stage="device.yaml"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "--config", str(config)]) == 0
        checkpoint = str(best_checkpoint(folder, "cloud"))
        options = ["--precisions", *PRECISIONS, "--keep-failed", "--frame-encoder", str(encoder_folder), "--torch"]
        options += ["--frames", str(folder / "data" / "frames.zip")]
        assert main(["export", "--ckpt", checkpoint, "--output", "bundle", *options]) == 0
        return open_source(checkpoint), Bundle.open(folder / "bundle")


def test_every_graph_of_a_model_with_a_correction_is_right_on_the_device(filmed: tuple[Source, Bundle]) -> None:
    _, bundle = filmed
    assert bundle.roles == ["model", "text", "project", "encode"]
    assert bundle.spec.names == ("correction.u", "correction.v", "correction.c")
    assert bundle.manifest.frames.width == 6
    for graph in bundle.manifest.graphs:
        with create_engine("onnxruntime", bundle, graph.role, graph.precision) as engine:
            verdict = verify(engine)
        assert verdict.ok, (graph.role, graph.precision, verdict.problems)
    with create_engine("torch", bundle, "model") as engine:
        assert verify(engine).ok


def test_a_device_sends_what_the_cloud_was_trained_on(filmed: tuple[Source, Bundle]) -> None:
    source, bundle = filmed
    source.data.setup("test")
    batch = next(iter(source.data.eval_batches("test_unseen")))
    context = Frames(batch.context.values[:1], batch.context.mask[:1])
    with torch.inference_mode():
        expected, _ = source.cloud.select(context)
    state = DeviceState(bundle)
    with DeviceSession(bundle) as device:
        for values, mask in zip(context.values[0], context.mask[0], strict=True):
            if mask.any():
                state.see(device.project(values[mask].numpy()))
    sent = state.upload("device")
    mask = expected.mask[0].any(-1)
    clips = int(mask.sum())
    assert clips == len(state.clips) > 0
    np.testing.assert_array_equal(sent.anchor_mask, expected.mask[0, mask].numpy())
    np.testing.assert_array_equal(sent.num_frames, expected.num_frames[0, mask].numpy())
    anchors = expected.features[0, mask].numpy()
    np.testing.assert_allclose(sent.anchors, anchors, atol=1.01 * np.abs(anchors).max() / 127)  # int8


def test_a_device_standardises_as_its_training_did(filmed: tuple[Source, Bundle], tmp_path: Path) -> None:
    """The same embeddings from features as they are, after the same earlier clips; a state on the disk keeps it so."""
    source, bundle = filmed
    assert bundle.manifest.own_statistics == OwnStatistics(4, 2, "device")
    source.data.setup("test")
    loader = source.data.eval_batches("test_unseen")
    batch, query = next(iter(loader)), loader.queries[0]
    raw = loader.collate.frames([query.clips], len(query.clips), [query.device])
    with torch.inference_mode():
        expected = answer_batch(source.network, batch, source.network.encode(batch.frames.values), ()).video[0].numpy()
    state = DeviceState(bundle)

    def embeddings(device: DeviceSession) -> np.ndarray:
        clips = zip(raw.values[0], raw.mask[0], strict=True)
        return np.stack([device.embed_video(values[mask].numpy()) for values, mask in clips])

    with DeviceSession(bundle) as device:
        device.swap(bundle.static_parameters())
        plain = embeddings(device)
        assert state.statistics_text() == "as they are, no clip came before"
        for values, mask in zip(batch.context.values[0], batch.context.mask[0], strict=True):
            before = state.alignment()
            take_in(device, state, values[mask].numpy())
            np.testing.assert_array_equal(device.alignment, before)  # a clip is no part of its own context
        assert len(state.clips) == 2 and state.statistics_text() == "standardised by 2 clips"
        state.save(tmp_path)
        device.alignment = DeviceState.load(bundle, tmp_path).alignment()
        np.testing.assert_array_equal(device.alignment, state.alignment())
        np.testing.assert_allclose(embeddings(device), expected, atol=2e-4)
        assert not np.allclose(plain, expected, atol=5e-3)
        device.alignment = DeviceState(bundle).alignment()  # nothing seen yet: features as they are
        np.testing.assert_allclose(embeddings(device), plain, atol=1e-5)


def test_moments_that_do_not_fit_are_refused(filmed: tuple[Source, Bundle], tmp_path: Path) -> None:
    bundle = filmed[1]
    copy = shutil.copytree(bundle.path, tmp_path / "bundle")
    safetensors_numpy.save_file({"mean": np.zeros(3, np.float32)}, copy / MOMENTS)
    files = bundle.manifest.files | {MOMENTS: file_digest(copy / MOMENTS)}
    write_manifest(copy, replace(bundle.manifest, files=files))
    with pytest.raises(UserError, match=r"moments\.safetensors does not hold mean and variance"):
        Bundle.open(copy)
    (copy / MOMENTS).unlink()
    with pytest.raises(UserError, match=r"moments\.safetensors is missing"):
        Bundle.open(copy)


def test_a_static_model_remembers_statistics_alone(filmed: tuple[Source, Bundle], tmp_path: Path) -> None:
    """The bundle of the device half: no anchors and nothing personal, but clips are remembered."""
    whole = filmed[1]
    manifest = replace(whole.manifest, half="device", spec=ParameterSpec(()), anchors=None, link=None)
    static = Bundle(whole.path, manifest, training=whole.training)
    assert static.remembers
    state, both, rng = DeviceState(static), DeviceState(whole), np.random.default_rng(0)
    for _ in range(3):
        features = rng.normal(size=(5, manifest.frames.features)).astype(np.float32)
        state.see(None, features)
        both.see(rng.normal(size=(5, manifest.frames.width)).astype(np.float32), features)
    assert len(state.clips) == 2 and not state.situation().personal
    np.testing.assert_array_equal(state.alignment(), both.alignment())
    state.save(tmp_path)
    np.testing.assert_array_equal(DeviceState.load(static, tmp_path).alignment(), state.alignment())


def test_methods_that_adapt_rank_the_clips_of_each_camera_as_the_test_does(
    filmed: tuple[Source, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = str(filmed[0].path.resolve())
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", checkpoint, "--output", "own.json"]) == 0
    own = {
        (row["split"], row["metric"]): row["value"]
        for row in json.loads(Path("own.json").read_text())["rows"]
        if row["method"] == "cdc_mmpg" and "_minus_" not in row["metric"]
    }
    result = evaluate_adapted(load(checkpoint), "unadapted")
    found = {(row["split"], row["metric"]): row["value"] for row in result.rows}
    assert found == pytest.approx(own, abs=1e-6)
    # Every camera has four clips to rank: a gallery that mixes the cameras has more places.
    assert found["test_unseen", "t2v/MnR"] <= 4


def test_the_encoder_of_a_bundle_makes_the_features_of_the_training(
    filmed: tuple[Source, Bundle], encoder_folder: Path
) -> None:
    """Frames resized as a device does it, against the encoder of the training, which resizes within its graph."""
    source, bundle = filmed
    archive = Path(source.data.root) / "frames.zip"
    pixels = ImageFrames(archive, 3).pixels("test0")
    height, width = bundle.manifest.preprocessing.height, bundle.manifest.preprocessing.width
    resized = [
        np.asarray(Image.fromarray(p.transpose(1, 2, 0)).resize((width, height), Image.Resampling.BILINEAR))
        for p in pixels
    ]
    with DeviceSession(bundle) as device:
        got = device.encode(np.stack(resized).transpose(0, 3, 1, 2))
    expected = FrameEncoder(encoder_folder, 40, source.data.cache_dir)(pixels)
    np.testing.assert_allclose(got, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left on device (os error 28)")]
)
def test_a_disk_without_room_is_named_and_leaves_nothing(error: Exception, tmp_path: Path) -> None:
    said = r"--output .*/b cannot be written \(No space left .*more room"
    with pytest.raises(UserError, match=said), bundle_folder(tmp_path / "b"):
        raise error
    assert not list(tmp_path.iterdir())
