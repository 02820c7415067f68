"""ReAct text, `Thought: … Action: f Action Input: {…}` or `Final Answer: …` -> what it asks for. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentkit.parsing.calls import CUT_OFF, Schemas, Unreadable, Wanted, read_arguments

__all__ = ["Step", "read_step"]

_LABEL = re.compile(
    r"^[ \t]*\**(Thought|Action Input|Action|Observation|Final Answer)\**:\**[ \t]*", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Step:
    """What one turn in ReAct form says."""

    thought: str
    calls: tuple[Wanted | Unreadable, ...] = ()
    answer: str | None = None


def read_step(text: str, tools: Schemas, *, cut: bool = False) -> Step | None:
    """Read *text*; None when it is not in ReAct form. Whatever follows the first action's observation was made up by
    the model, which cannot see one before the action is run, and is left out."""
    labels = list(_LABEL.finditer(text))
    thoughts: list[str] = []
    calls: list[Wanted | Unreadable] = []
    name = ""
    for i, label in enumerate(labels):
        end = labels[i + 1].start() if i + 1 < len(labels) else len(text)
        body = text[label.end() : end]
        match label[1]:
            case "Thought":
                thoughts.append(body.strip())
            case "Action":
                name = body.strip().strip("`[]\"'*").strip()
            case "Action Input" if name:
                calls.append(_call(name, body, tools, cut and end == len(text)))
                name = ""
            case "Observation" if calls:
                break
            case "Final Answer" if not calls:
                return Step("\n".join(filter(None, thoughts)), answer=text[label.end() :])
            case _:
                pass
    return Step("\n".join(filter(None, thoughts)), tuple(calls)) if calls else None


def _call(name: str, body: str, tools: Schemas, cut: bool) -> Wanted | Unreadable:
    given = re.sub(r"\A\s*```\w*\s*\n(.*?)\n?\s*```\s*\Z", r"\1", body, flags=re.DOTALL).strip()
    read = read_arguments(given, cut=cut)
    if not isinstance(read, Unreadable):
        return Wanted(name, *read)
    properties = list(tools.get(name, {}).get("properties") or ())
    if cut:
        return Unreadable(body, CUT_OFF)
    if len(properties) == 1 and not given.startswith("{"):
        return Wanted(name, {properties[0]: _unquoted(given)})
    return Unreadable(body, f"the Action Input of {name!r} must be a JSON object; {read.reason}")


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`" else text
