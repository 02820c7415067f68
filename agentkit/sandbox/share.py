"""One sandbox for all the toolsets of a run that run code: what one of them leaves behind, the others find."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Literal

import anyio

from agentkit.errors import one_error
from agentkit.progress import report_progress, watcher
from agentkit.sandbox.box import Backend, Sandbox
from agentkit.sandbox.execution import OnOutput
from agentkit.sharing import shared

__all__ = ["relayed_output", "shared_sandbox"]


def shared_sandbox(
    workspace: Path | str | None = None, *, backend: Backend = "auto", python: str | None = None
) -> AbstractAsyncContextManager[Sandbox]:
    """The sandbox with these settings that the toolsets of this run (or of this open agent) have in common.

    For use in `Toolset.open`. *workspace* is a directory for the code's files; None: a new one, kept if there are
    files in it at the end. A time limit goes with each `Sandbox.run` and `Sandbox.shell`.
    """
    place = None if workspace is None else Path(workspace).resolve()
    return shared((Sandbox, place, backend, python), lambda: _opened(place, backend, python))


@asynccontextmanager
async def relayed_output() -> AsyncIterator[OnOutput | None]:
    """An `on_output` for one call of a tool: what the code prints goes to whoever watches that call, as it comes, as
    the messages of `report_progress`; its number is that of the characters so far. None where nobody watches."""
    if watcher() is None:
        yield None
        return
    send, receive = anyio.create_memory_object_stream[str](math.inf)

    async def relay() -> None:
        characters = 0
        async for text in receive:
            while (more := receive.statistics().current_buffer_used) and len(text) < 4000:
                text += "".join([receive.receive_nowait() for _ in range(more)])
            characters += len(text)
            await report_progress(characters, None, text)

    def on_output(stream: Literal["stdout", "stderr"], text: str) -> None:
        send.send_nowait(text)

    with one_error(), receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(relay)
            with send:
                yield on_output


@asynccontextmanager
async def _opened(place: Path | None, backend: Backend, python: str | None) -> AsyncIterator[Sandbox]:
    workspace = place or _new_workspace()
    try:
        async with Sandbox(workspace, backend=backend, python=python) as box:
            yield box
    finally:
        if place is None:
            _remove_if_unused(workspace)


def _new_workspace() -> Path:
    from platformdirs import user_cache_path

    path = user_cache_path("agentkit") / "workspaces" / secrets.token_hex(6)
    path.mkdir(mode=0o700, parents=True)
    return path


def _remove_if_unused(workspace: Path) -> None:
    """Remove it unless there is a file in it that the user may want to open."""
    for path in sorted(workspace.rglob("*"), reverse=True):  # what is below a directory comes first
        if path.is_dir() and not path.is_symlink():
            try:
                path.rmdir()
            except OSError:
                return
        elif path.parent.name == "__pycache__":
            path.unlink(missing_ok=True)
    try:
        workspace.rmdir()
    except OSError:
        return
