"""When servers start, change, hang, die and are put away; over real processes and sockets."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentkit.errors import ToolError
from agentkit.mcp import MCPServers, ServerSpec, cache, check
from agentkit.mcp.host import Host, offers
from agentkit.mcp.logs import log_path
from agentkit.mcp.screen import Safety
from agentkit.tools import Tool

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
HERE = Path(__file__).parent
RAW = str(HERE / "raw_server.py")
SDK = str(HERE / "sdk_server.py")


def raw(name: str = "raw", *options: str, **more: Any) -> ServerSpec:
    return ServerSpec(name, sys.executable, ("-I", "-S", RAW, *options), **more)


def sdk(**more: Any) -> ServerSpec:
    return ServerSpec("sdk", sys.executable, (SDK, "stdio"), **more)


def complain(text: str) -> None:
    raise AssertionError(f"unexpected notice: {text}")


async def call(tools: Sequence[Tool], name: str, /, **arguments: Any) -> str:
    [tool] = [tool for tool in tools if tool.name == name]
    return (await tool.handler(arguments)).content


def names(tools: Sequence[Tool]) -> list[str]:
    return [tool.name for tool in tools]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not true():
            await anyio.sleep(0.01)


# --- lazy start


async def test_a_server_whose_tools_are_known_starts_when_it_is_first_called(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    servers = MCPServers(raw("raw", f"notes={notes}"))
    async with servers.open(complain) as tools:
        first = [(tool.name, tool.description, tool.parameters) for tool in tools]
    assert lines(notes).count("started") == 1
    async with servers.open(complain) as tools:
        assert [(tool.name, tool.description, tool.parameters) for tool in tools] == first
        assert lines(notes).count("started") == 1
        assert (await call(tools, "pids")).startswith("pids: ")
        assert lines(notes).count("started") == 2
    async with servers.open(complain):
        pass
    assert lines(notes).count("started") == 2


@pytest.mark.parametrize("way", ["eager", "not lazy", "another env", "the cache is damaged"])
async def test_what_is_not_known_or_wanted_at_once_starts_at_once(
    tmp_path: Path, kept: Path, way: str
) -> None:
    notes = tmp_path / "notes"
    spec = raw("raw", f"notes={notes}", lazy=way != "not lazy", env={"A": "1"})
    async with MCPServers(spec).open(complain):
        pass
    if way == "another env":
        spec = raw("raw", f"notes={notes}", env={"A": "2"})
    if way == "the cache is damaged":
        [file] = (kept / "cache").rglob("*.json")
        file.write_text('{"format": 1, "listing": {')
    async with MCPServers(spec, eager=way == "eager").open(complain):
        assert lines(notes).count("started") == 2


async def test_the_sdk_is_not_imported_for_servers_that_are_not_called(tmp_path: Path) -> None:
    program = (
        "import sys, anyio\nfrom agentkit.mcp import MCPServers, ServerSpec\n"
        "async def main():\n"
        f"    async with MCPServers(ServerSpec('raw', sys.executable, ('-I', '-S', {RAW!r}))).open(print) as tools:\n"
        "        print(len(tools), 'mcp' in sys.modules)\n"
        "anyio.run(main)"
    )
    run = [sys.executable, "-c", program]
    before, after = [(await anyio.run_process(run)).stdout for _ in range(2)]
    assert (before, after) == (b"7 True\n", b"7 False\n")


async def test_a_listing_that_was_out_of_date_is_put_right_when_the_server_starts(tmp_path: Path) -> None:
    listed = tmp_path / "tools"
    listed.write_text("alpha first\nbeta second\n")
    servers = MCPServers(raw("raw", f"tools={listed}"))
    async with servers.open(complain) as tools:
        before = names(tools)
    assert before[-2:] == ["alpha", "beta"]
    listed.write_text("beta second\ngamma third\n")
    async with servers.open(complain) as tools:
        assert names(tools) == before
        await call(tools, "pids")
        assert names(tools) == [*before[:-2], "beta", "gamma"]
    async with servers.open(complain) as tools:
        assert names(tools) == [*before[:-2], "beta", "gamma"]


async def test_listings_and_logs_are_for_their_owner_only(kept: Path) -> None:
    async with MCPServers(raw("raw", env={"TOKEN": "hunter2"})).open(complain):
        pass
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} >= {"mcp"}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        assert b"hunter2" not in path.read_bytes()


async def test_a_listing_of_another_version_of_the_server_replaces_the_old_one() -> None:
    spec = raw()
    old = cache.Listing(tools=(), server="raw", version="0.0.1", protocol="2025-06-18")
    cache.save(spec, old, offers(Host(), spec))
    assert cache.load(spec, offers(Host(), spec)) == old
    async with MCPServers(spec, eager=True).open(complain):
        pass
    found = cache.load(spec, offers(Host(), spec))
    assert found is not None and found.version == "0.1" and len(found.tools) == 7


# --- tools that change


async def test_new_tools_come_last_and_the_rest_keeps_its_place(tmp_path: Path) -> None:
    listed = tmp_path / "tools"
    listed.write_text("alpha first\nbeta second\n")
    servers = MCPServers(raw("raw", f"tools={listed}"), raw("other"), safety=Safety(pin=False))
    async with servers.open(complain) as tools:
        before, stable = names(tools), list(tools)
        listed.write_text("zeta\nbeta second, changed\nalpha first, changed\n")
        await call(tools, "relist")
        assert names(tools) == [*before, "zeta"]
        changed = [old.name for old, new in zip(stable, tools, strict=False) if old is not new]
        assert changed == ["alpha", "beta"]  # whose descriptions are new
        listed.write_text("wait\nbeta second\n")
        await call(tools, "relist")
        assert names(tools) == [*(name for name in before if name != "alpha"), "wait"]
        assert await call(tools, "raw__pids") != await call(tools, "other__pids")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_tool_that_a_server_adds_is_there_for_the_next_turn(mode: str) -> None:
    async with MCPServers(sdk(mode=mode, tool_timeout=30)).open(complain) as tools:
        before = names(tools)
        await call(tools, "grow")
        await until(lambda: len(tools) > len(before))
        assert names(tools) == [*before, "grown"]
        assert await call(tools, "grown") == "grown"


# --- calls that take long


async def test_a_cancelled_call_ends_the_servers_work(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with MCPServers(sdk(log=log, tool_timeout=30)).open(complain) as tools:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: call(tools, "patient", seconds=60))
            await until(lambda: "patient began" in log.read_text())
            group.cancel_scope.cancel()
        await until(lambda: "patient was cancelled" in log.read_text())


async def test_a_call_that_times_out_is_cancelled_at_the_server(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    async with MCPServers(raw("raw", f"notes={notes}", tool_timeout=0.5)).open(complain) as tools:
        with pytest.raises(ToolError, match=r"gave no answer to 'hang' in 0\.5 s"):
            await call(tools, "hang")
        await until(lambda: "notifications/cancelled" in lines(notes))


async def test_progress_keeps_a_call_alive_beyond_its_timeout(tmp_path: Path) -> None:
    listed = tmp_path / "tools"
    listed.touch()
    async with MCPServers(raw("raw", f"tools={listed}", tool_timeout=0.5)).open(complain) as tools:
        assert (await call(tools, "progress")).startswith("progress: ")  # 0.75 s


async def test_a_server_that_hangs_is_started_anew_and_a_readonly_call_made_again(tmp_path: Path) -> None:
    listed, fuse, notes = tmp_path / "tools", tmp_path / "fuse", tmp_path / "notes"
    listed.touch()
    spec = raw(
        "raw",
        f"tools={listed}",
        f"dies-on={fuse}",
        f"notes={notes}",
        tool_timeout=0.5,
        startup_timeout=3,
        lazy=False,
    )
    async with MCPServers(spec).open(complain) as tools:
        pid = int((await call(tools, "pids")).split()[1])
        fuse.touch()
        assert (await call(tools, "freeze")).startswith("freeze: ")
        assert lines(notes).count("started") == 2
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.e2e
async def test_the_call_after_one_that_hung_finds_a_server_that_works(tmp_path: Path) -> None:
    spec = raw("raw", tool_timeout=0.5, startup_timeout=3)
    async with MCPServers(spec).open(complain) as tools:
        pid = int((await call(tools, "pids")).split()[1])
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ToolError, match=r"gave no answer to 'die' in 0\.5 s"):
            await call(tools, "die")
        assert int((await call(tools, "pids")).split()[1]) != pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_twenty_calls_at_once_of_a_lazy_server_start_it_once(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    servers = MCPServers(raw("raw", f"notes={notes}"))
    async with servers.open(complain):
        pass
    answers: set[str] = set()
    async with servers.open(complain) as tools:

        async def one() -> None:
            answers.add(await call(tools, "pids"))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
    assert len(answers) == 1 and lines(notes).count("started") == 2


async def test_calls_that_wait_for_a_start_share_its_failure(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    spec = raw("raw", f"notes={notes}", "silent", startup_timeout=0.5)
    listing = cache.Listing(tools=(cache.ListedTool("t", "", {}, cache.Hints()),))
    cache.save(spec, listing, offers(Host(), spec))
    failures: list[str] = []
    async with MCPServers(spec).open(complain) as tools:

        async def one() -> None:
            with pytest.raises(ToolError) as caught:
                await call(tools, "t")
            failures.append(str(caught.value))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
    assert failures == ["MCP server 'raw' did not start: no answer in 0.5 s"] * 20
    assert lines(notes).count("started") == 1


async def test_a_server_that_is_not_called_is_ended_after_a_while_and_comes_back(tmp_path: Path) -> None:
    async with MCPServers(raw("raw", idle=0.2)).open(complain) as tools:
        pid = int((await call(tools, "pids")).split()[1])

        def gone() -> bool:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            return False

        await until(gone)
        assert (await call(tools, "pids")).startswith("pids: ")


# --- death


async def test_killing_servers_at_any_moment_leaves_the_others_at_work(tmp_path: Path) -> None:
    async with MCPServers(raw("a"), raw("b"), raw("c")).open(complain) as tools:
        for _ in range(5):
            pid = int((await call(tools, "a__pids")).split()[1])
            async with anyio.create_task_group() as group:
                for name in ("a__pids", "b__pids", "c__pids"):
                    group.start_soon(call, tools, name)
                os.kill(pid, signal.SIGKILL)
            assert int((await call(tools, "a__pids")).split()[1]) != pid


HOST = f"""
import sys, anyio
from agentkit.mcp import MCPServers, ServerSpec
async def main():
    specs = [ServerSpec(name, sys.executable, ("-I", "-S", {RAW!r}, f"notes={{sys.argv[1]}}")) for name in "abc"]
    async with MCPServers(*specs).open(print) as tools:
        print("open", flush=True)
        while True:
            for tool in tools:
                if tool.name.endswith("pids"):
                    await tool.handler({{}})
