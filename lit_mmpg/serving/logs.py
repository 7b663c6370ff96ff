"""Structured logs: one JSON object per line, never a payload, never a key."""

from __future__ import annotations

import json
import logging
import sys
import time

_FIELDS = (
    "event", "status", "reason", "detail", "device", "key", "request", "ms", "upload_bytes", "download_bytes", "count",
)  # fmt: skip


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object; what was passed as ``extra`` under a known name becomes a field."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        entry |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)  # in ASCII: nothing that a client chose can steer the terminal of a reader


def configure(level: str) -> None:
    """Send all logs of this process to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # ours says more, and nothing that is private
