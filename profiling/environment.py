"""The machine that was measured: processor, memory, board, GPU, versions."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from lit_mmpg import __version__, sysfs
from lit_mmpg.profiling.meters import nvml
from lit_mmpg.profiling.meters.sources import Unavailable
from lit_mmpg.profiling.meters.state import power_mode

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

MODULES = {
    "p3701-0000": "Jetson AGX Orin 32GB of the developer kit",
    "p3701-0004": "Jetson AGX Orin 32GB",
    "p3701-0005": "Jetson AGX Orin 64GB",
    "p3701-0008": "Jetson AGX Orin Industrial",
    "p3767-0000": "Jetson Orin NX 16GB",
    "p3767-0001": "Jetson Orin NX 8GB",
    "p3767-0003": "Jetson Orin Nano 8GB",
    "p3767-0004": "Jetson Orin Nano 4GB",
    "p3767-0005": "Jetson Orin Nano 8GB of the developer kit",
    "p3834-0008": "Jetson T5000 (Thor)",
}
"""Part numbers of NVIDIA's modules, from the tables of configurations in its Jetson Linux developer guide."""

FILES = (
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "etc/nv_tegra_release",
)


def describe(root: Path = Path("/"), gpu: nvml.Gpu | Unavailable | None = None) -> dict[str, Any]:
    """What a reader must know to compare figures; None where a machine does not tell.

    ``unreadable`` names files that exist and refuse.
    Host name, serial numbers and user names are left out: a profile is made to be shared.

    Args:
        root: Root of the file system.
        gpu: GPU that NVML shows, or why there is none.
    """
    refused: list[str] = []
    for name in FILES:
        sysfs.text(root / name, refused)
    return {
        "lit_mmpg": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": sysfs.processor_name(root) or platform.processor() or None,
        "cpu_count": os.cpu_count(),
        "cpu_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": sysfs.kilobytes(root / "proc/meminfo", "MemTotal"),
        "board": sysfs.device_tree(root, "model"),
        "module": module_name(root),
        "jetson_linux": jetson_linux(root),
        "power_mode": power_mode(root),
        "gpu": gpu.describe() if isinstance(gpu, nvml.Gpu) else None,
        "gpu_reason": gpu.reason if isinstance(gpu, Unavailable) else None,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "threads": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ},
        "optimised": sys.flags.optimize,
        "unreadable": refused,
    }


def module_name(root: Path) -> str | None:
    """Module on a Jetson's carrier board, ``Jetson Orin NX 16GB (p3767-0000)``: boards differ in it that share a name.

    The part number stands in the device tree's ``compatible``, ``nvidia,p3768-0000+p3767-0000``; None where none does.
    """
    parts = re.findall(
        r"nvidia,(?:p[0-9]{4}-[0-9]{4}\+)?(p[0-9]{4}-[0-9]{4})", sysfs.device_tree(root, "compatible") or ""
    )
    if not parts:
        return None
    return f"{MODULES[parts[0]]} ({parts[0]})" if parts[0] in MODULES else str(parts[0])


def jetson_linux(root: Path) -> str | None:
    """Release of Jetson Linux (``36.4.3``) from /etc/nv_tegra_release, or None."""
    text = sysfs.text(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text or "")
    return f"{match[1]}.{match[2]}" if match else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
