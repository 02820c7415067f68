"""An agent with a healthy server and one that breaks one thing: it ends with an answer, and the sick one is named."""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import pytest

from agentkit import Agent
from agentkit.events import Notice
from agentkit.mcp import MCPServers, ServerSpec
from agentkit.mcp.screen import Safety
from agentkit.messages import ToolResult
from agentkit.testing import ScriptedEngine

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
HERE = Path(__file__).parent
VICES: dict[str, str] = runpy.run_path(str(HERE / "hostile_server.py"))["VICES"]
SHORT = 1.0  # seconds: the timeout of what will never be answered
LONG = 60.0

# what is wrong is told to the user before the first turn …
DOES_NOT_START = {
    "exits": "it ended before it answered",
    "says-why": "its last words: KeyError: 'API_KEY'",
    "silent": "no answer in 1 s",
    "half-a-line": "no answer in 1 s",
    "init-error": "I would rather not",
    "init-nonsense": "no answer in 1 s",
    "old-version": "1969-07-20",
    "wrong-ids": "no answer in 1 s",
    "closes-stdout": "",
    "noise-only": "writes text on stdout",
    "noise-flood": "writes text on stdout",
    "list-error": "no list today",
    "list-hangs": "no answer in 1 s",
    "list-string": "off the protocol",
    "list-deep": "no answer in 1 s",
    "http-500": "HTTP 500",
    "http-html": "",
    "http-hangs": "no answer in 1 s",
    "http-redirects": "",
    "http-endless": "no answer in 1 s",
    "http-cut": "",
}
# … or to the model, as the result of its call; the rest works
CALL_FAILS = {
    "call-hangs": "no answer to 'evil' in 1 s",
    "call-exits": "its last words: OSError: disk on fire",
    "call-garbage": "no answer to 'evil' in 1 s",
    "call-wrong-id": "no answer to 'evil' in 1 s",
    "call-null": "",
    "call-no-content": "off the protocol",
    "call-off-types": "off the protocol",
    "call-error": "",
    "call-deep": "no answer to 'evil' in 1 s",
    "call-flood": "no answer to 'evil' in 1 s",
}
HTTP = [vice for vice in DOES_NOT_START if vice.startswith("http-")]


@dataclass
class Outcome:
    answer: str
    notices: list[str]
    healthy: ToolResult
    sick: ToolResult


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class _Sick(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ending = threading.Event()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        vice = self.path.strip("/")
        if vice == "http-hangs":
            self.ending.wait(60)
            return
        self.send_response({"http-500": 500, "http-redirects": 307}.get(vice, 200))
        if vice == "http-redirects":
            self.send_header("Location", self.path)
        endless = vice == "http-endless"
        kind = "text/event-stream" if endless else "text/html" if vice == "http-html" else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        body = b"<html>hello</html>" if vice == "http-html" else b"{}"
        if not endless:
            self.send_header("Content-Length", str(len(body) + (10 if vice == "http-cut" else 0)))
        self.end_headers()
        self.wfile.write(b": still there\n\n" * 1_000 if endless else body)
        self.wfile.flush()
        if endless:
            self.ending.wait(60)
        self.close_connection = True

    def do_GET(self) -> None:
        self.send_error(405)

    def do_DELETE(self) -> None:
        self.send_error(405)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Sick) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        _Sick.ending.set()
        server.shutdown()


def healthy() -> ServerSpec:
    return ServerSpec(
        "healthy", sys.executable, ("-I", "-S", str(HERE / "raw_server.py")), include=("pids", "fail")
    )


def hostile(vice: str, start: float = LONG, call: float = LONG, log: Path | None = None) -> ServerSpec:
    arguments = ("-I", "-S", str(HERE / "hostile_server.py"), vice)
    return ServerSpec("sick", sys.executable, arguments, startup_timeout=start, tool_timeout=call, log=log)


