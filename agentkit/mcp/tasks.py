"""Tools that a server of 2025-11-25 runs as tasks: called, watched, and their result fetched.

The SDK has the messages for it and no more: its client takes the answer that a task has begun for a broken result. So
`begun` puts that answer into a form which passes, as it comes in. Importing this imports the SDK.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import anyio
from mcp import Client, types

if TYPE_CHECKING:
    from mcp.shared.dispatcher import ProgressFnT

__all__ = ["begun", "call_as_task", "run_as_tasks"]

TASK = "agentkit/task"  # where in the _meta of a result its task is
KEPT = 3_600_000  # ms that the server should keep the result
POLL = 1_000  # ms between looks at how it is going, where the server names none
CANCEL_TIMEOUT = 2.0  # seconds


def run_as_tasks(tools: Sequence[Any]) -> frozenset[str]:
    """The tools of a raw listing that can only be called as tasks."""
    found = set()
    for tool in tools:
        execution = tool.get("execution") if isinstance(tool, Mapping) else None
        if isinstance(execution, Mapping) and execution.get("taskSupport") == "required":
            found.add(tool.get("name"))
    return frozenset(name for name in found if isinstance(name, str))


def begun(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """A raw result that says that a task has begun, as an empty tool result which holds it; None for any other."""
    if isinstance(result.get("task"), dict) and "content" not in result and "taskId" in result["task"]:
        return {"content": [], "_meta": {TASK: result["task"]}}
    return None


async def call_as_task(
    client: Client, tool: str, arguments: Mapping[str, Any], progress: ProgressFnT | None = None
) -> types.CallToolResult:
    """Call a tool as a task and wait for its result; cancelling this cancels the task. *progress* hears of its status."""
    session = client.session
    params = types.CallToolRequestParams(
        name=tool, arguments=dict(arguments), task=types.TaskMetadata(ttl=KEPT)
    )
    result = await session.send_request(
        types.CallToolRequest(params=params), types.CallToolResult, progress_callback=progress
    )
    if not result.meta or TASK not in result.meta:
        return result  # it was done at once
    task = result.meta[TASK]
    identity = str(task["taskId"])
    poll = task.get("pollInterval")
    seconds = max(0.1, (poll if isinstance(poll, int | float) else POLL) / 1000)

    async def watch() -> None:
        looks = 0
        while True:
            await anyio.sleep(seconds)
            get = types.GetTaskRequest(params=types.GetTaskRequestParams(task_id=identity))
            try:
                found = await session.send_request(get, types.GetTaskResult)
            except Exception:  # the request for the result says what is wrong
                return
            looks += 1
            if progress is not None:
                await progress(looks, None, found.status_message or found.status)

    fetch = types.GetTaskPayloadRequest(params=types.GetTaskPayloadRequestParams(task_id=identity))
    done: types.CallToolResult | None = None
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                done = await session.send_request(fetch, types.CallToolResult)  # answered when it is over
            except Exception as exc:
                failure = exc  # carried around the task group, which would wrap it
            group.cancel_scope.cancel()
    except anyio.get_cancelled_exc_class():
        cancel = types.CancelTaskRequest(params=types.CancelTaskRequestParams(task_id=identity))
        with anyio.move_on_after(CANCEL_TIMEOUT, shield=True):
            with contextlib.suppress(Exception):  # it is over, or the server is lost
                await session.send_request(cancel, types.CancelTaskResult)
        raise
    if failure is not None:
        raise failure
    assert done is not None
    return done
