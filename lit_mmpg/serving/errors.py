"""Why a request is refused, in the form in which the client gets it."""

from __future__ import annotations


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
