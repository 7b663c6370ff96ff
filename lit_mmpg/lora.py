"""Parameters of the form ``low_rank`` as a LoRA adapter, in the files of the library peft, and back. No torch.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``; for a layer ``head`` of the model::

    base_model.model.head.lora_A.weight    v^T        [r, in]      [r, in, kh, kw] for a convolution
    base_model.model.head.lora_B.weight    u          [out, r]     [out, r, 1, 1]
    base_model.model.head.lora_B.bias      c          [out]        where lora_bias is set; otherwise c is zero

What a layer adds is ``lora_B(lora_A(x)) * lora_alpha / r`` there and ``u (v^T x) + c`` here. Writing makes the scaling
one; reading multiplies ``u`` and ``c`` by it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize

from lit_mmpg.errors import UserError, nearest, path_of
from lit_mmpg.parameters import ParameterSpec
from lit_mmpg.writing import tensors_as_bytes, write_bytes

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."

_READ = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"}
_WITHOUT_EFFECT = {  # on what a layer computes: names, targets (the tensors say), training, first values, versions
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core", "lora_bias"),
    *("lora_dropout", "eva_config", "loftq_config", "corda_config", "lora_ga_config", "runtime_config"),
    *("qalora_group_size", "ensure_weight_tying"),
}
_FIRST_VALUES = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the weights of the model as they are."""
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


class _Layer(NamedTuple):
    """Sizes of one layer of form ``low_rank``."""

    rows: int
    columns: int
    rank: int


def _layers(spec: ParameterSpec) -> dict[str, _Layer]:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for entry in spec:
        layer, _, part = entry.name.rpartition(".")
        shapes.setdefault(layer, {})[part] = entry.shape
    layers = {}
    for name, parts in shapes.items():
        matrices = [len(parts.get(part, ())) for part in ("u", "v", "c")]
        if set(parts) != {"u", "v", "c"} or matrices != [2, 2, 1] or parts["u"][1] != parts["v"][1]:
            raise UserError(
                f"layer '{name}' takes {', '.join(parts)}, which a LoRA adapter cannot hold; it holds parameters of "
                "the form low_rank alone"
            )
        layers[name] = _Layer(parts["u"][0], *parts["v"])
    if not layers:
        raise UserError("the model is static: it has no layer that takes parameters")
    return layers


