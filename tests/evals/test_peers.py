"""Other frameworks as systems: their worker process, before the recorder and a scripted model server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentkit import tool
from agentkit.errors import ConfigError
from agentkit.evals import Case, Outcome, Verdict
from agentkit.evals.runner import evaluate
from agentkit.messages import Message, from_chat, user
from benchmarks.compare import FOLDER, PEERS, Peer, complete, environment, python_in

from . import small_suite

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
Serve = Callable[..., Any]
HERE = Path(sys.executable)
FRAMEWORKS = {"smolagents_code": "smolagents", "smolagents_tools": "smolagents", "qwen_agent": "qwen_agent"}


def answers(text: str | None = None, *calls: tuple[str, dict[str, Any]]) -> Callable[[Any], None]:
    """A handler: the model says this, or calls those."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(given)}}
            for n, (name, given) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return lambda x: x.reply(200, json.dumps(body | {"usage": usage}))


class World:
    def __init__(self) -> None:
        @tool
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        @tool
        async def wait() -> str:
            """Wait for ever."""
            await anyio.sleep_forever()
            raise AssertionError

        self.tools = [add, wait]

    async def check(self, outcome: Outcome) -> Verdict:
        return Verdict(True)


class Cases:
    name = "cases"

    def __init__(self, *cases: Case) -> None:
        self._cases = cases

    def cases(self) -> Sequence[Case]:
        return self._cases

    @asynccontextmanager
    async def open(self, case: Case) -> AsyncIterator[World]:
        yield World()


def asked(id: str, *turns: str, **rest: Any) -> Case:
    return Case(id, "any", tuple((user(text),) for text in turns), max_requests=3, max_tokens=50, **rest)


async def run(url: str, folder: Path, peer: Peer, *cases: Case) -> list[Mapping[str, Any]]:
    return await evaluate(Cases(*cases), [peer], upstream=url, model="stub-model", folder=folder)


async def test_a_peer_does_a_suite_in_its_own_process(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # which are not for it
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = serve(small_suite.model)
    peer = Peer("openai", HERE)
    rows = await evaluate(small_suite.suite, [peer], upstream=server.url, model="stub-model", folder=tmp_path)
    ended = {row["id"]: (row["passed"], row["ended"], row["requests"]) for row in rows}
    assert len(ended) == 10 and ended["sum-1"] == (True, "answer", 2)
    assert ended["talk"] == (True, "answer", 4)  # two turns
    assert ended["hello"] == (True, "answer", 1) and ended["eager"] == (False, "first_round", 1)
    assert ended["spin"] == (False, "budget", 3)
    assert {row["error"] for row in rows} == {""}
    assert rows[0]["calls"] == [
        {"name": "add", "arguments": {"a": 1, "b": 2}, "turn": 0, "round": 1, "is_error": False}
    ]
    assert [call["turn"] for call in next(r for r in rows if r["id"] == "talk")["calls"]] == [0, 1]
    assert peer.versions.keys() == {"openai"} and rows[0]["versions"] == peer.versions
    assert {(r["temperature"], r["seed"], r["max_tokens"]) for r in server.requests} == {(0, 0, 99)}


async def test_what_comes_before_the_question_reaches_the_model(serve: Serve, tmp_path: Path) -> None:
    server = serve(answers("Ann."))
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "I am Ann."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who am I?"},
    ]
    turns: tuple[tuple[Message, ...], ...] = (tuple(map(from_chat, chat)), (user("Really?"),))
    [row] = await run(server.url, tmp_path, Peer("openai", HERE), Case("names", "any", turns))
    assert row["answers"] == ["Ann.", "Ann."]
    first, second = ([(m["role"], m["content"]) for m in r["messages"]] for r in server.requests)
    assert first == [(m["role"], m["content"]) for m in chat]
    assert second == [*first, ("assistant", "Ann."), ("user", "Really?")]


async def test_calls_that_cannot_be_are_told_to_the_model(serve: Serve, tmp_path: Path) -> None:
    def model(x: Any) -> None:
        if x.body["messages"][-1]["role"] == "tool":
            return answers("Sorry.")(x)
        return answers(None, ("subtract", {}), ("add", {"a": "one"}))(x)

    server = serve(model)
    [row] = await run(server.url, tmp_path, Peer("openai", HERE), asked("wrong", "What is 1 plus 2?"))
    assert row["ended"] == "answer" and [c["is_error"] for c in row["calls"]] == [True]
    told = [m["content"] for m in server.requests[-1]["messages"] if m["role"] == "tool"]
    assert "no function subtract" in told[0] and "a" in told[1]