anyio.run(main)
"""


def nothing_runs(mark: str) -> bool:
    """No process has the mark in its command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes():
                    return False
    return True


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_no_process_is_left_however_often_and_whenever_a_host_is_killed(tmp_path: Path) -> None:
    mark = ""
    for number in range(20):
        mark = str(tmp_path / f"notes-{number}.")
        async with await anyio.open_process([sys.executable, "-c", HOST, mark]) as host:
            assert host.stdout is not None
            if number % 2:  # half of them before it has opened its servers
                assert (await host.stdout.receive()).strip() == b"open"
            await anyio.sleep(0.037 * number)
            host.kill()
        await until(partial(nothing_runs, mark))
    done = await anyio.run_process([sys.executable, "-c", HOST.replace("while True", "if True"), mark])
    assert done.stdout == b"open\n"


# --- logs


async def test_a_servers_stderr_is_kept_and_its_end_is_in_the_error(tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    spec = raw("my server/1", f"dies-on={fuse}")
    async with MCPServers(spec).open(complain) as tools:
        fuse.touch()
        with pytest.raises(ToolError, match="its last words: OSError: disk on fire"):
            await call(tools, "die")
        await call(tools, "pids")
        with pytest.raises(ToolError, match="'my server/1' gave no|was lost during 'die'") as caught:
            fuse.touch()
            await call(tools, "die")
    assert str(caught.value).count("disk on fire") == 1
    text = log_path(spec).read_text()
    assert text.count("disk on fire") == 2 and text.count(f"for process {os.getpid()}") == 2


async def test_a_log_does_not_grow_for_ever_and_a_place_that_cannot_be_written_costs_no_server(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 2**20 + b"\n" * 2)
    async with MCPServers(raw("raw", log=log)).open(complain):
        assert log.stat().st_size < 1000
    (tmp_path / "file").touch()
    async with MCPServers(raw("raw", log=tmp_path / "file" / "log", lazy=False)).open(complain) as tools:
        assert (await call(tools, "pids")).startswith("pids: ")


# --- over HTTP


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def sdk_over(kind: str, port: int) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, SDK, kind, str(port)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if "running on http" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield
        finally:
            process.kill()


@pytest.mark.e2e
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_remote_server_that_was_restarted_and_lost_its_sessions_is_called_as_before(
    mode: str,
) -> None:
    port = free_port()
    spec = ServerSpec("far", url=f"http://127.0.0.1:{port}/mcp", transport="http", mode=mode)
    async with AsyncExitStack() as stack:
        with sdk_over("streamable-http", port):
            tools = await stack.enter_async_context(MCPServers(spec).open(complain))
            assert await call(tools, "add", a=1, b=2) == "3"
        with sdk_over("streamable-http", port):
            # not marked as repeatable: but a server that does not know the session has not begun with it
            assert await call(tools, "variable", name="NOT_THERE") == "(unset)"


class Sessions(http.server.BaseHTTPRequestHandler):
    """A small server of 2025-11-25: sessions, JSON answers, and results that arrive by a second stream."""

    protocol_version = "HTTP/1.1"
    log: list[str]
    session: str

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        method = message["method"]
        self.log.append(method)
        if method == "initialize":
            version = {"protocolVersion": "2025-11-25", "serverInfo": {"name": "s", "version": "1"}}
            self.json(
                message, {**version, "capabilities": {"tools": {}}}, {"Mcp-Session-Id": type(self).session}
            )
        elif method == "server/discover":
            self.send(400, b"", {})
        elif self.headers.get("Mcp-Session-Id") != type(self).session:
            error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
            body = {"jsonrpc": "2.0", "id": None, "error": error}
            self.send(400, json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif "id" not in message:
            self.send(202, b"", {})
        elif method == "tools/list":
            tools = [{"name": name, "inputSchema": {"type": "object"}} for name in ("quick", "resumed")]
            self.json(message, {"tools": tools}, {})
        elif message["params"]["name"] == "quick":
            self.json(message, {"content": [{"type": "text", "text": "quick"}]}, {})
        else:
            type(self).pending = message["id"]
            self.events("id: 7\nretry: 10\ndata:\n\n")  # and breaks off

    def do_GET(self) -> None:
        last = self.headers.get("Last-Event-ID")
        self.log.append(f"GET {last}")
        if last is None:
            self.send(405, b"", {})
            return
        result = {"content": [{"type": "text", "text": f"after {last}"}]}
        answer = {"jsonrpc": "2.0", "id": type(self).pending, "result": result}
        self.events(f"id: 8\ndata: {json.dumps(answer)}\n\n")

    def do_DELETE(self) -> None:
        self.log.append("DELETE")
        self.send(200, b"", {})

    def json(self, message: Any, result: Any, headers: dict[str, str]) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        self.send(200, body, {"Content-Type": "application/json", **headers})

    def events(self, text: str) -> None:
        self.send(200, text.encode(), {"Content-Type": "text/event-stream", "Connection": "close"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass

    pending: Any = None


@pytest.fixture
def sessions() -> Iterator[tuple[str, type[Sessions]]]:
    handler = type("Handler", (Sessions,), {"log": [], "session": "first"})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/mcp", handler
        server.shutdown()


async def test_an_answer_that_breaks_off_is_resumed_where_it_was(
    sessions: tuple[str, type[Sessions]],
) -> None:
    url, handler = sessions
    async with MCPServers(ServerSpec("far", url=url, transport="http")).open(complain) as tools:
        assert await call(tools, "resumed") == "after 7"
    assert "GET 7" in handler.log and handler.log[-1] == "DELETE"


async def test_a_session_that_the_server_forgot_is_renewed_unnoticed(
    sessions: tuple[str, type[Sessions]],
) -> None:
    url, handler = sessions
    async with MCPServers(ServerSpec("far", url=url, transport="http")).open(complain) as tools:
        assert await call(tools, "quick") == "quick"
        handler.session = "second"
        assert await call(tools, "quick") == "quick"
    assert handler.log.count("initialize") == 2


@pytest.fixture(scope="module")
def old_url() -> Iterator[str]:
    port = free_port()
    with sdk_over("sse", port):
        yield f"http://127.0.0.1:{port}/sse"


async def test_a_server_of_the_older_transport_is_found_out(old_url: str) -> None:
    async with MCPServers(ServerSpec("far", url=old_url, transport="http")).open(complain) as tools:
        assert await call(tools, "add", a=1, b=2) == "3"


async def test_a_result_of_megabytes_passes_the_older_transport(old_url: str) -> None:
    async with MCPServers(ServerSpec("far", url=old_url, transport="sse")).open(complain) as tools:
        assert "of 3,000,000 characters left out" in await call(tools, "big", n=3_000_000)
        assert await call(tools, "add", a=1, b=2) == "3"


async def test_what_is_no_server_at_all_is_named_by_its_first_answer(page_url: str) -> None:
    [report] = await check([ServerSpec("web", url=page_url, transport="http")])
    assert "answered HTTP 404; is that the address of an MCP server?" in report.error


@pytest.fixture
def page_url() -> Iterator[str]:
    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_error(404)

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/mcp"
        server.shutdown()


FASTMCP = """
import sys
from fastmcp import Context, FastMCP
server = FastMCP("fast")
@server.tool
def add(a: int, b: int) -> int:
    return a + b
@server.tool
async def slowly(ctx: Context) -> str:
    await ctx.report_progress(1, 2)
    return "done"
server.run(transport="http", host="127.0.0.1", port=int(sys.argv[1]), show_banner=False)
"""


@pytest.mark.e2e
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_server_made_with_fastmcp_answers(mode: str) -> None:
    python = os.environ.get("AGENTKIT_FASTMCP")
    if not python:
        pytest.skip("AGENTKIT_FASTMCP does not name a Python that has fastmcp")
    port = free_port()
    async with await anyio.open_process([python, "-c", FASTMCP, str(port)]) as process:
        try:
            await until(partial(listens, port))
            spec = ServerSpec("fast", url=f"http://127.0.0.1:{port}/mcp", transport="http", mode=mode)
            async with MCPServers(spec).open(complain) as tools:
                assert await call(tools, "add", a=1, b=2) == "3"
                assert await call(tools, "slowly") == "done"
        finally:
            process.kill()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
