"""What crosses the network: messages, codecs and byte counts. NumPy only."""

from __future__ import annotations

from lit_mmpg.link.codecs import Codec, codec_names, decode, encode, get_codec, num_bytes, register
from lit_mmpg.link.errors import ImplausibleError, LinkError, VersionError
from lit_mmpg.link.messages import PROTOCOL_VERSION, Download, Upload, model_digest

__all__ = [
    "PROTOCOL_VERSION",
    "Codec",
    "Download",
    "ImplausibleError",
    "LinkError",
    "Upload",
    "VersionError",
    "codec_names",
    "decode",
    "encode",
    "get_codec",
    "model_digest",
    "num_bytes",
    "register",
]
