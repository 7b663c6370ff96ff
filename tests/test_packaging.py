from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_wheel_carries_the_configs_and_finds_them_anywhere(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source)
    for name in ("lit_mmpg", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    with zipfile.ZipFile(next(source.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    expected = sorted(str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml"))
    assert expected
    assert sorted(str(p.relative_to(site / "lit_mmpg/configs")) for p in site.rglob("*.yaml")) == expected
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "lit_mmpg").rglob("*.py")}
    assert {str(p.relative_to(site)) for p in site.rglob("*.py")} == modules, "a package lacks its __init__.py"

    code = "from lit_mmpg.training.config import find_config; print(find_config('configs/trainer/default.yaml'))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()) == site / "lit_mmpg/configs/trainer/default.yaml", found.stderr
