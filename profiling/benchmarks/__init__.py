"""Benchmarks: alternatives timed against each other in one run, after a check that they compute the same.

These are experiments on the project, not part of the product: they are run from a checkout
(``python -m lit_mmpg.profiling.benchmarks.NAME``), a wheel does not hold them, and nothing outside imports them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from lit_mmpg.errors import find_user_error

Given = ParamSpec("Given")


def in_a_line(main: Callable[Given, int | None]) -> Callable[Given, int]:
    """A program whose mistakes of the person at the keyboard are one line each, and exit status 2."""

    @wraps(main)
    def run(*args: Given.args, **named: Given.kwargs) -> int:
        try:
            return main(*args, **named) or 0
        except Exception as error:
            mistake = find_user_error(error)
            if mistake is None:
                raise
            print(f"error: {mistake}", file=sys.stderr)
            return 2

    return run
