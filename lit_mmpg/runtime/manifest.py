"""The manifest of a device bundle: everything that a device must know besides the graphs. Plain JSON, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.parameters import ParameterSpec

SCHEMA = 2
"""Version of the manifest's schema: a reader takes its own alone. 2: any graph may take parameters."""

ROLES = ("model", "text", "project", "encode")
"""What a graph can be for: answers or clip embeddings; sentence embeddings; projected features; frame features."""

OWN_ENCODER = "part of the device model"
"""What a manifest calls a frame encoder that belongs to the device model."""

PRECISIONS = ("fp32", "fp16", "int8_weight", "int8")


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        shape: Sizes; a text stands for a dimension that may vary between calls.
        dtype: NumPy name of the type.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Acceptance:
    """How far a graph was from the model that it was made from, on devices that nobody had seen before.

    Attributes:
        source: ``data`` (clips of unseen devices) or ``synthetic`` (clips drawn from the training statistics).
        devices: Devices whose generated parameters were used; 0 where the role takes none.
        samples: Rows compared, over all devices.
        error: Root mean square error over the root mean square deviation of the expected outputs from their mean; the
            largest over the devices.
        top1_agreement: Share of rows whose best answer (or best match) is the same; ``None`` where there is no choice.
        rank_correlation: Mean Spearman correlation of the scores within a row; ``None`` where there is no choice.
        accepted: Whether all figures keep the limits of the precision.
    """

    source: str
    devices: int
    samples: int
    error: float
    top1_agreement: float | None
    rank_correlation: float | None
    accepted: bool


