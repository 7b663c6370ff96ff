"""What crosses the network: messages, codecs and byte counts. NumPy and safetensors only."""

from __future__ import annotations

from lit_mmpg.link.codecs import Codec, codec_names, decode, encode, get_codec, register
from lit_mmpg.link.errors import ImplausibleError, LinkError, VersionError
from lit_mmpg.link.messages import PROTOCOL_VERSION, Download, Upload

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
    "register",
]
