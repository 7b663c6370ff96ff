"""What a board installs, read from pyproject.toml so that no list can go stale.

The base package, one engine and, if wanted, PyAV for video files.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
"""JetPack 6 has glibc 2.35 and JetPack 7 glibc 2.39: both take these wheels."""


def board_requirements(*extras: str) -> list[str]:
    """Requirements of the base package and of some extras.

    A board's Python may have no TOML reader (3.10 has none), so two lists are read from the file by their form.

    Args:
        extras: The extra with the engine, but on JetPack, which brings TensorRT; ``board-video`` for video files.
    """
    text = PYPROJECT.read_text(encoding="utf-8")
    return [line for key in ("dependencies", *extras) for line in _list(text, key)]


def _list(text: str, key: str) -> list[str]:
    match = re.search(rf"^{re.escape(key)} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise SystemExit(f"error: {PYPROJECT} has no list '{key}'")
    return re.findall(r'"([^"]+)"', match[1])


def check(python: str, requirements: list[str]) -> bool:
    """Whether every requirement, and all that it needs, resolves to wheels for aarch64."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", folder]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        command += ["--python-version", python, "--implementation", "cp", *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            print(f"Python {python}: {done.stderr.strip().splitlines()[-1]}")
            return False
        names = sorted(path.name for path in Path(folder).iterdir())
        built = [name for name in names if not name.endswith("-any.whl")]
        print(f"Python {python}: {len(names)} wheels, of them built for aarch64: {', '.join(built)}")
        return all("aarch64" in name for name in built)


def main() -> int:
    """Print or check."""
    parser = argparse.ArgumentParser(
        description="Requirements of a board: the base package, one engine, and what reads videos."
    )
    parser.add_argument("--engine", default="board-cpu", help="extra with the engine, or 'none' (JetPack's TensorRT)")
    parser.add_argument("--video", action="store_true", help="with what reads video files: answer, search, device")
    parser.add_argument("--check", nargs="+", metavar="VERSION", help="check wheels for these Python versions")
    options = parser.parse_args()
    extras = [*([] if options.engine == "none" else [options.engine]), *(["board-video"] if options.video else [])]
    requirements = board_requirements(*extras)
    if options.check:
        results = [check(version, requirements) for version in options.check]
        return 0 if all(results) else 1
    print("\n".join(requirements))
    return 0


if __name__ == "__main__":
    sys.exit(main())
