"""The device bundle: the folder that ``lit-mmpg export`` writes and a device reads. No torch.

    manifest.json              what a device must know (:mod:`lit_mmpg.runtime.manifest`)
    ROLE.onnx                  one graph per role in fp32
    ROLE.PRECISION.onnx        the same in another precision
    static.safetensors         personal parameters with which every graph equals that of the static model
    reference.safetensors      sample inputs, parameters of several devices, and the outputs to expect
    codebooks.safetensors      words of the product quantiser for anchors, where the checkpoint has one
    moments.safetensors        mean and variance of the training features, where devices standardise by their own
    weights.safetensors        only with ``export --torch``: the device model for engines that need torch

Nothing is trusted before its digest has been compared: a truncated copy or an edited file is refused at
:meth:`Bundle.open`. The digests detect damage; they prove no origin.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from lit_mmpg.errors import UserError, nearest
from lit_mmpg.link import codec_names, register
from lit_mmpg.link.product import PQ, ProductQuantiser
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.runtime.manifest import ROLES, GraphInfo, Manifest
from lit_mmpg.statistics import Moments

MANIFEST = "manifest.json"
STATIC = "static.safetensors"
REFERENCE = "reference.safetensors"
CODEBOOKS = "codebooks.safetensors"
MOMENTS = "moments.safetensors"
WEIGHTS = "weights.safetensors"
STATIC_CASE = "static"
"""Name of the reference case without personal parameters."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class RoleReference:
    """Sample inputs of one role and the outputs to expect.

    Attributes:
        inputs: Inputs by name, without personal parameters; R rows each.
        outputs: Case -> outputs by name. Roles that take no personal parameters have the case ``static`` only.
    """

    inputs: Arrays = field(default_factory=dict)
    outputs: dict[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """Contents of ``reference.safetensors``.

    Attributes:
        roles: Role -> its samples.
        parameters: Case -> personal parameters by name; ``static`` is always there.
    """

    roles: dict[str, RoleReference]
    parameters: dict[str, Arrays]

    def to_tensors(self) -> Arrays:
        """One flat mapping, as in the file: ``parameters/CASE/NAME``, ``ROLE/in/NAME``, ``ROLE/out/CASE/NAME``."""
        flat: Arrays = {}
        for case, arrays in self.parameters.items():
            flat |= {f"parameters/{case}/{name}": array for name, array in arrays.items()}
        for role, samples in self.roles.items():
            flat |= {f"{role}/in/{name}": array for name, array in samples.inputs.items()}
            for case, arrays in samples.outputs.items():
                flat |= {f"{role}/out/{case}/{name}": array for name, array in arrays.items()}
        return flat

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Reference:
        """Inverse of :meth:`to_tensors`.

        Raises:
            UserError: If a name fits no place.
        """
        roles: dict[str, RoleReference] = {}
        parameters: dict[str, Arrays] = {STATIC_CASE: {}}
        for key, array in tensors.items():
            match key.split("/"):
                case ["parameters", name, parameter]:
                    parameters.setdefault(name, {})[parameter] = array
                case [role, "in", name] if role in ROLES:
                    roles.setdefault(role, RoleReference()).inputs[name] = array
                case [role, "out", name, output] if role in ROLES:
                    roles.setdefault(role, RoleReference()).outputs.setdefault(name, {})[output] = array
                case _:
                    raise UserError(f"{REFERENCE} holds an unknown entry '{key}'; export the bundle again")
        return cls(roles, parameters)


class Bundle:
    """An opened bundle. Make one with :meth:`open`.

    Args:
        path: The folder.
        manifest: Its manifest.
        quantiser: Product quantiser of the anchors; ``None`` where the checkpoint has none.
        training: Moments of the training features, ``[D]``; ``None`` where nothing is standardised.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        quantiser: ProductQuantiser | None = None,
        training: Moments[np.ndarray] | None = None,
    ) -> None:
        self.path, self.manifest, self.quantiser, self.training = path, manifest, quantiser, training

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open a bundle, verify every file in it, and make its codebooks known to the link.

        Args:
            path: The folder.

        Raises:
            UserError: If the folder or a file is missing, may not be read, is truncated, edited, or written by a newer
                version.
        """
        folder = Path(path)
        try:
            return cls._open(folder)
        except OSError as error:
            raise UserError(
                f"bundle {folder} cannot be read ({error.filename or folder}: {error.strerror}); give this user "
                "access, or copy it again"
            ) from error

    @classmethod
    def _open(cls, folder: Path) -> Bundle:
        if not folder.is_dir():
            hint = "" if folder.exists() else nearest(folder)
            raise UserError(f"bundle {folder} is not a folder{hint}; make one with 'lit-mmpg export'")
        file = folder / MANIFEST
        if not file.is_file():
            raise UserError(f"{folder} holds no {MANIFEST}, so it is no bundle; make one with 'lit-mmpg export'")
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is truncated or not JSON; copy the bundle again") from error
        if not isinstance(data, dict):
            raise UserError(f"{file} is not a manifest; copy the bundle again")
        try:
            manifest = Manifest.from_json(data)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error
        bundle = cls(folder, manifest)
        expected = {graph.file: graph.sha256 for graph in manifest.graphs} | manifest.files
        for name, sha256 in expected.items():
            bundle._verify(name, sha256)
        if CODEBOOKS in manifest.files:
            try:
                bundle.quantiser = ProductQuantiser.from_tensors(bundle._tensors(CODEBOOKS))
            except ValueError as error:
                raise UserError(f"{folder / CODEBOOKS} {error}; export the bundle again") from error
            register(bundle.quantiser)
        if manifest.own_statistics is not None:
            bundle.training = bundle._moments()
        return bundle

    def _moments(self) -> Moments[np.ndarray]:
        tensors, width = self._tensors(MOMENTS), self.manifest.frames.features
        if {name: array.shape for name, array in tensors.items()} != {"mean": (width,), "variance": (width,)}:
            raise UserError(f"{self.path / MOMENTS} does not hold mean and variance [{width}]; export the bundle again")
        return Moments(tensors["mean"], tensors["variance"])

    def _verify(self, name: str, sha256: str) -> None:
        if Path(name).name != name:
            raise UserError(f"{self.path}: the manifest names a file outside the bundle ('{name}'); refused")
        file = self.path / name
        if not file.is_file():
            raise UserError(f"{self.path}: {name} is missing; copy the bundle again")
        if file_digest(file) != sha256:
            raise UserError(
                f"{file} is truncated or was edited (its digest differs); copy the bundle again, or if it was replaced "
                "while in use, start again"
            )

    @property
    def spec(self) -> ParameterSpec:
        """The personal parameters; each names the graph that takes it."""
        return self.manifest.spec

    @property
    def remembers(self) -> bool:
        """Whether a device has to remember clips: for personal parameters, or to standardise its features."""
        return len(self.spec) > 0 or self.manifest.own_statistics is not None

    @property
    def roles(self) -> list[str]:
        """Roles that have a graph."""
        return list(dict.fromkeys(graph.role for graph in self.manifest.graphs))

    def precisions(self, role: str = "model") -> list[str]:
        """Precisions in which a role is there."""
        return [graph.precision for graph in self.manifest.graphs if graph.role == role]

    def upload_codec(self, name: str | None = None) -> str:
        """What a message calls the codec of the anchors.

        Args:
            name: A codec, or ``pq`` for the bundle's own codebooks; ``None``: the codec of the checkpoint.

        Raises:
            UserError: If the bundle cannot use it.
        """
        link = self.manifest.link
        if link is None:
            raise UserError(f"{self.path} holds a static model, which uploads nothing")
        name = name or link.upload_codec
        if name == PQ:
            if self.quantiser is None:
                raise UserError(
                    f"{self.path} holds no codebooks, so it cannot upload with {PQ}; train the cloud half with "
                    "link.codebooks above 0 and export again"
                )
            return self.quantiser.name
        if name not in codec_names():
            known = [codec for codec in codec_names() if not codec.startswith(f"{PQ}-")]
            raise UserError(f"unknown upload codec '{name}'; choose from {', '.join([*known, PQ])}")
        return name

    def info(self, role: str, precision: str = "fp32") -> GraphInfo:
        """Description of a graph.

        Raises:
            UserError: If the bundle does not hold it.
        """
        for graph in self.manifest.graphs:
            if (graph.role, graph.precision) == (role, precision):
                return graph
        if role not in self.roles:
            more = " (export with --frame-encoder)" if role == "encode" else ""
            raise UserError(f"{self.path} holds no graph for '{role}'{more}; it has {', '.join(self.roles)}")
        raise UserError(
            f"{self.path} holds '{role}' in {', '.join(self.precisions(role))}, not in {precision}; "
            f"{self.why_not(role, precision)}"
        )

    def why_not(self, role: str, precision: str) -> str:
        """Why a variant is not in the bundle, in words: it was not good enough, or nobody asked for it."""
        problem = self.manifest.left_out.get(role, {}).get(precision)
        if problem:
            return f"export left it out: {problem}"
        return f"export with --precisions {precision}"

    def graph(self, role: str, precision: str = "fp32") -> Path:
        """Path of an ONNX file, which is still the one that was opened; raises as :meth:`info` does."""
        info = self.info(role, precision)
        self._verify(info.file, info.sha256)
        return self.path / info.file

    def reference(self) -> Reference:
        """Sample inputs and the outputs to expect."""
        return Reference.from_tensors(self._tensors(REFERENCE))

    def static_parameters(self) -> Arrays:
        """Parameters with which ``model`` equals the static model ("not adapted yet"); empty for a static bundle."""
        return self._tensors(STATIC) if len(self.spec) else {}

    def file(self, name: str) -> Path:
        """Path of a file beside the graphs, which is still the one that was opened; raises where there is none."""
        if name not in self.manifest.files:
            raise UserError(f"{self.path} holds no {name}; export the bundle again")
        self._verify(name, self.manifest.files[name])
        return self.path / name

    def _tensors(self, name: str) -> Arrays:
        file = self.file(name)
        try:
            return safetensors_numpy.load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read ({error}); copy the bundle again") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
