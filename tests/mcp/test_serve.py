from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, MCPError, StdioServerParameters, stdio_client, types

from agentkit.mcp import MCPServers, ServerSpec

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
SERVED = str(Path(__file__).with_name("served.py"))
AGENTKIT = ("-c", "from agentkit.cli import main; main()", "mcp", "serve")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def environment(folder: Path) -> dict[str, str]:
    return {
        "FILES": str(folder),
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder),
    }


@dataclass
class Connected:
    """The SDK's client on a server of ours."""

    client: Client
    folder: Path
    mode: str
    asked: list[str] = field(default_factory=list)  # of the user
    answers: list[dict[str, Any]] = field(default_factory=list)  # of the user, to come


@contextlib.asynccontextmanager
async def connect(what: str, folder: Path, mode: str = "auto") -> AsyncIterator[Connected]:
    """A process of its own, on stdio."""
    parameters = StdioServerParameters(
        command=sys.executable, args=[SERVED, what, "stdio"], env=environment(folder)
    )

    async def answer(context: Any, params: Any) -> types.ElicitResult:
        connected.asked.append(params.message)
        return types.ElicitResult(action="accept", content=connected.answers.pop(0))

    with (folder / "stderr").open("w") as stderr:
        transport = stdio_client(parameters, errlog=stderr)
        async with Client(
            transport, mode=mode, read_timeout_seconds=30, elicitation_callback=answer
        ) as client:
            connected = Connected(client, folder, mode)
            yield connected


@pytest.fixture(scope="module", params=["auto", "legacy"])
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Connected]:
    async with connect("tools", tmp_path_factory.mktemp("served"), request.param) as connected:
        yield connected


@dataclass(frozen=True)
class Web:
    url: str
    headers: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """The same server over HTTP; SIGTERM ends it."""
    folder = tmp_path_factory.mktemp("web")
    command = [sys.executable, SERVED, "tools", "http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(folder)) as process:
        try:
            assert process.stdout is not None
            url, token = process.stdout.readline().split()
            yield Web(url, {"Authorization": f"Bearer {token}"}, folder)
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def text_of(result: Any) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


async def appears(path: Path) -> None:
    with anyio.fail_after(20):
        while not path.exists():
            await anyio.sleep(0.01)


# ------------------------------------------------------------------ tools over stdio


async def test_only_the_protocol_is_on_stdout_whatever_a_tool_prints(server: Connected) -> None:
    assert text_of(await server.client.call_tool("noisy", {"text": "hello"})) == "hello"
    assert server.client.instructions == "Be kind."
    said = (server.folder / "stderr").read_text().splitlines()
    assert said[-3:] == ["printed: hello", "written", "echoed"]


async def test_what_a_tool_says_no_to_and_what_it_raises_are_errors_for_the_model(server: Connected) -> None:
    said_no = await server.client.call_tool("no", {})
    raised = await server.client.call_tool("broken", {})
    incomplete = await server.client.call_tool("noisy", {})
    assert (said_no.is_error, text_of(said_no)) == (True, "not today")
    assert raised.is_error and "ZeroDivisionError" in text_of(raised)
    assert incomplete.is_error and "text" in text_of(incomplete)
    with pytest.raises(MCPError, match="'nosuch' is not offered here"):
        await server.client.call_tool("nosuch", {})


async def test_artifacts_are_content_of_their_kind_and_a_large_one_is_a_link(server: Connected) -> None:
    text, image, audio, table, binary, link = (await server.client.call_tool("files", {})).content
    assert isinstance(text, types.TextContent) and text.text == "five files"
    assert isinstance(image, types.ImageContent) and image.mime_type == "image/png"
    assert base64.b64decode(image.data) == b"\x89PNG\r\n\x1a\n"
    assert isinstance(audio, types.AudioContent) and isinstance(table, types.EmbeddedResource)
    assert isinstance(table.resource, types.TextResourceContents) and table.resource.text == "a,b\n"
    assert isinstance(binary, types.EmbeddedResource)
    assert isinstance(binary.resource, types.BlobResourceContents)
    assert isinstance(link, types.ResourceLink) and link.uri == (server.folder / "large.bin").as_uri()


async def test_a_call_that_the_client_cancels_is_cancelled_in_the_tool(server: Connected) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.client.call_tool, "wait", {"note": "a call"})
        await appears(server.folder / "a call started")
        tasks.cancel_scope.cancel()
    await appears(server.folder / "a call cancelled")


