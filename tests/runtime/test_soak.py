"""A device among clouds that mean harm: ten thousand answers of every kind, a deadline, and memory that stays flat."""

from __future__ import annotations

import collections
import os
import random
import time
from pathlib import Path

import pytest

from lit_mmpg.runtime.client import CloudClient, CloudError
from tests.runtime.hostile import KINDS, LATE, hostile, make_upload

ANSWERS, STALLING, DEADLINE_S, MAX_BYTES = 10_000, 500, 0.05, 1 << 16
GROWTH_MIB, LATEST_S = 16.0, 3.0  # generous: a busy machine lets the device wait for the processor, too


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.soak
def test_ten_thousand_evil_answers_cost_neither_the_device_nor_its_memory_nor_its_time() -> None:
    rng = random.Random(0)
    waiting = [name for name, kind in KINDS.items() if kind.stalls or kind.reasons >= LATE]
    quick = [name for name in KINDS if name not in waiting]
    names = [rng.choice(waiting) for _ in range(STALLING)] + [rng.choice(quick) for _ in range(ANSWERS - STALLING)]
    rng.shuffle(names)
    seen: collections.Counter[str] = collections.Counter()
    took_s, sizes = [], []
    with hostile() as server:
        server.rng = rng
        client = CloudClient(server.url, "key", DEADLINE_S, MAX_BYTES)
        for number, name in enumerate(names):
            server.kind = KINDS[name]
            client.close()  # a kept connection would answer in the way of before
            start = time.monotonic()
            try:
                client.adapt(make_upload(number))
                reason = "ok"
            except CloudError as error:
                reason = error.reason
            took_s.append(time.monotonic() - start)
            # On a busy machine any answer may come too late, and nothing else may happen.
            assert reason in server.kind.reasons | {"timeout"}, (name, reason)
            seen[reason] += 1
            if number % 100 == 99:
                server.finish()
                sizes.append(resident_mib())
        client.close()
        server.finish()
    growth = max(sizes) - sizes[len(sizes) // 10]
    print(f"{dict(seen)}; {growth:.1f} MiB more than after a tenth, {max(sizes):.0f} MiB; longest {max(took_s):.3f} s")
    assert growth < GROWTH_MIB, sizes
    assert max(took_s) < LATEST_S
    assert seen["ok"] > 100 and seen["garbage"] > 1000 and seen["unreachable"] > 1000
