"""What servers ask of us and tell us, over real processes and sockets."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from agentkit import Agent
from agentkit.errors import AgentkitError, ToolError
from agentkit.events import ToolProgress
from agentkit.mcp import MCPServers, ServerSpec
from agentkit.mcp.host import Answered, Asked, Host, LogLine, Progress, Question, model_of, roots_changed
from agentkit.mcp.prompts import complete, find_prompt, get_prompt, list_prompts
from agentkit.mcp.resources import list_resources, read_as_messages, read_resource
from agentkit.mcp.screen import Safety
from agentkit.messages import ToolCall, assistant
from agentkit.progress import report_progress
from agentkit.testing import ScriptedEngine
from agentkit.tools import Tool, ToolOutput

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
HERE = Path(__file__).parent
Spec = Callable[..., ServerSpec]
ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"])


@pytest.fixture(scope="module")
def spec() -> Iterator[Spec]:
    """One server for all tests, in a process of its own; it has a session for each client."""
    command = [sys.executable, str(HERE / "feature_server.py"), "streamable-http"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "running on http" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that the pipe never fills
        url = re.findall(r"http://\S+", line)[0] + "/mcp"

        def over_http(mode: str = "auto", **more: Any) -> ServerSpec:
            return ServerSpec("features", url=url, transport="http", mode=mode, **more)

        yield over_http
        process.kill()


def spec_of_a_process(mode: str = "auto", **more: Any) -> ServerSpec:
    arguments = (str(HERE / "feature_server.py"), "stdio")
    return ServerSpec("features", sys.executable, arguments, mode=mode, **more)


def complain(text: str) -> None:
    raise AssertionError(f"unexpected notice: {text}")


@asynccontextmanager
async def opened(*specs: ServerSpec, host: Host = Host()) -> AsyncIterator[tuple[dict[str, Tool], Any]]:
    """The tools by name, and the servers."""
    servers = MCPServers(*specs, host=host)
    async with servers.open(complain) as tools:
        yield {tool.name: tool for tool in tools}, servers.connections


async def call(tool: Tool, **arguments: Any) -> ToolOutput:
    return await tool.handler(arguments)


async def yes(asked: Asked) -> bool:
    return True


async def echo(asked: Asked) -> Answered:
    return Answered(assistant(f"You said: {asked.request.messages[-1].text}"), "echo")


def tool_call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


# --- sampling


@ERAS
async def test_a_server_that_asks_our_model_gets_the_answer_of_the_agents_engine(
    mode: str, spec: Spec
) -> None:
    engine = ScriptedEngine([tool_call("summary", text="A cat sat."), "Cat.", "It is about a cat."])
    agent = Agent(engine, tools=[MCPServers(spec(mode, sampling=True))])
    result = await agent.run("Sum it up.")
    assert result.output == "It is about a cat."
    [tool] = [r for message in result.messages for r in message.results]
    assert "\nunknown endTurn: Cat.\n" in tool.content

    asked = engine.requests[1]
    assert [(m.role, m.text) for m in asked.messages] == [
        ("system", "Be brief."),
        ("user", "Sum up: A cat sat."),
    ]
    assert asked.settings.temperature == 0.25 and asked.settings.stop == ("END",)
    assert asked.settings.max_tokens == Host().max_tokens  # the server wanted a million
    assert asked.settings.thinking is False


async def test_sampling_reaches_a_real_model_server_with_the_servers_wishes(
    serve: Callable[..., Any], spec: Spec
) -> None:
    model = serve(
        lambda x: x.answer(tool_call("summary", text="A cat sat.")),
        lambda x: x.answer("Cat", finish="length"),
        lambda x: x.answer("It is about a cat."),
    )
    agent = Agent(f"stub-model@{model.url}", tools=[MCPServers(spec(sampling=True), host=Host(max_tokens=7))])
    result = await agent.run("Sum it up.")
    assert result.output == "It is about a cat."
    [tool] = [r for message in result.messages for r in message.results]
    assert "\nstub-model maxTokens: Cat\n" in tool.content
    body = model.requests[1]
    assert body["max_tokens"] == 7 and body["temperature"] == 0.25 and body["stop"] == ["END"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_nobody_is_asked_for_a_model_unless_someone_approves_or_the_config_does(spec: Spec) -> None:
    alone = Host(sample=echo)
    async with opened(spec(), host=alone) as (tools, _):
        try:
            refused = await call(tools["summary"], text="x")
        except ToolError as exc:
            refused = ToolOutput(str(exc), is_error=True)
        assert refused.is_error and "You said" not in refused.content
    async with opened(spec(sampling=False), host=replace(alone, approve=yes)) as (tools, _):
        with pytest.raises(ToolError):
            await call(tools["summary"], text="x")


@ERAS
async def test_whoever_approves_sees_what_the_server_asks_and_a_no_goes_back_to_it(
    mode: str, spec: Spec
) -> None:
    seen: list[Asked] = []

    async def approve(asked: Asked) -> bool:
        seen.append(asked)
        return "secret" not in asked.request.messages[-1].text

    async with opened(spec(mode), host=Host(sample=echo, approve=approve)) as (tools, _):
        assert (await call(tools["summary"], text="news")).content == "echo endTurn: You said: Sum up: news"
        assert seen[0].server == "features" and seen[0].models == ("claude",)
        defused = await call(tools["summary"], text="<|im_end|>")
        assert defused.content.endswith("Sum up: ‹|im_end|>")
        try:
            refused = (await call(tools["summary"], text="a secret")).content
        except ToolError as exc:
            refused = str(exc)
        assert "You said" not in refused
        if mode == "auto":
            assert "rejected" in refused


@pytest.mark.e2e
async def test_a_server_can_give_our_model_tools_and_gets_its_calls() -> None:
    engine = ScriptedEngine([tool_call("dice", sides=20), "You threw 17."])
    host = Host(sample=model_of(engine), approve=yes)
    async with opened(spec_of_a_process("legacy"), host=host) as (tools, _):
        assert (await call(tools["ask_with_tools"])).content == "toolUse {'sides': 20} You threw 17."
    first, second = engine.requests
    assert first.tools[0]["function"]["name"] == "dice"
    assert first.settings.extra == {"tool_choice": "required"}
    assert [m.role for m in second.messages] == ["user", "assistant", "tool"]
    assert second.messages[2].results[0].content == "17"


async def test_a_server_cannot_use_more_of_the_model_than_its_budget(spec: Spec) -> None:
    host = Host(sample=echo, approve=yes, token_budget=40)
    async with opened(spec("legacy"), host=host) as (tools, _):
        ended = (await call(tools["ask_for_ever"])).content
    found = re.match(r"(\d+) answers, then: .*budget of 40 tokens", ended)
    assert found and 1 <= int(found[1]) <= 20


@pytest.mark.e2e
async def test_the_time_that_the_user_takes_to_answer_is_not_the_servers(spec: Spec) -> None:
    async def slowly(question: Question) -> Mapping[str, Any]:
        await anyio.sleep(1.2)  # longer than the call may take
        return {"size": "small"}

    async with opened(spec("legacy", tool_timeout=1.0), host=Host(elicit=slowly)) as (tools, _):
        assert '"size":"small"' in (await call(tools["order"], name="Ada")).content


# --- elicitation


@ERAS
async def test_a_server_gets_what_the_user_fills_in_and_the_defaults_of_the_rest(
    mode: str, spec: Spec
) -> None:
    asked: list[Question] = []

    async def fill(question: Question) -> Mapping[str, Any]:
        asked.append(question)
        return {"size": "large", "hot": True}

    async with opened(spec(mode), host=Host(elicit=fill)) as (tools, _):
        order = json.loads((await call(tools["order"], name="Ada")).content)
    assert order == {"size": "large", "number": 1, "hot": True}
    assert asked[0].server == "features" and asked[0].message == "Which pizza, Ada?"
    assert asked[0].schema["properties"]["number"]["maximum"] == 9


@ERAS
async def test_a_question_is_declined_where_nobody_is_there(mode: str, spec: Spec) -> None:
    async with opened(spec(mode)) as (tools, _):
        assert (await call(tools["order"], name="Ada")).content == "decline"


@pytest.mark.parametrize("reply", ["decline", "cancel"])
async def test_declining_and_breaking_off_are_told_apart(reply: Any, spec: Spec) -> None:
    async def say(question: Question) -> Any:
        return reply

    async with opened(spec(), host=Host(elicit=say)) as (tools, _):
        assert (await call(tools["order"], name="Ada")).content == reply


@pytest.mark.parametrize("answer", [{"size": "huge"}, {"size": "small", "number": 99}, {}, 1 / 2])
async def test_an_answer_that_does_not_fit_the_form_never_reaches_the_server(answer: Any, spec: Spec) -> None:
    async def fill(question: Question) -> Any:
        return answer if isinstance(answer, dict) else 1 / 0

    async with opened(spec(), host=Host(elicit=fill)) as (tools, _):
        assert (await call(tools["order"], name="Ada")).content == "cancel"


async def test_a_page_to_visit_is_put_to_the_user_as_an_address(spec: Spec) -> None:
    asked: list[Question] = []

    async def agree(question: Question) -> Mapping[str, Any]:
        asked.append(question)
        return {}

    async with opened(spec("legacy"), host=Host(elicit=agree)) as (tools, _):
        assert (await call(tools["visit"])).content == "accept"
    assert asked == [Question("features", "Sign in, please", url="https://example.org/sign-in")]


# --- roots, progress, logs


async def test_servers_are_told_the_folders_as_they_are_when_they_ask(tmp_path: Path, spec: Spec) -> None:
    folders = [tmp_path / "a b"]
    async with opened(spec("legacy"), host=Host(roots=lambda: folders)) as (tools, [server]):
        assert (await call(tools["folders"])).content == (tmp_path / "a b").as_uri()
        folders.append(tmp_path)
        await server.with_client(roots_changed, "roots/list_changed")
        assert len((await call(tools["folders"])).content.split()) == 2
    async with opened(spec("legacy")) as (tools, _):
        assert "not supported" in await _text(tools["folders"])


async def _text(tool: Tool, **arguments: Any) -> str:
    try:
        return (await call(tool, **arguments)).content
    except ToolError as exc:
        return str(exc)


@ERAS
async def test_progress_and_log_lines_reach_the_host(
    mode: str, caplog: pytest.LogCaptureFixture, spec: Spec
) -> None:
    progress: list[Progress] = []
    lines: list[LogLine] = []
    all_there = anyio.Event()

    def note(where: list[Any], what: Any) -> None:
        where.append(what)
        if len(progress) == 3 and lines:
            all_there.set()

    host = Host(on_progress=lambda p: note(progress, p), on_log=lambda line: note(lines, line))
    with caplog.at_level(logging.INFO, "agentkit.mcp.server.features"):
        async with opened(spec(mode), host=host) as (tools, _):
            assert (await call(tools["steps"], number=3)).content == "done"
            with anyio.fail_after(10):
                await all_there.wait()
    assert sorted(progress, key=lambda p: p.progress) == [
        Progress("features", "steps", n, 3, f"step {n}") for n in (1, 2, 3)
    ]
    assert lines == [LogLine("features", "info", "all done")]
    assert "all done" in caplog.messages


async def test_a_run_tells_how_far_its_tools_are() -> None:
    async def dig(depth: int) -> str:
        for metre in range(1, depth + 1):
            await report_progress(metre, depth, "digging")
        return "water"

    engine = ScriptedEngine([tool_call("dig", depth=2), "Water."])
    events = []
    async with Agent(engine, tools=[dig]).stream("Dig.") as run:
        async for event in run:
            if isinstance(event, ToolProgress):
                events.append(event)
    assert [(e.progress, e.total, e.message) for e in events] == [(1, 2, "digging"), (2, 2, "digging")]
    assert isinstance(events[0].call, ToolCall) and events[0].call.name == "dig"
    assert await dig(1) == "water"  # with nobody watching


# --- resources


async def test_the_model_can_list_and_read_resources(spec: Spec) -> None:
    async with opened(spec()) as (tools, _):
        listed = (await call(tools["list_resources"])).content
        assert "notes://today - What is on today. (text/plain)" in listed
        assert "notes://people/{name}{?part} - What we know of somebody." in listed
        read = tools["read_resource"]
        assert (await call(read, uri="notes://today")).content == "Feed the cat."
        assert (await call(read, uri="notes://people/Ada")).content == "Ada: all"
        filled = await call(
            read, uri="notes://people/{name}{?part}", arguments={"name": "Ada B", "part": "shoes"}
        )
        assert filled.content == "Ada B: shoes"
        with pytest.raises(ToolError, match="needs arguments: name"):
            await call(read, uri="notes://people/{name}{?part}")
        with pytest.raises(ToolError):
            await call(read, uri="notes://nothing/here/at/all")


async def test_a_long_resource_is_read_in_pieces_that_add_up(spec: Spec) -> None:
    async with opened(spec()) as (tools, _):
        pieces, offset = "", 0
        while True:
            text = (await call(tools["read_resource"], uri="notes://long", offset=offset)).content
            more = re.search(r"\n\[[\d,]+ of 30,000 characters left: offset=(\d+)\]$", text)
            pieces += text[: more.start()] if more else text
            if not more:
                break
            offset = int(more[1])
        assert pieces == "".join(f"{n:>9}\n" for n in range(3000))
        with pytest.raises(ToolError, match="only 30000 characters"):
            await call(tools["read_resource"], uri="notes://long", offset=30_000)


async def test_a_binary_resource_is_given_to_the_user(spec: Spec) -> None:
    async with opened(spec()) as (tools, _):
        picture = await call(tools["read_resource"], uri="notes://dot.png")
    [artifact] = picture.artifacts
    assert (artifact.name, artifact.mime, artifact.data) == ("dot.png", "image/png", b"\x89PNG\r\n\x1a\n")
    assert picture.content == "[dot.png: image/png, 8 bytes, given to the user]"


async def test_of_two_servers_with_one_uri_the_named_one_is_read(spec: Spec) -> None:
    other = replace(spec(), name="others")
    async with opened(spec(), other) as (tools, servers):
        assert "others:notes://today" in (await call(tools["list_resources"], server="others")).content
        [content] = await read_resource(servers, "others:notes://today")
        assert hasattr(content, "text") and content.text == "Feed the cat."
        with pytest.raises(ToolError, match="there are: features, others"):
            await call(tools["list_resources"], server="none")


async def test_a_server_without_resources_costs_no_tools_for_them() -> None:
    bare = ServerSpec("sdk", sys.executable, (str(HERE / "sdk_server.py"), "stdio"))
    async with opened(bare) as (tools, servers):
        assert "add" in tools and "read_resource" not in tools
        assert await list_resources(servers) == ((), ())


async def test_the_users_filter_sees_resources_before_the_model_does(spec: Spec) -> None:
    def see(server: str, tool: str, text: str) -> str | None:
        return None if "cat" in text else text.upper()

    servers = MCPServers(spec(), safety=Safety(filter=see))
    async with servers.open(complain) as listed:
        tools = {tool.name: tool for tool in listed}
        assert (await call(tools["read_resource"], uri="notes://people/Ada")).content == "ADA: ALL"
        with pytest.raises(ToolError, match="withheld"):
            await call(tools["read_resource"], uri="notes://today")
        assert "NOTES://TODAY - WHAT IS ON" in (await call(tools["list_resources"])).content


async def test_resources_can_be_put_before_a_task(spec: Spec) -> None:
    engine = ScriptedEngine(["The cat."])
    agent = Agent(engine, tools=[MCPServers(spec())], context=["features:notes://today"])
    assert (await agent.run("Whom do I feed?")).output == "The cat."
    texts = [m.text for m in engine.requests[0].messages if m.role == "user"]
    assert texts == ['<resource uri="notes://today">\nFeed the cat.\n</resource>', "Whom do I feed?"]
    async with opened(spec()) as (_, servers):
        with pytest.raises(AgentkitError, match="notes://none/of/it cannot be read"):
            await read_as_messages(servers, ["notes://none/of/it"])


# --- prompts


@ERAS
async def test_prompts_are_listed_filled_in_and_become_messages(mode: str, spec: Spec) -> None:
    async with opened(spec(mode)) as (_, servers):
        prompts, problems = await list_prompts(servers)
        assert problems == ()
        prompt = find_prompt(prompts, "features:greeting")
        assert [(a.name, a.required) for a in prompt.arguments] == [("name", True), ("tone", False)]
        [message] = await get_prompt(servers, prompt, {"name": "Ada", "tone": "stern"})
        assert (message.role, message.text) == ("user", "Say hello to Ada in a stern way.")
        assert await complete(servers, prompt, "name", "Al") == ("Alan",)
        with pytest.raises(AgentkitError, match="also needs: name"):
            await get_prompt(servers, prompt)
        with pytest.raises(AgentkitError, match="there are: features:greeting"):
            find_prompt(prompts, "farewell")


# --- a server that nobody here wrote


@pytest.fixture
def everything() -> Path:
    folder = os.environ.get("AGENTKIT_NPM")
    script = Path(folder or ".", "node_modules/@modelcontextprotocol/server-everything/dist/index.js")
    if not folder or not script.is_file():
        pytest.skip(
            "AGENTKIT_NPM is no directory where npm has installed @modelcontextprotocol/server-everything"
        )
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    return script


@contextmanager
def everything_over(kind: str, script: Path) -> Iterator[ServerSpec]:
    if kind == "stdio":
        yield ServerSpec("all", "node", (str(script), "stdio"), tool_timeout=30)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command, env = ["node", str(script), kind], {**os.environ, "PORT": str(port)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            next(line for line in process.stderr if str(port) in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            path, transport = ("sse", "sse") if kind == "sse" else ("mcp", "http")
            url = f"http://127.0.0.1:{port}/{path}"
            yield ServerSpec("all", url=url, transport=cast("Any", transport), tool_timeout=30)
        finally:
            process.kill()


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["stdio", "streamableHttp", "sse"])
async def test_every_feature_of_the_reference_server_works(
    everything: Path, kind: str, tmp_path: Path
) -> None:
    asked: list[Question] = []
    progress: list[Progress] = []

    async def fill(question: Question) -> Mapping[str, Any]:
        asked.append(question)
        return {} if question.url else {"name": "Ada", "interpretation": "historical"}

    host = Host(sample=echo, approve=yes, elicit=fill, roots=[tmp_path], on_progress=progress.append)
    with everything_over(kind, everything) as spec:
        async with opened(spec, host=host) as (tools, servers):
            sampled = await call(tools["trigger-sampling-request"], prompt="hello", maxTokens=9)
            assert "You said: Resource trigger-sampling-request context: hello" in sampled.content
            filled = await call(tools["trigger-elicitation-request"])
            assert '"name": "Ada"' in filled.content and '"integer": 42' in filled.content
            assert tmp_path.as_uri() in (await call(tools["get-roots-list"])).content
            await call(tools["trigger-long-running-operation"], duration=1, steps=2)
            assert [(p.progress, p.total) for p in progress[:2]] == [(1, 2), (2, 2)]
            report = await call(tools["simulate-research-query"], topic="cats", ambiguous=True)
            assert "Historical perspective" in report.content or "historical" in report.content
            url = "https://example.org/x"
            assert '"accept"' in (await call(tools["trigger-url-elicitation"], url=url)).content
            assert not (await call(tools["trigger-url-elicitation"], url=url, errorPath=True)).is_error
            pages = [q.url for q in asked if q.url]
            assert pages[0] == url and len(pages) > 1  # the second call's came as an error

            listed = (await call(tools["list_resources"])).content
            template = "demo://resource/dynamic/text/{resourceId}"
            assert template in listed
            read = await call(tools["read_resource"], uri=template, arguments={"resourceId": 3})
            assert read.content.startswith("Resource 3:")
            prompts, _ = await list_prompts(servers)
            prompt = find_prompt(prompts, "completable-prompt")
            assert await complete(servers, prompt, "department", "E") == ("Engineering",)
            [message] = await get_prompt(servers, find_prompt(prompts, "args-prompt"), {"city": "Paris"})
            assert "Paris" in message.text
