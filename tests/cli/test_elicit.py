"""What MCP servers ask the user on the terminal, and their prompts and resources in a chat."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentkit.cli.elicit import Form, read_value
from agentkit.mcp.host import Asked, Question
from agentkit.messages import system, user
from agentkit.runtime.engine import ModelSettings, Request

SERVER = Path(__file__).parents[1] / "mcp" / "feature_server.py"
COMMAND = [sys.executable, "-c", "from agentkit.cli import main; main()"]

COLOURS = {"type": "string", "enum": ["red", "blue"], "enumNames": ["Rot", "Blau"]}
TITLED = {"type": "string", "oneOf": [{"const": "r", "title": "Red"}, {"const": "b", "title": "Blue"}]}
SEVERAL = {"type": "array", "items": {"enum": ["a", "b", "c"]}, "minItems": 1, "maxItems": 2}
SEVERAL_TITLED = {"type": "array", "items": {"anyOf": [{"const": "a", "title": "A!"}, {"const": "b"}]}}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}


@pytest.mark.parametrize(
    ("line", "about", "value"),
    [
        ("Ada", {"type": "string"}, "Ada"),
        ("80", PORT, 80),
        ("1e-3", {"type": "number"}, 0.001),
        ("Yes", {"type": "boolean"}, True),
        ("n", {"type": "boolean"}, False),
        ("2", COLOURS, "blue"),
        ("rot", COLOURS, "red"),
        ("Blue", TITLED, "b"),
        ("1, c", SEVERAL, ["a", "c"]),
        ("a!", SEVERAL_TITLED, ["a"]),
        ("x, y", {"type": "array", "items": {"type": "string"}}, ["x", "y"]),
        ("ada@example.org", {"type": "string", "format": "email"}, "ada@example.org"),
        ("2026-11-24", {"type": "string", "format": "date"}, "2026-11-24"),
    ],
)
def test_what_is_typed_becomes_a_value_of_the_fields_type(line: str, about: Any, value: Any) -> None:
    assert read_value(line, about) == value


@pytest.mark.parametrize(
    ("line", "about", "why"),
    [
        ("eighty", PORT, "not a whole number"),
        ("0", PORT, "minimum"),
        ("maybe", {"type": "boolean"}, "yes or no"),
        ("green", COLOURS, "none of the choices; give a number from 1 to 2"),
        ("3", COLOURS, "none of the choices"),
        ("a, b, c", SEVERAL, "too long"),
        ("Ada", {"type": "string", "minLength": 4}, "too short"),
        ("nobody", {"type": "string", "format": "email"}, "email"),
        ("24.11.", {"type": "string", "format": "date"}, "date"),
    ],
)
def test_what_does_not_fit_is_said_and_asked_for_again(line: str, about: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_value(line, about)


class Typist:
    """Types the lines one after the other; an exception is a key that breaks off."""

    def __init__(self, *lines: str | BaseException) -> None:
        self.lines = list(lines)
        self.prompts: list[str] = []
        self.said: list[str] = []

    async def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return line


def form(typist: Typist) -> Form:
    return Form(typist, say=typist.said.append)


FIELDS: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Your name"},
        "port": PORT | {"default": 80},
        "colour": COLOURS,
        "loud": {"type": "boolean", "default": False},
    },
    "required": ["name"],
}


@pytest.mark.anyio
async def test_a_form_takes_defaults_leaves_out_what_is_optional_and_insists_on_the_rest() -> None:
    typist = Typist("Ada", "many", "", "", "y")
    filled = await form(typist).elicit(Question("shop", "Who are you?", FIELDS))
    assert filled == {"name": "Ada", "port": 80, "loud": True}
    assert typist.said[0] == "? MCP server 'shop' asks: Who are you?"
    assert [p for p in typist.prompts if "port" in p] == ["  port (whole number [80]): "] * 2
    assert any("not a whole number" in said for said in typist.said)
    assert "    1. Rot (red)" in typist.said


@pytest.mark.anyio
@pytest.mark.parametrize(("key", "result"), [(EOFError(), "decline"), (KeyboardInterrupt(), "cancel")])
async def test_ctrl_d_declines_a_form_and_ctrl_c_breaks_it_off(key: BaseException, result: str) -> None:
    assert await form(Typist("Ada", key)).elicit(Question("shop", "Who?", FIELDS)) == result


@pytest.mark.anyio
@pytest.mark.parametrize(("line", "result"), [("y", {}), ("n", "decline"), ("", "decline")])
async def test_a_page_is_shown_and_only_a_yes_agrees_to_it(line: str, result: Any) -> None:
    typist = Typist(line)
    assert await form(typist).elicit(Question("shop", "Pay", url="https://example.org/pay")) == result
    assert any("https://example.org/pay" in said for said in typist.said)


@pytest.mark.anyio
async def test_a_server_cannot_write_over_the_screen() -> None:
    typist = Typist(EOFError())
    await form(typist).elicit(Question("shop", "Hi\x1b[2J\r\x07", FIELDS))
    assert "\x1b" not in "".join(typist.said) and "\r" not in "".join(typist.said)


@pytest.mark.anyio
async def test_leave_to_use_the_model_is_asked_for_each_time_until_always() -> None:
    request = Request([system("Be brief."), user("Sum up")], settings=ModelSettings(max_tokens=50))
    typist = Typist("n", "y", "a")
    asking = form(typist)
    given = [await asking.approve(Asked("shop", request, ("claude",))) for _ in range(5)]
    assert given == [False, True, True, True, True] and not typist.lines
    assert "  system: Be brief." in typist.said and "  user: Sum up" in typist.said
    assert "  (up to 50 tokens; it would like claude)" in typist.said


# --- the program itself


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    config = {"mcpServers": {"shop": {"command": sys.executable, "args": [str(SERVER), "stdio"]}}}
    (tmp_path / "mcp.json").write_text(json.dumps(config))
    places = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "DATA", "STATE", "CONFIG")}
    return {**os.environ, **places, "TERM": "xterm", "NO_COLOR": "1"}


def chat(
    lines: Sequence[str], url: str, environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "chat", "-m", url, "--mcp", "mcp.json"],
        input="\n".join(lines) + "\n",
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.e2e
def test_a_chat_lists_and_sends_prompts_and_reads_resources(
    serve: Callable[..., Any], environment: dict[str, str], tmp_path: Path
) -> None:
    model = serve(lambda x: x.answer("Hello Ada."), lambda x: x.answer("The cat."))
    done = chat(
        [
            "/prompt",
            "/prompt nonsense",
            "/prompt greeting tune=odd",
            '/prompt shop:greeting tone="very kind"',
            "Ada",  # the name, which it asks for
            "/resource",
            "/resource notes://today",
            "Whom do I feed?",
        ],
        model.url,
        environment,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n\n") == ["Hello Ada.", "The cat.", ""]
    assert "shop:greeting name=… [tone=…]   Greet somebody." in done.stderr
    assert "There is no prompt 'nonsense'; there are: shop:greeting." in done.stderr
    assert "has no tune; it takes: name, tone." in done.stderr
    assert "such as: Ada, Alan" in done.stderr
    assert "shop:notes://today   What is on today." in done.stderr
    texts = [[m["content"] for m in r["messages"] if m["role"] == "user"] for r in model.requests]
    assert texts[0] == ["Say hello to Ada in a very kind way."]
    assert texts[1][1:] == [
        '<resource uri="notes://today">\nFeed the cat.\n</resource>',
        "Whom do I feed?",
    ]


@pytest.mark.e2e
def test_a_server_asks_on_the_terminal_and_gets_what_is_typed(
    serve: Callable[..., Any], environment: dict[str, str], tmp_path: Path, on_terminal: Callable[..., str]
) -> None:
    call = '<tool_call>\n{"name": "order", "arguments": {"name": "Ada"}}\n</tool_call>'
    model = serve(lambda x: x.answer(call), lambda x: x.answer("Ordered."))
    command = [*COMMAND, "run", "-m", model.url, "--mcp", "mcp.json", "A pizza, please"]
    answers = [("size (number", "2\r"), ("number (whole number", "3\r"), ("hot (yes/no", "\r")]
    screen = on_terminal(command, tmp_path, environment, answers)
    assert "asks: Which pizza, Ada?" in screen and "Ordered." in screen
    assert '"size":"large","number":3,"hot":false' in str(model.requests[-1]["messages"])
