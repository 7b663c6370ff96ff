"""``python -m profiling`` is ``lit-mmpg profile``."""

import sys

from lit_mmpg.errors import find_user_error
from profiling.cli import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
