"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias

from agentkit.messages import Message, Usage

__all__ = ["OutputT", "RunResult", "Stopped"]

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from agentkit.permissions import Decision

    OutputT = TypeVar("OutputT", default=str)
else:  # a default for the type is of use to type checkers only
    from typing import TypeVar

    OutputT = TypeVar("OutputT")
Stopped: TypeAlias = Literal[
    "answer",  # the model answered
    "max_turns",
    "max_tool_calls",
    "max_tokens",
    "timeout",
    "loop",  # the same call again and again, or the same words without end
    "length",  # the answer was cut by the model's output limit or context
    "empty",  # the model said nothing, twice
    "invalid_output",  # no answer validated against output_type
]


@dataclass(frozen=True, slots=True)
class RunResult(Generic[OutputT]):
    """How a run ended, with everything that was said.

    `output` is the answer: text, or a value of the agent's `output_type`. When `stopped` is not "answer" it is the last
    text the model wrote (perhaps ""), and None for another `output_type` than str. `usage` sums all turns, with those of
    agents that were called as tools. `cuts` says what the model was no longer shown because the context was full; `messages`
    has it all. `decisions` has one for each call that the agent's permissions were asked about.
    """

    output: OutputT
    stopped: Stopped
    messages: tuple[Message, ...]
    usage: Usage
    turns: int
    cuts: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def artifacts(self) -> tuple[Any, ...]:
        """Figures and files that the tools made, in order."""
        return tuple(a for m in self.messages for r in m.results for a in r.artifacts)
