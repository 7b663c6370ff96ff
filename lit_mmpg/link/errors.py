"""The one exception for bytes that came over the network and cannot be trusted."""

from __future__ import annotations


class LinkError(Exception):
    """A received message is malformed, damaged, too large, of another protocol version, or not plausible.

    The receiver drops the message and goes on: a device keeps its last good parameters, a server answers 4xx.
    """
