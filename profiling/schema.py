"""The JSON schema of ``profile.json`` (draft 2020-12), and a check against the part of JSON Schema that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KIND = "lit-mmpg-profile"
VERSION = 1

STATUSES = ("ok", "wrong", "failed", "absent", "compiled")

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_OBJECT_OR_NULL = {"type": ["object", "null"]}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_MESSAGE = {
    "type": "object",
    "required": ["payload_bytes", "message_bytes"],
    "additionalProperties": {"type": "integer"},
}
MOST = 1e30
"""No figure of a profile is larger."""

_DISTRIBUTION = {
    "type": "object",
    "description": "Samples of one quantity in milliseconds, in the order in which they were taken.",
    "required": ["count", "mean_ms", "stdev_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "samples_ms"],
    "properties": {
        "count": {"type": "integer", "minimum": 1},
        "samples_ms": _NUMBERS,
        **{name: {"type": "number"} for name in ("mean_ms", "stdev_ms", "min_ms", "max_ms")},
        **{name: {"type": "number"} for name in ("p50_ms", "p90_ms", "p95_ms", "p99_ms")},
    },
}

_LATENCY = {
    "type": ["object", "null"],
    "description": "wall: synchronised wall clock, timer_overhead_ms subtracted. device: the accelerator's own clock. "
    "cold_ms: the first call. halves: relative difference of the halves' medians, each attempt; stable: at most 5 %.",
    "required": ["wall", "device", "device_source", "cold_ms", "timer_overhead_ms", "halves", "stable", "cut_short"],
    "properties": {
        "wall": _DISTRIBUTION,
        "device": {**_DISTRIBUTION, "type": ["object", "null"]},
        "device_source": _TEXT_OR_NULL,
        "cold_ms": {"type": "number"},
        "timer_overhead_ms": {"type": "number"},
        "halves": _NUMBERS,
        "stable": {"type": "boolean"},
        "cut_short": {"type": "boolean"},
        "warmup": {"type": "integer"},
    },
}

_ENERGY = {
    "type": "object",
    "description": "Joules per unit of work. gross: as read; net: without idle power for as long; bound: of the "
    "sampling error. estimate: true for a model. Null with a reason where nothing could be measured.",
    "required": ["source", "scope", "estimate", "gross_j_per_unit", "net_j_per_unit", "reason"],
    "properties": {
        "source": _TEXT,
        "scope": _TEXT_OR_NULL,
        "scope_note": _TEXT_OR_NULL,
        "estimate": {"type": "boolean"},
        "units": {"type": "integer"},
        **dict.fromkeys(
            ("gross_j_per_unit", "net_j_per_unit", "bound_j_per_unit", "net_bound_j_per_unit", "idle_w"),
            _NUMBER_OR_NULL,
        ),
        "idle_quiet": {"type": ["boolean", "null"]},
        "window": _OBJECT_OR_NULL,
        "idle": _OBJECT_OR_NULL,
        "reason": _TEXT_OR_NULL,
        "notes": {"type": "array", "items": _TEXT},
    },
}

_NETWORK = {
    "type": "object",
    "description": "Modelled cost of the messages on a named link; nothing was sent over it.",
    "required": ["link", "time_ms", "energy_j", "model", "source"],
    "properties": {
        "link": _TEXT,
        "time_ms": {"type": "number"},
        "energy_j": _NUMBER_OR_NULL,
        "tail_j": _NUMBER_OR_NULL,
        "model": {"type": "boolean", "enum": [True]},
        "source": _TEXT,
    },
}

_ROW = {
    "type": "object",
    "description": "One cell of the grid. status: ok; wrong (outputs differ from the reference, so nothing was timed); "
    "failed (see reason); absent (cannot run here, see reason); compiled (built, not run).",
    "required": [
        "engine",
        "precision",
        "batch",
        "scenario",
        "encoder_included",
        "status",
        "reason",
        "options",
        "verdicts",
        "latency",
        "memory",
        "energy",
        "network",
        "stages",
        "series",
    ],
    "properties": {
        "engine": _TEXT,
        "precision": _TEXT,
        "batch": {"type": "integer", "minimum": 1},
        "scenario": _TEXT,
        "encoder_included": {"type": "boolean"},
        "unit": {**_TEXT_OR_NULL, "description": "What one unit of work is: what latency and energy are per."},
        "status": {"type": "string", "enum": list(STATUSES)},
        "reason": _TEXT_OR_NULL,
        "roles": {"type": "object", "description": "Graphs that ran, with their precisions."},
        "options": {"type": "object"},
        "engine_details": {"type": "object"},
        "verdicts": {"type": "array", "items": {"type": "object"}, "description": "Check against the reference."},
        "activate_ms": {**_NUMBER_OR_NULL, "description": "Making all graphs ready: building, loading, first memory."},
        "build_ms": {
            "type": "object",
            "description": "By graph, what building (optimising, compiling) took of it; null where a kept engine was "
            "loaded, or nothing is built before the first call.",
            "additionalProperties": _NUMBER_OR_NULL,
        },
        "latency": _LATENCY,
        "memory": _OBJECT_OR_NULL,
        "energy": {"type": "array", "items": _ENERGY},
        "network": {"type": "array", "items": _NETWORK},
        "bytes": {
            **_OBJECT_OR_NULL,
            "description": "upload and download: payload_bytes and message_bytes of the real serialised messages; "
            "wire_bytes, with the lines and headers of HTTP, where they crossed a network.",
            "required": ["upload", "download"],
            "properties": {"upload": _MESSAGE, "download": _MESSAGE},
        },
        "throughput": {
            **_OBJECT_OR_NULL,
            "description": "mode: Offline, MultiStream or Server (MLPerf's names). answers_per_s: null where no probed "
            "rate of Server kept p99_limit_ms; probes: each rate with its latencies.",
            "required": ["mode", "answers_per_s"],
            "properties": {
                "mode": _TEXT,
                "answers_per_s": _NUMBER_OR_NULL,
                "p99_limit_ms": {"type": "number"},
                "blocks_per_s": _NUMBERS,
                "probes": {"type": "array", "items": {"type": "object", "required": ["rate_per_s"]}},
            },
        },
        "personalisation": {
            **_OBJECT_OR_NULL,
            "description": "Of the scenario personalise. first_right_answer_ms: median and its interval (95 %), from "
            "the bytes of a download to the first right answer. baked_ratio, baked_ratio_low, baked_ratio_high: time "
            "of an inference over that of the same engine with the parameters inside (baked_by), median of blocks of "
            "turns and its interval; null with baked_reason.",
            "required": ["way", "download_bytes", "first_right_answer_ms", "baked_ratio", "baked_reason"],
        },
        "stages": {
            "type": "object",
            "description": "Distributions of the parts of a unit; a null part has its reason in notes. Of the scenario "
            "answer: copy_inputs, compute and copy_outputs of all its graphs, from calls of their own.",
            "additionalProperties": {**_DISTRIBUTION, "type": ["object", "null"]},
        },
        "series": {"type": "object", "description": "Time series of the scenarios stream and sustained."},
        "state_before": _OBJECT_OR_NULL,
        "state_after": _OBJECT_OR_NULL,
        "throttled": {
            "type": "array",
            "items": _TEXT,
            "description": "What slowed the machine, and when: before the row, during which of its parts (seconds "
            "since the first began), after it.",
        },
        "throttle_watch": {
            **_OBJECT_OR_NULL,
            "description": "The thread that looked for it: looks, interval_s, cpu_fraction of one core, episodes.",
        },
        "notes": {"type": "array", "items": _TEXT},
    },
}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Profile of a lit-mmpg device bundle on one machine",
    "type": "object",
    "required": [
        "kind",
        "schema_version",
        "digest",
        "created",
        "state",
        "name",
        "bundle",
        "config",
        "environment",
        "engines",
        "rows",
    ],
    "properties": {
        "kind": {"type": "string", "enum": [KIND]},
        "schema_version": {"type": "integer", "minimum": 1},
        "digest": {**_TEXT, "description": "SHA-256 of the canonical JSON of everything else."},
        "created": {**_TEXT, "description": "UTC, ISO 8601."},
        "state": {"type": "string", "enum": ["running", "complete", "interrupted"]},
        "name": {**_TEXT, "description": "Name of the configuration: the board or machine."},
        "bundle": {
            "type": "object",
            "required": ["path", "task", "checkpoint_digest", "run_id", "tracking_uri"],
            "properties": {
                "path": _TEXT,
                "task": _TEXT,
                "checkpoint_digest": _TEXT,
                "run_id": _TEXT_OR_NULL,
                "tracking_uri": _TEXT_OR_NULL,
            },
        },
        "config": {"type": "object"},
        "environment": {"type": "object"},
        "engines": {
            "type": "array",
            "description": "Every engine; reason says why this machine cannot run it, null where it can.",
            "items": {
                "type": "object",
                "required": ["name", "reason"],
                "properties": {"name": _TEXT, "reason": _TEXT_OR_NULL},
            },
        },
        "rows": {"type": "array", "items": _ROW},
    },
}

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (Mapping,),  # type: ignore[type-abstract]
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def problems(value: Any, schema: Mapping[str, Any] = SCHEMA, where: str = "profile") -> list[str]:
    """What does not follow a schema, in words; empty where all does.

    Args:
        value: Plain data.
        schema: Uses ``type``, ``enum``, ``minimum``, ``required``, ``properties``, ``additionalProperties`` and
            ``items`` only.
        where: Place of the value, for the words.
    """
    types = schema.get("type", list(_TYPES))
    types = [types] if isinstance(types, str) else types
    if not any(_is(value, kind) for kind in types):
        return [f"{where} is {type(value).__name__}, expected {' or '.join(types)}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where} is {value!r}, expected one of {schema['enum']}"]
    found: list[str] = []
    if isinstance(value, int | float) and not -MOST < value < MOST:
        return [f"{where} is no possible figure (infinite, or above {MOST:g})"]
    if "minimum" in schema and isinstance(value, int | float) and value < schema["minimum"]:
        found.append(f"{where} is {value}, expected at least {schema['minimum']}")
    if isinstance(value, Mapping):
        found += [f"{where} lacks '{key}'" for key in schema.get("required", ()) if key not in value]
        for key, item in value.items():
            rule = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            found += problems(item, rule, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            found += problems(item, schema.get("items", {}), f"{where}[{index}]")
    return found


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, _TYPES[kind])
