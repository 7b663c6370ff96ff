"""A bundle made by hand: a small model in NumPy and the same in ONNX, so that no test here needs a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from lit_mmpg.parameters import ParameterEntry, ParameterSpec
from lit_mmpg.runtime.bundle import Reference, RoleReference, file_digest
from lit_mmpg.runtime.manifest import (
    Acceptance,
    AnchorRule,
    Frames,
    GraphInfo,
    Link,
    Manifest,
    Preprocessing,
    TensorInfo,
)

T, D, H, A, R, WORDS, L = 6, 12, 8, 5, 2, 20, 4
PIXELS = (3, 4, 4)
SPEC = ParameterSpec((ParameterEntry("projection.u", (D, R)), ParameterEntry("projection.v", (R, H))))
ACCEPTED = Acceptance("data", 2, 8, 1e-7, 1.0, 1.0, True)


class Weights:
    """Static weights of the model."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.w = rng.normal(size=(D, H)).astype(np.float32)
        self.table = rng.normal(size=(WORDS, H)).astype(np.float32)
        self.head = rng.normal(size=(H, A)).astype(np.float32)
        self.encoder = rng.normal(size=(int(np.prod(PIXELS)), D)).astype(np.float32)

    def model(self, frames, frame_mask, text, u, v):
        projected = frames @ self.w + (frames @ u) @ v
        mask = frame_mask[..., None].astype(np.float32)
        pooled = (projected * mask).sum(1) / mask.sum(1)
        question = self.table[text[:, 0]].mean(1)
        return (np.tanh(pooled) + question) @ self.head

    def encode(self, pixels):
        return pixels.reshape(len(pixels), -1).astype(np.float32) / 255 @ self.encoder


