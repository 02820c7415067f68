"""Several servers of one model, of which any may be busy, ill, slow or gone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import anyio.to_thread
import pytest

from agentkit import Agent, ConfigError, ContextOverflow, EngineError
from agentkit.messages import Message, assistant, system, user
from agentkit.runtime.engine import Request
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.runtime.replicas import Replicas

from ..conftest import Exchange, Handler

pytestmark = pytest.mark.anyio
RULES = system("You are a helpful assistant. " * 50)


class Server:
    """A server of the model on loopback, which can be killed, and started again on its port."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.clients: set[Any] = set()
        self.looked_at: list[str] = []  # what was asked of it with GET
        self.health = 404
        self.context: int | None = None
        self.hangs: threading.Event | None = None  # GET waits for it
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> int:
        return len(self.requests)

    def start(self) -> None:
        server, connections = self, set[socket.socket]()

        class Answer(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                connections.add(self.connection)

            def do_GET(self) -> None:
                server.looked_at.append(self.path)
                if server.hangs:
                    server.hangs.wait(20)
                if self.path == "/v1/models":
                    card = {"id": "m", **({"max_model_len": server.context} if server.context else {})}
                    Exchange(self, {}).reply(200, json.dumps({"object": "list", "data": [card]}))
                else:
                    Exchange(self, {}).reply(server.health if self.path == "/health" else 404, "{}")

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if not self.path.endswith("/chat/completions"):
                    Exchange(self, body).reply(200, json.dumps({"count": 11}))
                    return
                server.requests.append(body)
                server.headers.append(dict(self.headers))
                server.clients.add(self.client_address)
                try:
                    server.handler(Exchange(self, body))
                except OSError:
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", self.port), Answer)
        http.daemon_threads = True
        http.handle_error = lambda *_: None  # type: ignore[method-assign]  # killed connections are meant
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.port = http.server_address[1]

        def kill() -> None:
            http.shutdown()
            http.server_close()
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

        self.kill: Callable[[], None] = kill


def says(text: str) -> Handler:
    return lambda x: x.answer(text)


def refuses(status: int, said: str = "no", **headers: str) -> Handler:
    return lambda x: x.reply(status, json.dumps({"error": {"message": said}}), **headers)


def works(steps: int) -> Handler:
    """A model that calls `step` so often for each thing that the user says, and then answers."""

    def answer(x: Exchange) -> None:
        said = [m["role"] for m in x.body["messages"]]
        done = len(said[len(said) - said[::-1].index("user") :]) // 2
        if done == steps:
            x.answer(f"all {done} steps are done")
            return
        x.begin()
        made = {"name": "step", "arguments": json.dumps({"n": done + 1})}
        x.delta("tool_calls", tool_calls=[{"index": 0, "id": f"c{done}", "function": made}])
        x.event("[DONE]")

    return answer


def silent(hung_up: threading.Event) -> Handler:
    """Says nothing until the client leaves."""

    def answer(x: Exchange) -> None:
        try:
            x.begin()
            x.http.connection.settimeout(10)
            left = x.http.connection.recv(1) == b""
        except ConnectionError:
            left = True
        if left:
            hung_up.set()

    return answer


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Four that say who they are."""
    made = [Server(says(f"I am number {n}.")) for n in range(4)]
    yield made
    for server in made:
        server.kill()


def replicas(servers: list[Server], **options: Any) -> Replicas:
    return Replicas([s.url for s in servers], "m", **options)


async def ask(engine: Replicas, *messages: Message | str, session: str | None = None) -> str:
    said = [user(m) if isinstance(m, str) else m for m in messages]
    async with aclosing(engine.stream(Request(said, session=session))) as chunks:
        return "".join([c.text async for c in chunks])


def step(n: int) -> str:
    """Make a step."""
    return f"step {n} is made"


def who_was_asked(servers: list[Server]) -> list[Server]:
    return [s for s in servers if s.asked]


# ------------------------------------------------------------------ what belongs together stays together


async def test_all_steps_of_a_run_go_to_one_server_with_the_runs_id(servers: list[Server]) -> None:
    for server in servers:
        server.handler = works(5)
    result = await Agent(replicas(servers), tools=[step]).run("Make five steps.")
    assert result.output == "all 5 steps are done"
    (one,) = who_was_asked(servers)
    assert one.asked == 6 and len({h["X-Session-ID"] for h in one.headers}) == 1


async def test_the_runs_of_a_chat_go_to_one_server_whoever_asks_between(servers: list[Server]) -> None:
    for server in servers:
        server.handler = works(2)
    async with Agent(replicas(servers), instructions="Be brief.", tools=[step]) as agent:
        result = await agent.run("Make two steps.")
        (home,) = who_was_asked(servers)
        for n in range(5):
            before = home.asked
            result = await agent.run([*result.messages, user(f"And two more, the {n}th time.")])
            assert home.asked == before + 3
            await agent.run(f"Somebody else's task {n}.")
    assert len({h["X-Session-ID"] for s in servers for h in s.headers}) == 11


async def test_a_chat_goes_on_where_it_was_though_that_server_has_more_to_do(servers: list[Server]) -> None:
    hung_up = threading.Event()
    async with replicas(servers) as engine:
        assert await ask(engine, "hi") == "I am number 0."
        servers[0].handler = silent(hung_up)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, engine, "hi")
            while servers[0].asked < 2:
                await anyio.lowlevel.checkpoint()
            servers[0].handler = says("Still here.")
            assert await ask(engine, "hi", assistant("I am number 0."), "Who?") == "Still here."
            group.cancel_scope.cancel()


async def test_a_run_stays_where_it_is_when_its_conversation_is_cut(servers: list[Server]) -> None:
    async with replicas(servers) as engine:
        said = [await ask(engine, text, session="a run") for text in ("The beginning", "(2 left out) And?")]
    assert said == ["I am number 0."] * 2


async def test_conversations_that_share_only_their_system_prompt_are_spread_evenly(
    servers: list[Server],
) -> None:
    async with replicas(servers) as engine:
        for n in range(20):
            await ask(engine, RULES, f"Question {n}", session=f"run {n}")
        assert [s.asked for s in servers] == [5] * 4
        async with anyio.create_task_group() as group:
            for n in range(20, 40):
                group.start_soon(ask, engine, RULES, f"Question {n}")
    assert [s.asked for s in servers] == [10] * 4


async def test_examples_that_conversations_share_do_not_bring_them_to_one_server(
    servers: list[Server],
) -> None:
    async with replicas(servers) as engine:
        for n in range(8):
            await ask(engine, RULES, "2 + 2?", assistant("4"), "3 + 3?", assistant("6"), f"{n} + {n}?")
    assert [s.asked for s in servers] == [2] * 4


async def test_one_question_goes_where_it_was_read_unless_that_server_is_at_work(
    servers: list[Server],
) -> None:
    async with replicas(servers) as engine:
        for _ in range(3):
            await ask(engine, RULES, "The same")
        assert len(who_was_asked(servers)) == 1
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(ask, engine, RULES, "The same")
    assert sorted(s.asked for s in servers) == [1, 1, 1, 4]


async def test_a_new_conversation_goes_to_the_server_with_the_least_to_do(servers: list[Server]) -> None:
    release = threading.Event()

    def slow(x: Exchange) -> None:
        x.begin()
        x.delta(content="well ")
        release.wait(20)
        x.delta("stop")
        x.event("[DONE]")

    for server in servers[:3]:
        server.handler = slow
    with anyio.fail_after(10):
        async with replicas(servers) as engine, anyio.create_task_group() as group:
            for n in range(3):
                group.start_soon(ask, engine, f"Question {n}")
            while [s.asked for s in servers] != [1, 1, 1, 0]:
                await anyio.lowlevel.checkpoint()
            for n in range(5):
                assert await ask(engine, f"Another {n}") == "I am number 3."
            release.set()
    assert [s.asked for s in servers] == [1, 1, 1, 5]


async def test_the_requests_to_a_server_share_a_connection(servers: list[Server]) -> None:
    whole = {"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]}
    for server in servers:
        server.handler = lambda x: x.reply(200, json.dumps(whole))
    async with replicas(servers) as engine:
        for n in range(12):
            assert await ask(engine, f"Question {n}") == "ok"
    assert [(s.asked, len(s.clients)) for s in servers] == [(3, 1)] * 4


# ------------------------------------------------------------------ servers that fail


async def test_a_run_whose_server_dies_between_two_steps_ends_on_another_one(servers: list[Server]) -> None:
    dead: list[Server] = []

    def step(n: int) -> str:
        if n == 2:
            dead.extend(who_was_asked(servers))
            dead[0].kill()
        return f"step {n} is made"

    for server in servers:
        server.handler = works(5)
    async with Agent(replicas(servers, backoff=60), tools=[step]) as agent:
        result = await agent.run("Make five steps.")
        assert result.output == "all 5 steps are done"
        (new,) = [s for s in who_was_asked(servers) if s is not dead[0]]
        assert (dead[0].asked, new.asked) == (2, 4)
        again = await agent.run([*result.messages, user("And five more.")])
        assert again.output == "all 5 steps are done" and new.asked == 10


@pytest.mark.parametrize("status", [500, 502, 429, 503])
async def test_a_server_that_fails_or_is_busy_is_passed_over_and_left_alone(
    servers: list[Server], status: int
) -> None:
    servers[0].handler = refuses(status)
    async with replicas(servers, backoff=60) as engine:
        for n in range(9):
            assert await ask(engine, f"Question {n}") != "I am number 0."
    assert servers[0].asked == 1 and servers[0].looked_at == []
    assert sorted(s.asked for s in servers[1:]) == [3, 3, 3]


def role_then_nothing(x: Exchange) -> None:
    x.begin()
    x.delta(role="assistant", content="")


def role_then_error(x: Exchange) -> None:
    role_then_nothing(x)
    x.event({"error": {"message": "EngineCore encountered an issue", "code": 500}})


@pytest.mark.parametrize("fails", [role_then_nothing, role_then_error])
async def test_an_answer_that_has_said_no_word_yet_is_had_from_another_server(
    servers: list[Server], fails: Handler
) -> None:
    servers[0].handler = fails
    assert await ask(replicas(servers), "hi") == "I am number 1."


async def test_a_server_that_dies_in_the_middle_of_an_answer_is_an_error_and_nothing_is_said_twice(
    servers: list[Server],
) -> None:
    def dies(x: Exchange) -> None:
        x.begin()
        x.delta(content="half an ")
        servers[0].kill()

    servers[0].handler = dies
    seen: list[str] = []
    async with replicas(servers, backoff=60) as engine:
        with pytest.raises(EngineError, match=str(servers[0].port)):
            async for chunk in engine.stream(Request([user("hi")])):
                seen.append(chunk.text)
        assert seen == ["half an "] and who_was_asked(servers) == [servers[0]]
        servers[0].start()
        for n in range(4):
            assert await ask(engine, f"Question {n}") != "I am number 0."
    assert servers[0].asked == 1


async def test_a_server_that_comes_back_is_looked_at_and_used_again(servers: list[Server]) -> None:
    two = servers[:2]
    two[0].kill()
    async with replicas(two, backoff=0) as engine:
        assert await ask(engine, "hi") == await ask(engine, "hello") == "I am number 1."
        two[0].start()
        assert await ask(engine, "Who is there?") == "I am number 0."
        assert two[0].looked_at == ["/health", "/v1/models"]
        await ask(engine, "hi")
        await ask(engine, "And now?")
    assert two[0].asked == 2 and len(two[0].looked_at) == 2


async def test_a_server_that_is_back_but_not_well_is_not_asked(servers: list[Server]) -> None:
    servers[0].handler, servers[0].health = refuses(500), 503
    async with replicas(servers[:2], backoff=0) as engine:
        for n in range(3):
            assert await ask(engine, f"Question {n}") == "I am number 1."
        assert servers[0].asked == 1 and set(servers[0].looked_at) == {"/health"}
        servers[0].health, servers[0].handler = 200, says("I am well.")
        assert await ask(engine, "How are you?") == "I am well."


async def test_if_no_other_is_left_the_one_that_failed_is_asked_all_the_same(servers: list[Server]) -> None:
    servers[0].kill()
    servers[1].kill()
    async with replicas(servers[:2], backoff=60) as engine:
        with pytest.raises(EngineError):
            await ask(engine, "hi")
        servers[1].start()
        assert await ask(engine, "hi") == "I am number 1."
        servers[0].start()
        assert await ask(engine, "hello") == "I am number 1."


async def test_while_all_are_busy_they_are_asked_until_one_is_not(servers: list[Server]) -> None:
    for server in servers[:3]:
        server.handler = refuses(503, "Loading model", retry_after="0")
    servers[3].handler = refuses(500)
    servers[1].handler = lambda x: (says("Ready.") if servers[1].asked == 5 else servers[0].handler)(x)
    assert await ask(replicas(servers, backoff=60), "hi") == "Ready."
    assert servers[0].asked >= 4 and servers[2].asked >= 4 and servers[3].asked == 1


async def test_one_death_that_several_requests_meet_is_one_failure(
    servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    hung_up = threading.Event()
    async with replicas(servers, backoff=60) as engine:
        assert await ask(engine, "hi", session="a run") == "I am number 0."
        servers[0].handler = silent(hung_up)
        with caplog.at_level("INFO", "agentkit.runtime.replicas"):
            async with anyio.create_task_group() as group:
                for n in range(3):
                    group.start_soon(partial(ask, engine, f"{n}", session="a run"))
                while servers[0].asked < 4:
                    await anyio.lowlevel.checkpoint()
                await anyio.to_thread.run_sync(servers[0].kill)
    left_alone = [r.getMessage().partition(" s:")[0] for r in caplog.records]
    assert len(left_alone) == 3 and all("60.0" in text or "59." in text for text in left_alone)


async def test_when_all_are_dead_one_sentence_names_each_and_what_it_said(servers: list[Server]) -> None:
    for server in servers[:3]:
        server.kill()
    servers[3].handler = refuses(500, "CUDA out of memory")
    with anyio.fail_after(5), pytest.raises(EngineError, match="None of the 4 replicas answers") as caught:
        await ask(replicas(servers), "hi")
    said = str(caught.value)
    assert all(s.url in said for s in servers) and "CUDA out of memory" in said and "\n" not in said
    assert said.count("is the server running there") == 3 and servers[3].asked == 1


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (401, "no such key", EngineError),
        (400, "bad tools", EngineError),
        (404, "no such model", EngineError),
        (429, "You exceeded your current quota", EngineError),
        (400, "maximum context length is 8 tokens", ContextOverflow),
        (500, "exceeds the available context size", ContextOverflow),
    ],
)
async def test_what_any_server_would_say_is_not_asked_of_the_others(
    servers: list[Server], status: int, said: str, error: type[EngineError]
) -> None:
    for server in servers:
        server.handler = refuses(status, said)
    with pytest.raises(error, match=said):
        await ask(replicas(servers), "hi")
    assert sum(s.asked for s in servers) == 1


async def test_twelve_runs_all_end_though_a_server_dies_under_them(servers: list[Server]) -> None:
    ended: list[str] = []
    begun = threading.Event()

    def step(n: int) -> str:
        if n == 3 and not begun.is_set():
            begun.set()
            servers[2].kill()
        return f"step {n} is made"

    async def run(agent: Agent[str], n: int) -> None:
        ended.append((await agent.run(f"Task {n}: make five steps.")).output)

    for server in servers:
        server.handler = works(5)
    async with Agent(replicas(servers, backoff=60), tools=[step]) as agent:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for n in range(12):
                    group.start_soon(run, agent, n)
    assert ended == ["all 5 steps are done"] * 12 and min(s.asked for s in servers) > 0


# ------------------------------------------------------------------ hedging


async def test_of_a_slow_server_and_a_second_one_the_first_to_speak_is_read_and_the_other_cancelled(
    servers: list[Server],
) -> None:
    cancelled = threading.Event()
    servers[0].handler = silent(cancelled)
    with anyio.fail_after(10):
        async with replicas(servers, hedge=0.05) as engine:
            assert await ask(engine, "hi", session="a run") == "I am number 1."
            assert await anyio.to_thread.run_sync(cancelled.wait, 5)
            engine.hedge = None
            assert await ask(engine, "hi", session="a run") == "I am number 1."  # it has read it
            servers[0].handler = says("I am quick now.")
            for n in range(4):
                await ask(engine, f"Question {n}")
    assert [s.asked for s in servers] == [2, 3, 1, 1]


async def test_a_server_that_speaks_in_time_is_not_hedged_and_a_dead_one_not_waited_for(
    servers: list[Server],
) -> None:
    servers[0].kill()
    with anyio.fail_after(10):
        assert await ask(replicas(servers, hedge=60), "hi") == "I am number 1."
    assert [s.asked for s in servers] == [0, 1, 0, 0]


async def test_a_bad_request_is_an_error_with_hedging_too(servers: list[Server]) -> None:
    servers[0].handler = refuses(400, "bad tools")
    with pytest.raises(EngineError, match="bad tools"):
        await ask(replicas(servers, hedge=60), "hi")


async def test_leaving_a_hedged_stream_closes_both_requests_and_they_count_no_more(
    servers: list[Server],
) -> None:
    hung_up = [threading.Event(), threading.Event()]
    for n in range(2):
        servers[n].handler = silent(hung_up[n])
    async with replicas(servers[:2], hedge=0.0) as engine:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, engine, "hi")
            with anyio.fail_after(10):
                while [s.asked for s in servers[:2]] != [1, 1]:
                    await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        for event in hung_up:
            assert await anyio.to_thread.run_sync(event.wait, 5)
        for n in range(2):
            servers[n].handler = says(f"{n}")
        engine.hedge = None
        assert {await ask(engine, "a"), await ask(engine, "b")} == {"0", "1"}


# ------------------------------------------------------------------ what they are asked besides


async def test_the_name_is_that_of_the_first_to_tell_and_nobody_waits_for_the_others(
    servers: list[Server],
) -> None:
    servers[0].kill()
    servers[1].hangs = threading.Event()
    with anyio.fail_after(10):
        async with Replicas([s.url for s in servers]) as engine:
            assert engine.model == "m"
            await ask(engine, "hi")
    servers[1].hangs.set()
    assert [r["model"] for r in servers[1].requests] == ["m"]


async def test_the_context_is_that_of_the_smallest_and_any_server_that_is_well_counts(
    servers: list[Server],
) -> None:
    servers[0].context, servers[2].context = 40_960, 8_192
    async with replicas(servers, kind="vllm", backoff=60) as engine:
        assert await engine.context_length() == 8_192
        for server in servers[:3]:
            server.kill()
            await ask(engine, f"Is {server.port} there?")
        assert await engine.context_length() == 8_192
        assert await engine.count_tokens(Request([user("hi")])) == 11


async def test_engines_of_different_keys_are_taken_as_they_are(servers: list[Server]) -> None:
    for n in range(2):
        servers[n].handler = refuses(503) if n == 0 else says("ok")
    engines = [OpenAICompatible(servers[n].url, "m", f"key {n}", retries=0) for n in range(2)]
    assert await ask(Replicas(engines), "hi") == "ok"
    assert [servers[n].headers[0]["Authorization"] for n in range(2)] == ["Bearer key 0", "Bearer key 1"]


@pytest.mark.e2e
async def test_a_server_that_hangs_is_waited_for_two_seconds_and_no_longer(servers: list[Server]) -> None:
    two, release = servers[:2], threading.Event()
    two[1].context = 8_192
    two[0].handler, two[0].hangs = refuses(500), release
    with anyio.fail_after(9):
        async with replicas(two, kind="vllm", backoff=0) as engine:
            assert await engine.context_length() == 8_192
            assert await ask(engine, "hi") == await ask(engine, "hello") == "I am number 1."
    release.set()
    assert two[0].asked == 1


@pytest.mark.parametrize("urls", [[], ["http://h:1/v1", "http://h:1/v1/"]])
async def test_no_server_or_the_same_one_twice_is_refused(urls: list[str]) -> None:
    with pytest.raises(ConfigError, match="different servers"):
        Replicas(urls)
