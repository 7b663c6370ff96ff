"""The last resort: codecarbon's model of a machine's power. It measures nothing here and is an estimate everywhere."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

from lit_mmpg.errors import first_line
from lit_mmpg.profiling.meters.energy import Energy, EnergyConfig
from lit_mmpg.profiling.meters.sources import Unavailable

SOURCE = "codecarbon_model"
LEAST_S = 3.0
"""codecarbon takes a reading each second: shorter windows hold too few."""

_JOULES_PER_KWH = 3.6e6


def available() -> Unavailable | None:
    """None where codecarbon is installed, else the reason."""
    try:
        import codecarbon  # noqa: F401
    except ImportError:
        return Unavailable(SOURCE, "the package codecarbon is not installed")
    return None


def estimate(work: Callable[[], object], config: EnergyConfig = EnergyConfig()) -> Energy:
    """Energy of a unit of work by codecarbon's model of this machine.

    Args:
        work: One unit.
        config: Lengths of the windows.

    Returns:
        The estimate; its bound is unknown.
    """
    try:
        idle_j, idle_s, _ = _track(lambda: time.sleep(max(config.idle_s, LEAST_S)), config.country)
        units = 0

        def loop() -> None:
            nonlocal units
            end = time.perf_counter() + max(config.min_window_s, LEAST_S)
            while time.perf_counter() < end:
                work()
                units += 1

        gross_j, window_s, parts = _track(loop, config.country)
    except Exception as error:  # whatever goes wrong inside a third-party model must not cost the other figures
        return Energy(SOURCE, estimate=True, reason=f"codecarbon failed: {first_line(error)}")
    return Energy(
        source=SOURCE,
        scope="machine (modelled)",
        scope_note="a model of processor, memory and GPU from their names and load, not a measurement",
        estimate=True,
        units=units,
        gross_j_per_unit=gross_j / units,
        net_j_per_unit=(gross_j - idle_j / idle_s * window_s) / units,
        idle_w=idle_j / idle_s,
        notes=[f"modelled: {parts}", "an unknown processor gets a constant power, so net may be meaningless"],
    )


def _track(action: Callable[[], None], country: str) -> tuple[float, float, str]:
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "country_iso_code": country,
        "measure_power_secs": 1,
        "save_to_file": False,
        "log_level": "critical",
        "allow_multiple_runs": True,
        "tracking_mode": "machine",
    }
    with contextlib.redirect_stdout(None):
        tracker = OfflineEmissionsTracker(**options)
        tracker.start()
    begin = time.perf_counter()
    try:
        action()
    finally:
        duration = time.perf_counter() - begin
        with contextlib.redirect_stdout(None):
            tracker.stop()
    data = tracker.final_emissions_data
    parts = f"processor '{data.cpu_model}', memory, GPU {data.gpu_model or 'none'}"
    return float(data.energy_consumed) * _JOULES_PER_KWH, float(data.duration or duration), parts
