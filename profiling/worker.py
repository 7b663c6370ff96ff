"""The fresh process whose memory is measured: it opens a bundle, runs one engine and prints what it used as JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lit_mmpg.errors import UserError
from lit_mmpg.profiling.meters import nvml
from lit_mmpg.profiling.meters.memory import Memory, device_bytes, restart_peak, status_bytes

if TYPE_CHECKING:
    from lit_mmpg.runtime.bundle import Bundle
    from lit_mmpg.runtime.engines import Engine


def run(request: dict[str, Any]) -> Memory:
    """Run one engine for the sake of its memory.

    Args:
        request: ``bundle``, ``engine``, ``roles`` (role -> precision), ``options`` (of the engine), ``batch``,
            ``repeats``; instead, ``finetune`` (its settings) for one adaptation by fine-tuning, or ``stream`` (its
            settings) for a stream of clips.

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
    if request.get("stream"):
        return _stream(bundle, request, base)
    with ExitStack() as stack:
        engines = {
            role: stack.enter_context(create_engine(request["engine"], bundle, role, precision, **options))
            for role, precision in request["roles"].items()
        }
        activated, peak, restarted = status_bytes("VmRSS"), status_bytes("VmHWM"), restart_peak()
        for engine in engines.values():
            if engine.personal and parameters is not None:
                engine.load_parameters(parameters)
        for _ in range(int(request.get("repeats", 5))):
            for role, engine in engines.items():
                engine.infer(inputs[role])
        return _memory(engines.values(), base, activated, peak, restarted)


def _stream(bundle: Bundle, request: dict[str, Any], base: int | None) -> Memory:
    """The memory of a process that lives through a stream of clips: every graph, the context, messages, swaps."""
    from lit_mmpg.profiling.config import EngineSelection, StreamConfig
    from lit_mmpg.profiling.pipeline import Pipeline
    from lit_mmpg.profiling.plan import Cell
    from lit_mmpg.profiling.scenarios import more_roles
    from lit_mmpg.profiling.scenarios.stream import StreamOfClips

    settings = StreamConfig(**request["stream"])
    selection = EngineSelection(request["engine"], options=request.get("options", {}))
    cell = Cell(selection, request["roles"]["model"], 1, "stream", "encode" in request["roles"])
    with Pipeline(bundle, cell, more_roles("stream")) as pipeline:
        activated, peak, restarted = status_bytes("VmRSS"), status_bytes("VmHWM"), restart_peak()
        stream = StreamOfClips(pipeline, settings)
        for number in range(settings.clips):
            stream.clip(number)
        found = _memory(pipeline.engines.values(), base, activated, peak, restarted)
        return replace(found, clips=settings.clips)


def _memory(
    engines: Collection[Engine], base: int | None, activated: int | None, activation_peak: int | None, restarted: bool
) -> Memory:
    """Memory now, of active engines that have run.

    Args:
        engines: The engines.
        base: Resident memory before the engines.
        activated: Resident memory once they were ready.
        activation_peak: Peak until then.
        restarted: Whether the peak of now began there.
    """
    gpu = nvml.open_gpu()
    used, reason = device_bytes(os.getpid(), gpu if isinstance(gpu, nvml.Gpu) else None)
    peak = status_bytes("VmHWM")
    grown = peak - activated if restarted and peak is not None and activated is not None else None
    return Memory(
        peak_rss_bytes=None if peak is None else max(peak, activation_peak or 0),
        base_rss_bytes=base,
        activated_rss_bytes=activated,
        inference_rss_bytes=None if grown is None else max(0, grown),
        device_bytes=used,
        device_reason=reason,
        engine_bytes=_total([engine.engine_bytes for engine in engines]),
        workspace_bytes=_total([engine.workspace_bytes for engine in engines]),
        reason=None if peak else "/proc/self/status cannot be read",
    )


def _total(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def main(request: str) -> int:
    """Run the request, given as JSON, and print the result as one line of JSON."""
    try:
        print(json.dumps(asdict(run(json.loads(request)))), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
