"""Coverage-guided fuzzing of the link's parsers with atheris (libFuzzer); run by the soak test as a process of its own.

python -m tests.link.coverage_fuzz -runs=100000 -rss_limit_mb=768 CORPUS_FOLDER
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["lit_mmpg.link"]):
    import lit_mmpg.link

from tests.link.test_message_fuzz import check, resigned

assert lit_mmpg.link.PROTOCOL_VERSION


def one(data: bytes) -> None:
    """A message as it is; where its first bit is set, with its digest made right."""
    if data[:1] and data[0] & 1:
        check(resigned(data[1:]))
    else:
        check(data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
