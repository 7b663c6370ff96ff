"""Models of the transformers library, from a folder or by a name on the hub; with it those of timm that it wraps.

Only safetensors weights are loaded and no code of a repository is run. With ``HF_HUB_OFFLINE=1`` names are looked up in
the local cache alone. What a model was built from is kept as plain data, so that it is made again without its folder.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lit_mmpg.errors import UserError, first_line, install_hint, nearest, path_of

Part = Literal["vision", "text"]

_LEFT_OUT = {"_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "transformers_version"}
"""Entries of a configuration that say where it came from, or what a head calls its outputs."""
_STEPS = {f"do_{step}" for step in ("resize", "center_crop", "pad", "rescale", "normalize", "convert_rgb")}
"""What every image processor may do."""


def load_model(source: str, part: Part, option: str) -> tuple[nn.Module, dict[str, Any], set[str]]:
    """Load a model, or one tower of a model of pictures and texts.

    Args:
        source: Folder, or name on the hub.
        part: The tower.
        option: What an error calls the option that named it.

    Returns:
        The model in float32, its configuration as :func:`build_model` takes it, and the names of weights that the
        files do not hold: those of a pooling layer at most.

    Raises:
        UserError: If it cannot be loaded, or weights are missing.
    """
    _check_folder(source, option)
    with _library(source, option) as library:
        config = library.AutoConfig.from_pretrained(source, trust_remote_code=False)
        config = getattr(config, f"{part}_config", config)
        if getattr(config, "model_args", None):  # of timm: what the wrapper says itself would be said twice
            config.model_args = {name: value for name, value in config.model_args.items() if name != "num_classes"}
        model, found = library.AutoModel.from_pretrained(
            source, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    if any(name.startswith("decoder.") for name in found["missing_keys"]):  # the encoder of a pair was saved alone
        config.is_encoder_decoder = model.config.is_encoder_decoder = True
    encoder = _encoder(model)
    whole, used = (part.state_dict(keep_vars=True) for part in (model, encoder))
    ours = {id(tensor) for tensor in used.values()}
    missing = {name for name in found["missing_keys"] if name not in whole or id(whole[name]) in ours}
    if lost := sorted(name for name in missing if "pooler" not in name.split(".")):
        raise UserError(
            f"{option} {source} lacks weights of its {type(model).__name__} ({', '.join(lost[:3])}, ...); name "
            "a folder that save_pretrained wrote of the whole model"
        )
    kept = {name: value for name, value in config.to_diff_dict().items() if name not in _LEFT_OUT}
    return encoder.float(), json.loads(json.dumps(kept, default=str)), missing


def build_model(config: dict[str, Any], option: str) -> nn.Module:
    """The model of a configuration that :func:`load_model` gave, without its weights.

    Raises:
        UserError: If this version of transformers does not know it.
    """
    with _library(str(config.get("model_type")), option) as library:
        model = library.AutoModel.from_config(library.AutoConfig.for_model(**deepcopy(config)), trust_remote_code=False)
    return _encoder(model).float()


def load_tokenizer(source: str, option: str) -> Any:
    """The tokenizer of a text model.

    Raises:
        UserError: If it cannot be loaded.
    """
    _check_folder(source, option)
    with _library(source, option) as library:
        return library.AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def load_processor(source: str, config: Mapping[str, Any], option: str) -> Any:
    """The image processor of a vision model, with all that its class adds to its settings.

    Args:
        source: Folder, or name on the hub.
        config: Configuration of the model, which says what timm does to pictures.
        option: What an error calls the option that named it.

    Raises:
        UserError: If it cannot be loaded.
    """
    settings = read_settings(source, "preprocessor_config.json")
    settings = settings or read_settings(source, "processor_config.json").get("image_processor") or {}
    timm = config.get("pretrained_cfg")
    if not settings and isinstance(timm, dict) and "input_size" in timm:
        height, width = timm["input_size"][-2:]
        settings = {"size": {"height": height, "width": width}, "image_mean": timm["mean"], "image_std": timm["std"]}
        with _library(source, option) as library:
            return library.ViTImageProcessor(**settings)
    if not settings:
        raise UserError(
            f"{option} {source} has no readable preprocessor_config.json; copy that of its repository into it"
        )
    with _library(source, option) as library:
        try:
            return library.AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
        except (ImportError, ValueError):
            # Its class is not known here, or needs torchvision; what the settings say themselves may be enough.
            own = {name for name, on in settings.items() if name.startswith("do_") and on} - _STEPS
            if own or not (settings.get("image_mean") and settings.get("image_std")):
                raise
            return library.ViTImageProcessor(**settings)


def read_settings(source: str, name: str) -> dict[str, Any]:
    """One JSON file of a folder or repository; empty where there is none that can be read."""
    file = Path(source) / name
    try:
        if not Path(source).is_dir():
            from transformers.utils import cached_file

            file = Path(str(cached_file(source, name)))
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _encoder(model: Any) -> Any:
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model


def _check_folder(source: str, option: str) -> None:
    if not path_of(source, option).is_dir() and (source.startswith((".", "/", "~")) or Path(source).parent.is_dir()):
        raise UserError(f"{option} {source} is not a folder{nearest(Path(source))}")


@contextmanager
def _library(source: str, option: str) -> Iterator[Any]:
    """The transformers library, quiet; what fails within is one line for people."""
    try:
        import transformers
        from transformers.utils import logging as progress
    except ImportError as error:
        raise UserError(f"{option} needs transformers; {install_hint('video')}") from error
    noisy = logging.getLogger("transformers")
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    progress.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    except Exception as error:
        raise UserError(f"{option} {source} cannot be loaded ({first_line(error)})") from error
    finally:
        noisy.setLevel(level)
        progress.enable_progress_bar()
