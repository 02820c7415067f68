"""smolagents: `ToolCallingAgent`, whose model calls tools as the server's API has it or in its text, which it reads as well.

https://huggingface.co/docs/smolagents/guided_tour. `tool_choice="auto"` instead of "required", its default: servers
whose grammar lets text come before the call never let a small model end that text. Otherwise as smolagents_code; calls
made at once are carried out in their order, one by one (`max_tool_threads`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adapters.smolagents_code import PACKAGES, conversation, settings
from smolagents import ToolCallingAgent

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages

__all__ = ["PACKAGES", "start"]


def start(case: Case) -> Callable[[Messages], str | None]:
    return conversation(ToolCallingAgent(**settings(case, tool_choice="auto"), max_tool_threads=1))
