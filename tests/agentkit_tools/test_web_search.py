"""web_search: each service spoken to over HTTP on loopback, as its documentation has it."""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agentkit import ToolError
from agentkit.errors import ConfigError
from agentkit.tools import Toolset
from agentkit_tools.web_search import WebSearch, web_search

pytestmark = pytest.mark.anyio


class Site:
    """Answers at /search what was put there, and remembers what it was asked."""

    def __init__(self) -> None:
        self.at: dict[str, Callable[[BaseHTTPRequestHandler], object]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                site.asked.append((self.path, {**dict(self.headers), "body": body}))
                site.at[self.path.partition("?")[0]](self)

            do_POST = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, path: str, body: str, kind: str, status: int, **headers: str) -> None:
        def answer(http: BaseHTTPRequestHandler) -> None:
            http.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                http.send_header(name.replace("_", "-"), value)
            http.end_headers()
            http.wfile.write(body.encode())

        self.at[path] = answer

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


KEY = "sk-very-secret"
PROVIDERS = ("serper", "tavily", "brave", "searxng")
ANSWERS: dict[str, Any] = {
    "serper": {"organic": [{"title": "Ducks", "link": "https://d.test/", "snippet": "They <b>swim</b> &amp; fly.", "date": "May 2, 2026"}]},
    "tavily": {"results": [{"title": "Ducks", "url": "https://d.test/", "content": "They swim & fly.", "published_date": "May 2, 2026", "score": 1}]},
    "brave": {"web": {"results": [{"title": "Ducks", "url": "https://d.test/", "description": "They <strong>swim</strong> &amp; fly.", "age": "May 2, 2026"}]}},
    "searxng": {"results": [{"title": "Ducks", "url": "https://d.test/", "content": "They swim & fly.", "publishedDate": "May 2, 2026"}]},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for (
        name
    ) in "SERPER_API_KEY TAVILY_API_KEY BRAVE_API_KEY BRAVE_SEARCH_API_KEY SERPER_URL SEARXNG_URL".split():
        monkeypatch.delenv(name, raising=False)


async def search(web: WebSearch, query: str = "ducks", **arguments: Any) -> str:
    async with web.open(print) as tools:
        return (await tools[0].handler({"query": query, **arguments})).content


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.stopped.set()
    site.http.shutdown()
    site.http.server_close()


def at(site: Site, provider: Any, answer: Any = None, status: int = 200, **headers: str) -> WebSearch:
    """A WebSearch whose service is the site, which gives that answer."""
    body = json.dumps(ANSWERS[provider] if answer is None else answer)
    site.put("/search", body, "application/json", status, **headers)
    return WebSearch(provider, api_key=KEY, url=f"{site.url}/search")


def test_it_is_a_toolset_that_does_not_show_its_key() -> None:
    assert isinstance(web_search, Toolset) and KEY not in repr(WebSearch("serper", api_key=KEY))


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_every_service_gives_the_same_short_list(site: Site, provider: str) -> None:
    expected = "1. Ducks (May 2, 2026)\n   https://d.test/\n   They swim & fly."
    assert await search(at(site, provider)) == expected


async def test_each_service_is_asked_as_its_documentation_says(site: Site) -> None:
    for provider in PROVIDERS:
        await search(at(site, provider), "  wild\nducks ", count=99)
    (_, serper), (_, tavily), (brave_path, brave), (searxng_path, searxng) = site.asked
    assert serper["X-API-KEY"] == KEY and json.loads(serper["body"]) == {"q": "wild ducks", "num": 20}
    assert tavily["Authorization"] == f"Bearer {KEY}"
    assert json.loads(tavily["body"]) == {"query": "wild ducks", "max_results": 20}
    assert brave["X-Subscription-Token"] == KEY
    assert parse_qs(urlsplit(brave_path).query) == {"q": ["wild ducks"], "count": ["20"]}
    assert parse_qs(urlsplit(searxng_path).query) == {"q": ["wild ducks"], "format": ["json"]}
    assert KEY not in str(searxng)


@pytest.mark.parametrize(
    ("name", "provider"),
    [("SERPER_API_KEY", "serper"), ("TAVILY_API_KEY", "tavily"), ("BRAVE_API_KEY", "brave"), ("BRAVE_SEARCH_API_KEY", "brave")],
)  # fmt: skip
async def test_the_key_in_the_environment_chooses_the_service(
    site: Site, monkeypatch: pytest.MonkeyPatch, name: str, provider: str
) -> None:
    monkeypatch.setenv(name, KEY)
    at(site, provider)
    monkeypatch.setenv(f"{provider.upper()}_URL", f"{site.url}/search")
    assert "Ducks" in await search(WebSearch())


async def test_the_address_of_a_searxng_instance_is_enough(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(site, "searxng")
    monkeypatch.setenv("SEARXNG_URL", f"{site.url}/")
    assert "Ducks" in await search(WebSearch())


async def test_a_direct_answer_comes_first_and_doubles_and_odd_urls_do_not_come(site: Site) -> None:
    rows = [
        {"title": t, "link": u}
        for t, u in (
            ("A", "https://a.test"),
            ("A2", "https://a.test"),
            ("J", "javascript:x"),
            ("B", "https://b.test"),
        )
    ]
    answer = {"answerBox": {"answer": "42"}, "organic": rows}
    assert await search(at(site, "serper", answer)) == (
        "1. Direct answer\n   42\n2. A\n   https://a.test\n3. B\n   https://b.test"
    )


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_nothing_found_is_told(site: Site, provider: str) -> None:
    assert "Nothing was found for 'ducks'" in await search(at(site, provider, {}))


@pytest.mark.parametrize(
    ("provider", "status", "said"),
    [
        ("serper", 403, "does not accept the key in SERPER_API_KEY (403)"),
        ("tavily", 401, "does not accept the key in TAVILY_API_KEY (401)"),
        ("tavily", 432, "used up"),
        ("brave", 422, "does not accept the request (422)"),
        ("brave", 429, "asked too often (429); try again in 7 s"),
        ("searxng", 403, "add json to search.formats"),
        ("serper", 302, "has moved (302)"),
        ("serper", 500, "failed with status 500"),
        ("serper", 200, "cannot be read"),
    ],
)
async def test_a_failure_is_told_in_words_without_the_key(
    site: Site, provider: str, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    web = at(site, provider, [KEY], status, Retry_After="7", Location=f"{site.url}/{KEY}")
    with pytest.raises(ToolError) as caught:
        await search(web)
    assert said in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text.replace(f"{site.url}/{KEY}", "")
    assert KEY not in str(caught.value) and f"'{KEY}'" not in shown
    assert all(path == "/search" or path.startswith("/search?") for path in site.paths())


@pytest.mark.parametrize("key", ["bad\nkey", "schlüssel", KEY])
async def test_a_key_that_cannot_be_sent_is_not_shown_either(key: str) -> None:
    with pytest.raises(ToolError, match="Serper cannot be reached") as caught:
        await search(WebSearch("serper", api_key=key, url="http://127.0.0.1:9/"))
    assert key not in "".join(traceback.format_exception(caught.value))


async def test_a_slow_service_is_given_up(site: Site) -> None:
    site.at["/search"] = lambda http: site.stopped.wait(5)
    with pytest.raises(ToolError, match="longer than 0.1 s"):
        await search(WebSearch("serper", api_key=KEY, url=f"{site.url}/search", timeout=0.1))
    site.stopped.set()


async def test_without_any_service_the_error_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ddgs", None)
    with pytest.raises(ConfigError, match="set SERPER_API_KEY .* pip install ddgs"):
        await search(WebSearch())
    with pytest.raises(ConfigError, match="pip install ddgs"):
        await search(WebSearch("ddgs"))


@pytest.mark.parametrize(
    ("web", "said"),
    [
        (WebSearch("tavily"), "needs TAVILY_API_KEY to be set; get a key at app.tavily.com"),
        (WebSearch("searxng"), "needs SEARXNG_URL"),
        (WebSearch(api_key=KEY), "no provider"),
        (WebSearch("google"), "no search provider 'google'"),  # type: ignore[arg-type]
    ],
)
async def test_a_service_that_cannot_be_used_as_written_is_a_config_error(web: WebSearch, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        await search(web)
    assert KEY not in str(caught.value)


async def test_without_a_key_ddgs_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "ddgs"  # the real one needs the internet
    package.mkdir()
    (package / "__init__.py").write_text(
        "from ddgs.exceptions import DDGSException\n"
        "class DDGS:\n"
        "    def __init__(self, timeout=5): pass\n"
        "    def text(self, query, max_results=10):\n"
        "        if query == 'none': raise DDGSException('No results found.')\n"
        "        return [{'title': query, 'href': 'https://d.test/', 'body': 'They swim.'}]\n"
    )
    (package / "exceptions.py").write_text(
        "class DDGSException(Exception): pass\n"
        "class RatelimitException(DDGSException): pass\n"
        "class TimeoutException(DDGSException): pass\n"
    )
    for name in [m for m in sys.modules if m.partition(".")[0] == "ddgs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert await search(WebSearch(), "ducks") == "1. ducks\n   https://d.test/\n   They swim."
    assert "Nothing was found" in await search(WebSearch("ddgs"), "none")
    for name in [m for m in sys.modules if m.partition(".")[0] == "ddgs"]:
        del sys.modules[name]
