"""The benchmarks, by name. A new one is one file here and one line in `TASKS`.

Each line says the module and the constant in it that is an instance of `tasks.base.Task`. A module is imported when
its task is asked for.
"""

from __future__ import annotations

import importlib

from models.mistakes import did_you_mean
from tasks.base import Task
from tasks.errors import UserError

TASKS: dict[str, tuple[str, str]] = {
    "needle": ("tasks.needle", "TASK"),
    "passkey_retrieval": ("tasks.passkey_retrieval", "TASK"),
    "ruler": ("tasks.ruler", "TASK"),
    "pg19": ("tasks.pg19", "TASK"),
    "longbench": ("tasks.longbench", "TASK"),
    "longbench_e": ("tasks.longbench_e", "TASK"),
    "leval": ("tasks.leval", "TASK"),
}
# The spellings that the paper's README and older configurations carry.
_ALIASES = {"longbenh": "longbench", "passkey_retreival": "passkey_retrieval"}


def task_names() -> tuple[str, ...]:
    """The names of all benchmarks, without aliases."""
    return tuple(TASKS)


def canonical_task_name(name: str) -> str:
    """The name of a task with aliases resolved. Raises `UserError` for an unknown one, naming the nearest."""
    resolved = _ALIASES.get(name, name)
    if resolved not in TASKS:
        raise UserError(f"unknown task {name!r}{did_you_mean(name, TASKS)} (tasks: {', '.join(TASKS)})")
    return resolved


def get_task(name: str) -> Task:
    """The benchmark of that name. Raises `UserError` for an unknown one."""
    module, constant = TASKS[canonical_task_name(name)]
    task = getattr(importlib.import_module(module), constant)
    assert isinstance(task, Task)
    return task
