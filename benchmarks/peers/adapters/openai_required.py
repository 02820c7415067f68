"""The bare loop with `tool_choice="required"` on the first request of each turn: what guided calls of the server can do.

https://platform.openai.com/docs/guides/function-calling#tool-choice. It cannot leave a question without a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from adapters import openai

if TYPE_CHECKING:
    from benchmarks.peers.worker import Case, Messages

PACKAGES = openai.PACKAGES


def start(case: Case) -> Callable[[Messages], str | None]:
    return openai.start(case, "required")
