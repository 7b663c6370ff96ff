"""Throughput: the queue of the scenario ``server`` against theory, on a clock of its own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.config import EngineSelection, ProfileConfig, SustainedConfig, ThroughputConfig
from lit_mmpg.profiling.meters.latency import LatencyConfig
from lit_mmpg.profiling.scenarios import Context, server, sustained


class Clock:
    """Time that passes by sleeping and by work alone, and a little with every reading."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_waiting_is_that_of_the_queue_with_constant_service() -> None:
    """Pollaczek-Khinchine: the mean wait of M/D/1 is rho s / (2 (1 - rho))."""
    service_s = 0.01
    for rho in (0.3, 0.7):
        clock = Clock()
        found = server.probe(
            lambda clock=clock: clock.sleep(service_s), rho / service_s, 12_000, 0, clock=clock, sleep=clock.sleep
        )
        expected_ms = 1e3 * (service_s + rho * service_s / (2 * (1 - rho)))
        assert np.mean(found) == pytest.approx(expected_ms, rel=0.08)


def test_the_rate_that_keeps_the_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up queue whose p99 grows with the rate: bisection ends at the rate where it meets the limit."""
    monkeypatch.setattr(server, "probe", lambda answer, rate, count, seed, limit_ms: [rate / 10] * 50)
    settings = ThroughputConfig(duration_s=0.01, p99_limit_ms=4.0, probes=14)
    meter = LatencyConfig(warmup=0, min_count=4, min_time_s=0.0, attempts=1)
    config = replace(ProfileConfig("t", (EngineSelection("onnxruntime"),)), throughput=settings, latency=meter)

    def answer() -> None:
        sum(range(20_000))

    pipeline = SimpleNamespace(answer=answer, unit="one", personalise=lambda: None)
    outcome = server.run(Context(pipeline, config, lambda _: None))  # type: ignore[arg-type]
    assert outcome.throughput is not None
    rates = [probe["rate_per_s"] for probe in outcome.throughput["probes"]]
    found = outcome.throughput["answers_per_s"]
    assert found == max(rate for rate in rates if rate <= 40) and 40 - found < 2 * rates[0] / 2**13
    assert outcome.latency is not None and outcome.latency.wall.p99_ms <= 4.0


def test_a_probe_ends_once_its_limit_is_lost() -> None:
    clock = Clock()
    found = server.probe(lambda: clock.sleep(0.1), 1.0, 300, 0, 50.0, clock, clock.sleep)
    assert len(found) == 4  # one in a hundred of 300 may take longer, the fourth may not


def test_an_interval_that_others_take_up_has_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(sustained, "time", SimpleNamespace(perf_counter=lambda: clock.sleep(0.02) or clock.now))
    monkeypatch.setattr(sustained, "elapsed_ms", lambda call: 1.0)
    monkeypatch.setattr(sustained, "timer_overhead_s", lambda: 0.0)
    state = {"temperatures_c": {}, "nvml": None, "cpu_mhz": [], "emc_mhz": None, "gpu_mhz": {}}
    monkeypatch.setattr(sustained, "read_state", lambda *where: state)
    pipeline = SimpleNamespace(personalise=lambda: None, answer=lambda: clock.sleep(2.0), unit="clip")
    config = ProfileConfig("x", (EngineSelection("x"),), sustained=SustainedConfig(duration_s=4.0, interval_s=1e-2))
    context: Any = SimpleNamespace(pipeline=pipeline, config=config, sources=[], root=None, gpu=None, say=print)
    series = sustained.run(context).series["sustained"]
    assert series["p50_ms"] == pytest.approx([2020.0] * 2)


@pytest.mark.parametrize("wrong", [{"streams": 0}, {"duration_s": 0.0}, {"probes": 0}, {"p99_limit_ms": -1.0}])
def test_mistakes(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match="throughput"):
        ThroughputConfig(**wrong)  # type: ignore[arg-type]
