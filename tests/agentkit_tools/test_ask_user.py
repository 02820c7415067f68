"""Asking the user: who is asked, what they see, what the model gets."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from agentkit.errors import ToolError
from agentkit.tools import AsksUser, Toolset
from agentkit_tools.ask_user import AskTheUser, ask_user

pytestmark = pytest.mark.anyio


async def answer(asks: AskTheUser, question: str, choices: list[str] | None = None) -> str:
    async with asks.open(print) as (tool,):
        return (await tool.handler({"question": question, "choices": choices})).content


async def test_the_agents_user_is_asked_and_what_they_say_is_the_result() -> None:
    heard: list[tuple[str, Sequence[str]]] = []

    async def ask(question: str, choices: Sequence[str]) -> str | None:
        heard.append((question, choices))
        return " blue \n"

    assert isinstance(ask_user, Toolset) and isinstance(ask_user, AsksUser)
    assert (
        await answer(ask_user.with_user(ask), "Which\x1b[2J colour\u202e?", ["red\n\x07", "blue", ""])
        == "blue"
    )
    assert heard == [("Which[2J colour?", ["red", "blue"])]
    with pytest.raises(ToolError, match="empty"):
        await answer(ask_user.with_user(ask), "\x1b\u200b ")


@pytest.mark.parametrize("said", [None, "", "  \n"])
async def test_silence_is_told_as_such(said: str | None) -> None:
    async def ask(question: str, choices: Sequence[str]) -> str | None:
        return said

    assert "best guess" in await answer(AskTheUser(ask), "Why?")


async def test_one_question_is_asked_at_a_time() -> None:
    asked, most = 0, 0

    async def ask(question: str, choices: Sequence[str]) -> str | None:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await anyio.lowlevel.checkpoint()
        asked -= 1
        return "yes"

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(answer, AskTheUser(ask), "Really?")
    assert most == 1


CODE = """
import anyio
from agentkit_tools.ask_user import ask_user
async def main():
    async with ask_user.open(print) as (tool,):
        print("GOT", (await tool.handler({"question": "Which colour?", "choices": ["red", "blue"]})).content)
anyio.run(main)
"""


def test_where_there_is_no_terminal_the_model_goes_on_with_its_best_guess() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("GOT Nobody is there") and done.stderr == ""


@pytest.mark.parametrize(
    ("typed", "got"), [(b"2\n", "GOT blue"), (b"green\n", "GOT green"), (b"\x04", "GOT The user did not")]
)
def test_on_a_terminal_it_asks_there(tmp_path: Path, typed: bytes, got: str) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-c", CODE])
    screen = b""
    try:
        while select.select([terminal], [], [], 20)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # how a terminal ends
                break
            if not data:
                break
            screen += data
            if typed and b"to skip): " in screen:
                os.write(terminal, typed)
                typed = b""
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
    assert "2. blue" in screen.decode() and got in screen.decode()
