"""Searching the web, with whichever search service the user has a key for."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import anyio
import anyio.to_thread

from agentkit import Tool, ToolError, tool
from agentkit.errors import ConfigError
from agentkit.tools import Notify

__all__ = ["WebSearch", "web_search"]

Provider: TypeAlias = Literal["serper", "tavily", "brave", "searxng", "ddgs"]

_MOST = 20  # results that all services give
_LARGEST = 5_000_000  # bytes of an answer
_SNIPPET = 300  # characters


@dataclass(frozen=True, slots=True)
class WebSearch:
    """`web_search`: titles, URLs and snippets, by the first service there is a key for, or the one named.

    With "auto" that is what the environment has of SERPER_API_KEY, TAVILY_API_KEY, BRAVE_API_KEY (or
    BRAVE_SEARCH_API_KEY) and SEARXNG_URL, in this order, and then the package ddgs, which needs no key. `api_key` and
    `url` (the endpoint; also from SERPER_URL and the like) go before the environment and need a provider that is named.
    `count` is how many results the model gets if it does not say; a search takes at most `timeout` seconds.
    Proxies of the environment are used. Opening it raises `ConfigError` where there is no key.
    """

    provider: Literal["auto"] | Provider = "auto"
    api_key: str | None = field(default=None, repr=False)
    url: str | None = field(default=None, repr=False)  # may hold a password
    count: int = 6
    timeout: float = 20.0
    scope: Literal["run", "agent"] = "agent"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        search = self._search()

        @tool(effects=("reads", "network"))
        async def web_search(query: str, count: int = self.count) -> str:
            """Search the web. Read a result's page with web_fetch, if you have it.

            Args:
                query: A few words, as for any search engine.
                count: How many results.
            """
            query = " ".join(query.split())
            if not query:
                raise ToolError("the query is empty")
            try:
                with anyio.fail_after(self.timeout):
                    found = await search(query, min(max(count, 1), _MOST))
            except TimeoutError:
                raise ToolError(f"the search took longer than {self.timeout:g} s; try again later") from None
            return _shown(found, query, count)

        yield [replace(web_search, source="web")]

    def _search(self) -> Search:
        if self.provider != "auto" and self.provider not in _SERVICES and self.provider != "ddgs":
            raise ConfigError(
                f"There is no search provider {self.provider!r}; use auto, {', '.join(_SERVICES)} or ddgs."
            )
        if self.provider == "auto" and (self.api_key or self.url):
            raise ConfigError(
                f"web_search has a key or a URL and no provider; name one of {', '.join(_SERVICES)}."
            )
        for name, service in _SERVICES.items():
            if self.provider not in ("auto", name):
                continue
            key = self.api_key or _environment(*service.keys)
            url = self.url or _environment(f"{name.upper()}_URL") or service.url
            if (key or not service.keys) and url:
                return _over_http(service, url.strip(), key, self.timeout)
            if self.provider == name:
                wanted = " or ".join(service.keys) or f"{name.upper()}_URL"
                raise ConfigError(f"web_search with {name} needs {wanted} to be set; {service.how}.")
        from importlib.util import find_spec

        if find_spec("ddgs") is not None:
            return _ddgs(self.timeout)
        if self.provider == "ddgs":
            raise ConfigError("web_search with ddgs needs that package: pip install ddgs")
        raise ConfigError(
            "web_search has nothing to search with: set SERPER_API_KEY (serper.dev), TAVILY_API_KEY (tavily.com), BRAVE_API_KEY "
            "(brave.com/search/api) or SEARXNG_URL, or get ddgs, which needs no key: pip install ddgs"
        )


@dataclass(frozen=True, slots=True)
class _Result:
    title: str
    url: str
    snippet: str = ""
    date: str = ""


# A query and a count -> what was found.
Search: TypeAlias = Callable[[str, int], Awaitable[list[_Result]]]


def _environment(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), None)


# --- services, each by its own documentation


@dataclass(frozen=True, slots=True)
class _Service:
    name: str
    how: str  # to get what it needs
    url: str | None
    keys: tuple[str, ...]
    request: Callable[[str, int, str], Mapping[str, Any]]  # query, count, key -> arguments of a request
    results: Callable[[Any], list[_Result]]


def _fields(rows: Any, title: str, url: str, snippet: str, *dates: str) -> list[_Result]:
    return [
        _Result(
            str(row.get(title) or ""),
            str(row.get(url) or ""),
            str(row.get(snippet) or ""),
            str(next((row[d] for d in dates if row.get(d)), "")),
        )
        for row in rows or ()
    ]


def _serper(answer: Any) -> list[_Result]:
    box = answer.get("answerBox") or {}
    direct = _Result(
        "Direct answer", str(box.get("link") or ""), str(box.get("answer") or box.get("snippet") or "")
    )
    return [
        *([direct] if direct.snippet else []),
        *_fields(answer.get("organic"), "title", "link", "snippet", "date"),
    ]


_SERVICES: dict[str, _Service] = {
    # https://serper.dev/playground; the names of the variables are Qwen-Agent's
    "serper": _Service(
        "Serper",
        "get a key at serper.dev",
        "https://google.serper.dev/search",
        ("SERPER_API_KEY",),
        lambda query, count, key: {
            "method": "POST",
            "headers": {"X-API-KEY": key},
            "json": {"q": query, "num": count},
        },
        _serper,
    ),
    # https://docs.tavily.com/documentation/api-reference/endpoint/search
    "tavily": _Service(
        "Tavily",
        "get a key at app.tavily.com",
        "https://api.tavily.com/search",
        ("TAVILY_API_KEY",),
        lambda query, count, key: {
            "method": "POST",
            "headers": {"Authorization": f"Bearer {key}"},
            "json": {"query": query, "max_results": count},
        },
        lambda answer: _fields(answer.get("results"), "title", "url", "content", "published_date"),
    ),
    # https://api-dashboard.search.brave.com/api-reference/web/search/get: at most 400 characters and 50 words
    "brave": _Service(
        "Brave Search",
        "get a key at api-dashboard.search.brave.com",
        "https://api.search.brave.com/res/v1/web/search",
        ("BRAVE_API_KEY", "BRAVE_SEARCH_API_KEY"),
        lambda query, count, key: {
            "method": "GET",
            "headers": {"X-Subscription-Token": key},
            "params": {"q": " ".join(query.split()[:50])[:400], "count": count},
        },
        lambda answer: _fields(
            (answer.get("web") or {}).get("results"), "title", "url", "description", "page_age", "age"
        ),
    ),
    # https://docs.searxng.org/dev/search_api.html
    "searxng": _Service(
        "SearXNG",
        "it is the address of an instance that gives JSON",
        None,
        (),
        lambda query, count, key: {"method": "GET", "params": {"q": query, "format": "json"}},
        lambda answer: _fields(answer.get("results"), "title", "url", "content", "publishedDate"),
    ),
}


def _over_http(service: _Service, url: str, key: str | None, timeout: float) -> Search:
    if service.name == "SearXNG" and not url.rstrip("/").endswith("/search"):
        url = f"{url.rstrip('/')}/search"

    async def search(query: str, count: int) -> list[_Result]:
        import httpx2

        try:
            async with (
                httpx2.AsyncClient(
                    timeout=timeout
                ) as client,  # redirects are not followed: the key is for this host
                client.stream(url=url, **service.request(query, count, key or "")) as response,
            ):
                status, wait = response.status_code, response.headers.get("retry-after", "")
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > _LARGEST:
                        raise ToolError(f"{service.name} answered too much")
        except httpx2.TimeoutException:
            raise TimeoutError from None
        except (
            httpx2.HTTPError,
            httpx2.InvalidURL,
            UnicodeError,
        ):  # whose text may hold the key or a password
            raise ToolError(f"{service.name} cannot be reached; try again later") from None
        if status != 200:
            raise ToolError(_refusal(service, status, wait))
        try:
            return service.results(json.loads(body))
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise ToolError(f"{service.name} gave an answer that cannot be read; is its URL right?") from None

    return search


def _refusal(service: _Service, status: int, wait: str) -> str:
    key = " or ".join(service.keys) or "the instance"
    if status == 429:
        later = f"in {wait} s" if re.fullmatch(r"\d{1,6}", wait) else "later"
        return f"{service.name} has been asked too often (429); try again {later}"
    if status in (401, 403) and service.keys:
        return f"{service.name} does not accept the key in {key} ({status}); the user has to set a valid one"
    if status == 403:
        return (
            "SearXNG refuses (403): the user has to add json to search.formats in the instance's settings.yml"
        )
    if status in (402, 432, 433):
        return f"the plan of {key} is used up at {service.name} ({status}); the user has to renew it"
    if status in (400, 422):
        return f"{service.name} does not accept the request ({status}): try fewer words, and the key in {key} may be wrong"
    if 300 <= status < 400:
        return f"{service.name} has moved ({status}); the user has to correct its URL"
    return f"{service.name} failed with status {status}; try again later"


def _ddgs(timeout: float) -> Search:
    def blocking(query: str, count: int) -> list[_Result]:
        from ddgs import DDGS
        from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

        try:
            return _fields(
                DDGS(timeout=max(int(timeout / 2), 1)).text(query, max_results=count), "title", "href", "body"
            )
        except RatelimitException:
            raise ToolError("the search engines have been asked too often; try again later") from None
        except TimeoutException:
            raise TimeoutError from None
        except DDGSException as exc:
            if "No results" in str(exc):
                return []
            raise ToolError("no search engine answered; try again later, or with other words") from None

    async def search(query: str, count: int) -> list[_Result]:
        return await anyio.to_thread.run_sync(blocking, query, count, abandon_on_cancel=True)

    return search


# --- what the model is shown


def _shown(found: Sequence[_Result], query: str, count: int) -> str:
    lines: list[str] = []
    seen: set[str] = set()
    number = 0
    for result in found:
        url = result.url.strip()
        direct = result.title == "Direct answer"
        if (not direct and not re.match("https?://", url)) or (url and url in seen) or number >= count:
            continue
        seen.add(url)
        date = f" ({_plain(result.date, 30)})" if result.date else ""
        number += 1
        lines.append(f"{number}. {_plain(result.title, 150) or url}{date}")
        lines += [f"   {text}" for text in (url, _plain(result.snippet, _SNIPPET)) if text]
    return "\n".join(lines) or f"Nothing was found for {query!r}; try other or fewer words."


def _plain(text: str, limit: int) -> str:
    text = " ".join(html.unescape(re.sub(r"</?\w[^<>]*>", "", text)).split())
    return text if len(text) <= limit else f"{text[:limit].rpartition(' ')[0] or text[:limit]}…"


web_search = WebSearch()
