"""NVIDIA GPUs through NVML. On Jetson NVML initialises and then refuses most reads, so every read is tried first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from lit_mmpg.errors import first_line
from lit_mmpg.profiling.meters.sources import SourceLost, Unavailable

UPDATE_S = 0.1
"""NVML refreshes power and energy every 20 to 100 ms, depending on the GPU; the slowest is assumed."""

THROTTLE_BITS = {
    0x0000000000000004: "software power cap",
    0x0000000000000008: "hardware slowdown",
    0x0000000000000020: "software thermal slowdown",
    0x0000000000000040: "hardware thermal slowdown",
    0x0000000000000080: "hardware power brake",
}
"""``nvmlClocksThrottleReason*`` of nvml.h that slow a GPU against its will."""


class Gpu:
    """One GPU.

    Args:
        library: The module ``pynvml``, initialised.
        index: Number of the GPU.
    """

    def __init__(self, library: Any, index: int = 0) -> None:
        self.library = library
        self.handle = library.nvmlDeviceGetHandleByIndex(index)
        self.index = index

    def read(self, function: str, *arguments: Any) -> Any:
        """Call one NVML function on this GPU.

        Raises:
            SourceLost: If NVML refuses it.
        """
        try:
            return getattr(self.library, function)(self.handle, *arguments)
        except self.library.NVMLError as error:
            raise SourceLost(f"NVML refuses {function}: {first_line(error)}") from error

    def try_read(self, function: str, *arguments: Any) -> Any:
        """The same, None where NVML refuses it."""
        try:
            return self.read(function, *arguments)
        except (SourceLost, AttributeError):
            return None

    def describe(self) -> dict[str, Any]:
        """Name, driver and memory, None where NVML refuses."""
        memory = self.try_read("nvmlDeviceGetMemoryInfo")
        try:
            driver = self.library.nvmlSystemGetDriverVersion()
        except self.library.NVMLError:
            driver = None
        return {
            "index": self.index,
            "name": _text(self.try_read("nvmlDeviceGetName")),
            "driver": _text(driver),
            "memory_total_bytes": None if memory is None else int(memory.total),
        }

    def state(self) -> dict[str, Any]:
        """Clocks (MHz), temperature (°C), power limit (W), and why it is throttled; None where NVML refuses."""
        library = self.library
        limit = self.try_read("nvmlDeviceGetEnforcedPowerLimit")
        return {
            "sm_mhz": self.try_read("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
            "memory_mhz": self.try_read("nvmlDeviceGetClockInfo", library.NVML_CLOCK_MEM),
            "temperature_c": self.try_read("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
            "power_limit_w": None if limit is None else limit / 1e3,
            "throttling": self.throttling(),
        }

    def throttling(self) -> list[str] | None:
        """Why the GPU is slowed down now; None where NVML refuses."""
        reasons = self.try_read("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if reasons is None else [text for bit, text in THROTTLE_BITS.items() if reasons & bit]

    def busy_fraction(self) -> float | None:
        """Utilisation, 0 to 1, or None where NVML refuses."""
        rates = self.try_read("nvmlDeviceGetUtilizationRates")
        return None if rates is None else rates.gpu / 100

    def process_bytes(self, pid: int) -> tuple[int | None, str]:
        """GPU memory of a process, or None with the reason."""
        try:
            processes = self.read("nvmlDeviceGetComputeRunningProcesses")
        except SourceLost as error:
            return None, str(error)
        for process in processes:
            if process.pid == pid and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory), "NVML, memory of the process"
        return None, "NVML lists no memory for this process (in a container it sees other process numbers)"


class NvmlCounter:
    """Energy counter of a GPU, millijoules since the driver was loaded (Volta and later)."""

    name, scope = "nvml_counter", "gpu"
    scope_note = "the GPU board with its memory, without the host"
    update_interval_s = UPDATE_S
    resolution_j = 1e-3

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def read_j(self) -> float:
        """Joules."""
        return float(self._gpu.read("nvmlDeviceGetTotalEnergyConsumption")) / 1e3


class NvmlPower:
    """Power of a GPU, polled."""

    name, scope = "nvml_polled", "gpu"
    scope_note = NvmlCounter.scope_note
    update_interval_s = UPDATE_S
    update_interval_known = False
    resolution_w = 1e-3
    total: Sequence[str] = ("gpu",)

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def read_w(self) -> Mapping[str, float]:
        """Watts."""
        return {"gpu": float(self._gpu.read("nvmlDeviceGetPowerUsage")) / 1e3}


def load() -> tuple[ModuleType | None, str]:
    """The initialised module ``pynvml``, or None with the reason."""
    try:
        import pynvml
    except ImportError:
        return None, "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML does not start: {first_line(error)}"
    return pynvml, ""


def open_gpu(library: Any = None, index: int = 0) -> Gpu | Unavailable:
    """A GPU, or the reason why NVML shows none."""
    if library is None:
        library, reason = load()
        if library is None:
            return Unavailable("nvml", reason)
    try:
        if library.nvmlDeviceGetCount() <= index:
            return Unavailable("nvml", f"NVML lists no GPU number {index}")
        return Gpu(library, index)
    except library.NVMLError as error:
        return Unavailable("nvml", f"NVML refuses to list GPUs: {first_line(error)}")


def open_energy(gpu: Gpu | Unavailable) -> NvmlCounter | NvmlPower | Unavailable:
    """The counter where it answers, else polled power where that answers, else the reason."""
    if isinstance(gpu, Unavailable):
        return gpu
    reasons = []
    counter, polled = NvmlCounter(gpu), NvmlPower(gpu)
    try:
        counter.read_j()
        return counter
    except SourceLost as error:
        reasons.append(str(error))
    try:
        polled.read_w()
        return polled
    except SourceLost as error:
        reasons.append(str(error))
    return Unavailable("nvml", "; ".join(reasons))


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
