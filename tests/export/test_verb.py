from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from lit_mmpg.errors import UserError
from lit_mmpg.export.source import open_source
from lit_mmpg.profiling.inputs import role_inputs
from lit_mmpg.runtime.bundle import STATIC_CASE, Bundle
from lit_mmpg.runtime.engines import create_engine
from lit_mmpg.runtime.manifest import PRECISIONS
from lit_mmpg.runtime.verify import verify
from lit_mmpg.torch_engines.finetuning import OnDeviceTraining


@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_every_graph_of_a_bundle_is_right_on_the_device(made, kind):
    bundle = Bundle.open(made(kind).bundle)
    roles = ["model", "project"] + (["encode"] if kind == "pixels" else [])
    assert bundle.roles == roles
    for graph in bundle.manifest.graphs:
        assert graph.precision in PRECISIONS and graph.nodes > 0 and graph.macs > 0
        with create_engine("onnxruntime", bundle, graph.role, graph.precision) as engine:
            verdict = verify(engine)
        assert verdict.ok, (graph.role, graph.precision, verdict.problems)


def test_manifest_says_what_the_checkpoint_is(made):
    pair = made("features")
    bundle = Bundle.open(pair.bundle)
    manifest, ours = bundle.manifest, read_checkpoint(pair.cloud)["lit_mmpg"]
    source = open_source(pair.cloud)
    source.module._open_link()
    assert manifest.checkpoint_digest == source.module._exchange.checkpoint_digest == source.digest()
    assert bundle.spec == source.network.spec and len(bundle.spec) == 6
    assert (manifest.run_id, manifest.tracking_uri) == (ours["run_id"], ours["tracking_uri"])
    assert manifest.run_id and manifest.tracking_uri.startswith("sqlite:///")
    assert manifest.vocabulary == ours["data"]["vocabulary"]
    assert list(manifest.answers) == ours["data"]["answers"]["answers"]
    assert (manifest.task, manifest.half, manifest.max_words) == ("open_ended", "cloud", 8)
    assert (manifest.anchors.count, manifest.anchors.context_clips, manifest.frames.max_frames) == (2, 3, 4)
    assert all(graph.acceptance.source == "data" for graph in manifest.graphs)


def test_acceptance_and_calibration_use_different_unseen_devices(made):
    from lit_mmpg.export.samples import draw_samples

    source = open_source(made("features").cloud)
    drawn = draw_samples(source, "data")
    table = source.data.device_table
    trained = {table.devices[d].id for d in table.timelines["train"]}
    names = [{device.name for device in group} for group in (drawn.calibration, drawn.acceptance)]
    assert all(names) and not names[0] & names[1] and not trained & (names[0] | names[1])
    for device in drawn.acceptance:
        source.network.spec.validate(device.parameters)
    first, second = (d.parameters["frame_projection.v"] for d in drawn.acceptance[:2])
    assert not np.array_equal(first, second)


def test_reference_cases_differ_by_their_parameters(made):
    reference = Bundle.open(made("features").bundle).reference()
    outputs = reference.roles["model"].outputs
    assert set(outputs) == set(reference.parameters) == {STATIC_CASE, "probe", "device0", "device1"}
    static = outputs[STATIC_CASE]["scores"]
    effect = np.sqrt(np.mean((outputs["probe"]["scores"] - static) ** 2)) / static.std()
    assert effect == pytest.approx(0.5, abs=0.02)


def test_the_cost_of_fine_tuning_on_a_device_is_measured_by_real_steps(made):
    bundle = Bundle.open(made().bundle)
    losses = []
    for steps in (1, 20, 1):
        torch.manual_seed(0)
        losses.append(OnDeviceTraining(bundle, role_inputs(bundle, "model", 4), steps, 1e-2).adapt())
    assert losses[1] < losses[0] == losses[2]  # it learns, and every adaptation starts from the bundle


def test_checkpoint_of_the_device_half_and_synthetic_samples(made, tmp_path, capsys):
    device = made("features").device
    assert main(["export", "--ckpt", str(device), "--output", str(tmp_path / "b"), "--samples", "synthetic"]) == 0
    assert "ok" in capsys.readouterr().out
    bundle = Bundle.open(tmp_path / "b")
    assert len(bundle.spec) == 0 and bundle.static_parameters() == {} and bundle.manifest.anchors is None
    assert {graph.acceptance.source for graph in bundle.manifest.graphs} == {"synthetic"}
    with create_engine("onnxruntime", bundle, "model") as engine:
        assert verify(engine).ok and not engine.personal


def test_failed_variant_is_reported_and_left_out(made, tmp_path, capsys, monkeypatch):
    from lit_mmpg.export import acceptance
    from lit_mmpg.runtime.verify import LIMITS, Limits

    monkeypatch.setitem(LIMITS, "int8", Limits(1e-6, 1.0, 1.0))
    assert acceptance.LIMITS is LIMITS
    arguments = [
        "export",
        "--ckpt",
        str(made("features").cloud),
        "--output",
        str(tmp_path / "b"),
        "--precisions",
        "int8",
    ]
    assert main(arguments) == 1
    assert "left out: relative error" in capsys.readouterr().out
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.precisions("model") == ["fp32"]
    assert not (tmp_path / "b" / "model.int8.onnx").exists()
    assert "int8" in bundle.manifest.left_out["model"]
    with pytest.raises(UserError, match=r"not in int8; export left it out: relative error .* > 1e-06"):
        bundle.info("model", "int8")


def error(capsys, *arguments: str) -> str:
    assert main(["export", *arguments]) == 2
    return capsys.readouterr().err


def test_mistakes_are_answered_clearly(made, tmp_path, capsys):
    pair, target = made("features"), str(tmp_path / "b")
    assert "does not exist" in error(capsys, "--ckpt", str(tmp_path / "no.ckpt"), "--output", target)
    (tmp_path / "torn.ckpt").write_bytes(pair.cloud.read_bytes()[:5000])
    assert "damaged" in error(capsys, "--ckpt", str(tmp_path / "torn.ckpt"), "--output", target)
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    assert "not written by lit-mmpg" in error(capsys, "--ckpt", str(tmp_path / "foreign.ckpt"), "--output", target)
    assert "is a file" in error(capsys, "--ckpt", str(pair.cloud), "--output", str(pair.device))
    assert "other files" in error(capsys, "--ckpt", str(pair.cloud), "--output", str(pair.folder))
    assert "no option --presicions" in error(
        capsys, "--ckpt", str(pair.cloud), "--output", target, "--presicions", "int8"
    )
    moved = error(capsys, "--ckpt", str(pair.cloud), "--output", target, "--data.root", str(tmp_path / "gone"))
    assert "gone" in moved and "--samples synthetic" in moved
    assert not list(tmp_path.glob(".b*")) and not (tmp_path / "b").exists(), "nothing half-made is left"


def test_older_bundle_is_replaced_in_one_step(made, tmp_path):
    pair, target = made("features"), tmp_path / "b"
    shutil.copytree(pair.bundle, target)
    before = json.loads((target / "manifest.json").read_text())["digest"]
    assert main(["export", "--ckpt", str(pair.device), "--output", str(target)]) == 0
    assert json.loads((target / "manifest.json").read_text())["digest"] != before
    assert not (target / "model.int8.onnx").exists() and Bundle.open(target).manifest.half == "device"
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
