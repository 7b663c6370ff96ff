from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist of the tracked files and the wheel that is made from that sdist."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for path in tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, source / path, follow_symlinks=False)
    code = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"

    def build(kind: str, folder: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", code, f"build_{kind}", str(dist)], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    build("sdist", source)
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        archive.extractall(source.parent / "unpacked", filter="data")
    build("wheel", next((source.parent / "unpacked").iterdir()))
    return dist


def tracked() -> list[str]:
    """Files of the project; outside a checkout all that are not generated."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0:
        return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]
    folders = ("lit_mmpg", "profiling", "configs", "jetson", "tests", "docs", "examples")
    inside = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    return [str(p.relative_to(ROOT)) for p in inside] + [p.name for p in ROOT.glob("*.*") if p.is_file()] + ["Makefile"]


def test_sdist_holds_the_whole_project(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    links = {name for name in tracked() if (ROOT / name).is_symlink()}  # an archive holds what they lead to
    missing = [name for name in tracked() if name not in names | links and name not in (".gitignore", ".gitattributes")]
    assert not missing


def test_wheel_holds_package_and_configs_and_finds_them_anywhere(built: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    expected = {name for name in tracked() if name.startswith("configs/")}
    assert expected
    configs = site / "lit_mmpg/configs"
    assert {f"configs/{p.relative_to(configs)}" for p in configs.rglob("*") if p.is_file()} == expected
    code = {name for name in tracked() if name.startswith(("lit_mmpg/", "profiling/")) and name.endswith(".py")}
    modules = {f"lit_mmpg/{name}" if name.startswith("profiling/") else name for name in code}
    modules -= {name for name in modules if name.startswith("lit_mmpg/profiling/benchmarks/")}
    assert {str(p.relative_to(site)) for p in site.rglob("*.py")} == modules, "a package lacks its __init__.py"

    leaning = re.compile(r"^\s*(?:from|import) \S*profiling[. ](?:import )?benchmarks", re.MULTILINE)
    assert not [path for path in site.rglob("*.py") if leaning.search(path.read_text(encoding="utf-8"))]

    code = "from lit_mmpg.training.config import find_config; print(find_config('configs/trainer/default.yaml'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert Path(found.stdout.strip()) == site / "lit_mmpg/configs/trainer/default.yaml", found.stderr


def test_metadata_is_complete(built: Path) -> None:
    pytest.importorskip("twine")
    files = [str(path) for path in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        name = next(n for n in wheel.namelist() if n.endswith("METADATA"))
        metadata = wheel.read(name).decode()
    for field in (
        "Summary",
        "Keywords",
        "Classifier",
        "Project-URL",
        "License-Expression",
        "Author",
        "Requires-Python",
    ):
        assert f"\n{field}: " in metadata, field


def test_the_harness_is_imported_under_one_name() -> None:
    """A top-level package of that name would shadow, or be shadowed by, the standard library's since Python 3.15."""
    statement = re.compile(r"^\s*(from|import) profiling\b", re.MULTILINE)
    files = [ROOT / name for name in tracked() if name.endswith((".py", ".md"))]
    assert not [path for path in files if statement.search(path.read_text(encoding="utf-8"))]
    assert importlib.util.find_spec("lit_mmpg.profiling") is not None


def imported(file: Path, known: set[str]) -> set[str]:
    """Modules of the project that a module imports when it is loaded, or for its types."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names | ({node.module} if names - known else set())
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)
    return found & known


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports for types count; those inside functions do not: the door loads what is behind it when it is asked."""
    files = {
        ".".join(("lit_mmpg", *path.relative_to(ROOT / "lit_mmpg").with_suffix("").parts)): path
        for path in (ROOT / "lit_mmpg").rglob("*.py")
    } | {
        ".".join(("lit_mmpg.profiling", *path.relative_to(ROOT / "profiling").with_suffix("").parts)): path
        for path in (ROOT / "profiling").rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items() if path.name != "__main__.py"}
    assert len(files) > 150
    arrows = {name: imported(path, set(files)) - {name} for name, path in files.items()}
    TopologicalSorter(arrows).prepare()  # a CycleError names the modules
