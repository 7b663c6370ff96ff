"""ParameterSpec: the names, shapes and order of the parameters that the cloud generates for a device.

The adaptor, the link, the exported graph, the engines and the fine-tuning baseline all read this one object.
No torch here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lit_mmpg.errors import UserError

ENCODE = "encode"
"""The graph that makes features of pixels."""
MODEL = "model"
"""The graph that takes generated parameters where an entry names no other."""


@dataclass(frozen=True, slots=True)
class ParameterEntry:
    """One generated tensor.

    Attributes:
        name: ``<layer>.<part>``, for example ``frame_projection.u``.
        shape: Shape for one device, without a batch dimension.
        dtype: NumPy name of the type in which the device computes.
        graph: Graph of a bundle that takes it. Written to JSON only if it is not ``model``, which keeps the digests of
            older specifications valid.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    graph: str = MODEL

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """Ordered description of one device's dynamic parameters.

    Example:
        >>> spec = ParameterSpec((ParameterEntry("head.u", (5, 2)), ParameterEntry("head.c", (5,))))
        >>> spec.names, spec.size
        (('head.u', 'head.c'), 15)
        >>> spec.validate({"head.u": np.zeros((5, 2))})
        Traceback (most recent call last):
        ValueError: parameters do not match: missing ['head.c'], unknown []
    """

    entries: tuple[ParameterEntry, ...]

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        if len(set(names)) != len(names):
            raise ValueError(f"parameter names repeat: {names}")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[ParameterEntry]:
        return iter(self.entries)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(entry.name for entry in self.entries)

    @property
    def size(self) -> int:
        """Total number of values for one device."""
        return sum(entry.size for entry in self.entries)

    def of(self, graph: str) -> ParameterSpec:
        """Return the entries that one graph of a bundle takes, in order."""
        return ParameterSpec(tuple(entry for entry in self.entries if entry.graph == graph))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data for a manifest or a message header."""
        return [
            {"name": e.name, "shape": list(e.shape), "dtype": e.dtype}
            | ({} if e.graph == MODEL else {"graph": e.graph})
            for e in self.entries
        ]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> ParameterSpec:
        """Inverse of :meth:`to_json`.

        Raises:
            UserError: If a field is missing or of the wrong kind.
        """
        try:
            return cls(
                tuple(
                    ParameterEntry(
                        str(d["name"]), tuple(int(n) for n in d["shape"]), str(d["dtype"]), str(d.get("graph", MODEL))
                    )
                    for d in data
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"parameter specification is malformed ({error}); export the bundle again") from error

    def digest(self) -> str:
        """SHA-256 of the specification, hexadecimal. Device and cloud half must have the same."""
        return _digest(self)

    def validate(self, tensors: Mapping[str, np.ndarray], finite: bool = True) -> None:
        """Check one device's tensors against the specification.

        Args:
            tensors: The tensors by name.
            finite: Whether to check the values for NaN and infinity.

        Raises:
            ValueError: If a tensor is missing, unknown, or of another shape, or (with ``finite``) not finite.
        """
        if set(tensors) != set(self.names):
            missing, unknown = set(self.names) - set(tensors), set(tensors) - set(self.names)
            raise ValueError(f"parameters do not match: missing {sorted(missing)}, unknown {sorted(unknown)}")
        for entry in self.entries:
            array = tensors[entry.name]
            if tuple(array.shape) != entry.shape:
                raise ValueError(f"parameter {entry.name} has shape {tuple(array.shape)}, expected {entry.shape}")
            if finite and not np.isfinite(array).all():
                raise ValueError(f"parameter {entry.name} holds NaN or infinity")

    def tensors_digest(self, tensors: Mapping[str, np.ndarray]) -> str:
        """SHA-256 of one device's tensors as it computes with them, hexadecimal: which parameters an answer is of."""
        total = hashlib.sha256(self.digest().encode())
        for entry in self.entries:
            total.update(np.ascontiguousarray(tensors[entry.name], entry.dtype).tobytes())
        return total.hexdigest()


@lru_cache(maxsize=64)
def _digest(spec: ParameterSpec) -> str:
    return hashlib.sha256(json.dumps(spec.to_json(), separators=(",", ":")).encode()).hexdigest()
