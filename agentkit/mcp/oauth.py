"""Signing in to remote servers: OAuth 2.1 by the SDK, with tokens kept in files that only their owner may read.

Importing this imports the SDK, which is slow.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import logging
import os
import socket
import sys
import time
import warnings
import webbrowser
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlencode, urlsplit, urlunsplit

import anyio
import anyio.to_thread
import httpx2
from anyio.abc import SocketStream
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.auth.oauth2 import OAuthContext
from mcp.shared.auth import (
    AuthorizationCodeResult,
    OAuthClientInformationFull,
    OAuthClientMetadata,
    OAuthMetadata,
    OAuthToken,
    ProtectedResourceMetadata,
)
from mcp.shared.exceptions import MCPDeprecationWarning
from pydantic import AnyHttpUrl, AnyUrl, ValidationError

from agentkit.errors import ConfigError, MCPServerError
from agentkit.mcp.config import ServerSpec
from agentkit.mcp.private import write_private

__all__ = ["OnRedirect", "auth_for", "forget", "token_path"]

log = logging.getLogger(__name__)

OnRedirect: TypeAlias = Callable[[str], Awaitable[str]]
Pause: TypeAlias = Callable[[], AbstractContextManager[Any]]

PATIENCE = 300.0  # seconds for a person to sign in
EARLY = 30.0  # seconds before its end that a token is no longer used
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")  # else the browser would be one for this terminal


def auth_for(
    spec: ServerSpec, *, on_redirect: OnRedirect | None = None, pause: Pause = nullcontext
) -> httpx2.Auth | None:
    """What signs the requests to the server, or None where its headers do that.

    Nothing is done before the server asks for it. Discovery, registration, PKCE, refreshing and asking for more
    scopes are the SDK's; the tokens are kept for the next time. When a person has to sign in, the address is
    opened in a browser and shown on the terminal, and the answer is awaited on 127.0.0.1. A program answers by
    itself with `on_redirect`: it gets the address and returns where it was redirected to, the whole URL. `pause`
    is entered meanwhile.

    Settings in `spec.auth`: `client_id`, `client_secret`, `auth_method`, `redirect_port` or `redirect_uri`,
    `client_metadata_url`, `authorization_url` and `token_url`; `grant` "client_credentials" for programs without
    a user, with `client_secret` or `private_key` (PEM) and `algorithm`, and `issuer`; `enabled` false for none.
    """
    settings = dict(spec.auth or {})
    signed = any(name.lower() == "authorization" for name in spec.headers)
    if spec.url is None or signed or settings.get("enabled") is False:
        return None
    store = _Store(spec.url)
    kept = store.read()
    provider: OAuthClientProvider
    if settings.get("grant") == "client_credentials":
        provider = _without_user(spec, settings, store)
        store.client_id = settings["client_id"]
    else:
        redirect = _redirect_uri(settings, kept)
        client = _client(settings, redirect)
        store.client = client
        store.client_id = client.client_id if client else None
        store.redirect = redirect
        store.redirect_is_fixed = bool(settings.get("redirect_uri") or settings.get("redirect_port"))
        visit = _Visit(spec, on_redirect, pause)
        provider = OAuthClientProvider(
            spec.url,
            OAuthClientMetadata(
                client_name="agentkit",
                redirect_uris=[AnyUrl(redirect)],
                grant_types=["authorization_code", "refresh_token"],
                response_types=["code"],
                scope=" ".join(spec.scopes) or None,
            ),
            store,
            redirect_handler=visit.go,
            callback_handler=visit.come_back,
            client_metadata_url=settings.get("client_metadata_url"),
        )
    store.context = provider.context
    _restore(provider.context, kept, settings)
    return _WhenAsked(provider, store)


class _WhenAsked(httpx2.Auth):
    """Leaves requests alone until the server wants them signed.

    The SDK's own lets one request at a time through, from its start until its answer begins: calls would wait
    for one another. So what a good token signs, and what needs none, does not go that way.
    """

    def __init__(self, provider: OAuthClientProvider, store: _Store) -> None:
        self._provider = provider
        self._store = store
        self._read = False

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        context = self._provider.context
        if not self._read or (context.current_tokens is not None and not context.is_token_valid()):
            self._read = True  # again when they have ended: another program may have new ones
            context.current_tokens = await self._store.get_tokens()
            context.token_expiry_time = _end(self._store.read())
        first: httpx2.Response | None = None
        sent: str | None = None
        if context.current_tokens is None or context.is_token_valid():
            if context.current_tokens is not None:
                sent = f"Bearer {context.current_tokens.access_token}"
                request.headers["Authorization"] = sent
            first = yield request
            if not _wants_more(first):
                return
            if first.status_code == 401 and context.current_tokens is not None:
                await self._renew(context.current_tokens)
        flow = self._provider.async_auth_flow(request)
        try:
            outgoing = await flow.__anext__()
            while True:
                if first is not None and outgoing is request and request.headers.get("Authorization") == sent:
                    answer, first = first, None  # the question has just been asked
                else:
                    answer = yield outgoing
                outgoing = await flow.asend(answer)
        except StopAsyncIteration:
            return
        finally:
            await flow.aclose()

    async def _renew(self, refused: OAuthToken) -> None:
        """Instead of a token that the server no longer takes: what another program got meanwhile, or a refresh.
        The SDK would have a person sign in again."""
        context = self._provider.context
        kept = await self._store.get_tokens()
        if kept is not None and kept.access_token != refused.access_token:
            context.current_tokens = kept
            context.token_expiry_time = _end(self._store.read())
        elif refused.refresh_token:
            context.token_expiry_time = 1.0  # long ago


def _wants_more(response: httpx2.Response) -> bool:
    if response.status_code == 401:
        return True
    challenge = response.headers.get("WWW-Authenticate", "")
    return response.status_code == 403 and "insufficient_scope" in challenge


def token_path(url: str) -> Path:
    """The file that the tokens for a server are kept in."""
    import platformdirs

    host = urlsplit(url).hostname or "server"
    return (
        platformdirs.user_data_path("agentkit")
        / "oauth"
        / f"{host}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.json"
    )


def forget(url: str) -> bool:
    """Sign out: drop what is kept for a server. False where there was nothing."""
    try:
        token_path(url).unlink()
    except FileNotFoundError:
        return False
    return True


def _without_user(spec: ServerSpec, settings: Mapping[str, Any], store: _Store) -> OAuthClientProvider:
    client_id, secret, key = (settings.get(k) for k in ("client_id", "client_secret", "private_key"))
    if not client_id or not (secret or key):
        raise ConfigError(
            f"server {spec.name!r}: 'auth' with client_credentials needs 'client_id', and 'client_secret' or"
            " 'private_key'"
        )
    scope = " ".join(spec.scopes) or None
    issuer = settings.get("issuer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MCPDeprecationWarning)  # that it finds the issuer by itself
        if key:
            signed = SignedJWTParameters(
                issuer=client_id,
                subject=client_id,
                signing_key=key,
                signing_algorithm=settings.get("algorithm") or "RS256",
            )
            return PrivateKeyJWTOAuthProvider(
                spec.url or "", store, client_id, signed.create_assertion_provider(), scope, issuer
            )
        return ClientCredentialsOAuthProvider(
            spec.url or "",
            store,
            client_id,
            str(secret),
            settings.get("auth_method") or "client_secret_basic",
            scope,
            issuer,
        )


def _client(settings: Mapping[str, Any], redirect: str) -> OAuthClientInformationFull | None:
    """The client that the config names, if the server's operator registered one by hand."""
    if not settings.get("client_id"):
        return None
    secret = settings.get("client_secret")
    return OAuthClientInformationFull(
        client_id=settings["client_id"],
        client_secret=secret,
        redirect_uris=[AnyUrl(redirect)],
        token_endpoint_auth_method=settings.get("auth_method")
        or ("client_secret_basic" if secret else "none"),
    )


