"""Sixty tools, a context of 8,192 tokens, and the demo model: it finds the one that is meant."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import pytest

from agentkit import Agent, Limits, Tool
from agentkit.runtime.demo import demo_model
from agentkit.runtime.engine import Chunk, Request
from agentkit.runtime.llama_cpp import LlamaCpp
from agentkit.tools import ToolOutput

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.usefixtures("demo_model")]

SERVICES = {
    "calendar": "create_event list_events delete_event find_free_slot invite_guest set_reminder",
    "mail": "send_mail search_mail list_folders move_mail mark_as_read add_attachment",
    "files": "read_text write_text list_folder move_file delete_file file_info",
    "git": "commit create_branch show_diff list_tags blame_line merge_branch",
    "issues": "open_issue close_issue comment_issue assign_issue label_issue search_issues",
    "db": "run_query list_tables describe_table insert_row update_row export_csv",
    "weather": "current_weather forecast air_quality sunrise_sunset marine_warning pollen",
    "money": "convert_currency stock_price list_accounts transfer invoice_total tax_rate",
    "maps": "geocode route nearby_places elevation timezone_of_place distance",
    "media": "resize_image crop_image transcribe_audio cut_video extract_text make_thumbnail",
}
ANSWERS = {"current_weather": "21 degrees, sunny", "stock_price": "73.50 USD"}


def sixty(called: list[str]) -> list[Tool]:
    """As verbose as servers' tools are: 18,000 tokens together."""

    def one(service: str, name: str) -> Tool:
        async def run(arguments: Mapping[str, Any]) -> ToolOutput:
            called.append(name)
            return ToolOutput(ANSWERS.get(name, f"{name} is done."))

        words = name.replace("_", " ")
        options = {
            "type": "object",
            "title": "Options",
            "properties": {
                "verbose": {"type": "boolean", "default": False, "description": "Say more in the result."},
                "limit": {
                    "type": "integer",
                    "default": 10,
                    "minimum": 1,
                    "description": "Entries to return at most.",
                },
            },
        }
        parameters = {
            "type": "object",
            "properties": {
                "target": {
                    "type": "string",
                    "title": "Target",
                    "description": "What to work on, as the user named it.",
                },
                "options": {"anyOf": [options, {"type": "null"}], "default": None, "title": "Options"},
                "format": {
                    "enum": ["text", "json"],
                    "default": "text",
                    "description": "The form of the result.",
                },
            },
            "required": ["target"],
        }
        description = (
            f"{words.capitalize()} with the {service} service. Use this tool when the user asks about {words}. Errors are "
            "explained in words. It never changes what it was not told to change, and keeps an audit log of all calls."
        )
        return Tool(name, description, parameters, run)

    return [one(service, name) for service, names in SERVICES.items() for name in names.split()]


class Watched(LlamaCpp):
    """The engine, which keeps the names of the tools it was first asked with."""

    offered: tuple[str, ...] = ()

    async def stream(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self.offered = self.offered or tuple(t["function"]["name"] for t in request.tools)
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                yield chunk


@pytest.mark.parametrize(
    ("task", "tool"),
    [
        ("What is the current weather in Lisbon?", "current_weather"),
        ("Show me the stock price of ACME.", "stock_price"),
    ],
)
async def test_the_right_one_of_sixty_tools_is_offered_and_the_run_stays_inside_the_context(
    task: str, tool: str
) -> None:
    called: list[str] = []
    async with Watched(demo_model(), context=8_192) as engine:
        agent = Agent(engine, tools=sixty(called), limits=Limits(max_turns=4))
        result = await agent.run(task)
    assert tool in engine.offered and "find_tools" in engine.offered and len(engine.offered) < 30
    assert result.turns and not result.cuts
    if tool == "current_weather":  # of the other the demo model sometimes only talks
        assert tool in called, result.messages
