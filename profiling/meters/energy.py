"""Energy of a repeated unit of work: idle power first, then a window long enough for the sensor, gross and net kept.

A reading is never taken before the accelerator has finished and the machine is quiet, and never stands for one
inference alone: the window spans at least 50 updates of the sensor and is divided by the number of units.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.meters.integrate import Integral, integrate
from lit_mmpg.profiling.meters.sources import CounterSource, PowerSource, SourceLost, Unavailable
from lit_mmpg.settings import within

LEAST_UPDATES = 50
NO_TOTAL = "no rule says which rails make this board's total; see the rails"
FAILURES = 3
"""So many failed readings in a row and the source is lost; fewer are a gap."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class EnergyConfig:
    """How energy is measured.

    Attributes:
        min_window_s: Least length of the window; longer where 50 updates of the sensor take longer.
        idle_s: Length of the idle window before it, at least 50 updates too.
        max_wait_idle_s: How long to wait for a quiet machine.
        quiet_fraction: A machine whose processors are busier than this is not idle.
        model: Whether codecarbon's model is used where nothing can be measured.
        country: Country for codecarbon's emission factor, ISO 3166 alpha-3. The energy does not depend on it.
    """

    min_window_s: float = 5.0
    idle_s: float = 5.0
    max_wait_idle_s: float = 10.0
    quiet_fraction: float = 0.1
    model: bool = True
    country: str = "USA"

    def __post_init__(self) -> None:
        if self.min_window_s <= 0 or self.idle_s <= 0 or self.max_wait_idle_s < 0:
            raise UserError("energy: min_window_s and idle_s must be positive, max_wait_idle_s not negative")
        within("energy.", 0, 1, quiet_fraction=self.quiet_fraction)


@dataclass(frozen=True)
class Window:
    """Energy between two moments.

    Attributes:
        energy_j: Total; None where no total is known (then see ``rails_j``) or the source cannot be right (``reason``).
        bound_j: Bound on the sampling error of the total, None without one.
        duration_s: Length.
        rails_j: Energy of every rail that was readable throughout.
        readings: Number of readings.
        updates: Sensor updates that the window spans.
        gaps: Pauses in the readings.
        failed: Readings that failed and were made good by the next ones.
        read_ms: Mean cost of one reading.
        cpu_fraction: Share of one core that reading took.
        times_s: Times of the readings since the start.
        power_w: Total power at these times, empty where no total is known; of a counter the joules since the start.
        reason: Why there is no total although the source was read.
    """

    energy_j: float | None
    bound_j: float | None
    duration_s: float
    rails_j: Mapping[str, float]
    readings: int
    updates: float
    gaps: int
    failed: int
    read_ms: float
    cpu_fraction: float
    times_s: list[float] = field(default_factory=list)
    power_w: list[float] = field(default_factory=list)
    reason: str | None = None


