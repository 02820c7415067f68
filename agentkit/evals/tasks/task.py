"""What a task is, and what a group of tasks has in common. Plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentkit.evals.tasks.answers import Answer

__all__ = ["Group", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to be done, and how to tell that it has been.

    `answer` is what must be said (None: anything), `becomes` what files of the workspace must hold at the end; all
    other files must be as they were. `solution` are calls that lead there, as (tool, arguments).
    """

    name: str
    prompt: str
    answer: Answer | None = None
    becomes: Mapping[str, str] = field(default_factory=dict)
    solution: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    max_requests: int = 8


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks of one category: the tools they are offered, and what there is for those to work on.

    `tools` are names of installed tools, and "git", "time" and "database", which are ours. `files` are in the
    workspace, `pages` on the web (by their URLs). `prepare` is given the workspace and a folder beside it.
    """

    name: str
    tools: tuple[str, ...]
    tasks: tuple[Task, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Path, Path], None] | None = None