def _save(path: Path, nodes, inputs, outputs, constants) -> None:
    types = {
        "float32": TensorProto.FLOAT,
        "bool": TensorProto.BOOL,
        "int64": TensorProto.INT64,
        "uint8": TensorProto.UINT8,
    }

    def value(info: TensorInfo):
        return helper.make_tensor_value_info(info.name, types[info.dtype], info.shape)

    graph = helper.make_graph(
        nodes,
        path.stem,
        [value(i) for i in inputs],
        [value(o) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _model(path: Path, weights: Weights, u_name: str, v_name: str):
    inputs = (
        TensorInfo("frames", ("B", "T", D), "float32"),
        TensorInfo("frame_mask", ("B", "T"), "bool"),
        TensorInfo("text", ("B", 1, L), "int64"),
        TensorInfo(u_name, (D, R), "float32"),
        TensorInfo(v_name, (R, H), "float32"),
    )
    outputs = (TensorInfo("scores", ("B", A), "float32"),)
    node = helper.make_node
    nodes = [
        node("MatMul", ["frames", "w"], ["static"]),
        node("MatMul", ["frames", u_name], ["low"]),
        node("MatMul", ["low", v_name], ["personal"]),
        node("Add", ["static", "personal"], ["projected"]),
        node("Cast", ["frame_mask"], ["mask_2d"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask_2d", "last"], ["mask"]),
        node("Mul", ["projected", "mask"], ["real"]),
        node("ReduceSum", ["real", "time"], ["summed"], keepdims=0),
        node("ReduceSum", ["mask", "time"], ["count"], keepdims=0),
        node("Div", ["summed", "count"], ["pooled"]),
        node("Tanh", ["pooled"], ["seen"]),
        node("Squeeze", ["text", "time"], ["words"]),
        node("Gather", ["table", "words"], ["embedded"]),
        node("ReduceMean", ["embedded", "time"], ["question"], keepdims=0),
        node("Add", ["seen", "question"], ["joined"]),
        node("MatMul", ["joined", "head"], ["scores"]),
    ]
    constants = {
        "w": weights.w,
        "table": weights.table,
        "head": weights.head,
        "last": np.array([-1], np.int64),
        "time": np.array([1], np.int64),
    }
    _save(path, nodes, inputs, outputs, constants)
    return inputs, outputs, len(nodes)


def make_bundle(folder: Path, run_id: str | None = None, tracking_uri: str | None = None, wrong: bool = False) -> Path:
    """Write a bundle.

    Args:
        folder: Where to.
        run_id: Training run that it names.
        tracking_uri: Store that it names.
        wrong: The graph computes with other weights than the reference.
    """
    folder.mkdir(parents=True)
    weights, rng = Weights(), np.random.default_rng(1)
    u_name, v_name = SPEC.names
    graphs = []

    def add(role: str, inputs, outputs, nodes: int) -> None:
        file = folder / f"{role}.onnx"
        graphs.append(
            GraphInfo(
                role,
                "fp32",
                file.name,
                file_digest(file),
                file.stat().st_size,
                nodes,
                1000,
                {"B": 1, "T": T} if role == "model" else {"N": T},
                inputs,
                outputs,
                ACCEPTED,
            )
        )

    add("model", *_model(folder / "model.onnx", Weights(seed=9) if wrong else weights, u_name, v_name))
    features, projected = TensorInfo("features", ("N", D), "float32"), TensorInfo("projected", ("N", H), "float32")
    _save(
        folder / "project.onnx",
        [helper.make_node("MatMul", ["features", "w"], ["projected"])],
        (features,),
        (projected,),
        {"w": weights.w},
    )
    add("project", (features,), (projected,), 1)
    pixels = TensorInfo("pixels", ("N", *PIXELS), "uint8")
    _save(
        folder / "encode.onnx",
        [
            helper.make_node("Cast", ["pixels"], ["values"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["values", "scale"], ["scaled"]),
            helper.make_node("Reshape", ["scaled", "rows"], ["flat"]),
            helper.make_node("MatMul", ["flat", "encoder"], ["features"]),
        ],
        (pixels,),
        (features,),
        {
            "scale": np.float32(255.0).reshape(()),
            "rows": np.array([-1, int(np.prod(PIXELS))], np.int64),
            "encoder": weights.encoder,
        },
    )
    add("encode", (pixels,), (features,), 4)

    mask = np.ones((4, T), bool)
    mask[1, 4:] = False
    inputs = {
        "frames": rng.normal(size=(4, T, D)).astype(np.float32),
        "frame_mask": mask,
        "text": rng.integers(0, WORDS, size=(4, 1, L)),
    }
    parameters = {"static": {u_name: np.zeros((D, R), np.float32), v_name: np.zeros((R, H), np.float32)}}
    for device in ("device0", "device1"):
        parameters[device] = {e.name: rng.normal(scale=0.5, size=e.shape).astype(np.float32) for e in SPEC}
    outputs = {case: {"scores": weights.model(**inputs, u=p[u_name], v=p[v_name])} for case, p in parameters.items()}
    rows = rng.normal(size=(5, D)).astype(np.float32)
    pictures = rng.integers(0, 256, size=(3, *PIXELS), dtype=np.uint8)
    reference = Reference(
        {
            "model": RoleReference(inputs, outputs),
            "project": RoleReference({"features": rows}, {"static": {"projected": rows @ weights.w}}),
            "encode": RoleReference({"pixels": pictures}, {"static": {"features": weights.encode(pictures)}}),
        },
        parameters,
    )
    save_file(reference.to_tensors(), folder / "reference.safetensors")
    save_file(parameters["static"], folder / "static.safetensors")
    manifest = Manifest(
        version="0",
        task="open_ended",
        half="cloud",
        checkpoint_digest="ab" * 32,
        run_id=run_id,
        tracking_uri=tracking_uri,
        data_fingerprint="cd" * 32,
        spec=SPEC,
        frames=Frames(D, H, T),
        anchors=AnchorRule(2, "uniform", 3, "device"),
        link=Link("int8", "fp16"),
        preprocessing=Preprocessing(PIXELS[1], PIXELS[2], "none", "RGB", "test"),
        max_words=L,
        vocabulary={"words": [], "document_frequency": [], "num_documents": 1},
        answers=tuple(f"answer{i}" for i in range(A)),
        graphs=tuple(graphs),
        files={name: file_digest(folder / name) for name in ("reference.safetensors", "static.safetensors")},
    )
    (folder / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return folder