class Recorder:
    """Reads one source while something else runs. Use as a context manager, then ask :meth:`window`.

    Args:
        source: Power or counter.
        clock: Seconds.
    """

    def __init__(self, source: PowerSource | CounterSource, clock: Clock = time.perf_counter) -> None:
        self.source = source
        self._clock = clock
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._times: list[float] = []
        self._readings: list[Mapping[str, float]] = []
        self._read_s: list[float] = []
        self._cpu_s = 0.0
        self._lost: str | None = None
        self._failed = self._failed_in_a_row = 0
        self._start_s = self._end_s = 0.0
        # Half an update: no update is missed, and none is paid for twice more than needed.
        self.interval_s = max(source.update_interval_s / 2, 2e-3) if isinstance(source, PowerSource) else 1.0

    def __enter__(self) -> Recorder:
        self._read()
        self._start_s = self._clock()
        self._thread = threading.Thread(target=self._loop, name="power", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end_s = self._clock()
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        while self._lost is None and self._read() and self._failed_in_a_row:
            pass

    def _loop(self) -> None:
        cpu = time.thread_time()
        due = self._clock() + self.interval_s
        while not self._stop.wait(max(0.0, due - self._clock())):
            if not self._read():
                break
            due = max(due + self.interval_s, self._clock())
        self._cpu_s = time.thread_time() - cpu

    def _read(self) -> bool:
        begin = self._clock()
        try:
            if isinstance(self.source, PowerSource):
                reading: Mapping[str, float] = self.source.read_w()
            else:
                reading = {"counter": self.source.read_j()}
                reading |= getattr(self.source, "parts_j", dict)()
        except SourceLost as error:
            self._failed += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILURES or not self._times:
                self._lost = str(error)
            return self._lost is None
        self._failed_in_a_row = 0
        end = self._clock()
        self._times.append((begin + end) / 2)
        self._readings.append(reading)
        self._read_s.append(end - begin)
        return True

    def window(self) -> Window:
        """What was read.

        Raises:
            SourceLost: If the source was lost in between (half a window is no measurement), or answered too rarely.
        """
        if self._lost is not None:
            raise SourceLost(self._lost)
        duration = self._end_s - self._start_s
        common = {
            "duration_s": duration,
            "readings": len(self._times),
            "failed": self._failed,
            "updates": duration / self.source.update_interval_s,
            "read_ms": 1e3 * sum(self._read_s) / len(self._read_s),
            "cpu_fraction": self._cpu_s / duration if duration > 0 else 0.0,
            "times_s": [round(t - self._start_s, 6) for t in self._times],
        }
        if not isinstance(self.source, PowerSource):
            return self._counted(common)
        source = self.source
        throughout = set.intersection(*(set(reading) for reading in self._readings))
        rails: dict[str, float] = {}
        for rail in sorted(throughout):
            series = [reading[rail] for reading in self._readings]
            rails[rail] = self._integrate(series).energy_j
        total = [sum(reading[rail] for rail in source.total) for reading in self._readings]
        whole = self._integrate(total, source.resolution_w)
        reason = getattr(source, "no_total", NO_TOTAL) if not source.total else None
        if source.total and not any(total):
            reason = f"{' + '.join(source.total)} read 0 W in all {len(total)} readings: the sensor is stuck"
        told = source.total and reason is None
        return Window(
            energy_j=whole.energy_j if told else None,
            bound_j=whole.bound_j if told else None,
            rails_j=rails,
            gaps=whole.gaps,
            power_w=[round(w, 4) for w in total] if told else [],
            reason=reason,
            **common,  # type: ignore[arg-type]
        )

    def _integrate(self, power_w: Sequence[float], resolution_w: float = 0.0) -> Integral:
        try:
            return integrate(self._times, power_w, self._start_s, self._end_s, resolution_w)
        except ValueError as error:
            raise SourceLost(f"{self.source.name}: {error}") from error

    def _counted(self, common: Mapping[str, Any]) -> Window:
        values = [reading["counter"] for reading in self._readings]
        duration = common["duration_s"]
        energy = values[-1] - values[0]
        first, last = self._readings[0], self._readings[-1]
        parts = {name: last[name] - first[name] for name in first if name != "counter"}
        stuck = [name for name, joules in parts.items() if joules <= 0] or [self.source.name] * (energy <= 0)
        if stuck:
            reason = f"{', '.join(stuck)} did not move in {duration:.3g} s: the counter is stuck"
            return Window(None, None, rails_j={}, gaps=0, reason=reason, **common)
        power = energy / duration if duration > 0 else 0.0
        # Either end may be off by one update of the counter and by the time that a reading takes.
        slack = 2 * (self.source.update_interval_s + common["read_ms"] / 1e3)
        return Window(
            energy_j=energy,
            bound_j=power * slack + 2 * getattr(self.source, "resolution_j", 0.0),
            rails_j=parts,
            gaps=0,
            power_w=[round(v - values[0], 6) for v in values],
            **common,
        )


@dataclass(frozen=True)
class Energy:
    """Energy per unit of work from one source.

    Attributes:
        source: ``nvml_counter``, ``nvml_polled``, ``ina3221``, ``ina238``, ``rapl`` or ``codecarbon_model``.
        scope: What the total covers.
        scope_note: The same in a sentence.
        estimate: True for a model; such a figure is an estimate wherever it is shown.
        units: Units of work in the window.
        gross_j_per_unit: Energy per unit as read.
        net_j_per_unit: The same without what idling for as long would have taken; may be negative within the bound.
        bound_j_per_unit: Bound on the sampling error of the gross figure.
        net_bound_j_per_unit: The same for the net figure: both windows' errors.
        idle_w: Power before the work.
        idle_quiet: Whether the machine was quiet when idle power was read; None where that is not known.
        window: The work's window; None for a model.
        idle: The idle window; None for a model.
        reason: Why there is no figure, None where there is one.
        notes: What the reader should know.
    """

    source: str
    scope: str | None = None
    scope_note: str | None = None
    estimate: bool = False
    units: int = 0
    gross_j_per_unit: float | None = None
    net_j_per_unit: float | None = None
    bound_j_per_unit: float | None = None
    net_bound_j_per_unit: float | None = None
    idle_w: float | None = None
    idle_quiet: bool | None = None
    window: Window | None = None
    idle: Window | None = None
    reason: str | None = None
    notes: Sequence[str] = ()


def measure(
    source: PowerSource | CounterSource,
    work: Callable[[], object],
    config: EnergyConfig = EnergyConfig(),
    *,
    wait_quiet: Callable[[float, float], tuple[bool | None, float | None]] | None = None,
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Measure a unit of work, repeated.

    Args:
        source: What is read.
        work: One unit, which returns when it is done, on an accelerator as well.
        config: Lengths of the windows.
        wait_quiet: ``(most seconds to wait, busy fraction that counts as quiet) -> (quiet, busy fraction)``.
        clock: Seconds.
        sleep: Waits, seconds.

    Returns:
        The figures, or a reason where the source was lost.
    """
    least_s = LEAST_UPDATES * source.update_interval_s
    base: dict[str, Any] = {"source": source.name, "scope": source.scope, "scope_note": source.scope_note}
    notes = []
    if not getattr(source, "update_interval_known", True):
        notes.append(f"the sensor does not state its update interval; {source.update_interval_s * 1e3:.0f} ms assumed")
    quiet, busy = (None, None) if wait_quiet is None else wait_quiet(config.max_wait_idle_s, config.quiet_fraction)
    if quiet is False:
        notes.append(f"the machine was {busy:.0%} busy when idle power was read; net figures are too low")
    try:
        with Recorder(source, clock) as idle_recorder:
            sleep(max(config.idle_s, least_s))
        idle = idle_recorder.window()
        units = 0
        window_s = max(config.min_window_s, least_s)
        work()
        with Recorder(source, clock) as recorder:
            begin = clock()
            while clock() - begin < window_s:
                work()
                units += 1
        window = recorder.window()
    except SourceLost as error:
        return Energy(**base, idle_quiet=quiet, reason=str(error), notes=notes)
    base |= {"units": units, "idle_quiet": quiet, "window": window, "idle": idle}
    if window.energy_j is None or window.bound_j is None:
        return Energy(**base, reason=window.reason, notes=notes)
    idle_j, idle_bound_j = idle.energy_j or 0.0, idle.bound_j or 0.0
    if idle.reason:  # what moved under load and not while idle is right and too coarse for so little
        notes.append(f"while idle, {idle.reason}; idle power is below what it resolves, so net is gross")
    share = window.duration_s / idle.duration_s
    return Energy(
        **base,
        gross_j_per_unit=window.energy_j / units,
        net_j_per_unit=(window.energy_j - idle_j * share) / units,
        bound_j_per_unit=window.bound_j / units,
        net_bound_j_per_unit=(window.bound_j + idle_bound_j * share) / units,
        idle_w=idle_j / idle.duration_s,
        notes=notes,
    )


def nothing(unavailable: Sequence[Unavailable]) -> Energy:
    """No figure, with every source's reason."""
    return Energy("none", reason="; ".join(f"{u.name}: {u.reason}" for u in unavailable) or "no source was asked for")
