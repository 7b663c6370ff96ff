from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.runtime.bundle import Bundle, Reference, RoleReference
from lit_mmpg.runtime.manifest import SCHEMA, Manifest, digest
from lit_mmpg.runtime.session import DeviceSession


@pytest.fixture
def copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made("features").bundle, tmp_path / "bundle"))


def edit(folder: Path, seal: bool = True, **values: object) -> None:
    data = json.loads((folder / "manifest.json").read_text()) | values
    data.pop("digest")
    data["digest"] = digest(data) if seal else "0" * 64
    (folder / "manifest.json").write_text(json.dumps(data))


def test_manifest_survives_its_file(copy):
    manifest = Bundle.open(copy).manifest
    assert Manifest.from_json(json.loads((copy / "manifest.json").read_text())) == manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "project.int8.onnx", "static.safetensors", "reference.safetensors", "codebooks.safetensors"],
)
def test_truncated_edited_and_missing_files_are_refused(copy, name):
    file = copy / name
    data = file.read_bytes()
    file.write_bytes(data[:-7])
    with pytest.raises(UserError, match=rf"{name} is truncated or was edited"):
        Bundle.open(copy)
    file.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(UserError, match="digest differs"):
        Bundle.open(copy)
    file.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Bundle.open(copy)


def test_a_file_that_was_replaced_while_the_bundle_is_in_use_is_refused(copy):
    bundle = Bundle.open(copy)
    with DeviceSession(bundle) as session:
        features = np.zeros((2, bundle.manifest.frames.features), np.float32)
        session.answer(features, "what is it")
        shutil.copy(copy / "model.onnx", copy / "project.onnx")  # a graph that is opened with the first upload
        with pytest.raises(UserError, match=r"project.onnx .*its digest differs.*replaced"):
            session.project(features)
    (copy / "static.safetensors").write_bytes((copy / "reference.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"static.safetensors .*its digest differs"):
        bundle.static_parameters()


def test_words_that_a_model_has_never_seen_are_named_in_texts_without_words_and_in_options(copy):
    with DeviceSession(Bundle.open(copy)) as session:
        known = session.manifest.vocabulary["words"][-1]
        assert session.note_on_words([known, f"{known}?"]) == []
        assert session.note_on_words([f"{known} zzz", " \N{CAT FACE} ", "...", "zzz"]) == [
            "words the model has never seen: zzz, \N{CAT FACE}, ..."
        ]
        assert session.note_on_words(f"zzz{i}" for i in range(99))[0].endswith(" zzz9, ...")


def test_manifest_that_cannot_be_trusted_is_refused(copy):
    whole = (copy / "manifest.json").read_text()
    for text, words in ((whole[:-40], "truncated or not JSON"), ("[]", "not a manifest"), ("{}", "no schema version")):
        (copy / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=words):
            Bundle.open(copy)
    (copy / "manifest.json").write_text(whole.replace('"open_ended"', '"retrieval"', 1))
    with pytest.raises(UserError, match=r"edited after it was written"):
        Bundle.open(copy)
    (copy / "manifest.json").write_text(whole)
    for schema, remedy in ((SCHEMA + 1, "update lit-mmpg"), (SCHEMA - 1, "export the bundle again")):
        edit(copy, schema=schema)
        with pytest.raises(UserError, match=f"schema {schema}, this version reads {SCHEMA}; {remedy}"):
            Bundle.open(copy)
        (copy / "manifest.json").write_text(whole)
    (copy / "manifest.json").write_text(whole)
    edit(copy, frames={"features": 3})
    with pytest.raises(UserError, match="malformed"):
        Bundle.open(copy)
    (copy / "manifest.json").write_text(whole)
    edit(copy, files={"../outside": "0"})
    with pytest.raises(UserError, match="outside the bundle"):
        Bundle.open(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="no bundle"):
        Bundle.open(copy)
    with pytest.raises(UserError, match="did you mean"):
        Bundle.open(copy.with_name("bundel"))


def test_what_is_not_there_is_named(copy):
    bundle = Bundle.open(copy)
    with pytest.raises(UserError, match="no graph for 'encode'"):
        bundle.graph("encode")
    with pytest.raises(UserError, match="not in int4"):
        bundle.graph("model", "int4")


def test_reference_survives_its_file():
    reference = Reference(
        {"model": RoleReference({"frames": np.ones((2, 3))}, {"static": {"scores": np.zeros((2, 4))}})},
        {"static": {}, "device0": {"head.u": np.ones(3)}},
    )
    again = Reference.from_tensors(reference.to_tensors())
    assert again.parameters.keys() == reference.parameters.keys()
    np.testing.assert_array_equal(again.roles["model"].outputs["static"]["scores"], np.zeros((2, 4)))
    with pytest.raises(UserError, match="unknown entry"):
        Reference.from_tensors({"model/what/is": np.ones(1)})
