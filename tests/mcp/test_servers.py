from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentkit.errors import ConfigError, ToolError
from agentkit.mcp import MCPServers, ServerSpec, check, load_config
from agentkit.tools import Tool, ToolOutput, Toolset

pytestmark = pytest.mark.anyio
HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "mcp_configs"
Tools = dict[str, Tool]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def raw(name: str = "raw", *options: str, **more: Any) -> ServerSpec:
    return ServerSpec(name, sys.executable, ("-I", "-S", str(HERE / "raw_server.py"), *options), **more)


def complain(text: str) -> None:
    raise AssertionError(f"unexpected notice: {text}")


async def call(tool: Tool, **arguments: Any) -> ToolOutput:
    return await tool.handler(arguments)


def by_name(tools: Sequence[Tool]) -> Tools:
    return {tool.name: tool for tool in tools}


@pytest.fixture(scope="module")
async def sdk() -> AsyncIterator[Tools]:
    os.environ["AGENTKIT_TEST_SECRET"] = "hunter2"
    spec = ServerSpec(
        "sdk", sys.executable, (str(HERE / "sdk_server.py"), "stdio"), env={"OWN": "mine"}, tool_timeout=30
    )
    try:
        async with MCPServers(spec).open(complain) as tools:
            yield by_name(tools)
    finally:
        del os.environ["AGENTKIT_TEST_SECRET"]


# --- servers that nobody here wrote


