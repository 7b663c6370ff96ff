"""Tasks: what is asked of a device model, one file each. No torch is imported here.

A task is one object that owns whatever differs between tasks: which texts are asked, the loss, the metrics, the graphs
of a bundle, how a device reads its scores. All else asks the object (:func:`find_task`) and never compares names.
Another package adds a task by an entry point that names its class::

    [project.entry-points."lit_mmpg.tasks"]
    my_task = "my_package.my_task:MyTask"
"""

from lit_mmpg.tasks.base import Figure, ItemResults, Metric, Task
from lit_mmpg.tasks.questions import QuestionTask
from lit_mmpg.tasks.registry import all_tasks, find_task, metric_of, register, task_names

__all__ = [
    "Figure",
    "ItemResults",
    "Metric",
    "QuestionTask",
    "Task",
    "all_tasks",
    "find_task",
    "metric_of",
    "register",
    "task_names",
]
