"""Signing in, against an authorisation server and an MCP server on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import re
import secrets
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import anyio
import anyio.to_thread
import httpx2
import jwt
import pytest
import uvicorn
from mcp.server import MCPServer
from mcp.types import ToolAnnotations
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from agentkit.mcp import MCPServers, ServerSpec
from agentkit.mcp.oauth import auth_for, forget, token_path
from agentkit.tools import Tool

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


@dataclass
class Authority:
    """Issues tokens to whoever asks, and says what it was asked for."""

    url: str = ""
    lifetime: int = 3600
    registers: bool = True
    refuses: bool = False
    public_key: str = ""
    clients: dict[str, dict[str, Any]] = field(default_factory=dict)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)  # access token: its scope
    refreshing: dict[str, str] = field(default_factory=dict)  # refresh token: its scope
    log: list[str] = field(default_factory=list)

    def resource_metadata(self, request: Request) -> Response:
        return JSONResponse({"resource": f"{self.url}/mcp", "authorization_servers": [self.url]})

    def metadata(self, request: Request) -> Response:
        found = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "response_types_supported": ["code"],
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "private_key_jwt"],
        }
        return JSONResponse(
            found | ({"registration_endpoint": f"{self.url}/register"} if self.registers else {})
        )

    async def register(self, request: Request) -> Response:
        if not self.registers:
            return Response(status_code=404)
        client = {
            **await request.json(),
            "client_id": secrets.token_hex(4),
            "token_endpoint_auth_method": "none",
        }
        self.clients[client["client_id"]] = client
        self.log.append("register")
        return JSONResponse(client, 201)

    def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.log.append(f"authorize {asked.get('scope', '')}".strip())
        assert asked["redirect_uri"] in self.clients[asked["client_id"]]["redirect_uris"]
        answer = {"state": asked["state"]}
        if self.refuses:
            answer |= {"error": "access_denied", "error_description": "The user said no"}
        else:
            answer["code"] = secrets.token_hex(4)
            self.codes[answer["code"]] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(answer)}", 302)

    async def token(self, request: Request) -> Response:
        form = {name: str(value) for name, value in (await request.form()).items()}
        kind = form["grant_type"]
        self.log.append(kind)
        match kind:
            case "authorization_code":
                asked = self.codes.pop(form["code"])
                digest = hashlib.sha256(form["code_verifier"].encode()).digest()
                assert asked["code_challenge"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
                assert asked["resource"] == form["resource"] == f"{self.url}/mcp"
                scope = asked.get("scope", "")
            case "refresh_token":
                if form["refresh_token"] not in self.refreshing:
                    return JSONResponse({"error": "invalid_grant"}, 400)
                scope = self.refreshing.pop(form["refresh_token"])
            case _:
                scope = form.get("scope", "")
                if "client_assertion" in form:
                    jwt.decode(form["client_assertion"], self.public_key, ["ES256"], audience=self.url)
                else:
                    _, basic = request.headers["authorization"].split()
                    assert base64.b64decode(basic) == b"robot:s3cret"
        access, refresh = secrets.token_hex(8), secrets.token_hex(8)
        self.tokens[access] = scope
        answer = {"access_token": access, "token_type": "Bearer", "expires_in": self.lifetime, "scope": scope}
        if kind != "client_credentials":
            self.refreshing[refresh] = scope
            answer["refresh_token"] = refresh
        return JSONResponse(answer)


class Guarded:
    """Lets only requests with a good token pass, and calls of `delete` only with the scope `admin`."""

    def __init__(self, app: ASGIApp, authority: Authority) -> None:
        self.app = app
        self.authority = authority

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        token = Request(scope).headers.get("authorization", "").removeprefix("Bearer ")
        body = await receive()
        challenge = (
            f'Bearer resource_metadata="{self.authority.url}/.well-known/oauth-protected-resource/mcp"'
        )
        refused: Response | None = None
        if token not in self.authority.tokens:
            refused = Response(status_code=401, headers={"WWW-Authenticate": challenge})
        elif b'"delete"' in body.get("body", b"") and "admin" not in self.authority.tokens[token].split():
            more = f'{challenge}, error="insufficient_scope", scope="admin"'
            refused = Response(status_code=403, headers={"WWW-Authenticate": more})
        if refused is not None:
            await refused(scope, receive, send)
            return
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return body

        await self.app(scope, again, send)


def mcp_app() -> Starlette:
    server = MCPServer("guarded", log_level="ERROR")
    readonly = ToolAnnotations(read_only_hint=True)

    @server.tool(annotations=readonly)
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool(annotations=readonly)
    async def wait(seconds: float) -> str:
        """Answers late."""
        await anyio.sleep(seconds)
        return "waited"

    @server.tool()
    def delete() -> str:
        """Needs more rights."""
        return "deleted"

    return server.streamable_http_app()


@pytest.fixture
def authority() -> Iterator[Authority]:
    authority = Authority()
    app = mcp_app()
    routes = [
        Route("/.well-known/oauth-protected-resource/mcp", authority.resource_metadata),
        Route("/.well-known/oauth-authorization-server", authority.metadata),
        Route("/register", authority.register, methods=["POST"]),
        Route("/authorize", authority.authorize),
        Route("/token", authority.token, methods=["POST"]),
        Mount("/", Guarded(app, authority)),
    ]
    whole = Starlette(routes=routes, lifespan=app.router.lifespan_context)
    server = uvicorn.Server(uvicorn.Config(whole, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    authority.url = f"http://127.0.0.1:{port}"
    yield authority
    server.should_exit = True
    thread.join()


def guarded(authority: Authority, **more: Any) -> ServerSpec:
    return ServerSpec("guarded", url=f"{authority.url}/mcp", transport="http", tool_timeout=30, **more)


async def sign_in(url: str) -> str:
    """As a user who agrees."""
    async with httpx2.AsyncClient() as browser:
        return str((await browser.get(url)).headers["location"])


async def nobody(url: str) -> str:
    raise AssertionError(f"asked to sign in at {url}")


def complain(text: str) -> None:
    raise AssertionError(f"unexpected notice: {text}")


async def call(tools: Sequence[Tool], name: str, /, **arguments: Any) -> str:
    [tool] = [tool for tool in tools if tool.name == name]
    return (await tool.handler(arguments)).content


async def test_signing_in_is_done_once_and_kept_for_the_owner_only(authority: Authority) -> None:
    spec = guarded(authority)
    async with MCPServers(spec, on_redirect=sign_in).open(complain) as tools:
        assert await call(tools, "add", a=1, b=2) == "3"
    assert authority.log == ["register", "authorize", "authorization_code"]
    path = token_path(spec.url or "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["tokens"]["access_token"] in authority.tokens
    async with MCPServers(spec, on_redirect=nobody, eager=True).open(complain) as tools:
        assert await call(tools, "add", a=1, b=2) == "3"
    assert len(authority.log) == 3
    assert forget(spec.url or "") and not path.exists()


async def test_a_token_that_ended_between_two_programs_is_refreshed_without_a_user(
    authority: Authority,
) -> None:
    spec = guarded(authority)
    authority.lifetime = 1  # less than is left before it is no longer used
    async with MCPServers(spec, on_redirect=sign_in).open(complain):
        pass
    authority.tokens.clear()
    authority.lifetime = 3600
    authority.log.clear()
    async with MCPServers(spec, on_redirect=nobody, eager=True).open(complain) as tools:
        assert await call(tools, "add", a=1, b=2) == "3"
    assert authority.log == ["refresh_token"]


async def test_a_token_that_the_server_no_longer_takes_is_refreshed_in_the_middle_of_a_run(
    authority: Authority,
) -> None:
    async with MCPServers(guarded(authority), on_redirect=sign_in).open(complain) as tools:
        authority.tokens.clear()
        assert await call(tools, "add", a=1, b=2) == "3"
        assert "refresh_token" in authority.log and authority.log.count("authorization_code") == 1
        authority.tokens.clear()
        authority.refreshing.clear()
        assert await call(tools, "add", a=1, b=2) == "3"
    assert authority.log.count("authorization_code") == 2 and authority.log.count("register") == 1


async def test_more_rights_are_asked_for_when_a_call_needs_them(authority: Authority) -> None:
    async with MCPServers(guarded(authority, scopes=("read",)), on_redirect=sign_in).open(complain) as tools:
        assert await call(tools, "delete") == "deleted"
        assert await call(tools, "delete") == "deleted"
    asked = [set(line.split()[1:]) for line in authority.log if line.startswith("authorize")]
    assert asked == [{"read"}, {"read", "admin"}]


async def test_calls_do_not_wait_for_one_another_because_they_are_signed(authority: Authority) -> None:
    ended: list[float] = []
    async with MCPServers(guarded(authority), on_redirect=sign_in).open(complain) as tools:

        async def wait(seconds: float) -> None:
            assert await call(tools, "wait", seconds=seconds) == "waited"
            ended.append(seconds)

        async with anyio.create_task_group() as group:
            for seconds in (1.5, 0.8, 0.1):
                group.start_soon(wait, seconds)
    assert ended == [0.1, 0.8, 1.5]


async def test_where_nobody_can_sign_in_one_sentence_says_what_to_do(authority: Authority) -> None:
    notices: list[str] = []
    async with MCPServers(guarded(authority)).open(notices.append) as tools:
        assert not tools
    assert notices == [
        "MCP server 'guarded' did not start: someone has to sign in, and there is no terminal here; run"
        " `agentkit mcp check` with this config in one, once"
    ]


async def test_a_refusal_and_a_server_without_registration_are_said_so(authority: Authority) -> None:
    notices: list[str] = []
    authority.refuses = True
    async with MCPServers(guarded(authority), on_redirect=sign_in).open(notices.append):
        pass
    forget(f"{authority.url}/mcp")
    authority.registers = False
    async with MCPServers(guarded(authority), on_redirect=sign_in).open(notices.append):
        pass
    assert "did not start: signing in was refused: The user said no" in notices[0]
    assert "refused the credentials (HTTP 401); they go under 'headers'" in notices[1]
    assert len(notices) == 2


async def test_a_token_of_the_config_is_sent_and_oauth_left_alone(authority: Authority) -> None:
    authority.tokens["given"] = ""
    spec = guarded(authority, headers={"Authorization": "Bearer given"})
    async with MCPServers(spec, on_redirect=nobody).open(complain) as tools:
        assert await call(tools, "add", a=1, b=2) == "3"
    assert authority.log == [] and not token_path(spec.url or "").exists()


@pytest.mark.parametrize("way", ["secret", "key"])
async def test_a_program_without_a_user_signs_in_with_its_own_credentials(
    authority: Authority, way: str
) -> None:
    auth: dict[str, Any] = {"grant": "client_credentials", "client_id": "robot", "issuer": authority.url}
    if way == "secret":
        auth["client_secret"] = "s3cret"
    else:
        auth["private_key"], authority.public_key = key_pair()
        auth["algorithm"] = "ES256"
    spec = guarded(authority, auth=auth, scopes=("read",))
    async with MCPServers(spec, on_redirect=nobody).open(complain) as tools:
        assert await call(tools, "add", a=1, b=2) == "3"
    assert authority.log == ["client_credentials"]


def key_pair() -> tuple[str, str]:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()


PROGRAM = """
import sys, anyio
from agentkit.mcp import MCPServers, ServerSpec
async def main():
    spec = ServerSpec("guarded", url=sys.argv[1], transport="http", startup_timeout=2)
    async with MCPServers(spec).open(print) as tools:
        print([tool.name for tool in tools], flush=True)