def calling(tool: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"


async def outcome(vice: str, url: str, logs: Path) -> Outcome:
    start = SHORT if DOES_NOT_START.get(vice, "").startswith(("no answer", "writes")) else LONG
    call = SHORT if vice in CALL_FAILS else LONG
    if vice in HTTP:
        sick = ServerSpec("sick", url=f"{url}/{vice}", transport="http", startup_timeout=start)
    else:
        sick = hostile(vice, start, call, logs / vice)  # they would share one
    pids = "healthy__pids" if vice == "list-clash" else "pids"
    engine = ScriptedEngine([calling("evil"), calling(pids), "An answer."])
    agent = Agent(engine, tools=[MCPServers(healthy(), sick)])
    notices = []
    with anyio.fail_after(90):
        async with agent.stream("Do it.") as run:
            async for event in run:
                if isinstance(event, Notice):
                    notices.append(event.text)
    of_sick, of_healthy = (m.results[0] for m in run.result.messages if m.role == "tool")
    return Outcome(run.result.output, notices, of_healthy, of_sick)


@pytest.fixture(scope="module")
async def outcomes(
    url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Outcome | Exception]]:
    """All of them, some at a time: most of it is waiting."""
    found: dict[str, Outcome | Exception] = {}
    logs = tmp_path_factory.mktemp("logs")
    limiter = anyio.CapacityLimiter(6)

    async def find(vice: str) -> None:
        async with limiter:
            try:
                found[vice] = await outcome(vice, url, logs)
            except Exception as exc:
                found[vice] = exc

    async with anyio.create_task_group() as tasks:
        for vice in [*VICES, *HTTP]:
            tasks.start_soon(find, vice)
    yield found


@pytest.mark.parametrize("vice", [*VICES, *HTTP])
async def test_the_run_ends_with_an_answer_and_the_sick_server_is_named(
    vice: str, outcomes: dict[str, Outcome | Exception]
) -> None:
    found = outcomes[vice]
    if isinstance(found, Exception):
        raise found
    assert found.answer == "An answer."
    assert found.healthy.content.find("pids: ") >= 0 and not found.healthy.is_error
    if vice in DOES_NOT_START:
        assert any("'sick'" in notice and DOES_NOT_START[vice] in notice for notice in found.notices), found
    elif vice in CALL_FAILS:
        assert found.sick.is_error and "'sick'" in found.sick.content, found
        assert CALL_FAILS[vice] in found.sick.content
    else:
        assert not found.sick.is_error, found
        assert not re.search(
            "[\x00-\x08\x1b\u200b\ud800-\udfff\U000e0000-\U000e007f]|<\\|im_", found.sick.content
        )
        assert all("'sick'" in notice for notice in found.notices)


async def test_50_mb_are_cut_and_can_be_read_in_pieces() -> None:
    read = calling("read_result", name="result-1", offset=49_999_990)
    find = calling("read_result", name="result-1", find="z")
    engine = ScriptedEngine([calling("evil"), read, find, calling("read_result", name="result-2"), "Read."])
    result = await Agent(engine, tools=[MCPServers(hostile("call-50mb"))]).run("Read it.")
    cut, end, found, other = (m.results[0] for m in result.messages if m.role == "tool")
    assert len(cut.content) < 13_000 and "49,988,002 of 50,000,002 characters left out" in cut.content
    assert "read_result(name='result-1', offset=9600)" in cut.content
    assert "x" * 11 + "z\n[characters 49,999,990 to 50,000,002 of 50,000,002, the end]" in end.content
    assert "z\n[characters 49,999,801 to" in found.content
    assert other.is_error and "There are: result-1." in other.content
    names = [[t["function"]["name"] for t in request.tools] for request in engine.requests]
    assert names[0] == ["evil"] and names[1] == ["evil", "read_result"], (
        "it is offered once there is something"
    )


async def test_a_filter_of_the_users_sees_descriptions_and_results() -> None:
    seen: list[tuple[str, str, str]] = []

    def filter(server: str, tool: str, text: str) -> str | None:
        seen.append((server, tool, text))
        return None if text.startswith("evil") else text.replace("evil", "good")

    engine = ScriptedEngine([calling("evil"), "No."])
    result = await Agent(engine, tools=[MCPServers(hostile("none"), safety=Safety(filter=filter))]).run(
        "Do it."
    )
    assert seen == [("sick", "evil", "Does evil."), ("sick", "evil", "evil done")]
    assert engine.requests[0].tools[0]["function"]["description"] == "Does good."
    assert "withheld" in result.messages[-2].results[0].content


async def test_a_tool_whose_description_the_filter_refuses_is_not_offered() -> None:
    engine, notices = ScriptedEngine(["No."]), []
    agent = Agent(engine, tools=[MCPServers(hostile("none"), safety=Safety(filter=lambda *of: None))])
    async with agent.stream("Do it.") as run:
        async for event in run:
            if isinstance(event, Notice):
                notices.append(event.text)
    assert not engine.requests[0].tools
    assert notices == [
        "MCP server 'sick': its tool 'evil' is not offered: the filter says no to its description"
    ]
