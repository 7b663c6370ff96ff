"""The machine that was measured: processor, memory, board, GPU, versions."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_mmpg import __version__
from profiling.meters import nvml
from profiling.meters.sources import Unavailable
from profiling.meters.state import power_mode

PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "torch-tensorrt",
    "tensorrt",
    "tensorrt-rtx",
    "codecarbon",
    "nvidia-ml-py",
)


def describe(root: Path = Path("/"), gpu: nvml.Gpu | Unavailable | None = None) -> dict[str, Any]:
    """What a reader must know to compare figures; None where a machine does not tell.

    Host name, serial numbers and user names are left out: a profile is made to be shared.

    Args:
        root: Root of the file system.
        gpu: GPU that NVML shows, or why there is none.
    """
    return {
        "lit_mmpg": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": cpu_name(root),
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(root),
        "board": board_name(root),
        "jetson_linux": jetson_linux(root),
        "power_mode": power_mode(root),
        "gpu": gpu.describe() if isinstance(gpu, nvml.Gpu) else None,
        "gpu_reason": gpu.reason if isinstance(gpu, Unavailable) else None,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
        "optimised": sys.flags.optimize,
    }


def board_name(root: Path = Path("/")) -> str | None:
    """Name of the board from the device tree (``NVIDIA Jetson Orin Nano Developer Kit``), or None."""
    text = _read(root / "proc/device-tree/model") or _read(root / "sys/firmware/devicetree/base/model")
    return text.strip("\0 \n") or None if text else None


def jetson_linux(root: Path = Path("/")) -> str | None:
    """Release of Jetson Linux (``36.4.3``) from /etc/nv_tegra_release, or None."""
    text = _read(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text or "")
    return f"{match[1]}.{match[2]}" if match else None


def cpu_name(root: Path = Path("/")) -> str | None:
    """Name of the processor."""
    text = _read(root / "proc/cpuinfo") or ""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else platform.processor() or None


def _memory_bytes(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
