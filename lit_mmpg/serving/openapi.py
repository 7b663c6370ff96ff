"""The OpenAPI document, and a page that shows it without loading anything from elsewhere."""

from __future__ import annotations

import json
from typing import Any

from lit_mmpg import __version__
from lit_mmpg.link.camera import MOST_BYTES, VERSION
from lit_mmpg.link.messages import PROTOCOL_VERSION
from lit_mmpg.pages.blocks import Block, Figure, Heading, Table, Text, render
from lit_mmpg.serving.config import ServeConfig
from lit_mmpg.texts import Html, html

REFUSALS = {
    "400": "The body is damaged, cut off, not an upload, or did not arrive in time.",
    "401": "No valid key. Nothing of the body was read.",
    "403": "The key does not belong to this device, or came over plain HTTP from another machine.",
    "409": "Device and service do not belong together: other protocol version (the detail says what to upgrade), "
    "checkpoint or parameter specification.",
    "413": "The body is, or says that it will be, too large. It was not read to its end.",
    "422": "A well-formed upload with values out of range: NaN, infinity, an absurd norm, a context too large.",
    "429": "The key sends too many requests; Retry-After says when to try again.",
    "500": "The computation failed.",
    "503": "More requests wait than the queue holds; try again later. The device goes on with what it has.",
}


def document(config: ServeConfig) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a service with these settings."""
    octets = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    retry = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}

    def post(name: str, summary: str, asked: str, answered: str, description: str, **own: str) -> dict[str, Any]:
        operation: dict[str, Any] = {
            "operationId": name,
            "summary": summary,
            "description": f"{description} The service keeps nothing: asking again is harmless.",
            "requestBody": {"required": True, "description": asked, "content": octets},
            "responses": {
                "200": {"description": answered, "content": octets},
                **{
                    status: {"description": text, "content": refusal}
                    | ({"headers": retry} if status in ("429", "503") else {})
                    for status, text in sorted((REFUSALS | own).items())
                },
            },
        }
        return {"post": operation | ({"security": [{"key": []}]} if config.keys else {})}

    adapt = post(
        "adapt",
        "Personal parameters for a device",
        "An Upload message.",
        "A Download message that echoes the request.",
        f"Body and answer are messages of protocol version {PROTOCOL_VERSION}: a binary header of fixed fields "
        "(magic MMPG, version, codec, digest, model or request), then the encoded arrays, numbers little-endian. "
        f"A body has at most {config.max_body_bytes} bytes.",
    )
    camera = post(
        "camera",
        "What a camera is recognised as, and what undoes it",
        "A CameraQuery message: a picture of what stays in the frames of a device.",
        "A CameraAnswer message that names the query; model -1: none is recognised.",
        f"Body and answer are messages of version {VERSION} (magic MMPC) with at most {MOST_BYTES} bytes of pictures.",
        **{
            "400": "The body is damaged, cut off, not a camera query, or did not arrive in time.",
            "404": "The service holds no camera memory.",
            "409": "The message has another version (the detail says what to upgrade).",
            "422": "A well-formed query with values out of range.",
        },
    )

    def get(name: str, summary: str, content: dict[str, Any], failure: str | None = None) -> dict[str, Any]:
        responses: dict[str, Any] = {"200": {"description": summary, "content": content}}
        if failure:
            responses["503"] = {"description": failure, "content": content}
        return {"get": {"operationId": name, "summary": summary, "responses": responses}}

    def schema(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    text, whole, digest = {"type": "string"}, {"type": "integer"}, {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    short = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
    entry = {"name": text, "shape": {"type": "array", "items": whole}, "dtype": text}
    info = {
        "protocol_version": whole,
        "checkpoint_digest": digest,
        "spec_digest": digest,
        "model_digest": short,
        "spec": {"type": "array", "items": _object(entry)},
        "upload_codecs": {"type": "array", "items": text},
        "trained_upload_codec": text,
        "download_codec": text,
        "anchor_width": whole,
        "max_body_bytes": whole,
        "max_clips": whole,
        "max_anchors": whole,
        "max_frames": whole,
        "camera_models": {"type": ["integer", "null"]},
        "camera_memory_version": {"type": ["integer", "null"]},
        "run_id": {"type": ["string", "null"]},
        "compute_device": text,
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lit-mmpg cloud half",
            "version": __version__,
            "summary": "Anchors of a device's recent clips in, personal parameters out; no backpropagation anywhere.",
        },
        "paths": {
            "/v1/adapt": adapt,
            "/v1/camera": camera,
            "/v1/info": get("info", "What this service speaks and holds", schema("Info")),
            "/healthz": get("health", "It computes", schema("Status"), "A batch has been computed for too long."),
            "/readyz": get("ready", "It accepts uploads", schema("Status"), "It is stopping, or its queue is full."),
            "/metrics": get("metrics", "Prometheus metrics", {"text/plain": {"schema": text}}),
            "/openapi.json": get("openapi", "This document", {"application/json": {"schema": {"type": "object"}}}),
            "/docs": get("docs", "This document as a page", {"text/html": {"schema": text}}),
        },
        "components": {
            "schemas": {
                "Error": _object({"error": text, "detail": text}),
                "Status": _object({"status": {"enum": ["ok", "overloaded", "stopping", "stuck"]}}),
                "Info": _object(info),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": sorted(properties),
        "additionalProperties": False,
    }


def page(openapi: dict[str, Any]) -> str:
    """The document as one HTML page."""
    info, blocks = openapi["info"], list[Block]()
    for path, operations in openapi["paths"].items():
        for verb, operation in operations.items():
            needs = " Needs the header Authorization: Bearer KEY." if operation.get("security") else ""
            answers = operation["responses"].items()
            blocks += [
                Heading(operation["summary"], badge=Html(f"<code>{verb.upper()} {html(path)}</code>")),
                Text(operation.get("description", "") + needs),
                Table(
                    ["status", "answer", "content"],
                    [[status, one["description"], ", ".join(one["content"])] for status, one in answers],
                    text=-1,
                ),
            ]
    schemas = html(json.dumps(openapi["components"]["schemas"], indent=2))
    return render(
        info["title"],
        [
            Heading(f"{info['title']} {info['version']}", 1),
            Text(info["summary"]),
            *blocks,
            Text(Html('Machine-readable: <a href="openapi.json">openapi.json</a>')),
            Figure(Html(f"<pre>{schemas}</pre>"), "Schemas", folded=True),
        ],
    )
