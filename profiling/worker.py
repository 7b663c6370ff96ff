"""The fresh process whose memory is measured: it opens a bundle, runs one engine and prints what it used as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.meters import nvml
from lit_mmpg.profiling.meters.memory import Memory, device_bytes, status_bytes


def run(request: dict[str, Any]) -> Memory:
    """Run one engine for the sake of its memory.

    Args:
        request: ``bundle``, ``engine``, ``roles`` (role -> precision), ``options`` (of the engine), ``batch``,
            ``repeats``; ``finetune`` (its settings) for one adaptation by fine-tuning instead.

    Returns:
        The memory of this process.
    """
    from lit_mmpg.profiling.inputs import adapted_parameters, role_inputs
    from lit_mmpg.runtime.bundle import Bundle
    from lit_mmpg.runtime.engines import create_engine

    bundle = Bundle.open(request["bundle"])
    batch, options = int(request.get("batch", 1)), request.get("options", {})
    parameters = adapted_parameters(bundle)
    rows = dict.fromkeys(request["roles"], batch)
    if "encode" in rows:
        rows["encode"] = batch * role_inputs(bundle, "model", 1)["frames"].shape[1]
    inputs = {role: role_inputs(bundle, role, count) for role, count in rows.items()}
    base = status_bytes("VmRSS")
    if request.get("finetune"):
        from lit_mmpg.torch_engines.finetuning import OnDeviceTraining

        settings = request["finetune"]
        clips = role_inputs(bundle, "model", settings["batch"])
        OnDeviceTraining(bundle, clips, settings["steps"], settings["lr"]).adapt()
        peak = status_bytes("VmHWM")
        return Memory(peak, base, device_reason="trained on the processor", reason=None if peak else "not readable")
    with ExitStack() as stack:
        engines = {
            role: stack.enter_context(create_engine(request["engine"], bundle, role, precision, **options))
            for role, precision in request["roles"].items()
        }
        for engine in engines.values():
            if engine.personal and parameters is not None:
                engine.load_parameters(parameters)
        for _ in range(int(request.get("repeats", 5))):
            for role, engine in engines.items():
                engine.infer(inputs[role])
        gpu = nvml.open_gpu()
        used, reason = device_bytes(os.getpid(), gpu if isinstance(gpu, nvml.Gpu) else None)
        sizes = [engine.engine_bytes for engine in engines.values()]
        workspaces = [engine.workspace_bytes for engine in engines.values()]
        return Memory(
            peak_rss_bytes=status_bytes("VmHWM"),
            base_rss_bytes=base,
            device_bytes=used,
            device_reason=reason,
            engine_bytes=_total(sizes),
            workspace_bytes=_total(workspaces),
            reason=None if status_bytes("VmHWM") else "/proc/self/status cannot be read",
        )


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def main(request: str) -> int:
    """Run the request, given as JSON, and print the result as one line of JSON."""
    try:
        print(json.dumps(run(json.loads(request)).to_json()), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
