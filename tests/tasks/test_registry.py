"""Tasks of other packages, and that no other file compares names of tasks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

import lit_mmpg
from lit_mmpg import plugins
from lit_mmpg.data.datamodule import PersonalClipsData
from lit_mmpg.errors import UserError
from lit_mmpg.tasks import all_tasks, find_task, registry, task_names

PACKAGE = Path(lit_mmpg.__file__).parent


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make entry points known, as installed packages do."""

    def install(**tasks: str) -> None:
        points = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in tasks.items())
        monkeypatch.setattr(plugins, "entry_points", lambda group: points.select(group=group))
        plugins.found.cache_clear()

    monkeypatch.setattr(registry, "_known", dict(registry._known))
    yield install
    plugins.found.cache_clear()


def test_the_tasks_and_an_unknown_one() -> None:
    assert task_names()[:3] == ("open_ended", "multiple_choice", "retrieval")
    assert [task.name for task in all_tasks()] == list(task_names())
    with pytest.raises(UserError, match="no task 'sorting'; known are open_ended, multiple_choice, retrieval"):
        find_task("sorting")
    with pytest.raises(UserError, match=r"data.task: there is no task 'retreival'; did you mean 'retrieval'\?"):
        PersonalClipsData(task="retreival")


def test_a_task_of_another_package_is_loaded_when_it_is_asked_for(
    installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_tasks.py").write_text(
        "from lit_mmpg.tasks.open_ended import OpenEnded\nclass Yes(OpenEnded):\n    name = 'yes_no'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    installed(yes_no="foreign_tasks:Yes", broken="no_such_module:Task")
    assert task_names()[3:] == ("yes_no", "broken") and "yes_no" not in registry._known
    assert find_task("yes_no") is find_task("yes_no") and type(find_task("yes_no")).__name__ == "Yes"
    assert find_task("retrieval").searches  # what is broken elsewhere harms nobody who does not ask for it


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("broken", "no_such_module:Task", "cannot be loaded"),
        ("path", "pathlib:Path", "it is no Task with name = 'path'"),
        ("other", "lit_mmpg.tasks.retrieval:Retrieval", "it is no Task with name = 'other'"),
        ("retrieval", "lit_mmpg.tasks.retrieval:Retrieval", "which lit-mmpg has"),
    ],
)
def test_a_faulty_package_is_one_error_that_names_it(installed: Any, name: str, value: str, message: str) -> None:
    installed(**{name: value})
    with pytest.raises(UserError, match=message) as error:
        all_tasks()
    assert "package" in str(error.value) and name in str(error.value)


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
        for line in compared(ast.parse(file.read_text(encoding="utf-8")), registry._BUILT_IN)
    ]
    assert not found, f"ask the task (lit_mmpg.tasks) instead: {found}"