async def test_an_error_of_a_peer_is_told_in_a_line_and_the_next_case_goes_on(
    serve: Serve, tmp_path: Path
) -> None:
    def model(x: Any) -> None:
        if "long" in x.body["messages"][-1]["content"]:
            x.reply(400, json.dumps({"error": {"message": "the request is\ntoo long"}}))
        else:
            answers("Fine.")(x)

    server = serve(model)
    cases = (asked("long", "Something long"), asked("short", "Something short"))
    long, short = await run(server.url, tmp_path, Peer("openai", HERE), *cases)
    assert long["ended"] == "error" and long["error"].startswith("BadRequestError: ")
    assert "too long" in long["error"] and "\n" not in long["error"]
    assert short["answers"] == ["Fine."]
    assert len(server.requests) == 2  # what was refused is not asked again


async def test_a_peer_that_takes_too_long_is_stopped_and_started_again(serve: Serve, tmp_path: Path) -> None:
    def model(x: Any) -> None:
        waits = "wait" in x.body["messages"][-1]["content"]
        answers(None, ("wait", {}))(x) if waits else answers("Done.")(x)

    cases = (asked("slow", "Please wait.", timeout=0.5), asked("quick", "Hello."))
    slow, quick = await run(serve(model).url, tmp_path, Peer("openai", HERE), *cases)
    assert slow["ended"] == "timeout" and quick["answers"] == ["Done."]


async def test_a_peer_that_cannot_start_says_why(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no_such_framework does not start .*ModuleNotFoundError"):
        await run(serve(answers("")).url, tmp_path, Peer("no_such_framework", HERE), asked("any", "Hello."))


def model(name: str) -> Callable[[Any], None]:
    """A model that adds 1 and 2, in the way that the framework asks for."""

    def reply(x: Any) -> None:
        messages = json.dumps(x.body["messages"])
        called = len(x.body["messages"]) > 2
        if name == "smolagents_code":
            assert "def add(a: integer, b: integer) -> string:" in messages
            answers("Thought: add.\n<code>\nfinal_answer(add(1, b=2))\n</code>")(x)
        elif name == "smolagents_tools":
            answers(None, ("final_answer", {"answer": "3"}) if called else ("add", {"a": 1, "b": 2}))(x)
        elif name == "qwen_agent":
            call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
            answers("3" if "<tool_response>" in messages else call)(x)
        else:
            answers("3")(x) if "tool_calls" in messages else answers(None, ("add", {"a": 1, "b": 2}))(x)

    return reply


async def adds(name: str, python: Path, serve: Serve, folder: Path) -> None:
    server, peer = serve(model(name)), Peer(name, python)
    cases = (asked("one", "What is 1 plus 2?"), asked("first", "1 plus 2, please.", first_round=True))
    rows = await run(server.url, folder, peer, *cases)
    assert [row["error"] for row in rows] == ["", ""]
    assert rows[0]["answers"] == ["3"] and rows[0]["ended"] == "answer"
    assert rows[1]["ended"] == ("answer" if name == "smolagents_code" else "first_round")
    assert [[(c["name"], c["arguments"]) for c in row["calls"]] for row in rows] == [
        [("add", {"a": 1, "b": 2})]
    ] * 2
    assert all(peer.versions.values())
    assert {(r["temperature"], r["seed"], r["max_tokens"]) for r in server.requests} == {(0, 0, 50)}


@pytest.mark.parametrize("name", FRAMEWORKS)
async def test_frameworks_that_are_installed_here_call_tools_and_answer(
    name: str, serve: Serve, tmp_path: Path
) -> None:
    if find_spec(FRAMEWORKS[name]) is None:
        pytest.skip(f"{FRAMEWORKS[name]} is not installed: pip install -e '.[dev]'")
    await adds(name, HERE, serve, tmp_path)


@pytest.mark.parametrize("name", PEERS)
async def test_each_peer_calls_tools_and_answers_in_its_environment(
    name: str, serve: Serve, tmp_path: Path
) -> None:
    folder = environment(PEERS[name])
    if not complete(folder):
        pytest.skip(f"there is no environment for {name}: python benchmarks/compare.py bfcl --setup")
    await adds(name, python_in(folder), serve, tmp_path)


def test_each_peer_has_its_adapter_and_pinned_requirements() -> None:
    assert {path.stem for path in (FOLDER / "adapters").glob("*.py")} == PEERS.keys()
    files = {path.stem: path.read_text().splitlines() for path in (FOLDER / "requirements").glob("*.txt")}
    assert files.keys() == set(PEERS.values())
    for lines in files.values():
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.+]*", line) for line in lines), lines
    assert any(line.startswith("mcp==1.") for line in files["qwen_agent"])


def test_an_unknown_system_is_told_with_those_that_there_are() -> None:
    command = [sys.executable, str(FOLDER.parent / "compare.py"), "tasks", "--systems", "agentkit,lang"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("agentkit: There is no system 'lang'; there are: agentkit, openai, ")