def _redirect_uri(settings: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """Where the browser is sent back to: as configured, as registered, or to any port that is free."""
    if settings.get("redirect_uri"):
        return str(settings["redirect_uri"])
    port = settings.get("redirect_port")
    if not port:
        for registered in (kept.get("client") or {}).get("redirect_uris") or ():
            return str(registered)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/callback"


class _Store:
    """The SDK's token storage: one file for each server."""

    def __init__(self, url: str) -> None:
        self._path = token_path(url)
        self._url = url
        self.client: OAuthClientInformationFull | None = None  # of the config
        self.client_id: str | None = None
        self.redirect = ""
        self.redirect_is_fixed = False  # by the config
        self.context: OAuthContext

    def read(self) -> dict[str, Any]:
        try:
            kept = json.loads(self._path.read_bytes())
            good = isinstance(kept, dict) and kept.get("url") == self._url
            return kept if good else {}
        except (OSError, ValueError):
            return {}

    def _write(self, **changes: Any) -> None:
        try:
            write_private(
                self._path, json.dumps({"url": self._url} | self.read() | changes, indent=1).encode()
            )
        except OSError as exc:  # signed in for now; the next program has to ask again
            log.warning("the tokens for %s cannot be kept in %s: %s", self._url, self._path, exc.strerror)

    async def get_tokens(self) -> OAuthToken | None:
        kept = self.read()
        if self.client_id not in (None, (kept.get("client") or {}).get("client_id")):
            return None  # another client's
        tokens: OAuthToken | None = _valid(OAuthToken, kept.get("tokens"))
        return tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        context = self.context
        client = context.client_info
        self._write(
            tokens=_json(tokens),
            expires_at=time.time() + tokens.expires_in if tokens.expires_in is not None else None,
            client=_json(client) if client else {},
            # to refresh them later, without a discovery, where they came from
            server=context.auth_server_url,
            metadata=_json(context.oauth_metadata),
            resource=_json(context.protected_resource_metadata),
        )

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        if self.client is not None:
            return self.client
        kept = self.read().get("client") or {}
        registered = kept.get("redirect_uris") or [self.redirect]
        if self.redirect not in registered:
            if self.redirect_is_fixed:
                return None  # registered for another one
            self.redirect = registered[0]  # by another program, meanwhile
            self.context.client_metadata.redirect_uris = [AnyUrl(self.redirect)]
        client: OAuthClientInformationFull | None = _valid(OAuthClientInformationFull, kept)
        return client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self._write(client=_json(client_info))


def _restore(context: OAuthContext, kept: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """What the SDK does not keep: when the tokens end, and where they can be refreshed."""
    context.token_expiry_time = _end(kept)
    context.oauth_metadata = _valid(OAuthMetadata, kept.get("metadata"))
    context.protected_resource_metadata = _valid(ProtectedResourceMetadata, kept.get("resource"))
    if isinstance(server := kept.get("server"), str):
        context.auth_server_url = server
    login, token = settings.get("authorization_url"), settings.get("token_url")
    if login and token and context.oauth_metadata is None:  # for servers that cannot be discovered
        parts = urlsplit(token)
        context.oauth_metadata = OAuthMetadata(
            issuer=AnyHttpUrl(f"{parts.scheme}://{parts.netloc}"),
            authorization_endpoint=AnyHttpUrl(login),
            token_endpoint=AnyHttpUrl(token),
        )


def _end(kept: Mapping[str, Any]) -> float | None:
    at = kept.get("expires_at")
    return at - EARLY if isinstance(at, int | float) else None


def _json(model: Any) -> Any:
    return model.model_dump(mode="json", exclude_none=True) if model is not None else None


def _valid(kind: Any, value: Any) -> Any:
    if not value:
        return None
    try:
        return kind.model_validate(value)
    except ValidationError:  # of another version
        return None


class _Visit:
    """A person's way to the sign-in page and back."""

    def __init__(self, spec: ServerSpec, on_redirect: OnRedirect | None, pause: Pause) -> None:
        self._spec = spec
        self._on_redirect = on_redirect
        self._pause = pause
        self._url = ""

    async def go(self, url: str) -> None:
        """What the SDK calls first, with the address of the sign-in page."""
        if self._spec.scopes:  # the SDK asks for what the server names; we, for what the config names too
            parts = urlsplit(url)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            asked = query.get("scope", "").split()
            query["scope"] = " ".join(dict.fromkeys([*asked, *self._spec.scopes]))
            url = urlunsplit(parts._replace(query=urlencode(query)))
        self._url = url

    async def come_back(self) -> AuthorizationCodeResult:
        """What the SDK calls then, for the answer."""
        back = ""
        with self._pause(), anyio.move_on_after(PATIENCE):
            if self._on_redirect is not None:
                back = await self._on_redirect(self._url)
            elif not sys.stderr.isatty():
                raise MCPServerError(
                    "someone has to sign in, and there is no terminal here; run `agentkit mcp check` with this"
                    " config in one, once"
                )
            else:
                back = await self._by_browser()
        if not back:
            raise MCPServerError(f"nobody signed in within {PATIENCE:g} s")
        answer = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
        if "error" in answer:
            raise MCPServerError(
                f"signing in was refused: {answer.get('error_description') or answer['error']}"
            )
        return AuthorizationCodeResult(
            code=answer.get("code", ""), state=answer.get("state"), iss=answer.get("iss")
        )

    async def _by_browser(self) -> str:
        asked = parse_qs(urlsplit(self._url).query)
        redirect = urlsplit(asked["redirect_uri"][0])
        came = ""
        done = anyio.Event()

        async def serve(stream: SocketStream) -> None:
            nonlocal came
            async with stream:
                with (
                    anyio.move_on_after(10),
                    contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError),
                ):
                    target = await _request_target(stream)
                    parts = urlsplit(target)
                    query = parse_qs(parts.query)
                    # other pages can send a browser here as well, but do not know the state
                    if parts.path == (redirect.path or "/") and query.get("state") == asked.get("state"):
                        words = "Not signed in" if "error" in query else "Signed in"
                        await stream.send(_page("200 OK", f"{words}. You can close this page."))
                        came = target
                        done.set()
                    else:
                        await stream.send(_page("404 Not Found", "There is nothing here."))

        port = redirect.port or 80
        try:
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        except OSError as exc:
            raise MCPServerError(
                f"port {port} on 127.0.0.1 is taken, and signing in comes back to it; close what uses it, or set"
                " 'redirect_port'"
            ) from exc
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            print(f"MCP server {self._spec.name!r} wants you to sign in:\n\n  {self._url}\n", file=sys.stderr)
            if any(os.environ.get(name) for name in SCREENS) or sys.platform == "darwin":
                await anyio.to_thread.run_sync(webbrowser.open, self._url)
            await done.wait()
            tasks.cancel_scope.cancel()
        return came


async def _request_target(stream: SocketStream) -> str:
    """The target of an HTTP request; its head is read to the end."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < 65_536:
        head += await stream.receive()
    parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    return parts[1] if len(parts) == 3 and parts[0] == "GET" else ""


def _page(status: str, words: str) -> bytes:
    body = f"<!doctype html><meta charset=utf-8><title>agentkit</title><p>{html.escape(words)}".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\nReferrer-Policy: no-referrer\r\n\r\n".encode() + body
