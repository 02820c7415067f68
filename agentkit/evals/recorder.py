"""A loopback server between systems and the model server: what was asked once is replayed, and all of it is counted."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import anyio

from agentkit.errors import AgentkitError, EngineError, one_error
from agentkit.evals.chat import canonical, events, summary, took
from agentkit.evals.ledger import Lines
from agentkit.evals.session import Session, carried_out
from agentkit.evals.suite import Case
from agentkit.runtime.servers import error_value, root
from agentkit.tools import Tool, ToolOutput

if TYPE_CHECKING:
    import httpx2
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["Recorder", "Session"]

# Where posting makes no text; whatever does would go past the budget
_HARMLESS = frozenset("tokenize detokenize apply-template embeddings rerank show".split())
# What any other request would be told, too: the key or the model is wrong, or the server is not up to it
_FATAL = frozenset({401, 403, 404, 408, 429, 502, 503, 504})


class Recorder:
    """Between systems and the model server.

        async with Recorder("http://127.0.0.1:8000/v1", "qwen3-4b", folder=Path("results")) as recorder:
            with recorder.session("agentkit/simple_3", case, world.tools) as session:
                ...  # a system talks to session.base_url

    What requests leave open of the model, `temperature`, `seed` and the case's `max_tokens` is filled in. Each answer is
    kept in *folder*, in answers.jsonl, and given again to whoever asks the same; turns.jsonl tells of each request.
    `parallel` requests at once reach *upstream* (…/v1). Raises `ConfigError` where another run writes to the folder.
    """

    def __init__(
        self,
        upstream: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        folder: Path,
        temperature: float = 0.0,
        seed: int = 0,
        parallel: int = 1,
    ) -> None:
        self._upstream = upstream.rstrip("/")
        self._defaults = {"model": model, "temperature": temperature, "seed": seed}
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._answers, self._turns = Lines(folder / "answers.jsonl"), Lines(folder / "turns.jsonl")
        self._known: dict[str, tuple[dict[str, Any], float]] = {}  # the answer, and how many seconds it took
        self._same: defaultdict[str, anyio.Lock] = defaultdict(anyio.Lock)  # who asks the same waits
        self._parallel = anyio.CapacityLimiter(parallel)
        self._sessions: dict[str, Session] = {}

    async def __aenter__(self) -> Recorder:
        async with AsyncExitStack() as stack:
            for lines in (self._answers, self._turns):
                stack.callback(lines.close)
                lines.open()
            self._known = {line["key"]: (line["answer"], line["seconds"]) for line in self._answers}
            self._client = await stack.enter_async_context(_client(self._upstream, self._headers))
            self._url = await stack.enter_async_context(_serving(self._app()))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for session in list(self._sessions.values()):
            session.close()
        await self._stack.__aexit__(kind, exc, tb)

    def session(self, run: str, case: Case, tools: Sequence[Tool]) -> Session:
        """What one system does one case with; turns.jsonl has its requests under the name *run*."""
        token = secrets.token_urlsafe(16)
        made = Session(run, case, tools, f"{self._url}/r/{token}", partial(self._sessions.pop, token, None))
        self._sessions[token] = made
        return made

    # ------------------------------------------------------------------ what systems reach

    def _app(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        def refused(_: Request, exc: Exception) -> Response:
            assert isinstance(exc, HTTPException)
            return _refusal(exc.detail, exc.status_code)

        routes = [
            Route("/r/{token}/v1/chat/completions", self._complete, methods=["POST"]),
            Route("/r/{token}/tools/{name:path}", self._call, methods=["POST"]),
            Route("/r/{token}/turn", self._turn, methods=["POST"]),
            Route("/r/{token}/{path:path}", self._pass_on, methods=["GET", "POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: refused})

    def _session(self, request: Request) -> Session:
        from starlette.exceptions import HTTPException

        session = self._sessions.get(request.path_params["token"])
        if session is None:
            raise HTTPException(404, "over")
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, f"Bearer {session.api_key}".encode()):
            raise HTTPException(401, "the run's own key is missing: Authorization: Bearer KEY")
        return session

    async def _complete(self, request: Request) -> Response:
        from starlette.responses import Response

        session = self._session(request)
        asked = await _object(request)
        if asked is None or not isinstance(asked.get("messages"), list):
            return _refusal("the request is no JSON object with messages")
        if refused := session.refuses():
            self._turns.append({**session.place(), "refused": refused})
            return _refusal(refused)
        try:
            with session.asking():
                answer = await session.wanted(request, partial(self._answer, session, asked))
        except _Refused as exc:
            return Response(exc.content, exc.status, media_type="application/json")
        except AgentkitError as exc:
            session.failure = exc
            return _refusal("server")
        if asked.get("stream"):
            options = asked.get("stream_options")
            with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            stream = "".join(f"data: {event}\n\n" for event in events(answer, with_usage))
            return Response(stream, media_type="text/event-stream")
        return Response(json.dumps(answer), media_type="application/json")

    async def _answer(self, session: Session, asked: Mapping[str, Any]) -> dict[str, Any]:
        place, body = session.place(), self._filled(asked, session.case)
        question = canonical(body)
        key = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        async with self._same[key]:
            replayed = key in self._known
            if not replayed:
                async with self._parallel:
                    began = time.perf_counter()
                    url = self._upstream + "/chat/completions"
                    response = await self._ask("POST", url, json.dumps(body).encode())
                    seconds = time.perf_counter() - began
                if response.status_code != 200:
                    await self._worry(response)
                    self._turns.append({**place, "key": key, "error": _said(response)})
                    raise _Refused(response.status_code, response.content)
                answer = self._completion(response)
                seconds = took(answer) or seconds
                line = {"key": key, "seconds": seconds, "answer": answer, "request": question}
                self._answers.append(line)
                self._known[key] = answer, seconds
        answer, seconds = self._known[key]
        session.count(answer, seconds)
        line = {**place, "key": key, "replayed": replayed, "seconds": seconds, **summary(answer)}
        self._turns.append(line)
        return answer

    def _filled(self, asked: Mapping[str, Any], case: Case) -> dict[str, Any]:
        """What the server is asked: for the whole answer at once, as only then all servers count its tokens."""
        body = {k: v for k, v in asked.items() if k not in ("stream", "stream_options")}
        body |= {k: v for k, v in self._defaults.items() if body.get(k) is None and v is not None}
        limits = (body.pop("max_completion_tokens", None), body.pop("max_tokens", None))
        return body | {
            "max_tokens": min([case.max_tokens, *(n for n in limits if isinstance(n, int) and n > 0)])
        }

    async def _call(self, request: Request) -> Response:
        from starlette.responses import Response

        session = self._session(request)
        name, arguments = request.path_params["name"], await _object(request)
        tool = next((t for t in session.tools if t.name == name), None)
        if tool is None:
            output = ToolOutput(f"There is no tool {name!r}.", is_error=True)
        elif arguments is None:
            output = ToolOutput("The arguments must be a JSON object.", is_error=True)
        else:
            output = await session.wanted(request, partial(carried_out, tool, arguments))
        said = {"content": output.content, "is_error": output.is_error}
        return Response(json.dumps(said), media_type="application/json")

    async def _turn(self, request: Request) -> Response:
        from starlette.responses import Response

        self._session(request).next_turn()
        return Response(status_code=204)

    async def _pass_on(self, request: Request) -> Response:
        """What is asked about the server and its model, rather than of the model."""
        from starlette.responses import Response

        session = self._session(request)
        path, body = request.path_params["path"], await request.body()
        if request.method == "POST" and path.rpartition("/")[2] not in _HARMLESS:
            return _refusal("the model is asked at /v1/chat/completions and nowhere else")
        url = self._upstream + path[2:] if path.startswith("v1/") else f"{root(self._upstream)}/{path}"
        url += "?" + request.url.query if request.url.query else ""
        try:
            response = await session.wanted(request, partial(self._ask, request.method, url, body))
        except EngineError as exc:
            return _refusal(str(exc), 502)
        told = ("content-type", "server")  # by the latter some kinds of servers are known
        headers = {name: response.headers[name] for name in told if name in response.headers}
        return Response(response.content, response.status_code, headers)

    # ------------------------------------------------------------------ the model server

    async def _ask(self, method: str, url: str, body: bytes) -> httpx2.Response:
        import httpx2

        headers = {"Content-Type": "application/json"} if body else {}
        for again in (True, False):
            try:
                return await self._client.request(method, url, content=body, headers=headers)
            except httpx2.TransportError as exc:
                # a connection that was kept may be closed by the other side just as it is used
                if not again or isinstance(exc, httpx2.ConnectError):
                    raise self._failure(f"gave no answer ({type(exc).__name__}: {exc})") from exc
        raise AssertionError("unreachable")

    async def _worry(self, response: httpx2.Response) -> None:
        """Raise `EngineError` if it is not for what was asked that the server refused it."""
        status = response.status_code
        if status in _FATAL:
            raise self._failure(f"answered HTTP {status}: {_said(response)}")
        if status == 500 and (await self._ask("GET", self._upstream + "/models", b"")).status_code != 200:
            raise self._failure(f"broke down: {_said(response)}")

    def _completion(self, response: httpx2.Response) -> dict[str, Any]:
        try:
            answer = response.json()
            if isinstance(answer, dict) and isinstance(answer["choices"][0]["message"], dict):
                return answer
        except (ValueError, KeyError, IndexError, TypeError):
            pass
        raise self._failure(f"answered with what is no chat completion: {response.text[:200]!r}")

    def _failure(self, what: str) -> EngineError:
        return EngineError(
            f"The model server at {self._upstream} {what}. Once it is well, run this again: what is done stays done."
        )


class _Refused(Exception):
    """The model server did not like what it was asked; its own words."""

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(status)
        self.status, self.content = status, content


# ------------------------------------------------------------------ requests


async def _object(request: Request) -> dict[str, Any] | None:
    try:
        value = json.loads(await request.body())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _said(response: httpx2.Response) -> str:
    said = error_value(response.content)
    return (said if isinstance(said, str) else json.dumps(said))[:500]


def _refusal(why: str, status: int = 400) -> Response:
    from starlette.responses import Response

    error = {"message": f"agentkit-eval: {why}", "type": "invalid_request_error", "param": None, "code": why}
    return Response(json.dumps({"error": error}), status, media_type="application/json")


# ------------------------------------------------------------------ both ends of the wire


def _client(upstream: str, headers: Mapping[str, str]) -> httpx2.AsyncClient:
    import httpx2  # slow to import

    local = urlsplit(upstream).hostname in {"127.0.0.1", "localhost", "::1"}
    return httpx2.AsyncClient(
        headers=headers,
        timeout=httpx2.Timeout(None, connect=10.0),  # how long an answer may take is for the case to say
        limits=httpx2.Limits(max_connections=None),
        trust_env=not local,
    )


@asynccontextmanager
async def _serving(app: Starlette) -> AsyncGenerator[str]:
    """Serve on loopback; the URL."""
    import uvicorn

    class Uvicorn(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Generator[None]:  # they are the caller's
            yield

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=3600,  # a client that comes back after a long tool must not find it just closed
        timeout_graceful_shutdown=1,
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, one_error():
        # asyncio does it only for sockets made otherwise; without, each answer's second packet waits for 40 ms
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        web = Uvicorn(config)

        async def serve() -> None:
            with anyio.CancelScope(shield=True):  # it ends by itself, with its connections
                await web.serve(sockets=[listener])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                web.should_exit = True