@pytest.mark.e2e
async def test_the_time_config_of_the_model_card_works_where_uvx_is_missing() -> None:
    async with MCPServers(CONFIGS / "time.json").open(complain) as tools:
        assert [tool.name for tool in tools] == ["get_current_time", "convert_time"]
        result = await call(tools[0], timezone="Asia/Tokyo")
        assert json.loads(result.content)["timezone"] == "Asia/Tokyo"
        assert "+09:00" in result.content
        refused = await call(tools[0], timezone="Mars/Olympus")
        assert refused.is_error and "Mars/Olympus" in refused.content


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git = ("git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "Invent the wheel"], check=True)
    return tmp_path


@pytest.mark.e2e
async def test_the_git_config_reads_the_log_of_a_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENTKIT_REPO", str(repository))
    async with MCPServers(CONFIGS / "git.json").open(complain) as tools:
        result = await call(by_name(tools)["git_log"], repo_path=str(repository))
        assert "Invent the wheel" in result.content


class _Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<html><body><article><h1>News</h1><p>Qwen learned to whistle.</p></article></body></html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def page() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.e2e
async def test_the_fetch_server_reads_a_page(page: str) -> None:
    [spec] = load_config(CONFIGS / "fetch.json")
    config = {"command": "uvx", "args": [*spec.args, "--allow-private-ips", "--ignore-robots-txt"]}
    async with MCPServers({"mcpServers": {"fetch": config}}).open(complain) as [fetch]:
        assert "Qwen learned to whistle." in (await call(fetch, url=page)).content


# --- what comes back


async def test_a_server_sees_its_own_env_and_nothing_secret_of_ours(sdk: Tools) -> None:
    assert (await call(sdk["variable"], name="OWN")).content == "mine"
    assert (await call(sdk["variable"], name="AGENTKIT_TEST_SECRET")).content == "(unset)"
    assert (await call(sdk["variable"], name="PATH")).content == os.environ["PATH"]


async def test_calls_of_one_server_run_side_by_side(sdk: Tools) -> None:
    answers = []

    async def wait(seconds: float) -> None:
        answers.append((seconds, (await call(sdk["wait"], seconds=seconds)).content))

    async with anyio.create_task_group() as tasks:
        for seconds in (0.3, 0.2, 0.1):
            tasks.start_soon(wait, seconds)
    assert answers == [(0.1, "waited"), (0.2, "waited"), (0.3, "waited")]


async def test_wrong_arguments_come_back_as_an_error_the_model_can_read(sdk: Tools) -> None:
    result = await call(sdk["add"], a=1, b="many")
    assert result.is_error and "b" in result.content
    assert (await call(sdk["add"], a=1, b=2)).content == "3"


async def test_a_picture_is_an_artifact_and_a_mention(sdk: Tools) -> None:
    result = await call(sdk["picture"])
    [picture] = result.artifacts
    assert (picture.mime, picture.data, picture.size) == ("image/png", b"\x89PNG\r\n\x1a\n", 8)
    assert result.content == "[picture-1.png: image/png, 8 bytes, given to the user]"


async def test_a_huge_result_is_cut_in_the_middle_and_says_so(sdk: Tools) -> None:
    content = (await call(sdk["big"], n=3_000_000)).content
    assert len(content) < 101_000 and content.startswith("ax") and content.endswith("xz")
    assert "of 3,000,000 characters left out" in content


async def test_schemas_reach_the_model_without_titles(sdk: Tools) -> None:
    assert sdk["add"].parameters == {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    assert sdk["add"].description == "Add two numbers."


# --- over HTTP


@contextlib.contextmanager
def http_server(kind: str) -> Iterator[tuple[str, str]]:
    """A server in a process of its own, on a port that the system chose; its kind and URL."""
    command = [sys.executable, str(HERE / "sdk_server.py"), kind]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "running on http" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that the pipe never fills
        yield kind, re.findall(r"http://\S+", line)[0] + ("/sse" if kind == "sse" else "/mcp")
        process.kill()


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    with http_server("streamable-http") as one, http_server("sse") as other:
        yield dict([one, other])


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("kind", ["streamable-http", "sse"])
async def test_a_remote_server_gets_our_headers_and_answers(
    urls: dict[str, str], kind: str, mode: str
) -> None:
    config = {"url": urls[kind], "headers": {"X-Key": "abc"}, "mode": mode}
    async with MCPServers({"mcpServers": {"far": config}}).open(complain) as tools:
        remote = by_name(tools)
        assert (await call(remote["add"], a=20, b=22)).content == "42"
        if kind != "sse":
            assert (await call(remote["header"], name="x-key")).content == "abc"
            assert "left out" in (await call(remote["big"], n=3_000_000)).content


@pytest.fixture
def mortal_url() -> Iterator[str]:
    with http_server("streamable-http") as (_, url):
        yield url


async def test_a_remote_server_that_dies_in_a_call_is_an_error_and_the_rest_goes_on(mortal_url: str) -> None:
    async with MCPServers({"mcpServers": {"far": {"url": mortal_url}}}, raw()).open(complain) as tools:
        tool = by_name(tools)
        with pytest.raises(ToolError, match="'far' was lost during 'crash'"):
            await call(tool["crash"])
        with pytest.raises(ToolError, match=r"'far' did not start: .* cannot be reached"):
            await call(tool["add"], a=1, b=1)
        assert (await call(tool["pids"])).content.startswith("pids: ")


async def test_an_address_that_is_no_mcp_server_is_said_so(page: str) -> None:
    [report] = await check([ServerSpec("web", url=f"{page}mcp?key=secret", transport="http")])
    assert not report.ok and "HTTP 501; is that the address of an MCP server?" in report.error
    assert "secret" not in report.error


# --- servers that fail


async def test_a_dead_server_is_told_and_the_live_ones_keep_their_order() -> None:
    notices: list[str] = []
    servers = MCPServers(
        raw("slow", "pages"),
        ServerSpec("dead", sys.executable, ("-c", "import nothing_like_that")),
        ServerSpec("absent", "no-such-program"),
        ServerSpec("off", "no-such-program", disabled=True),
        raw("quick", include=("p*", "die*"), exclude=("die_*",)),
    )
    async with servers.open(notices.append) as tools:
        assert [tool.name for tool in tools] == [
            *("slow__pids", "slow__die", "die_readonly", "fail", "hang", "off_schema", "structured"),
            *("quick__pids", "quick__die"),
        ]
        assert (await call(tools[0])).content != (await call(tools[7])).content
    assert sorted(notices) == [
        "MCP server 'absent' did not start: the command 'no-such-program' isn't installed (not on PATH)",
        "MCP server 'dead' did not start: it ended before it answered; its last words: "
        "ModuleNotFoundError: No module named 'nothing_like_that'",
    ]


async def test_when_every_server_is_dead_there_are_no_tools_and_no_error() -> None:
    notices: list[str] = []
    async with MCPServers(ServerSpec("dead", "false"), ServerSpec("dead too", "false")).open(
        notices.append
    ) as tools:
        assert list(tools) == []
    assert len(notices) == 2


async def test_a_silent_server_is_given_up_after_its_startup_timeout() -> None:
    [report] = await check([raw("mute", "silent", startup_timeout=0.3)])
    assert report.error == "MCP server 'mute' did not start: no answer in 0.3 s"


@pytest.mark.e2e
async def test_a_call_that_hangs_ends_after_its_timeout_and_the_server_stays_usable() -> None:
    async with MCPServers(raw("raw", tool_timeout=0.7)).open(complain) as tools:
        tool = by_name(tools)
        with pytest.raises(ToolError, match=r"'raw' gave no answer to 'hang' in 0\.7 s"):
            await call(tool["hang"])
        assert (await call(tool["pids"])).content.startswith("pids: ")


async def test_a_crash_is_told_to_the_model_and_the_next_call_starts_the_server_again(tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    async with MCPServers(raw("raw", f"dies-on={fuse}")).open(complain) as tools:
        tool = by_name(tools)
        before = (await call(tool["pids"])).content
        fuse.touch()
        with pytest.raises(
            ToolError, match="'raw' was lost during 'die'; its last words: OSError: disk on fire"
        ):
            await call(tool["die"])
        assert (await call(tool["pids"])).content not in ("", before)


async def test_only_a_readonly_call_is_made_again_by_itself(tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    async with MCPServers(raw("raw", f"dies-on={fuse}")).open(complain) as tools:
        fuse.touch()
        assert (await call(by_name(tools)["die_readonly"])).content.startswith("die_readonly: ")


async def test_a_server_that_was_killed_between_calls_is_started_again_unnoticed() -> None:
    async with MCPServers(raw()).open(complain) as tools:
        pids = by_name(tools)["pids"]
        pid = int((await call(pids)).content.split()[1])
        os.kill(pid, 9)
        assert int((await call(pids)).content.split()[1]) != pid


@pytest.mark.e2e
async def test_a_server_that_always_crashes_is_left_alone_after_a_few_restarts() -> None:
    async with MCPServers(raw()).open(complain) as tools:
        die = by_name(tools)["die"]
        for _ in range(4):
            with pytest.raises(ToolError, match="was lost"):
                await call(die)
        with pytest.raises(ToolError, match=r"failed 4 times in a row and is not started again in the next"):
            await call(die)


async def test_calls_that_are_lost_together_count_as_one_crash() -> None:
    async with MCPServers(raw()).open(complain) as tools:
        tool = by_name(tools)

        async def lose(name: str) -> None:
            with pytest.raises(ToolError, match="was lost"):
                await call(tool[name])

        async with anyio.create_task_group() as tasks:
            for name in ("hang", "hang", "hang", "hang", "die"):
                tasks.start_soon(lose, name)
        assert (await call(tool["pids"])).content.startswith("pids: ")


async def test_a_cwd_that_does_not_exist_is_said_so() -> None:
    [report] = await check([raw("raw", cwd="/no/such/folder")])
    assert report.error == "MCP server 'raw' did not start: its cwd /no/such/folder is not a directory"


async def test_text_on_stdout_does_not_disturb() -> None:
    async with MCPServers(raw("raw", "garbage")).open(complain) as tools:
        assert (await call(by_name(tools)["pids"])).content.startswith("pids: ")


async def test_errors_of_the_server_reach_the_model_in_words() -> None:
    async with MCPServers(raw()).open(complain) as tools:
        tool = by_name(tools)
        with pytest.raises(ToolError, match="the fridge is empty"):
            await call(tool["fail"])
        with pytest.raises(ToolError, match=r"'raw' answered 'off_schema' off the protocol: content"):
            await call(tool["off_schema"])
        assert (await call(tool["structured"])).content == '{"y": 1}'  # off its own output schema


async def test_sloppy_listings_cost_only_the_tools_that_cannot_be_used() -> None:
    notices: list[str] = []
    async with MCPServers(raw("raw", "sloppy")).open(notices.append) as tools:
        names = [tool.name for tool in tools][7:]
        assert names[:3] == ["raw__dots_and_slashes", "raw__dots_and_slashes_2", "gr_e"]
        assert names[3].startswith("xxxx") and len(names[3]) == 64
        assert names[4:] == ["twice", "no_schema", "no_type", "list_schema"]
        tool = by_name(tools)
        assert tool["twice"].description == "first"
        assert tool["no_type"].parameters == {"type": "object", "properties": {"a": {"type": "string"}}}
        assert tool["no_schema"].parameters == {"type": "object", "properties": {}}
        assert (await call(tool["raw__dots_and_slashes"])).content.startswith("dots.and/slashes: ")
        assert (await call(tool["list_schema"])).content.startswith("list_schema: ")
    assert sorted(set(notices)) == [
        "MCP server 'raw': a tool without a name was left out",
        "MCP server 'raw': the tool 'twice' is listed twice; the first one is taken",
    ]


# --- opening and closing


async def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match=r"^mine$"):
        async with MCPServers(raw()).open(complain):
            raise LookupError("mine")


async def test_cancelling_the_body_ends_the_servers() -> None:
    with anyio.CancelScope() as scope:
        async with MCPServers(raw()).open(complain) as tools:
            pid = int((await call(by_name(tools)["pids"])).content.split()[1])
            scope.cancel()
            await anyio.sleep_forever()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_tool_called_after_closing_says_so() -> None:
    async with MCPServers(raw()).open(complain) as tools:
        pids = by_name(tools)["pids"]
    with pytest.raises(ToolError, match="'raw' is closed"):
        await call(pids)


async def test_check_reports_each_server() -> None:
    good, bad = await check(
        [raw(), raw("off", disabled=True), ServerSpec("bad", "uvx", ("no-such-package",))]
    )
    assert (good.name, good.ok, good.error, good.server, good.protocol) == (
        "raw",
        True,
        "",
        "raw 0.1",
        "2025-06-18",
    )
    assert [tool.name for tool in good.tools][:2] == ["pids", "die"]
    assert good.seconds > 0
    assert (
        not bad.ok
        and "isn't installed and no-such-package isn't either; pip install no-such-package" in bad.error
    )


async def test_later_sources_win_and_a_bad_one_is_refused_at_once(tmp_path: Path) -> None:
    servers = MCPServers(raw("a"), raw("b"), {"mcpServers": {"a": {"command": "other"}}})
    assert [(spec.name, spec.command) for spec in servers.specs] == [("a", "other"), ("b", sys.executable)]
    assert isinstance(servers, Toolset) and servers.scope == "agent"
    with pytest.raises(ConfigError, match=r"there is no such file"):
        MCPServers(tmp_path / "none.json")
