"""``python -m lit_mmpg.profiling`` is ``lit-mmpg profile``."""

import sys

from lit_mmpg.cli import main

if __name__ == "__main__":
    sys.exit(main(["profile", *sys.argv[1:]]))
