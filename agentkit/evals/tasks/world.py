"""What a task is run in: a workspace, a small web, a database; the tools for them; and what has become of it all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from agentkit.errors import ConfigError
from agentkit.evals.suite import Call, Outcome, Verdict
from agentkit.evals.tasks.answers import NotFound
from agentkit.evals.tasks.git import git_tools
from agentkit.evals.tasks.task import Group, Task
from agentkit.evals.tasks.time import stopped, time_tools
from agentkit.sharing import sharing
from agentkit.tools import Tool, ToolRegistry, Toolset

__all__ = ["TaskWorld", "open_world"]

DATABASE = "database.sqlite"  # beside the workspace, where only its server reads it


@dataclass(frozen=True, slots=True)
class TaskWorld:
    """One run of a task. It is passed if there was an answer within the budget, that says what it must, and if all
    files are as they must be."""

    task: Task
    tools: Sequence[Tool]
    workspace: Path
    before: Mapping[str, bytes]  # the workspace's files
    scratch: bool  # whether files may be added

    async def check(self, outcome: Outcome) -> Verdict:
        if outcome.ended != "answer":
            return Verdict(False, f"ended by {outcome.ended}")
        if not outcome.answers:
            return Verdict(False, "no answer")
        fault = self._changed()
        if not fault and self.task.answer is not None:
            fault = self.task.answer.fault(outcome.answers[-1])
            if not fault and isinstance(self.task.answer, NotFound):
                fault = "" if any(map(self._looked, outcome.calls)) else "did not look"
        return Verdict(not fault, fault)

    def _looked(self, call: Call) -> bool:
        """Whether it has seen something: an error has where it is about what is in a file, such as a column that is not."""
        return not call.is_error or any(Path(path).name in str(call.arguments) for path in self.before)

    def _changed(self) -> str:
        """Which file is not as it should be, in a few words."""
        after = files_in(self.workspace)
        for path, text in self.task.becomes.items():
            if path not in after:
                return f"{path} is not there"
            if _lines(after[path].decode(errors="replace")) != _lines(text):
                return f"{path} does not hold what it should"
        for path in sorted(self.before.keys() - self.task.becomes.keys()):
            if after.get(path) != self.before[path]:
                return f"{path} was {'changed' if path in after else 'removed'}"
        added = sorted(after.keys() - self.before.keys() - self.task.becomes.keys())
        return f"{added[0]} was added" if added and not self.scratch else ""


def files_in(folder: Path) -> dict[str, bytes]:
    """All files below *folder* but those of Git itself, by their relative paths."""
    found = {}
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != ".git"]
        for path in (Path(where, name) for name in names):
            found[path.relative_to(folder).as_posix()] = path.read_bytes() if path.is_file() else b""
    return found


def _lines(text: str) -> list[str]:
    """Its lines; white space at their ends and empty lines at the text's end do not count."""
    return [line.rstrip() for line in text.rstrip().splitlines()]


@asynccontextmanager
async def open_world(group: Group, task: Task) -> AsyncIterator[TaskWorld]:
    """All that *task* needs, made anew. Raises `ConfigError` for a tool that cannot be set up here."""
    with tempfile.TemporaryDirectory(prefix="agentkit-task-") as name:
        place = Path(name).resolve()
        workspace = place / "workspace"
        workspace.mkdir()
        for path, text in group.files.items():
            (workspace / path).parent.mkdir(parents=True, exist_ok=True)
            (workspace / path).write_text(text, encoding="utf-8")
        if group.prepare is not None:
            group.prepare(workspace, place)
        async with AsyncExitStack() as stack:
            tools: list[Tool] = []
            with sharing(stack):
                for tool in group.tools:
                    tools += await _open(stack, tool, group, place, workspace)
            scratch = any(tool.name == "code_interpreter" for tool in tools)
            yield TaskWorld(task, tools, workspace, files_in(workspace), scratch)


async def _open(
    stack: AsyncExitStack, name: str, group: Group, place: Path, workspace: Path
) -> Sequence[Tool]:
    """The tools of that name, for this one run."""
    registry = ToolRegistry()
    if name == "git":
        return git_tools(workspace)
    if name == "time":
        return time_tools()
    if name == "clock":
        return [stopped(cast("Tool", registry.get("clock")))]
    if name == "database":
        return await stack.enter_async_context(_database(place))
    settings: dict[str, Any] = {}
    match name:
        case "files":
            settings = {"roots": (workspace,)}
        case "read_file":
            settings = {"root": workspace}
        case "code_interpreter":
            settings = {"workspace": workspace, "warm": False}
        case "web_fetch":
            settings = {"proxy": stack.enter_context(_web(group.pages)), "robots": "ignore"}
    tool = registry.get(name)
    if settings:
        tool = replace(cast("Any", tool), **settings)
    return await stack.enter_async_context(tool.open(_ignored)) if isinstance(tool, Toolset) else [tool]


def _ignored(notice: str) -> None:
    pass


@asynccontextmanager
async def _database(place: Path) -> AsyncIterator[Sequence[Tool]]:
    """The tools of the MCP server over the database, started and ended."""
    from agentkit.mcp import MCPServers
    from agentkit.mcp.config import ServerSpec
    from agentkit.mcp.screen import Safety

    spec = ServerSpec(
        "database",
        sys.executable,
        ("-P", str(Path(__file__).with_name("sqlite_server.py"))),
        env={"DATABASE": str(place / DATABASE)},
        log=place / "database.log",
    )
    notices: list[str] = []
    # at once, so that what is offered does not depend on earlier runs
    async with MCPServers(spec, safety=Safety(pin=False), eager=True).open(notices.append) as tools:
        if not tools:
            raise ConfigError(f"The tasks' database cannot be asked: {' '.join(notices)}")
        yield tuple(tools)


@contextmanager
def _web(pages: Mapping[str, str]) -> Iterator[str]:
    """The address of a proxy behind which there are only these pages: so they have the same URLs in each run."""
    import json
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path) or pages.get(self.path.removesuffix("/index.html") + "/")
            body = (page or "<p>There is no such page.</p>").encode()
            self.send_response(200 if page else 404)
            self.send_header("Content-Type", f"{_kind(page or '')}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    def _kind(page: str) -> str:
        try:
            json.loads(page)
        except ValueError:
            return "text/html"
        return "application/json"

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
