"""The fresh process whose memory is measured: it opens a bundle, runs one engine and prints what it used as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from lit_mmpg.errors import UserError
from profiling.meters import nvml
from profiling.meters.memory import Memory, device_bytes, status_bytes


def run(request: dict[str, Any]) -> Memory:
    """Run one engine for the sake of its memory.

    Args:
        request: ``bundle``, ``engine``, ``role``, ``precision``, ``options`` (of the engine), ``batch``, ``repeats``.

    Returns:
        The memory of this process.
    """
    from lit_mmpg.runtime.bundle import Bundle
    from lit_mmpg.runtime.engines import create_engine
    from profiling.inputs import adapted_parameters, role_inputs

    bundle = Bundle.open(request["bundle"])
    inputs = role_inputs(bundle, request["role"], int(request.get("batch", 1)))
    parameters = adapted_parameters(bundle)
    base = status_bytes("VmRSS")
    engine = create_engine(
        request["engine"], bundle, request["role"], request["precision"], **request.get("options", {})
    )
    with engine:
        if engine.personal and parameters is not None:
            engine.load_parameters(parameters)
        for _ in range(int(request.get("repeats", 5))):
            engine.infer(inputs)
        gpu = nvml.open_gpu()
        used, reason = device_bytes(os.getpid(), gpu if isinstance(gpu, nvml.Gpu) else None)
        workspace = getattr(engine, "workspace_bytes", None)
        return Memory(
            peak_rss_bytes=status_bytes("VmHWM"),
            base_rss_bytes=base,
            device_bytes=used,
            device_reason=reason,
            engine_bytes=engine.engine_bytes,
            workspace_bytes=workspace,
            reason=None if status_bytes("VmHWM") else "/proc/self/status cannot be read",
        )


def main(request: str) -> int:
    """Run the request, given as JSON, and print the result as one line of JSON."""
    try:
        print(json.dumps(run(json.loads(request)).to_json()), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
