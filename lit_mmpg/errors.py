"""The one exception for mistakes that the person at the keyboard can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: the message names the file, the field and the remedy.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


def find_user_error(error: BaseException) -> UserError | None:
    """The :class:`UserError` that an exception is or was raised from, however libraries wrapped it."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, UserError):
            return cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__
    return None
