"""All tasks by name: those of this package, those that are registered, and those of other installed packages."""

from __future__ import annotations

from lit_mmpg.errors import UserError, closest
from lit_mmpg.plugins import found, load, package
from lit_mmpg.tasks.base import Metric, Task
from lit_mmpg.tasks.multiple_choice import MultipleChoice
from lit_mmpg.tasks.open_ended import OpenEnded
from lit_mmpg.tasks.retrieval import Retrieval

GROUP = "lit_mmpg.tasks"
"""Entry points, each named as the task that its class is."""

_known: dict[str, Task] = {task.name: task for task in (OpenEnded(), MultipleChoice(), Retrieval())}
_BUILT_IN = tuple(_known)


def register(task: Task) -> None:
    """Make a task known in this process; the same class may be registered again.

    Raises:
        UserError: If another task has its name.
    """
    other = _known.setdefault(task.name, task)
    if type(other) is not type(task):
        raise UserError(f"there is a task '{task.name}' already ({type(other).__qualname__}); give yours another name")


def task_names() -> tuple[str, ...]:
    """Names of all tasks, those of this package first; nothing is imported.

    Raises:
        UserError: If an installed package names one of its tasks as one of this package is named.
    """
    for name, point in found(GROUP).items():
        if name in _BUILT_IN:
            raise UserError(f"the package '{package(point)}' offers a task '{name}', which lit-mmpg has; uninstall it")
    return tuple(dict.fromkeys([*_known, *found(GROUP)]))


def find_task(name: str, field: str = "") -> Task:
    """A task by its name.

    Args:
        name: The name.
        field: What names it, for messages.

    Raises:
        UserError: If there is none of that name, or the package that offers it is faulty.
    """
    if name not in _known:
        if name not in task_names():
            where = f"{field}: " if field else ""
            known = f"known are {', '.join(task_names())}; other tasks come with packages of their own"
            raise UserError(f"{where}there is no task '{name}'{closest(name, task_names())}; {known}")
        _known[name] = _loaded(name)
    return _known[name]


def _loaded(name: str) -> Task:
    made = load(GROUP, name)
    if isinstance(made, type) and issubclass(made, Task) and getattr(made, "name", None) == name:
        try:
            return made()
        except TypeError as error:  # an abstract method is missing
            reason = str(error)
    else:
        reason = f"it is no Task with name = '{name}'"
    point = found(GROUP)[name]
    raise UserError(f"the task '{name}' of the package '{package(point)}' cannot be used: {reason}; mend {point.value}")


def all_tasks() -> list[Task]:
    """All tasks.

    Raises:
        UserError: See :func:`find_task`.
    """
    return [find_task(name) for name in task_names()]


def metric_of(name: str) -> Metric:
    """The primary metric of that name; one that has no more than its name where it is no task's."""
    return next((task.primary for task in all_tasks() if task.primary.name == name), Metric(name, name, name))
