"""The link and the runtime run on boards without torch, and importing the package costs nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import lit_mmpg

ROOT = Path(lit_mmpg.__file__).parents[1]

BLOCKER = """
import importlib, pkgutil, sys

class Blocker:
    blocked = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "transformers"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
try:
    import torch
except ImportError as error:
    assert "blocked" in str(error), error
else:
    raise SystemExit("the blocker does not block")

packages = [importlib.import_module(name) for name in (
    "lit_mmpg.link", "lit_mmpg.runtime", "lit_mmpg.profiling", "lit_mmpg.tasks"
)]
names = [m.name for package in packages for m in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
names.append("lit_mmpg.system")
# Benchmarks compare with anything; the rest of the harness runs on a board.
benchmarks = "lit_mmpg.profiling.benchmarks"
names = [name for name in names if not name.startswith(benchmarks) and not name.endswith(".__main__")]
names.remove("lit_mmpg.tasks.graphs")  # modules that are exported: what a board runs came from them
assert {"lit_mmpg.link.codecs", "lit_mmpg.link.messages"} <= set(names), names
assert {"lit_mmpg.profiling.worker", "lit_mmpg.profiling.meters.energy"} <= set(names), names
assert {"lit_mmpg.tasks.retrieval", "lit_mmpg.tasks.registry"} <= set(names), names
assert {"lit_mmpg.runtime.bundle", "lit_mmpg.runtime.engines.onnx_runtime"} <= set(names), names
for name in [*names, "lit_mmpg.parameters", "lit_mmpg.errors", "lit_mmpg.plugins", "lit_mmpg.lora"]:
    importlib.import_module(name)
# What a board asks of a task needs no torch either.
import numpy as np
from lit_mmpg.tasks import all_tasks
for task in all_tasks():
    assert task.decode(np.array([1.0, 2.0]), ("left", "right"), ())[0][0] == "right"
    assert set(task.output_figures(np.eye(2), np.eye(2))) == set(task.figures) and task.unit()
    assert "model" in task.graph_inputs({"frames": np.zeros((1, 2, 3))}, np.ones((1, 1, 4), int))
assert not Blocker.blocked & set(sys.modules)
print("imported", len(names))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )


def test_link_runtime_profiling_tasks_and_parameters_import_with_torch_blocked():
    result = run(BLOCKER)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("imported")


def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = """
        import sys
        before = set(sys.modules)
        import lit_mmpg
        print(sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
    """
    result = run(textwrap.dedent(code))
    assert result.returncode == 0, result.stderr
    assert "'lit_mmpg'" in result.stdout
    for name in ("torch", "numpy", "lightning", "mlflow"):
        assert f"'{name}'" not in result.stdout
