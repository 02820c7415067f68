"""Tasks about the history of a repository, read with a few tools of ours that only read."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from agentkit.errors import ToolError
from agentkit.evals.tasks.answers import Date, Name, Names, NotFound, Number, Says
from agentkit.evals.tasks.task import Group, Task
from agentkit.tools import Tool, tool

__all__ = ["GROUP", "git_tools"]

SHOWN = 6_000  # characters of one answer


def git_tools(repository: Path) -> Sequence[Tool]:
    """Tools that read the history of this repository."""

    def git(*args: str) -> str:
        text = _git(repository, *args)
        return (
            text if len(text) <= SHOWN else f"{text[:SHOWN]}\n(cut; ask for one path, or for fewer commits)"
        )

    @tool(effects=("reads",))
    def git_log(ref: str = "", author: str = "", path: str = "", text: str = "", max_count: int = 20) -> str:
        """List commits, newest first: hash, date, author and title of each.

        Args:
            ref: A branch, a commit, or a range such as "main..topic"; by default the current branch.
            author: Only commits whose author's name contains this.
            path: Only commits that changed this file.
            text: Only commits that added or removed this text in a file.
            max_count: How many at most.
        """
        chosen = [f"--max-count={max_count}", "--regexp-ignore-case"]
        chosen += [f"--author={author}"] if author else []
        chosen += [f"-S{text}"] if text else []
        form = "--format=%h %ad %an: %s"
        refs = [_ref(ref)] if ref else []
        return git("log", *chosen, form, "--date=format:%Y-%m-%d %H:%M", *refs, "--", *_paths(path)) or (
            "(no such commits)"
        )

    @tool(effects=("reads",))
    def git_show(commit: str) -> str:
        """Show one commit: author, date, message, and what it changed.

        Args:
            commit: Its hash, or the name of a branch for the newest one of that.
        """
        return git("show", "--stat", "--patch", "--format=%H%n%an, %ad%n%n%B", "--date=iso", _ref(commit))

    @tool(effects=("reads",))
    def git_diff(from_ref: str = "", to_ref: str = "", path: str = "") -> str:
        """Show the differences between two commits or branches; without any, the changes not yet committed.

        Args:
            from_ref: The older commit or branch.
            to_ref: The newer one; by default the files as they are now.
            path: Only of this file.
        """
        refs = [_ref(ref) for ref in (from_ref, to_ref) if ref]
        return (
            git("diff", "--stat", "--patch", *(refs or ["HEAD"]), "--", *_paths(path)) or "(no differences)"
        )

    @tool(effects=("reads",))
    def git_status() -> str:
        """Show the current branch, and which files have changes that are not committed or are new."""
        return git("status", "--short", "--branch")

    @tool(effects=("reads",))
    def git_branches() -> str:
        """List the branches with the date and title of the newest commit of each; * marks the current one."""
        form = "%(HEAD) %(refname:short) (%(committerdate:short)) %(contents:subject)"
        return git("branch", f"--format={form}")

    return (git_log, git_show, git_diff, git_status, git_branches)


def _ref(text: str) -> str:
    if text.startswith("-"):
        raise ToolError(f"{text!r} is no commit or branch")
    return text


def _paths(path: str) -> list[str]:
    return [path] if path not in ("", ".") else []


def _git(folder: Path, *args: str, feed: str = "") -> str:
    """What Git says, whatever the user's settings are. Raises `ToolError` with its complaint."""
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
    }
    command = ["git", "-c", "core.pager=cat", "-c", "core.abbrev=7", *args]
    done = subprocess.run(
        command, cwd=folder, env=env, input=feed, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        raise ToolError(done.stderr.strip() or f"git {args[0]} failed")
    return done.stdout.rstrip()


# --- the repository


@dataclass(frozen=True, slots=True)
class Commit:
    day: str
    author: str
    title: str
    files: Mapping[str, str]
    branch: str = "main"


MARA, INES, JONAS = "Mara Lindqvist", "Ines Duarte", "Jonas Petit"
AUTHORS = (MARA, INES, JONAS)


def _config(timeout: int, station: str = "Roscoff", days: int = 3) -> str:
    return (
        f'[forecast]\nstation = "{station}"\ndays = {days}\n\n[network]\ntimeout = {timeout}\nretries = 2\n'
    )


TIDE = '''\
"""High and low water."""


def height(level, range_, phase):
    return level + range_ / 2 * phase
'''
UTC_FIX = TIDE + "\n\ndef local(moment, zone):\n    return moment.astimezone(zone)\n"
MOON = '''\
"""Phases of the moon."""


def moon_phase(day):
    return (day % 29.53) / 29.53
'''
README = "# tidepool\n\nTides for small boats.\n"
INSTALL = README + "\nInstall: pip install tidepool\n"
CHART = tuple(f"    row_{i} = heights[{i}]\n" for i in range(24))

HISTORY = (
    Commit("2025-02-03", MARA, "Begin", {"README.md": README}),
    Commit("2025-02-10", MARA, "Compute the height of the water", {"tide.py": TIDE}),
    Commit("2025-02-21", INES, "Read settings from a file", {"config.toml": _config(20)}),
    Commit(
        "2025-03-04",
        JONAS,
        "Say how to install it",
        {"README.md": INSTALL},
    ),
    Commit("2025-03-17", INES, "Wait longer for slow stations", {"config.toml": _config(35)}),
    Commit("2025-04-02", MARA, "Add a licence", {"LICENSE": "MIT\n"}),
    Commit("2025-04-19", JONAS, "Know the phases of the moon", {"moon.py": MOON}),
    Commit("2025-05-06", INES, "Convert to local time, not to the server's", {"tide.py": UTC_FIX}),
    Commit(
        "2025-05-12",
        MARA,
        "Draw a chart",
        {"chart.py": f"def chart(heights):\n{''.join(CHART[:6])}"},
        "charts",
    ),
    Commit(
        "2025-05-15",
        JONAS,
        "Draw charts of a whole day",
        {"chart.py": f"def chart(heights):\n{''.join(CHART)}"},
        "charts",
    ),
    Commit("2025-05-16", MARA, "Mention charts", {"README.md": INSTALL + "\nIt draws charts.\n"}, "charts"),
    Commit("2025-05-23", INES, "Look five days ahead", {"config.toml": _config(35, days=5)}),
    Commit("2025-06-01", JONAS, "Try another station", {"config.toml": _config(35, "Brest", 5)}, "stations"),
    Commit(
        "2025-06-11", INES, "Round the moon's age down", {"moon.py": MOON.replace("29.53)", "29.53) // 1")}
    ),
    Commit("2025-06-30", JONAS, "Thank those who tested", {"THANKS.md": "Yann, Gwen and Loïc\n"}),
)


def _prepare(workspace: Path, place: Path) -> None:
    """Make the repository, always with the same hashes, and leave a change that is not committed."""
    _git(workspace, "init", "--quiet", "--initial-branch=main")
    made: set[str] = set()
    stream = []
    for commit in HISTORY:
        who = f"{commit.author} <{commit.author.split()[0].lower()}@tidepool.example>"
        at = f"{who} {_seconds(commit.day)} +0000"
        stream += [f"commit refs/heads/{commit.branch}", f"author {at}", f"committer {at}"]
        stream += [_data(commit.title)]
        if commit.branch not in made and made:
            stream += ["from refs/heads/main"]
        made.add(commit.branch)
        for path, text in commit.files.items():
            stream += [f"M 100644 inline {path}", _data(text)]
    _git(workspace, "fast-import", "--quiet", feed="\n".join(stream) + "\n")
    _git(workspace, "reset", "--quiet", "--hard")
    (workspace / "config.toml").write_text(_config(35, days=9), encoding="utf-8")


def _data(text: str) -> str:
    return f"data {len(text.encode())}\n{text}"


def _seconds(day: str) -> int:
    return (date.fromisoformat(day) - date(1970, 1, 1)).days * 86400 + 10 * 3600


TASKS = (
    Task(
        "last",
        "Who made the latest commit on the current branch of this repository?",
        Name("Jonas", ("Mara", "Ines")),
        solution=(("git_log", {"max_count": 1}),),
    ),
    Task(
        "branches",
        "How many branches does this repository have?",
        Number(3),
        solution=(("git_branches", {}),),
    ),
    Task(
        "count",
        "How many commits has Ines Duarte made on main?",
        Number(sum(c.author == INES and c.branch == "main" for c in HISTORY)),
        solution=(("git_log", {"ref": "main", "author": "Ines Duarte"}),),
    ),
    Task(
        "when",
        "On which date did tide.py come into the repository? Give it as YYYY-MM-DD.",
        Date(date(2025, 2, 10)),
        solution=(("git_log", {"path": "tide.py"}),),
    ),
    Task(
        "who",
        "Who wrote the function moon_phase?",
        Name("Jonas", ("Mara", "Ines")),
        solution=(("git_log", {"text": "moon_phase"}),),
    ),
    Task(
        "uncommitted",
        "I have changed a setting in this repository and not committed it yet. Which setting is it, and what is "
        "its new value?",
        Names(("days", "9"), ("station", "timeout", "retries")),
        solution=(("git_status", {}), ("git_diff", {})),
    ),
    Task(
        "timeout",
        "The commit 'Wait longer for slow stations' changed the timeout. What was the timeout before that commit?",
        Number(20),
        solution=(("git_log", {}), ("git_show", {"commit": "main~6"})),
    ),
    Task(
        "largest",
        "Of the commits on the branch charts that are not on main, which one added the most lines? "
        "Answer with its title.",
        Name("Draw charts of a whole day", ("Draw a chart", "Mention charts")),
        solution=(
            ("git_log", {"ref": "main..charts"}),
            ("git_show", {"commit": "charts"}),
            ("git_show", {"commit": "charts~1"}),
            ("git_show", {"commit": "charts~2"}),
        ),
        max_requests=10,
    ),
    Task(
        "missing",
        "In which commit was the file docker-compose.yml added to this repository? Answer with its hash, "
        "if there is one.",
        NotFound(r"\b[0-9a-f]{7,40}\b"),
        solution=(("git_log", {"path": "docker-compose.yml"}),),
    ),
    Task(
        "direct",
        "Which Git command makes a new branch named topic and switches to it at once? I only want to know the command.",
        Says(("git checkout -b", "git switch -c", "git switch --create")),
    ),
)

GROUP = Group("git", ("git", "read_file", "calculator"), TASKS, prepare=_prepare)
