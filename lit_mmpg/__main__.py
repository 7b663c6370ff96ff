"""``python -m lit_mmpg``."""

from __future__ import annotations

import sys

from lit_mmpg.cli import main

if __name__ == "__main__":
    sys.exit(main())
