"""Hosts in namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_mmpg.profiling.benchmarks.namespaces import Host, star, why_not

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them and no other network."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with star("a", ["b"]) as (a, b):
        yield a, b
