"""One adaptation of a device: upload, download, guard, swap; and what the device goes on with when that fails."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lit_mmpg.link import LinkError
from lit_mmpg.records import subsample
from lit_mmpg.report import format_bytes
from lit_mmpg.runtime.bundle import Arrays
from lit_mmpg.runtime.client import Cloud, CloudError, Traffic
from lit_mmpg.runtime.guard import odd_outputs, odd_size, outputs, questions_of
from lit_mmpg.runtime.session import DeviceSession
from lit_mmpg.runtime.state import DeviceState

GUARD = "guard"
"""Why the cloud did not help, where its parameters were refused as implausible."""

Source = Literal["cloud", "cached", "static"]

SAID: dict[Source, str] = {
    "cloud": "personal, just received",
    "cached": "personal, of before",
    "static": "static model",
}
"""What the sources are called before people."""


@dataclass(frozen=True)
class Adaptation:
    """Result of one request for personal parameters.

    Attributes:
        source: Parameters in use now: received, kept from before, or none.
        traffic: Bytes that crossed the link; ``None`` if no answer arrived.
        cloud_ms: Time from sending the request to the checked answer, milliseconds.
        swap_ms: Time to load the parameters, milliseconds.
        guard_ms: Time to check that they are plausible, milliseconds.
        error: Why the request failed, as a sentence; ``None`` if it succeeded or was not made.
        reason: The same as a short name, for counting.
        lasting: Whether a retry fails as well until somebody changes something.
        digest: Digest of the parameters in use now; ``None``: the static model.
    """

    source: Source
    traffic: Traffic | None = None
    cloud_ms: float = 0.0
    swap_ms: float = 0.0
    error: str | None = None
    reason: str | None = None
    guard_ms: float = 0.0
    lasting: bool = False
    digest: str | None = None


def facts(outcome: Adaptation, features: str | None, camera: str | None) -> list[tuple[str, str]]:
    """With what a device answers, as pairs of a name and a text for people.

    Args:
        outcome: Its latest adaptation.
        features: How its features are standardised, if they are.
        camera: What is known of its camera, if somebody looked.
    """
    found = [("parameters", SAID[outcome.source]), ("features", features), ("camera", camera)]
    if (sent := outcome.traffic) is not None:
        wire = f"up {format_bytes(sent.upload_wire_bytes)}, down {format_bytes(sent.download_wire_bytes)} on the wire"
        payload = f"{format_bytes(sent.upload_payload_bytes)} and {format_bytes(sent.download_payload_bytes)}"
        found.append(("bytes", f"{wire} (payload {payload})"))
    return [(name, text) for name, text in found if text is not None]


def restore(session: DeviceSession, state: DeviceState) -> Source:
    """Load the last good parameters, where there are any."""
    session.swap(state.parameters)
    return "cached" if state.parameters is not None else "static"


def take_in(session: DeviceSession, state: DeviceState, features: np.ndarray, pixels: np.ndarray | None = None) -> None:
    """Take a clip into the context, and have it answered by the statistics of the clips before it.

    In training a clip that is asked about is no part of its own context, unless each clip is its own.

    Args:
        session: The device's model.
        state: What it remembers.
        features: ``[T, D]`` frame features of the clip; of more frames than the model takes, as many are used.
        pixels: ``[T, 3, H, W]`` the frames, where they are there: where the encoder is personal, parameters are judged
            by them.
    """
    used = subsample(len(features), session.manifest.frames.max_frames)
    features, pixels = features[used], pixels[used] if session.encodes_personally and pixels is not None else None
    session.alignment = state.alignment(features)
    state.see(session.project(features) if len(session.bundle.spec) else None, features, pixels)


def adapt(session: DeviceSession, state: DeviceState, client: Cloud, device_id: str) -> Adaptation:
    """Ask the cloud for parameters for the state's context and load them.

    Whatever the cloud does, the session can answer afterwards, and only parameters that belong to this request, this
    device and this bundle, and that are plausible, stay loaded: otherwise the last good ones are in use again.
    """
    kept: Source = "cached" if state.parameters is not None else "static"
    upload = state.upload(device_id)
    start = time.perf_counter()
    try:
        download, traffic = client.adapt(upload)
        try:
            parameters = download.parameters(state.bundle.spec)
        except LinkError as error:
            raise CloudError("garbage", str(error)) from error
    except CloudError as error:
        cloud_ms, said = _since(start), str(error)
        return Adaptation(
            kept, None, cloud_ms, error=said, reason=error.reason, lasting=error.lasting, digest=session.digest
        )
    cloud_ms, start = _since(start), time.perf_counter()
    problem, swap_ms = judge(session, state, parameters)
    guard_ms = _since(start) - swap_ms
    if problem is not None:
        session.swap(state.parameters)
        said = f"the parameters of the cloud are refused: {problem}"
        return Adaptation(kept, traffic, cloud_ms, swap_ms, said, GUARD, guard_ms=guard_ms, digest=session.digest)
    state.adopt(parameters)
    return Adaptation("cloud", traffic, cloud_ms, swap_ms, guard_ms=guard_ms, digest=session.digest)


def judge(session: DeviceSession, state: DeviceState, parameters: Arrays) -> tuple[str | None, float]:
    """Load parameters and judge them by the latest clips (:mod:`lit_mmpg.runtime.guard`).

    Where they are refused, the session is left in any state: load the last good ones.

    Returns:
        Why they are refused, if they are; and how long loading them took, milliseconds.
    """
    guard, task = session.manifest.guard, session.manifest.task
    problem, swap_ms = odd_size(guard, parameters), 0.0
    if problem is not None:
        return problem, swap_ms
    questions, clips = questions_of(guard, task), state.latest
    try:
        session.swap(None)
        static = outputs(session.outputs, clips, questions) if clips else None
        start = time.perf_counter()
        session.swap(parameters)
        swap_ms = _since(start)
        if static is not None:
            personal = outputs(session.outputs, clips, questions)
            problem = odd_outputs(guard, static, personal, len(clips), task)
    except Exception as error:  # engines fail in ways of their own; the device goes on
        problem = f"they cannot be used ({error})"
    return problem, swap_ms


def _since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
