"""A package of somebody else adds a form, a method, a layout and a task: built, installed, used; nothing changes here.

A second one is faulty, which concerns nobody but those who ask for what it offers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_mmpg import plugins
from lit_mmpg.checkpoint import read_checkpoint
from lit_mmpg.cli import main
from tests.forms.test_registry import FOREIGN as ROTATE
from tests.integration import tiny
from tests.integration.conftest import best_checkpoint, write_experiment

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "1.2"
[tool.setuptools]
py-modules = [{modules}]
"""

FOREIGN = {
    "toy_form": ROTATE,
    "toy_method": '''
from lit_mmpg.device.outputs import Outputs
from lit_mmpg.methods.base import AdaptationMethod

class PriorShift(AdaptationMethod):
    """Divides answers by how often the checkpoint gives them on the device's earlier clips."""
    name = "prior_shift"
    paper = "Toy et al. 2026"
    setting = "episodic"
    grid = {"weight": (0.0, 0.5)}
    needs = ("shared_classes",)
    def adapt(self, support, options):
        return {"prior": self.subject.answer(support).logits.softmax(-1).mean(1)}
    def respond(self, query, state, options):
        logits = self.subject.answer(query).logits
        return Outputs(logits=logits - options["weight"] * state["prior"].log()[:, None])
''',
    "toy_layout": """
import json
from lit_mmpg.data.readers import Reader
from lit_mmpg.records import Question

def read(path):
    rows = json.loads((path / "toys.json").read_text())
    return {split: [Question(clip, *rest) for clip, *rest in rows[split]] for split in rows}

READER = Reader(questions=read)
""",
    "toy_task": '''
from lit_mmpg.tasks.open_ended import OpenEnded

class Paint(OpenEnded):
    """Only what is asked of colours."""
    name = "paint"
    def takes(self, text, split):
        return super().takes(text, split) and text.type == "paint"
''',
}
POINTS = """
[project.entry-points."lit_mmpg.forms"]
rotate = "toy_form:Rotate"
[project.entry-points."lit_mmpg.methods"]
prior_shift = "toy_method:PriorShift"
[project.entry-points."lit_mmpg.readers"]
toys = "toy_layout:READER"
[project.entry-points."lit_mmpg.tasks"]
paint = "toy_task:Paint"
"""
FAULTY = {
    "sorry": """
from lit_mmpg.data.readers import Reader

READER = Reader(questions=lambda path: {"train": ["no question"]})
"""
}
FAULTY_POINTS = """
[project.entry-points."lit_mmpg.forms"]
bent = "sorry.gone:Form"
[project.entry-points."lit_mmpg.methods"]
bent = "sorry:Method"
[project.entry-points."lit_mmpg.readers"]
bent = "sorry:READER"
[project.entry-points."lit_mmpg.tasks"]
bent = "sorry:READER"
"""


def lay_out(folder: Path, name: str, modules: dict[str, str], points: str) -> Path:
    """The source of a package."""
    folder.mkdir()
    quoted = ", ".join(f'"{module}"' for module in modules)
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, modules=quoted) + points)
    for module, text in modules.items():
        (folder / f"{module}.py").write_text(text)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which both packages are installed, as users install them."""
    sources = tmp_path_factory.mktemp("sources")
    projects = [
        lay_out(sources / "toys", "toy-parts", FOREIGN, POINTS),
        lay_out(sources / "sorry", "sorry-parts", FAULTY, FAULTY_POINTS),
    ]
    target = tmp_path_factory.mktemp("site")
    offline = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), *map(str, projects)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Both packages on the path; a folder to work in."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    plugins.found.cache_clear()
    yield tmp_path
    plugins.found.cache_clear()
    for module in (*FOREIGN, *FAULTY):
        sys.modules.pop(module, None)


def use_toys(root: Path) -> list[dict[str, str]]:
    """Rewrite the questions of a data root in the layout of the foreign package; returns how settings name it."""
    rows = {}
    for file in sorted((root / "qa").glob("*.csv")):
        header, *lines = [line.split(",") for line in file.read_text().splitlines()]
        assert header == ["video", "question", "answer", "qid", "type"]
        rows[file.stem] = lines
        file.unlink()
    (root / "qa" / "toys.json").write_text(json.dumps(rows))
    return [{"layout": "toys", "path": "qa"}]


def test_what_a_package_adds_is_trained_compared_and_listed(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tiny.build_root(installed / "data")
    dynamic = {"layers": ["frame_projection", "head"], "form": "rotate"}
    write_experiment(installed, root, "paint", dynamic=dynamic, data={"questions": use_toys(root)})
    tiny.write_config(
        installed / "compare.yaml",
        runs={"static": {"config": "device.yaml"}, "cdc_mmpg": {"config": "both.yaml", "device_half": "static"}},
        adapted={"shifted": {"method": "prior_shift", "checkpoint": "static", "options": {"weight": 0.5}}},
    )
    assert main(["compare", "--config", "compare.yaml", "--output", "rows.json"]) == 0
    rows = json.loads((installed / "rows.json").read_text())["rows"]
    assert {row["method"] for row in rows if row["metric"] == "accuracy"} == {"static", "cdc_mmpg", "shifted"}
    checkpoint = read_checkpoint(best_checkpoint(installed, "cloud"))
    assert checkpoint["lit_mmpg"]["data"]["task"] == "paint"
    answers = checkpoint["lit_mmpg"]["data"]["answers"]["answers"]
    assert set(answers) == set(tiny.COLOURS), "the task takes questions about paint alone"
    made = [name for name in checkpoint["state_dict"] if name.startswith("adaptor.layers.head.generators.")]
    assert sorted(name.rsplit(".", 2)[1] for name in made) == ["0", "0"], "one tensor is generated: the angle"
    assert any(checkpoint["state_dict"][name].abs().sum() > 0 for name in made), "it starts at zero and was trained"

    capsys.readouterr()
    assert main(["methods", "--json"]) == 0
    matrix = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert matrix["prior_shift"]["paper"] == "Toy et al. 2026" and matrix["prior_shift"]["paint"] == "yes"
    assert matrix["prior_shift"]["retrieval"] != "yes" and matrix["unadapted"]["paint"] == "yes"
    assert "bent" not in matrix and "bent" not in matrix["unadapted"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["methods", "bent"], "the method 'bent' of the package 'sorry-parts 1.2' cannot be loaded (AttributeError"),
        (
            ["fit", "--config", "device.yaml", "--data.task=bent"],
            "the task 'bent' of the package 'sorry-parts 1.2' cannot be used: it is no subclass of "
            "lit_mmpg.tasks.base.Task; mend sorry:READER",
        ),
        (
            ["fit", "--config", "both.yaml", "--model.dynamic.form=bent"],
            "model.dynamic.form: the form 'bent' of the package 'sorry-parts 1.2' cannot be loaded (Module",
        ),
        (
            ["fit", "--config", "device.yaml", '--data.questions=[{"layout": "bent", "path": "qa"}]'],
            "the layout 'bent' of the package 'sorry-parts 1.2' fails on",
        ),
        (
            ["fit", "--config", "device.yaml", '--data.questions=[{"layout": "toy", "path": "qa"}]'],
            "there is no layout 'toy'; did you mean 'toys'?",
        ),
    ],
)
def test_a_faulty_package_is_one_error_where_it_is_asked_for(
    installed: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_experiment(installed, tiny.build_root(installed / "data"), "open_ended")
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and said.count("error: ") == 1
