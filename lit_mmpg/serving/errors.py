"""Why a request is refused, in the form in which the client gets it."""

from __future__ import annotations

import json


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        error: Short name of the reason, for programs.
        detail: One sentence for people; never holds a payload or a key.
        retry_after_s: Seconds after which another try makes sense.
    """

    def __init__(self, status: int, error: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.error, self.detail, self.retry_after_s = status, error, detail, retry_after_s

    def body(self) -> bytes:
        """What the client reads."""
        return json.dumps({"error": self.error, "detail": self.detail}).encode()

    def headers(self, body: bytes) -> list[tuple[bytes, bytes]]:
        """Headers of the answer with that body."""
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after_s))).encode()))
        return headers
