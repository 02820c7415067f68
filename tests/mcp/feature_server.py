"""A server made with the SDK that asks its client for things: `feature_server.py stdio|streamable-http`."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Elicit, ElicitationResult, Resolve, Sample
from mcp.types import (
    Completion,
    CreateMessageResult,
    ModelHint,
    ModelPreferences,
    SamplingMessage,
    TextContent,
    Tool,
    ToolChoice,
    ToolResultContent,
    ToolUseContent,
)
from pydantic import BaseModel, Field

server = MCPServer("features", version="1.0", log_level="INFO")


def said(text: str) -> SamplingMessage:
    return SamplingMessage(role="user", content=TextContent(type="text", text=text))


# --- in both eras of the protocol


def to_sum_up(text: str) -> Sample:
    return Sample(
        [said(f"Sum up: {text}")],
        max_tokens=1_000_000,
        system_prompt="Be brief.",
        temperature=0.25,
        stop_sequences=["END"],
        model_preferences=ModelPreferences(hints=[ModelHint(name="claude")]),
    )


@server.tool()
async def summary(text: str, answer: Annotated[CreateMessageResult, Resolve(to_sum_up)]) -> str:
    """Sum a text up."""
    content = answer.content
    return f"{answer.model} {answer.stop_reason}: {content.text if content.type == 'text' else content.type}"


class Pizza(BaseModel):
    size: Literal["small", "large"]
    number: int = Field(default=1, ge=1, le=9, title="How many")
    hot: bool = False


async def to_order(name: str) -> Elicit[Pizza]:
    return Elicit(f"Which pizza, {name}?", Pizza)


@server.tool()
async def order(name: str, pizza: Annotated[ElicitationResult[Pizza], Resolve(to_order)]) -> str:
    """Order a pizza."""
    return pizza.data.model_dump_json() if pizza.action == "accept" else pizza.action


@server.tool()
async def steps(number: int, ctx: Context) -> str:
    """Report progress and log."""
    for step in range(1, number + 1):
        await ctx.report_progress(step, number, f"step {step}")
    await ctx.info("all done")
    return "done"


# --- only where the server can call the client


@server.tool()
async def ask_with_tools(ctx: Context) -> str:
    """Let the model use a tool of the server's."""
    tool = Tool(
        name="dice",
        description="Throw dice.",
        input_schema={"type": "object", "properties": {"sides": {"type": "integer"}}, "required": ["sides"]},
    )
    messages: list[Any] = [said("Throw a die with 20 sides.")]
    first = await ctx.session.create_message(
        messages, max_tokens=100, tools=[tool], tool_choice=ToolChoice(mode="required")
    )
    blocks = first.content if isinstance(first.content, list) else [first.content]
    [use] = [block for block in blocks if isinstance(block, ToolUseContent)]
    thrown = ToolResultContent(tool_use_id=use.id, content=[TextContent(type="text", text="17")])
    messages += [
        SamplingMessage(role="assistant", content=blocks),
        SamplingMessage(role="user", content=[thrown]),
    ]
    last = await ctx.session.create_message(messages, max_tokens=100, tools=[tool])
    content = last.content[0] if isinstance(last.content, list) else last.content
    return f"{first.stop_reason} {use.input} {getattr(content, 'text', '')}"


@server.tool()
async def ask_for_ever(ctx: Context) -> str:
    """Use up the client's model."""
    for number in range(1000):
        try:
            await ctx.session.create_message([said("More!")], max_tokens=10)
        except Exception as exc:
            return f"{number} answers, then: {exc}"
    return "never refused"


@server.tool()
async def folders(ctx: Context) -> str:
    """The client's roots."""
    return " ".join(str(root.uri) for root in (await ctx.session.list_roots()).roots)


@server.tool()
async def visit(ctx: Context) -> str:
    """Ask the user to open a page."""
    result = await ctx.elicit_url("Sign in, please", "https://example.org/sign-in", "id-1")
    return result.action


# --- resources and prompts


@server.resource("notes://today", description="What is on today.")
def today() -> str:
    return "Feed the cat."


@server.resource("notes://long")
def long() -> str:
    return "".join(f"{n:>9}\n" for n in range(3000))


@server.resource("notes://dot.png", mime_type="image/png")
def dot() -> bytes:
    return b"\x89PNG\r\n\x1a\n"


@server.resource("notes://people/{name}{?part}")
def person(name: str, part: str = "all") -> str:
    """What we know of somebody."""
    return f"{name}: {part}"


@server.prompt()
def greeting(name: str, tone: str = "kind") -> str:
    """Greet somebody."""
    return f"Say hello to {name} in a {tone} way."


@server.completion()  # type: ignore[no-untyped-call,untyped-decorator]
async def complete(ref: Any, argument: Any, context: Any) -> Completion:
    return Completion(values=[name for name in ("Ada", "Alan") if name.startswith(argument.value)])


if sys.argv[1] == "stdio":
    server.run()
else:
    server.run("streamable-http", port=0)  # it says on which
