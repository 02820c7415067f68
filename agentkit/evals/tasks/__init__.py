"""Sixty tasks as users ask them, in six groups, each checked by what was said and by what became of the files.

A task is added to its group's `TASKS`: what is asked, the right answer, and calls that lead to it.

    Task(
        "cheapest",
        "Which product is the cheapest? Answer with its name.",
        Name("bookmark", PRODUCTS),
        solution=(("query", {"sql": "SELECT name FROM product ORDER BY price LIMIT 1"}),),
    )
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.util import find_spec
from shutil import which

from agentkit.errors import ConfigError
from agentkit.evals.suite import Case, Suite, World
from agentkit.evals.tasks import data, files, git, sql, time, web
from agentkit.evals.tasks.task import Group, Task
from agentkit.evals.tasks.world import open_world
from agentkit.messages import user

__all__ = ["Group", "Task", "tasks"]

TIMEOUT = 240.0  # seconds
MAX_TOKENS = 1024


class _Tasks:
    name = "tasks"

    def __init__(self, groups: Sequence[Group]) -> None:
        self.by_id: Mapping[str, tuple[Group, Task]] = {
            f"{group.name}-{task.name}": (group, task) for group in groups for task in group.tasks
        }

    def cases(self) -> Sequence[Case]:
        if which("git") is None:
            raise ConfigError("The tasks need Git: install it with your system's package manager.")
        if find_spec("trafilatura") is None or find_spec("protego") is None:
            raise ConfigError("The tasks read web pages: pip install 'agentkit[web]'.")
        return [
            Case(
                id,
                group.name,
                ((user(task.prompt),),),
                max_requests=task.max_requests,
                max_tokens=MAX_TOKENS,
                timeout=TIMEOUT,
            )
            for id, (group, task) in self.by_id.items()
        ]

    def open(self, case: Case) -> AbstractAsyncContextManager[World]:
        return open_world(*self.by_id[case.id])


def tasks() -> Suite:
    """The suite "tasks"."""
    return _Tasks((files.GROUP, git.GROUP, time.GROUP, data.GROUP, web.GROUP, sql.GROUP))