async def test_a_tool_asks_the_user_twice_in_either_protocol(server: Connected) -> None:
    server.answers += [{"new": "b"}, {"sure": True}]
    assert text_of(await server.client.call_tool("rename", {"old": "a"})) == "a -> b: {'sure': True}"
    assert server.asked == ["What shall a be called?", "Call it b?"]


async def test_a_client_that_cannot_be_asked_is_told_what_it_lacks(server: Connected) -> None:
    if server.mode == "legacy":
        result = await server.client.call_tool("think", {"about": "life"})
        assert result.is_error and "'sampling'" in text_of(result)
    else:
        with pytest.raises(MCPError) as caught:
            await server.client.call_tool("think", {"about": "life"})
        assert caught.value.data == {"requiredCapabilities": {"sampling": {}}}


async def test_resources_templates_and_prompts_are_listed_and_read(server: Connected) -> None:
    client = server.client
    assert [r.uri for r in (await client.list_resources()).resources] == ["logo://small"]
    templates = (await client.list_resource_templates()).resource_templates
    assert [t.uri_template for t in templates] == ["notes://{day}"]
    [note] = (await client.read_resource("notes://monday")).contents
    assert isinstance(note, types.TextResourceContents) and note.text == "nothing happened on monday"
    with pytest.raises(MCPError, match="'nowhere://x' is not offered here"):
        await client.read_resource("nowhere://x")
    [message] = (await client.get_prompt("review", {"file": "x.py"})).messages
    assert isinstance(message.content, types.TextContent) and message.content.text == "Review x.py."
    with pytest.raises(MCPError, match="also needs file"):
        await client.get_prompt("review", {})


async def test_the_server_ends_when_its_client_closes_stdin(tmp_path: Path) -> None:
    process = await anyio.open_process([sys.executable, SERVED, "tools", "stdio"], env=environment(tmp_path))
    async with process:
        assert process.stdin is not None
        await process.stdin.aclose()
        with anyio.fail_after(20):
            assert await process.wait() == 0


async def test_sigterm_ends_a_server_whose_client_keeps_stdin_open(tmp_path: Path) -> None:
    process = await anyio.open_process([sys.executable, SERVED, "tools", "stdio"], env=environment(tmp_path))
    async with process:
        assert process.stdin is not None and process.stdout is not None
        discover = {"jsonrpc": "2.0", "id": 1, "method": "initialize"}
        params = {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "t", "version": "1"},
        }
        await process.stdin.send(json.dumps(discover | {"params": params}).encode() + b"\n")
        assert b'"id":1' in await process.stdout.receive()
        process.terminate()
        with anyio.fail_after(20):
            assert await process.wait() == -signal.SIGTERM


# ------------------------------------------------------------------ an agent


async def test_an_agent_is_one_tool_that_answers_reports_its_steps_and_can_be_cancelled(
    tmp_path: Path,
) -> None:
    steps: list[tuple[float, str | None]] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        steps.append((progress, message))

    async with connect("agent", tmp_path) as server:
        client = server.client
        [ask] = (await client.list_tools()).tools
        assert ask.name == "ask" and ask.input_schema["required"] == ["task"]
        result = await client.call_tool("ask", {"task": "What is 2 + 3?"}, progress_callback=report)
        assert (result.is_error, text_of(result)) == (False, "It is 5.")

        with_files = await client.call_tool("ask", {"task": "Files, please."})
        kinds = [block.type for block in with_files.content]
        assert kinds == ["text", "image", "audio", "resource", "resource", "resource_link"]
        said = [message for _, message in sorted(steps) if message != "the agent is starting"]
        assert said == ["turn 1", "add(a=2, b=3)", "turn 2"]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "ask", {"task": "Wait."})
            await appears(tmp_path / "agent started")
            tasks.cancel_scope.cancel()
        await appears(tmp_path / "agent cancelled")