def save(
    folder: str | os.PathLike[str],
    spec: ParameterSpec,
    parameters: Mapping[str, np.ndarray],
    kernels: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Write one device's parameters as a LoRA adapter.

    Args:
        folder: Output folder; created if it does not exist.
        spec: Specification of the parameters.
        parameters: Name -> tensor.
        kernels: Layer -> kernel shape ``[in, kh, kw]``, for the layers that are convolutions.

    Raises:
        UserError: If they are not of the form ``low_rank``, do not fit, or the folder cannot be written.
    """
    layers, kernels = _layers(spec), kernels or {}
    try:
        spec.validate(parameters)
    except ValueError as error:
        raise UserError(f"{error}; give the tensors of one device") from error
    with_bias = any(np.any(parameters[f"{name}.c"]) for name in layers)
    tensors = {}
    for name, layer in layers.items():
        u, v, c = (np.asarray(parameters[f"{name}.{part}"], np.float32) for part in "uvc")
        convolution = name in kernels
        a_shape = (layer.rank, *kernels[name]) if convolution else (layer.rank, layer.columns)
        b_shape = (layer.rows, layer.rank, 1, 1) if convolution else (layer.rows, layer.rank)
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = v.T.reshape(a_shape)
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = u.reshape(b_shape)
        if with_bias:
            tensors[f"{_PREFIX}{name}.lora_B.bias"] = c
    rank = max(layer.rank for layer in layers.values())
    others = {f"^{re.escape(name)}": layer.rank for name, layer in layers.items() if layer.rank != rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        # A regular expression: a list would also name every layer whose name ends alike.
        "target_modules": "|".join(map(re.escape, layers)),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "lora_bias": with_bias,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    folder = path_of(folder, "folder")
    try:
        write_bytes(folder / WEIGHTS, tensors_as_bytes(tensors, {"format": "pt"}))
        write_bytes(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); name another folder") from error


def load(
    folder: str | os.PathLike[str], spec: ParameterSpec, kernels: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Read one device's parameters from a LoRA adapter.

    Args:
        folder: Folder of the adapter.
        spec: Specification of the parameters. The adapter must hold exactly its layers.
        kernels: As for :func:`save`; ``None``: unknown, so only the number of values is compared with the model.

    Returns:
        Name -> float32 tensor, in the order of ``spec``.

    Raises:
        UserError: If a file is missing or damaged, the adapter computes something that ``low_rank`` cannot, or its
            layers, ranks or shapes differ from the model's.
    """
    layers, folder = _layers(spec), path_of(folder, "folder")
    config, tensors = _read_config(folder), _read_tensors(folder)
    weights = folder / WEIGHTS
    wanted = {f"{_PREFIX}{name}.lora_{part}.weight" for name in layers for part in "AB"}
    allowed = wanted | {f"{_PREFIX}{name}.lora_B.bias" for name in layers}
    missing, unknown = sorted(wanted - set(tensors)), sorted(set(tensors) - allowed)
    if missing or unknown:
        said = [f"it lacks {_some(missing)}"] if missing else []
        said += [f"the model has no layer for {_some(unknown)}"] if unknown else []
        raise UserError(f"{weights} does not fit: {'; '.join(said)}; its layers must be {', '.join(layers)}")
    parameters: dict[str, np.ndarray] = {}
    for name, layer in layers.items():
        a, b = (tensors[f"{_PREFIX}{name}.lora_{part}.weight"] for part in "AB")
        scaling = _scaling(folder / CONFIG, config, name, len(a) if a.ndim else 0)
        if len(a) != layer.rank:
            raise UserError(
                f"{weights}: layer '{name}' is of rank {len(a)}, the model takes rank {layer.rank}; train the adapter "
                f"with r={layer.rank}"
            )
        c = tensors.get(f"{_PREFIX}{name}.lora_B.bias", np.zeros(layer.rows, np.float32))
        convolution = a.ndim > 2 if kernels is None else name in kernels
        kernel = a.shape[1:] if kernels is None else kernels.get(name, ())
        for part, array, shape in (
            ("lora_A.weight", a, (layer.rank, *kernel) if convolution else (layer.rank, layer.columns)),
            ("lora_B.weight", b, (layer.rows, layer.rank, 1, 1) if convolution else (layer.rows, layer.rank)),
            ("lora_B.bias", c, (layer.rows,)),
        ):
            if array.shape != shape or (part == "lora_A.weight" and array[0].size != layer.columns):
                raise UserError(
                    f"{weights}: {part} of layer '{name}' has shape {list(array.shape)}, expected "
                    f"{[layer.rank, layer.columns] if array is a and kernels is None else list(shape)}"
                )
        parameters[f"{name}.u"] = b.reshape(layer.rows, layer.rank) * scaling
        parameters[f"{name}.v"] = np.ascontiguousarray(a.reshape(layer.rank, layer.columns).T)
        parameters[f"{name}.c"] = c * scaling
    try:
        spec.validate(parameters)
    except ValueError as error:
        raise UserError(f"{weights}: {error}; train the adapter again") from error
    return {name: parameters[name] for name in spec.names}


def _some(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _read_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter, none of which changes what a layer computes but by its scaling."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist{nearest(file)}; name the folder of a LoRA adapter") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read ({error}); save the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else None
        raise UserError(f"{file}: peft_type is {found!r}; only LORA adapters can be read")
    first = config.get("init_lora_weights", True)
    if not any(first is way or (isinstance(way, str) and first == way) for way in _FIRST_VALUES):
        raise UserError(
            f"{file}: init_lora_weights is {first!r}, which changes the weights of the model itself; save the adapter "
            "with peft's path_initial_model_for_weight_conversion"
        )
    if config.get("bias", "none") != "none":
        raise UserError(f"{file}: bias is {config['bias']!r}, which replaces biases; train with lora_bias instead")
    for name, value in config.items():
        if name not in _READ | _WITHOUT_EFFECT and value not in (None, False, 0, "", [], {}):
            raise UserError(
                f"{file}: '{name}' is {value!r}; an adapter that uses it computes otherwise than u (v^T x) + c; train "
                "it without"
            )
    return config


def _scaling(file: Path, config: Mapping[str, Any], layer: str, rank: int) -> np.float32:
    """What the product of a layer's factors is multiplied by; ``rank`` is that of its tensors."""
    said: dict[str, Any] = {}
    for field, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        said[field] = config.get(field, 8)
        table = config.get(patterns) or {}
        if not isinstance(table, dict):
            raise UserError(f"{file}: '{patterns}' is no table of layers; save the adapter again")
        for pattern, value in table.items():
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", layer)
            except re.error as error:
                raise UserError(f"{file}: '{pattern}' in {patterns} is no pattern ({error})") from error
            if matches:
                said[field] = value
                break
    alpha = said["lora_alpha"]
    if said["r"] != rank or not rank:
        raise UserError(
            f"{file}: r is {said['r']!r} for layer '{layer}', its tensors are of rank {rank}; save it again"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e30:
        raise UserError(f"{file}: lora_alpha is {alpha!r} for layer '{layer}'; it must be a number")
    return np.float32(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of an adapter as float32."""
    file = folder / WEIGHTS
    if not file.is_file() and (folder / PICKLED).is_file():
        raise UserError(f"{folder / PICKLED} is a pickle, which may run code; save the adapter as {WEIGHTS}")
    try:
        stored = deserialize(file.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist{nearest(file)}; name the folder of a LoRA adapter") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); save the adapter again") from error
    tensors = {}
    for name, tensor in stored:
        kind, data = tensor["dtype"], tensor["data"]
        if kind == "BF16":  # the upper half of a float32, which NumPy has no type for
            array = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind in _TYPES:
            array = np.frombuffer(data, _TYPES[kind]).astype(np.float32)
        else:
            raise UserError(f"{file}: '{name}' is of type {kind}; save the adapter in a floating-point type")
        tensors[name] = array.reshape(tensor["shape"])
    return tensors
