"""The one exception for bytes that came over the network and cannot be trusted."""

from __future__ import annotations


class LinkError(Exception):
    """A received message is malformed, damaged, too large, of another protocol version, or not plausible.

    The receiver drops the message and goes on: a device keeps its last good parameters, a server answers 4xx.
    """


class VersionError(LinkError):
    """A message of another protocol version."""


class ImplausibleError(LinkError):
    """A well-formed message with values that no working device sends: NaN, infinity, an absurd norm."""