# ------------------------------------------------------------------ the command line, and our own client


async def test_our_client_uses_the_code_interpreter_that_we_serve(tmp_path: Path) -> None:
    spec = ServerSpec(
        "py",
        sys.executable,
        (*AGENTKIT, "-t", "code_interpreter", "-t", "calculator"),
        env=environment(tmp_path),
    )
    async with MCPServers(spec).open(complain) as opened:
        tools = {tool.name: tool for tool in opened}
        assert tools.keys() == {"code_interpreter", "calculator"}
        await tools["code_interpreter"].handler({"code": "x = 20; open('dot.png', 'wb').write(b'\\x89PNG')"})
        result = await tools["code_interpreter"].handler({"code": "x + 1"})
        assert "21" in result.content and not result.is_error
        assert (await tools["calculator"].handler({"expression": "6 * 7"})).content.startswith("42")


async def test_an_agent_on_a_model_server_answers_and_says_what_it_failed_of(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    model = serve(
        lambda exchange: exchange.reply(401, '{"error": {"message": "who are you?"}}'),
        lambda exchange: exchange.answer("Forty-two."),
    )
    options = (
        "--agent",
        "--description",
        "Knows it all.",
        "-m",
        f"stub-model@{model.url}",
        "-t",
        "calculator",
    )
    spec = ServerSpec("agent", sys.executable, (*AGENTKIT, *options), env=environment(tmp_path))
    async with MCPServers(spec).open(complain) as [ask]:
        assert "Knows it all." in ask.description
        failed = await ask.handler({"task": "The answer?"})
        answered = await ask.handler({"task": "The answer?"})
    assert failed.is_error and "who are you?" in failed.content
    assert not answered.is_error and "Forty-two." in answered.content
    assert [t["function"]["name"] for t in model.requests[0]["tools"]] == ["calculator"]


def complain(text: str) -> None:
    raise AssertionError(f"unexpected notice: {text}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "say what to serve"),
        (("-t", "calculater"), "did you mean 'calculator'"),
        (("-t", "clock", "--http"), "set AGENTKIT_MCP_TOKEN"),
        (("-t", "clock", "--http", "--no-auth", "--host", "0.0.0.0"), "--allow-host"),
        (("-t", "clock", "--http", "--no-auth", "--port", "{taken}"), "Cannot listen on 127.0.0.1:"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_on_stderr(options: tuple[str, ...], words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, *AGENTKIT, *(option.format(taken=port) for option in options)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode in (1, 2) and words in done.stderr
    assert not done.stdout and "Traceback" not in done.stderr


# ------------------------------------------------------------------ streamable HTTP


async def test_over_http_only_who_has_the_token_and_comes_to_this_machine_is_let_in(web: Web) -> None:
    assert web.url.startswith("http://127.0.0.1:")
    right = web.headers
    body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    async with httpx2.AsyncClient(headers={"Accept": "application/json, text/event-stream"}) as http:

        async def status(**headers: str) -> int:
            return (await http.post(web.url, json=body, headers=headers)).status_code

        refused = await http.post(web.url, json=body)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert await status(Authorization="Bearer wrong") == 401
        assert await status(**right, Host="evil.example:80") == 421
        assert await status(**right, Origin="http://evil.example") == 403
        assert await status(**right, Origin="http://localhost:1234") not in (401, 403, 421)


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_our_client_calls_and_cancels_over_http(mode: str, web: Web) -> None:
    spec = ServerSpec("http", url=web.url, transport="http", headers=web.headers, mode=mode)
    async with MCPServers(spec).open(complain) as opened:
        tools = {tool.name: tool for tool in opened}

        async def call_wait() -> None:
            await tools["wait"].handler({"note": mode})

        assert "hello" in (await tools["noisy"].handler({"text": "hello"})).content
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_wait)
            await appears(web.folder / f"{mode} started")
            tasks.cancel_scope.cancel()
        await appears(web.folder / f"{mode} cancelled")