@dataclass(frozen=True)
class GraphInfo:
    """One ONNX file.

    Attributes:
        role: One of ``ROLES``.
        precision: One of ``PRECISIONS``.
        file: File name in the bundle.
        sha256: SHA-256 of the file, hexadecimal.
        bytes: Its size.
        nodes: Operators in the graph.
        macs: Multiply-accumulate operations of its matrix products and convolutions for ``macs_at``.
        macs_at: The sizes of the varying dimensions at which ``macs`` were counted.
        inputs: Inputs in order; personal parameters come last, under the names of the ParameterSpec.
        outputs: Outputs in order.
        acceptance: The check at export.
    """

    role: str
    precision: str
    file: str
    sha256: str
    bytes: int
    nodes: int
    macs: int
    macs_at: dict[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    acceptance: Acceptance


@dataclass(frozen=True)
class Frames:
    """What the device model takes as a frame.

    Attributes:
        features: Width D of a frame's feature.
        width: Width H of what a device uploads of a frame.
        max_frames: Clips with more frames are subsampled evenly to this many.
    """

    features: int
    width: int
    max_frames: int


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded picture to the input of the ``encode`` graph. Scaling of the values is part of the graph.

    Attributes:
        height: Rows of the input.
        width: Columns of the input.
        resize: ``bilinear``: the whole picture is resized, its shape is not kept; ``none``: pictures have this size.
        colour: Order of the channels.
        encoder: What computes the features.
    """

    height: int
    width: int
    resize: str
    colour: str
    encoder: str


@dataclass(frozen=True)
class AnchorRule:
    """What a device uploads.

    Attributes:
        count: Anchor frames per clip; 0: all frames.
        rule: How they are chosen (``lit_mmpg.device.anchors``).
        context_clips: Recent clips in a context.
        context: ``device``: the device's recent clips; ``clip``: the clip that is asked about.
    """

    count: int
    rule: str
    context_clips: int
    context: str


@dataclass(frozen=True)
class OwnStatistics:
    """That features are standardised by what the device has seen before (:mod:`lit_mmpg.statistics`).

    Attributes:
        prior: Frames for which the training moments count.
        context_clips: Recent clips whose frames count.
        context: ``device``: the device's recent clips; ``clip``: the clip that is asked about.
    """

    prior: int
    context_clips: int
    context: str


@dataclass(frozen=True)
class Link:
    """Codecs of the link (:mod:`lit_mmpg.link.codecs`) with which the checkpoint was configured."""

    upload_codec: str
    download_codec: str


@dataclass(frozen=True)
class Guard:
    """Bounds of plausible parameters (:mod:`lit_mmpg.runtime.guard`): the range over validation devices, widened.

    Attributes:
        devices: Validation devices, whose own generated parameters gave the range.
        contexts: Lengths of their contexts, in clips.
        margin: Share of the range's width by which it was widened on either side.
        questions: Words of the questions that are asked, ``[Q][O][L]``; empty for retrieval.
        sizes: Tensor -> least and largest root mean square.
        outputs: Number of clips, at least -> figure -> least and largest value.
    """

    devices: int
    contexts: tuple[int, ...]
    margin: float
    questions: list[list[list[int]]]
    sizes: dict[str, tuple[float, float]]
    outputs: dict[int, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
        version: Version of lit-mmpg that wrote the bundle.
        task: Name of the task (:mod:`lit_mmpg.tasks`).
        half: ``cloud``: the device model of a trained pair, with personal parameters; ``device``: a static model.
        checkpoint_digest: SHA-256 of the weights of both halves, as the messages carry it.
        run_id: MLflow run that trained the checkpoint, if any.
        tracking_uri: MLflow store of that run, if any.
        data_fingerprint: SHA-256 of the training data.
        spec: The personal parameters; empty for a static model.
        frames: What a frame is.
        anchors: What is uploaded; ``None`` for a static model.
        link: Codecs; ``None`` for a static model.
        preprocessing: ``None`` where the bundle holds no ``encode`` graph.
        max_words: Longest text, in words.
        vocabulary: ``lit_mmpg.data.vocabulary.Vocabulary`` as plain data.
        answers: Open-ended answers in the order of the scores; empty for other tasks.
        graphs: The ONNX files.
        files: SHA-256 of every other file, by name.
        own_statistics: How features are standardised; ``None`` where they are used as they are.
        left_out: Variants that were not good enough to be shipped: role -> precision -> why.
        guard: Bounds of plausible parameters; ``None`` where none could be chosen.
    """

    version: str
    task: str
    half: str
    checkpoint_digest: str
    run_id: str | None
    tracking_uri: str | None
    data_fingerprint: str
    spec: ParameterSpec
    frames: Frames
    anchors: AnchorRule | None
    link: Link | None
    preprocessing: Preprocessing | None
    max_words: int
    vocabulary: dict[str, Any]
    answers: tuple[str, ...]
    graphs: tuple[GraphInfo, ...]
    files: dict[str, str]
    own_statistics: OwnStatistics | None = None
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    guard: Guard | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data, with the schema and a digest over everything else."""
        plain = {"schema": SCHEMA, **asdict(self), "spec": self.spec.to_json(), "spec_digest": self.spec.digest()}
        plain = json.loads(json.dumps(plain))  # tuples become lists, as they will be read
        return {**plain, "digest": digest(plain)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Inverse of :meth:`to_json`.

        Raises:
            UserError: If the schema is another one, the digest differs, or a field is missing or of the wrong kind.
        """
        schema = data.get("schema")
        if not isinstance(schema, int):
            raise UserError("manifest.json has no schema version; export the bundle again")
        if schema != SCHEMA:
            remedy = "update lit-mmpg on this machine" if schema > SCHEMA else "export the bundle again"
            raise UserError(f"manifest.json has schema {schema}, this version reads {SCHEMA}; {remedy}")
        rest = {key: value for key, value in data.items() if key != "digest"}
        if data.get("digest") != digest(rest):
            raise UserError("manifest.json was edited after it was written (its digest differs); copy the bundle again")
        try:
            return cls(
                version=str(rest["version"]),
                task=str(rest["task"]),
                half=str(rest["half"]),
                checkpoint_digest=str(rest["checkpoint_digest"]),
                run_id=rest["run_id"],
                tracking_uri=rest["tracking_uri"],
                data_fingerprint=str(rest["data_fingerprint"]),
                spec=ParameterSpec.from_json(rest["spec"]),
                frames=Frames(**rest["frames"]),
                anchors=AnchorRule(**rest["anchors"]) if rest["anchors"] else None,
                link=Link(**rest["link"]) if rest["link"] else None,
                preprocessing=Preprocessing(**rest["preprocessing"]) if rest["preprocessing"] else None,
                max_words=int(rest["max_words"]),
                vocabulary=dict(rest["vocabulary"]),
                answers=tuple(rest["answers"]),
                graphs=tuple(_graph(graph) for graph in rest["graphs"]),
                files=dict(rest["files"]),
                own_statistics=OwnStatistics(**rest["own_statistics"]) if rest.get("own_statistics") else None,
                left_out={str(role): dict(why) for role, why in rest.get("left_out", {}).items()},
                guard=_guard(rest["guard"]) if rest.get("guard") else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"manifest.json is malformed ({error}); export the bundle again") from error


def digest(plain: Mapping[str, Any]) -> str:
    """SHA-256 of plain data in canonical form, hexadecimal."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _tensors(data: Sequence[Mapping[str, Any]]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(str(t["name"]), tuple(t["shape"]), str(t["dtype"])) for t in data)


def _graph(data: Mapping[str, Any]) -> GraphInfo:
    values = dict(data) | {
        "inputs": _tensors(data["inputs"]),
        "outputs": _tensors(data["outputs"]),
        "acceptance": Acceptance(**data["acceptance"]),
    }
    return GraphInfo(**values)


def _guard(data: Mapping[str, Any]) -> Guard:
    def bounds(named: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        return {str(name): (float(low), float(high)) for name, (low, high) in named.items()}

    outputs = {int(clips): bounds(named) for clips, named in data["outputs"].items()}
    values = dict(data) | {"contexts": tuple(data["contexts"]), "sizes": bounds(data["sizes"]), "outputs": outputs}
    return Guard(**values)
