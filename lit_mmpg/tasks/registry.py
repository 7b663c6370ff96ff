"""All tasks by name: those of this package, those that are registered, and those of other installed packages."""

from __future__ import annotations

from typing import Any

from lit_mmpg.errors import UserError
from lit_mmpg.plugins import Registry, subclass_of
from lit_mmpg.tasks.base import Metric, Task
from lit_mmpg.tasks.multiple_choice import MultipleChoice
from lit_mmpg.tasks.open_ended import OpenEnded
from lit_mmpg.tasks.retrieval import Retrieval


def _take(name: str, made: Any) -> Task:
    return subclass_of(Task, name, made)()  # type: ignore[type-abstract]


TASKS: Registry[Task] = Registry(
    "lit_mmpg.tasks", "task", {task.name: task for task in (OpenEnded(), MultipleChoice(), Retrieval())}, _take
)
task_names, find_task = TASKS.names, TASKS.find


def register(task: Task) -> None:
    """Make a task known in this process; the same class may be registered again.

    Raises:
        UserError: If another task has its name.
    """
    other = TASKS.register(task.name, task)
    if type(other) is not type(task):
        raise UserError(f"there is a task '{task.name}' already ({type(other).__qualname__}); give yours another name")


def all_tasks() -> list[Task]:
    """All tasks that can be used; see :meth:`lit_mmpg.plugins.Registry.all`."""
    return list(TASKS.all().values())


def metric_of(name: str) -> Metric:
    """The primary metric of that name; one that has no more than its name where it is no task's."""
    return next((task.primary for task in all_tasks() if task.primary.name == name), Metric(name, name, name))
