"""Texts that somebody else chose (file names, bundles, what a cloud says), as they may reach a screen, page or log."""

from __future__ import annotations

import html as _html
import re

# No-break, ideographic and other spaces of one line; joiners that scripts and emoji need.
_HARMLESS = frozenset("\u00a0\u1680\u202f\u205f\u3000\u200c\u200d" + "".join(map(chr, range(0x2000, 0x200B))))
# A user, or a user and a password, which may hold anything; a port before a path is none; sqlite's addresses are paths.
_CREDENTIALS = re.compile(
    r"\b(?!sqlite\b)([a-z][a-z0-9+.-]*://)(?:[^\s/@'\"]*:(?!\d*[/?#])[^\s'\"]*|[^\s/@'\"]*)@", re.IGNORECASE
)
_SECRETS = re.compile(r"((?:password|passwd|token|secret)=)[^\s&;'\"]+", re.IGNORECASE)


def printable(text: object) -> str:
    """One line without anything that a terminal or a reader could take for something else.

    Control characters (escape codes, line ends), bidirectional and other invisible marks, and surrogates (bytes of a
    file name that are no UTF-8) become the escapes of a Python string; letters of all scripts stay.
    """
    return "".join(char if char.isprintable() or char in _HARMLESS else _escaped(char) for char in str(text))


def printable_lines(text: str) -> str:
    """The same for a text whose line ends are meant."""
    return "\n".join(map(printable, text.split("\n")))


class Html(str):
    """Markup, as it is; every other text is escaped by :func:`html`."""


def html(text: object) -> Html:
    """The same for a page: no markup either, unless it is :class:`Html`."""
    return text if isinstance(text, Html) else Html(_html.escape(printable(text)))


def masked(text: str, mask: str = "***@") -> str:
    """A text without the secrets in its URLs.

    Example:
        >>> masked("no answer from http://user:password@host:8400")
        'no answer from http://***@host:8400'
    """
    return _SECRETS.sub(r"\1***", _CREDENTIALS.sub(rf"\1{mask}", text))


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(45), duration(720), duration(12600)
        ('45 s', '12 min', '3.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