anyio.run(main)
"""


@pytest.mark.e2e
async def test_on_a_terminal_the_address_is_shown_and_the_browser_is_awaited(authority: Authority) -> None:
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    command = [sys.executable, "-c", PROGRAM, f"{authority.url}/mcp"]
    async with await anyio.open_process(command, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = ""
        with anyio.fail_after(30):
            while not (found := re.search(r"(http://\S+/authorize\?\S+)\s", shown)):
                shown += (await anyio.to_thread.run_sync(os.read, ours, 4096)).decode()
            await anyio.sleep(2.5)  # longer than the server may take to start: a person is slow
            back = await sign_in(found[1])
            state = parse_qs(urlsplit(back).query)["state"][0]
            async with httpx2.AsyncClient() as browser:
                assert (await browser.get(back.replace(state, "forged"))).status_code == 404
                assert "Signed in" in (await browser.get(back)).text
            assert process.stdout is not None
            assert (await process.stdout.receive()).strip() == b"['add', 'wait', 'delete']"
    os.close(ours)


async def test_new_tokens_of_another_program_are_taken_over(authority: Authority) -> None:
    spec = guarded(authority)
    first = httpx2.AsyncClient(auth=auth_for(spec, on_redirect=sign_in))
    second = httpx2.AsyncClient(auth=auth_for(spec, on_redirect=nobody))
    async with first, second:
        for forgotten in (False, True, True):
            if forgotten:
                authority.tokens.clear()
            for program in (first, second, first):
                assert (await program.get(spec.url or "")).status_code != 401
    assert authority.log == ["register", "authorize", "authorization_code", *["refresh_token"] * 2]
