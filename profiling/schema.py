"""The JSON schema of ``profile.json`` (draft 2020-12), and a check against the part of JSON Schema that it uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KIND = "lit-mmpg-profile"
VERSION = 1

MOST = 1e30
"""No figure of a profile is larger."""

Schema = dict[str, Any]


def _object(required: Schema, optional: Schema | None = None, description: str = "", null: bool = False) -> Schema:
    """The schema of an object by its fields, those that must be there first; ``null``: or there is none."""
    return {
        "type": ["object", "null"] if null else "object",
        **({"description": description} if description else {}),
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


_ANY: Schema = {}
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_TEXTS = {"type": "array", "items": _TEXT}
_INTEGER = {"type": "integer"}
_COUNT = {"type": "integer", "minimum": 1}
_BOOLEAN = {"type": "boolean"}
_NUMBER = {"type": "number"}
_NUMBER_OR_NULL = {"type": ["number", "null"]}
_NUMBERS = {"type": "array", "items": _NUMBER}
_OBJECT = {"type": "object"}
_OBJECT_OR_NULL = {"type": ["object", "null"]}
_MESSAGE = {**_OBJECT, "required": ["payload_bytes", "message_bytes"], "additionalProperties": _INTEGER}

_DISTRIBUTION = _object(
    {
        "count": _COUNT,
        **dict.fromkeys(("mean_ms", "stdev_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms"), _NUMBER),
        "samples_ms": _NUMBERS,
    },
    {"min_ms": _NUMBER, "max_ms": _NUMBER},
    "Samples of one quantity in milliseconds, in the order in which they were taken.",
)
_DISTRIBUTION_OR_NULL = {**_DISTRIBUTION, "type": ["object", "null"]}

_LATENCY = _object(
    {
        "wall": _DISTRIBUTION,
        "device": _DISTRIBUTION_OR_NULL,
        "device_source": _TEXT_OR_NULL,
        "cold_ms": _NUMBER,
        "timer_overhead_ms": _NUMBER,
        "halves": _NUMBERS,
        "stable": _BOOLEAN,
        "cut_short": _BOOLEAN,
    },
    {"warmup": _INTEGER},
    "wall: synchronised wall clock, timer_overhead_ms subtracted. device: the accelerator's own clock. "
    "cold_ms: the first call. halves: relative difference of the halves' medians, each attempt; stable: at most 5 %.",
    null=True,
)

_ENERGY = _object(
    {
        "source": _TEXT,
        "scope": _TEXT_OR_NULL,
        "estimate": _BOOLEAN,
        "gross_j_per_unit": _NUMBER_OR_NULL,
        "net_j_per_unit": _NUMBER_OR_NULL,
        "reason": _TEXT_OR_NULL,
    },
    {
        "scope_note": _TEXT_OR_NULL,
        "units": _INTEGER,
        **dict.fromkeys(("bound_j_per_unit", "net_bound_j_per_unit", "idle_w"), _NUMBER_OR_NULL),
        "idle_quiet": {"type": ["boolean", "null"]},
        "window": _OBJECT_OR_NULL,
        "idle": _OBJECT_OR_NULL,
        "notes": _TEXTS,
    },
    "Joules per unit of work. gross: as read; net: without idle power for as long; bound: of the "
    "sampling error. estimate: true for a model. Null with a reason where nothing could be measured.",
)

_NETWORK = _object(
    {
        "link": _TEXT,
        "time_ms": _NUMBER,
        "energy_j": _NUMBER_OR_NULL,
        "model": {**_BOOLEAN, "enum": [True]},
        "source": _TEXT,
    },
    {"tail_j": _NUMBER_OR_NULL},
    "Modelled cost of the messages on a named link; nothing was sent over it.",
)

_ROW = _object(
    {
        "engine": _TEXT,
        "precision": _TEXT,
        "batch": _COUNT,
        "scenario": _TEXT,
        "encoder_included": _BOOLEAN,
        "status": {**_TEXT, "enum": ["ok", "wrong", "failed", "absent", "compiled"]},
        "reason": _TEXT_OR_NULL,
        "options": _OBJECT,
        "verdicts": {"type": "array", "items": _OBJECT, "description": "Check against the reference."},
        "latency": _LATENCY,
        "memory": _OBJECT_OR_NULL,
        "energy": {"type": "array", "items": _ENERGY},
        "network": {"type": "array", "items": _NETWORK},
        "stages": {
            **_OBJECT,
            "description": "Distributions of the parts of a unit; a null part has its reason in notes. Of the scenario "
            "answer: copy_inputs, compute and copy_outputs of all its graphs, from calls of their own.",
            "additionalProperties": _DISTRIBUTION_OR_NULL,
        },
        "series": {**_OBJECT, "description": "Time series of the scenarios stream and sustained."},
    },
    {
        "unit": {**_TEXT_OR_NULL, "description": "What one unit of work is: what latency and energy are per."},
        "roles": {**_OBJECT, "description": "Graphs that ran, with their precisions."},
        "engine_details": _OBJECT,
        "activate_ms": {**_NUMBER_OR_NULL, "description": "Making all graphs ready: building, loading, first memory."},
        "build_ms": {
            **_OBJECT,
            "description": "By graph, what building (optimising, compiling) took of it; null where a kept engine was "
            "loaded, or nothing is built before the first call.",
            "additionalProperties": _NUMBER_OR_NULL,
        },
        "bytes": _object(
            {"upload": _MESSAGE, "download": _MESSAGE},
            description="upload and download: payload_bytes and message_bytes of the real serialised messages; "
            "wire_bytes, with the lines and headers of HTTP, where they crossed a network.",
            null=True,
        ),
        "throughput": _object(
            {"mode": _TEXT, "answers_per_s": _NUMBER_OR_NULL},
            {
                "p99_limit_ms": _NUMBER,
                "blocks_per_s": _NUMBERS,
                "probes": {"type": "array", "items": {**_OBJECT, "required": ["rate_per_s"]}},
            },
            "mode: Offline, MultiStream or Server (MLPerf's names). answers_per_s: null where no probed "
            "rate of Server kept p99_limit_ms; probes: each rate with its latencies.",
            null=True,
        ),
        "personalisation": _object(
            dict.fromkeys(("way", "download_bytes", "first_right_answer_ms", "baked_ratio", "baked_reason"), _ANY),
            description="Of the scenario personalise. first_right_answer_ms: median and its interval (95 %), from "
            "the bytes of a download to the first right answer. baked_ratio, baked_ratio_low, baked_ratio_high: time "
            "of an inference over that of the same engine with the parameters inside (baked_by), median of blocks of "
            "turns and its interval; null with baked_reason.",
            null=True,
        ),
        "state_before": _OBJECT_OR_NULL,
        "state_after": _OBJECT_OR_NULL,
        "throttled": {
            **_TEXTS,
            "description": "What slowed the machine, and when: before the row, during which of its parts (seconds "
            "since the first began), after it.",
        },
        "throttle_watch": {
            **_OBJECT_OR_NULL,
            "description": "The thread that looked for it: looks, interval_s, cpu_fraction of one core, episodes.",
        },
        "notes": _TEXTS,
    },
    "One cell of the grid. status: ok; wrong (outputs differ from the reference, so nothing was timed); "
    "failed (see reason); absent (cannot run here, see reason); compiled (built, not run).",
)

SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Profile of a lit-mmpg device bundle on one machine",
    **_object(
        {
            "kind": {**_TEXT, "enum": [KIND]},
            "schema_version": _COUNT,
            "digest": {**_TEXT, "description": "SHA-256 of the canonical JSON of everything else."},
            "created": {**_TEXT, "description": "UTC, ISO 8601."},
            "state": {**_TEXT, "enum": ["running", "complete", "interrupted"]},
            "name": {**_TEXT, "description": "Name of the configuration: the board or machine."},
            "bundle": _object(
                {
                    "path": _TEXT,
                    "task": _TEXT,
                    "checkpoint_digest": _TEXT,
                    "run_id": _TEXT_OR_NULL,
                    "tracking_uri": _TEXT_OR_NULL,
                }
            ),
            "config": _OBJECT,
            "environment": _OBJECT,
            "engines": {
                "type": "array",
                "description": "Every engine; reason says why this machine cannot run it, null where it can.",
                "items": _object({"name": _TEXT, "reason": _TEXT_OR_NULL}),
            },
            "rows": {"type": "array", "items": _ROW},
        }
    ),
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
