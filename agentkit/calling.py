"""One tool call carried out: whatever the model or the tool does wrong becomes a result that the model can act on."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from agentkit import planner as words
from agentkit.errors import AgentkitError, ToolCrashed, ToolError
from agentkit.messages import BadCall, ToolCall, ToolResult
from agentkit.planner import Aids
from agentkit.spelling import closest, meant, same_name
from agentkit.tools import Tool, ToolOutput

if TYPE_CHECKING:
    from agentkit.permissions import Decision

__all__ = ["ONLY_LOOKS", "May", "call_tool"]

# Whether a call may be made, with the arguments that the tool will get.
May: TypeAlias = "Callable[[str, Tool, Mapping[str, Any]], Awaitable[Decision]]"
log = logging.getLogger("agentkit")


async def call_tool(
    call: ToolCall | BadCall, tools: Mapping[str, Tool], may: May | None = None, aids: Aids = Aids()
) -> ToolResult:
    """Run one call, if it *may* be made. What is the model's fault or the tool's comes back as a result the model can act on."""
    from agentkit.faults import WrongArguments, faults

    if isinstance(call, BadCall):
        return ToolResult(call.id, words.unreadable(call.reason, call.is_code), is_error=True, refused=True)
    found = tools.get(call.name) or tools.get(same_name(call.name, tools) or "")
    if found is None and aids.coerce:
        found = _meant(call, tools)
    if found is None:
        hint = closest(call.name, tools) if aids.hints else None
        said = words.no_such_tool(call.name, hint, tools)
        return ToolResult(call.id, said, is_error=True, name=call.name, refused=True)
    refused = False
    arguments = _fitted(call, found) if aids.coerce else dict(call.arguments)
    try:
        # before anybody is asked or called; a function's arguments pydantic judges, which takes more than its schema says
        if found.fn is None and (wrong := faults(arguments, found.parameters)):
            raise WrongArguments(found.name, found.parameters, wrong)
        if may is not None and not (decision := await may(call.id, found, arguments)).allowed:
            raise ToolError(words.denied(found.name, decision.by))
        with anyio.fail_after(found.timeout):
            output = await found.handler(arguments)
    except WrongArguments as exc:
        output, refused = ToolOutput(str(exc) if aids.hints else exc.plain, is_error=True), True
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
    return ToolResult(
        call.id, output.content, output.is_error, found.name, output.artifacts, output.usage, refused
    )


# the effects of tools whose calls change nothing
ONLY_LOOKS = frozenset(("reads", "network"))


def _fitted(call: ToolCall, tool: Tool) -> dict[str, Any]:
    """The arguments as the tool asks for them.

    One that it does not have would be refused. It is left out where a call changes nothing; elsewhere the model is told, as
    it may count on its `dry_run`.
    """
    from agentkit.repair import fit

    closed = tool.fn is not None or tool.parameters.get("additionalProperties") is False
    looks = tool.effects is not None and tool.effects <= ONLY_LOOKS
    return fit(call.arguments, tool.parameters, tool=tool.name, drop=closed and looks)


def _meant(call: ToolCall, tools: Mapping[str, Tool]) -> Tool | None:
    """The only tool of nearly that name, if it takes just these arguments; `functions.add` is `add`."""
    from agentkit.faults import faults
    from agentkit.repair import fit  # slow to import; only calls need it

    name = meant(call.name, tools) or same_name(re.split(r"[.:/]", call.name)[-1], tools)
    if name is None:
        return None
    tool = tools[name]
    known = tool.parameters.get("properties")
    arguments = fit(call.arguments, tool.parameters, tool=call.name)
    suits = isinstance(known, Mapping) and arguments.keys() <= known.keys()
    return tool if suits and not faults(arguments, tool.parameters) else None
