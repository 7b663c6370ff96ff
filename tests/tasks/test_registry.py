"""Tasks of other packages, and that no other file compares names of tasks."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import lit_mmpg
from lit_mmpg import plugins
from lit_mmpg.data.batches import BatchShape
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.data.personal_clips import PersonalClipsConfig
from lit_mmpg.device.contract import Shapes, build_network
from lit_mmpg.device.graphs import graph_specs
from lit_mmpg.device.model import DeviceModelConfig
from lit_mmpg.errors import UserError
from lit_mmpg.tasks import all_tasks, find_task, register, task_names
from lit_mmpg.tasks.open_ended import OpenEnded
from lit_mmpg.tasks.registry import TASKS

PACKAGE = Path(lit_mmpg.__file__).parent


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make entry points known, as installed packages do."""

    def install(**tasks: str) -> None:
        points = EntryPoints(EntryPoint(name, value, TASKS.group) for name, value in tasks.items())
        monkeypatch.setattr(plugins, "entry_points", lambda group: points.select(group=group))
        plugins.found.cache_clear()

    yield install
    plugins.found.cache_clear()


@pytest.mark.parametrize(
    ("faulty", "said"),
    [
        (
            {"target": lambda self, text, index: 0.7},
            r"task 'faulty': target of Question.* is 0\.7; .* whole number below",
        ),
        ({"target": lambda self, text, index: 10**6}, "task 'faulty': target of Question.* is 1000000; .* below"),
        ({"target": lambda self, text, index: None}, "task 'faulty': target of Question.* is None"),
        (
            {"candidates": lambda self, text: text.text},
            "task 'faulty': candidates of Question.*needed is a list of texts",
        ),
        ({"candidates": lambda self, text: []}, "task 'faulty': candidates of Question"),
        ({"answers": lambda self, texts: "abc"}, "no training text of task 'faulty' has an answer of the answer list"),
    ],
)
def test_a_faulty_task_is_told_before_the_training(faulty: dict[str, Any], said: str, tmp_path: Path) -> None:
    task = type("Faulty", (OpenEnded,), {"name": "faulty", **faulty})()
    register(task)
    try:
        clips = PersonalClipsConfig(train_devices=2, val_devices=1, test_devices=1, train_clips=2, image_size=24)
        with pytest.raises(UserError, match=said):
            PersonalClipsData(clips, str(tmp_path), "faulty", BatchShape(2, 2, 3, 2)).setup("fit")
    finally:
        TASKS.forget("faulty")


def test_a_task_without_graphs_makes_no_bundle() -> None:
    register(type("Faulty", (OpenEnded,), {"name": "faulty", "graphs": lambda self, *given: []})())
    try:
        network = build_network(DeviceModelConfig(width=16, heads=2), Shapes("faulty", (12,), 30, 6, 8))
        with pytest.raises(UserError, match="task 'faulty': graphs gives none of the role 'model'"):
            graph_specs(network, 4, 1)
    finally:
        TASKS.forget("faulty")


def test_the_tasks_and_an_unknown_one() -> None:
    assert task_names()[:3] == ("open_ended", "multiple_choice", "retrieval")
    assert [task.name for task in all_tasks()] == list(task_names())
    with pytest.raises(UserError, match="no task 'sorting'; known are open_ended, multiple_choice, retrieval"):
        find_task("sorting")
    with pytest.raises(UserError, match=r"data.task: there is no task 'retreival'; did you mean 'retrieval'\?"):
        PersonalClipsData(task="retreival")


def test_a_task_of_another_package_is_loaded_when_it_is_asked_for(
    installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "foreign_tasks.py").write_text(
        "from lit_mmpg.tasks.open_ended import OpenEnded\nclass Yes(OpenEnded):\n    name = 'yes_no'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    installed(yes_no="foreign_tasks:Yes", broken="no_such_module:Task")
    assert task_names()[3:] == ("yes_no", "broken")
    assert "foreign_tasks" not in sys.modules
    assert find_task("yes_no") is find_task("yes_no") and type(find_task("yes_no")).__name__ == "Yes"
    assert find_task("retrieval").searches  # what is broken elsewhere harms nobody who does not ask for it
    assert [task.name for task in all_tasks()] == list(task_names())[:4]
    assert [record.message.split(" of the package")[0] for record in caplog.records] == ["left out: the task 'broken'"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("broken", "no_such_module:Task", "cannot be loaded"),
        ("path", "pathlib:Path", "it is no subclass of lit_mmpg.tasks.base.Task"),
        ("other", "lit_mmpg.tasks.retrieval:Retrieval", "its name is 'retrieval' instead of 'other'"),
        ("retrieval", "lit_mmpg.tasks.retrieval:Retrieval", "'lit-mmpg' and '.' both offer a task"),
        ("bare", "lit_mmpg.tasks.base:Task", "it lacks candidates"),
    ],
)
def test_a_faulty_package_is_one_error_that_names_it(installed: Any, name: str, value: str, message: str) -> None:
    installed(**{name: value})
    assert len(all_tasks()) == 3
    with pytest.raises(UserError, match=message) as error:
        find_task(name)
    assert "package" in str(error.value) and name in str(error.value)


def test_two_packages_of_one_name_are_refused_where_it_is_asked_for(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = ("lit_mmpg.tasks.open_ended:OpenEnded", "no_such_module:Task")
    points = EntryPoints(EntryPoint("twice", value, TASKS.group) for value in (*values, values[0]))
    monkeypatch.setattr(plugins, "entry_points", lambda group: points.select(group=group))
    plugins.found.cache_clear()
    assert len(plugins.found(TASKS.group)["twice"]) == 2 and find_task("retrieval").searches
    with pytest.raises(UserError, match="both offer a task 'twice'; uninstall"):
        find_task("twice")


def compared(tree: ast.AST, names: tuple[str, ...]) -> Iterator[int]:
    """Lines on which a name of a task decides something: comparisons, patterns, keys of tables."""

    def named(node: ast.AST | None) -> bool:
        parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
        return any(isinstance(part, ast.Constant) and part.value in names for part in parts)

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            found = any(map(named, [node.left, *node.comparators]))
        elif isinstance(node, ast.MatchValue):
            found = named(node.value)
        elif isinstance(node, ast.Dict):
            found = any(map(named, node.keys))
        elif isinstance(node, ast.Subscript):
            found = named(node.slice)
        else:
            continue
        if found:
            yield node.lineno if hasattr(node, "lineno") else 0


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ('task == "retrieval"', 1),
        ('"open_ended" != task', 1),
        ('task in ("multiple_choice", "x")', 1),
        ('{"retrieval": 1}[task]', 1),
        ('PRIMARY["retrieval"]', 1),
        ('Literal["open_ended", "retrieval"]', 1),
        ('match task:\n case "retrieval": pass', 1),
        ('f(task="retrieval")', 0),
        ('word == "search"', 0),
    ],
)
def test_comparisons_are_found(code: str, count: int) -> None:
    assert len(list(compared(ast.parse(code), ("open_ended", "multiple_choice", "retrieval")))) == count


def test_no_file_but_the_tasks_compares_their_names() -> None:
    files = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "profiling").rglob("*.py")]
    files = [file for file in files if PACKAGE / "tasks" not in file.parents]
    assert len(files) > 200
    found = [
        f"{file.relative_to(PACKAGE.parent)}:{line}"
        for file in files
        for line in compared(ast.parse(file.read_text(encoding="utf-8")), tuple(TASKS.built_in))
    ]
    assert not found, f"ask the task (lit_mmpg.tasks) instead: {found}"
