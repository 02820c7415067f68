"""One tool call carried out: whatever the model or the tool does wrong becomes a result that the model can act on."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from agentkit import planner as words
from agentkit.errors import AgentkitError, ToolCrashed, ToolError
from agentkit.messages import BadCall, ToolCall, ToolResult
from agentkit.planner import Aids
from agentkit.tools import Tool, ToolOutput, closest, same_name

if TYPE_CHECKING:
    from agentkit.permissions import Decision

__all__ = ["May", "call_tool"]

# Whether a call may be made, with the arguments that the tool will get.
May: TypeAlias = "Callable[[str, Tool, Mapping[str, Any]], Awaitable[Decision]]"
log = logging.getLogger("agentkit")


async def call_tool(
    call: ToolCall | BadCall, tools: Mapping[str, Tool], may: May | None = None, aids: Aids = Aids()
) -> ToolResult:
    """Run one call, if it *may* be made. What is the model's fault or the tool's comes back as a result the model can act on."""
    from agentkit.schema import fit, missing, wrong_arguments

    if isinstance(call, BadCall):
        return ToolResult(call.id, words.unreadable(call.reason), is_error=True)
    found = tools.get(call.name) or tools.get(same_name(call.name, tools) or "")
    if found is None:
        said = words.no_such_tool(call.name, closest(call.name, tools), tools)
        return ToolResult(call.id, said, is_error=True, name=call.name)
    arguments = fit(call.arguments, found.parameters) if aids.coerce else dict(call.arguments)
    try:
        if found.fn is None and (absent := missing(arguments, found.parameters)):
            problems = [f"{name} is missing" for name in absent]
            raise ToolError(wrong_arguments(found.name, found.parameters, problems))
        if may is not None and not (decision := await may(call.id, found, arguments)).allowed:
            raise ToolError(words.denied(found.name, decision.by))
        with anyio.fail_after(found.timeout):
            output = await found.handler(arguments)
    except ToolError as exc:
        output = ToolOutput(str(exc), is_error=True)
    except TimeoutError as exc:
        text = (
            f"{found.name} gave no result within {found.timeout:g} s."
            if found.timeout
            else f"TimeoutError: {exc}"
        )
        output = ToolOutput(text, is_error=True)
    except AgentkitError:
        raise
    except Exception as exc:
        if found.on_error == "raise":
            raise ToolCrashed(f"The tool {found.name} raised {type(exc).__name__}: {exc}") from exc
        log.warning("the tool %s raised; the model is told and the run goes on", found.name, exc_info=exc)
        output = ToolOutput(f"{found.name} failed with {type(exc).__name__}: {exc}", is_error=True)
    return ToolResult(call.id, output.content, output.is_error, found.name, output.artifacts)
