"""Reading pages of the web: as Markdown, piece by piece, and from nowhere but the web."""

from __future__ import annotations

import codecs
import json
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.to_thread

from agentkit import Tool, ToolError, tool
from agentkit.errors import ConfigError
from agentkit.tools import Notify
from agentkit_tools.addresses import Policy, Resolve, guarded_transport, port_of, read_url, resolve

if TYPE_CHECKING:
    import ssl

    import httpx2

__all__ = ["WebFetch", "web_fetch"]

_REDIRECTS = 5
_ROBOTS_BYTES = 512_000  # what RFC 9309 asks for at least
_KEPT = 8  # pages that are remembered
_MARKDOWN_CHARS = 2_000_000  # of HTML that are turned into Markdown: more takes many seconds
_MARKDOWN_SECONDS = 10  # of the processor

_TEXT = re.compile(
    r"text/.*|application/(.*\+)?(xml|yaml|x-yaml|toml|javascript|ecmascript|x-ndjson|sql|x-sh|rtf)"
)
_JSON = re.compile(r"application/(.*\+)?json|text/json")
_HTML = ("text/html", "application/xhtml+xml")
_OFFICE = "application/vnd.openxmlformats-officedocument."
_DOCUMENTS = {
    "application/pdf": ".pdf",
    f"{_OFFICE}wordprocessingml.document": ".docx",
    f"{_OFFICE}spreadsheetml.sheet": ".xlsx",
    f"{_OFFICE}presentationml.presentation": ".pptx",
}
_REASONS = {
    401: "it wants a login",
    403: "it refuses",
    404: "there is no such page",
    410: "the page is gone",
    429: "it has been asked too often; wait, or use another source",
    451: "it may not show it",
}


@dataclass(frozen=True, slots=True)
class WebFetch:
    """`web_fetch`: the page at a URL as Markdown, of the internet and of what `allow` and `allow_private` add to it.

    `allow` names hosts ("wiki.corp", "*.corp", "localhost:8000"), addresses and networks ("10.1.0.0/16"); see `Policy`.
    At most `max_bytes` of a page are read (after decompression), and all of a call takes at most `timeout` seconds.
    The model is shown `page_chars` characters at a time. With `robots="respect"` a site's robots.txt decides, except
    for the URLs that stand in the user's own words (`with_task`). What the environment says of proxies is not
    heeded, as a proxy would decide what is reached: `proxy="http://…"` means that it may. Redirects are followed, from
    https to http as well, each checked like the first; cookies and credentials are neither kept nor sent.
    `verify` is an `ssl.SSLContext` for certificates of your own, `resolve` finds the addresses of a host.
    """

    allow_private: bool = False
    allow: tuple[str, ...] = ()
    max_bytes: int = 10_000_000
    timeout: float = 30.0
    page_chars: int = 8_000
    user_agent: str = "agentkit"
    robots: Literal["respect", "ignore"] = "respect"
    proxy: str | None = field(default=None, repr=False)  # may hold a password
    verify: ssl.SSLContext | None = None
    resolve: Resolve = resolve
    task: str = field(default="", repr=False)
    scope: Literal["run", "agent"] = "run"

    def __post_init__(self) -> None:
        Policy(self.allow_private, tuple(self.allow))  # complains

    def with_task(self, text: str) -> WebFetch:
        """The same for a run in which the user wrote *text*."""
        return replace(self, task=text)

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        for needed in ("protego", "trafilatura", "lxml_html_clean"):
            if find_spec(needed) is None:
                raise ConfigError(f"web_fetch needs {needed}: pip install 'agentkit[web]'")
        import httpx2

        policy = Policy(self.allow_private, tuple(self.allow))
        context = self.verify or httpx2.create_ssl_context()
        if self.proxy is None:
            transport = guarded_transport(policy, context, self.resolve)
        else:
            transport = httpx2.AsyncHTTPTransport(verify=context, trust_env=False, proxy=self.proxy)
        async with transport:
            web = _Web(self, policy, transport)

            @tool(effects=("reads", "network"))
            async def web_fetch(url: str, page: int = 1) -> str:
                """Read a web page or an online document.

                Args:
                    url: Its http or https URL.
                    page: Which part of a long page.
                """
                return await web.read(url, page)

            yield [replace(web_fetch, source="web")]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a server sent: the body's beginning, decompressed, and whether that is all of it."""

    url: httpx2.URL
    status: int
    kind: str  # its media type
    charset: str | None
    body: bytes
    whole: bool
    size: int | None  # as announced


@dataclass(frozen=True, slots=True)
class _Page:
    heading: str
    text: str


class _Web:
    """One run's view of the web: its connections, and the pages and robots.txt files it has read."""

    def __init__(self, settings: WebFetch, policy: Policy, transport: httpx2.AsyncBaseTransport) -> None:
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx2

        self._settings, self._policy = settings, policy
        self._client = httpx2.AsyncClient(  # not closed: there is nothing to it but the transport
            transport=transport,
            trust_env=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            timeout=settings.timeout,
            headers={
                "User-Agent": settings.user_agent,
                "Accept": "text/html,application/xhtml+xml,text/markdown;q=0.9,text/*;q=0.8,*/*;q=0.5",
                "Accept-Encoding": "gzip, deflate",  # what can be unpacked piece by piece, and is always there
            },
        )
        self._pages: OrderedDict[str, _Page] = OrderedDict()
        self._robots: dict[str, Any] = {}

    async def read(self, text: str, number: int) -> str:
        url = read_url(text)
        key = str(url)
        if key not in self._pages:
            try:
                with anyio.fail_after(self._settings.timeout):
                    self._pages[key] = await self._page(url)
            except TimeoutError:
                raise ToolError(
                    f"{url.host} did not send the page within {self._settings.timeout:g} s; use another source"
                ) from None
            if len(self._pages) > _KEPT:
                self._pages.popitem(last=False)
        self._pages.move_to_end(key)
        return _part(self._pages[key], number, self._settings.page_chars)

    async def _page(self, url: httpx2.URL) -> _Page:
        answer = await self._get(url, self._settings.max_bytes, robots=not self._asked_for(url))
        if answer.status >= 400:
            reason = _REASONS.get(
                answer.status, "something is wrong there" if answer.status >= 500 else "it refuses"
            )
            raise ToolError(f"{answer.url} answered with status {answer.status}: {reason}")
        title, text = await _readable(answer)
        lines = [f"Title: {title}"] if title else []
        lines.append(f"URL: {answer.url}")
        if not answer.whole:
            lines.append(f"Only its first {_size(len(answer.body))} were read.")
        return _Page("\n".join(lines), text.strip() or "(the page has no text)")

    def _asked_for(self, url: httpx2.URL) -> bool:
        """Whether the user wrote this URL; then it is the user who visits, and no robot."""
        for found in re.findall(r"https?://[^\s<>\"'`]+", self._settings.task, re.IGNORECASE):
            for written in (found, found.rstrip(".,;:!?)]}*_")):
                try:
                    if read_url(written) == url:
                        return True
                except ToolError:
                    continue
        return False

    async def _get(self, url: httpx2.URL, limit: int, *, robots: bool) -> _Answer:
        """What is at a URL, wherever it leads: every step is checked, the connection by the transport."""
        import httpcore2
        import httpx2

        for _ in range(_REDIRECTS + 1):
            if self._settings.proxy is not None:
                self._policy.check_name(url.host, port_of(url))
            if robots and self._settings.robots == "respect":
                await self._check_robots(url)
            try:
                async with self._client.stream("GET", url) as response:
                    location = response.headers.get("location")
                    if not (300 <= response.status_code < 400 and location):
                        return await _receive(url, response, limit)
            except (httpcore2.TimeoutException, httpx2.TimeoutException):
                raise TimeoutError from None
            except (httpcore2.ConnectError, httpx2.ConnectError) as exc:
                raise ToolError(f"no safe connection to {url.host} could be made: {exc}") from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError, httpx2.HTTPError) as exc:
                raise ToolError(f"{url.host} broke off, or answers what is not HTTP: {exc}") from None
            url = read_url(location, url)
        raise ToolError(f"more than {_REDIRECTS} redirects, the last to {url}")

    async def _check_robots(self, url: httpx2.URL) -> None:
        """Raises ToolError where the site's robots.txt keeps robots out, as RFC 9309 has it."""
        from protego import Protego

        place = url.copy_with(raw_path=b"/robots.txt")
        if str(place) not in self._robots:
            answer = await self._get(place, _ROBOTS_BYTES, robots=False)
            text = answer.body.decode("utf-8", "replace") if answer.status < 300 else ""
            if answer.status >= 500:
                text = "User-agent: *\nDisallow: /"
            self._robots[str(place)] = Protego.parse(text)
        agent = re.split(r"[/\s(]", self._settings.user_agent, maxsplit=1)[0]
        if not self._robots[str(place)].can_fetch(str(url), agent):
            raise ToolError(
                f"{url.host} does not want robots to read this page (robots.txt); use another source, or ask the user to "
                "give you its URL"
            )


async def _receive(url: httpx2.URL, response: httpx2.Response, limit: int) -> _Answer:
    """The body as far as it is wanted: nothing of what could not be shown anyway."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in (
        "gzip",
        "deflate",
        "identity",
        "",
    ):  # two within each other could keep a processor busy for hours
        raise ToolError(f"{url.host} packs its answer as {coding[:40]!r}, which was not asked for")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    announced = response.headers.get("content-length", "")
    size = int(announced) if re.fullmatch(r"\d{1,18}", announced) and coding in ("identity", "") else None
    body = bytearray()
    whole = True
    if not kind.startswith(("image/", "audio/", "video/", "font/")):
        async for part in response.aiter_bytes():
            body += part
            if len(body) > limit:
                del body[limit:]
                whole = False
                break
    return _Answer(url, response.status_code, kind, response.charset_encoding, bytes(body), whole, size)


# --- what a page says


async def _readable(answer: _Answer) -> tuple[str, str]:
    """Its title and its text. Raises ToolError where there is none to be had."""
    kind = answer.kind
    if kind in ("", "application/octet-stream", "binary/octet-stream", "application/zip"):
        kind = _sniff(answer)
    if kind in _DOCUMENTS:
        return await _document(answer, kind)
    if kind in _HTML:
        return await _markdown(answer)
    if _JSON.fullmatch(kind):
        text = _decode(answer)
        try:
            return "", json.dumps(json.loads(text), indent=1, ensure_ascii=False)
        except (ValueError, RecursionError):
            return "", text
    if _TEXT.fullmatch(kind):
        return "", _decode(answer)
    size = answer.size if answer.size is not None else len(answer.body)
    what = "an image" if kind.startswith("image/") else "a file"
    return "", f"This is {what}, not text: {kind or 'of unknown type'}{f', {_size(size)}' if size else ''}."


def _sniff(answer: _Answer) -> str:
    head = answer.body[:1000]
    if head.startswith(b"%PDF-"):
        return "application/pdf"
    if head.startswith(b"PK\3\4"):
        suffix = re.search(r"\.(docx|xlsx|pptx)$", answer.url.path.lower())
        kinds = {s: k for k, s in _DOCUMENTS.items()}
        return kinds[suffix[0]] if suffix else answer.kind
    if re.match(rb"\s*<(!doctype html|html)", head, re.IGNORECASE):
        return "text/html"
    if b"\0" in head:
        return answer.kind
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return answer.kind
    return "application/json" if head.lstrip().startswith((b"{", b"[")) else "text/plain"


async def _document(answer: _Answer, kind: str) -> tuple[str, str]:
    from agentkit_tools.documents import to_text

    given_up = threading.Event()
    read = partial(to_text, answer.body, kind, answer.url.path.rpartition("/")[2], cancelled=given_up.is_set)
    if not answer.whole:
        raise ToolError(f"{answer.url} is larger than {_size(len(answer.body))} and is not read")
    try:
        document = await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
    finally:
        given_up.set()
    return document.title, "\n\n".join([*document.notes, *(page.text for page in document.pages)])


async def _markdown(answer: _Answer) -> tuple[str, str]:
    html = _decode(answer, html=True)[:_MARKDOWN_CHARS]
    plan = json.dumps({"path": sys.path, "url": str(answer.url), "seconds": _MARKDOWN_SECONDS})
    program = Path(__file__).with_name("web_page.py")
    done = await anyio.run_process(
        [sys.executable, "-I", "-S", "-B", str(program)],
        input=f"{plan}\n{html}".encode(errors="replace"),
        check=False,
        cwd="/",
        env={},
        start_new_session=True,  # Ctrl-C is for us; a call that is given up ends it
    )
    try:
        title, text = json.loads(done.stdout)
    except ValueError:
        raise ToolError(f"{answer.url} cannot be read: it is broken, or much too complicated") from None
    return title, text


# What web pages mean by the names of these, https://encoding.spec.whatwg.org
_MEANT = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "tis-620": "cp874",
}
_CODECS = re.compile(
    r"utf-(8|16|32)(-le|-be|-sig)?|iso8859.*|iso2022_jp|cp\d+|gb18030|big5hkscs|euc_jp|koi8-[ru]|mac-.*"
)
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def _decode(answer: _Answer, *, html: bool = False) -> str:
    body = answer.body
    meta = (
        re.search(rb"<meta[^>]{0,200}charset\s{0,9}=[\s\"']{0,9}([\w:.-]{1,40})", body[:4096], re.IGNORECASE)
        if html
        else None
    )
    named = [name for bom, name in _BOMS if body.startswith(bom)]
    named += [answer.charset or "", meta[1].decode("ascii", "ignore") if meta else ""]
    for name in named:
        try:
            codec = codecs.lookup(name).name
        except (LookupError, ValueError):
            continue
        codec = _MEANT.get(codec, codec)
        if _CODECS.fullmatch(codec):  # some of Python's others take ages for a bad input
            return body.decode(codec, "replace")
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(body, final=answer.whole)
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


# --- what the model is shown of it


def _part(page: _Page, number: int, limit: int) -> str:
    parts = _parts(page.text, limit)
    if not 1 <= number <= len(parts):
        raise ToolError(f"the page has {len(parts)} part{'s' * (len(parts) != 1)}; there is no page={number}")
    end = ""
    if len(parts) > 1:
        more = (
            "; call web_fetch with the same url and page={} for more" if number < len(parts) else ", the last"
        )
        end = f"\n\n[page {number} of {len(parts)}{more.format(number + 1)}]"
    return f"{page.heading}\n\n{parts[number - 1]}{end}"


def _parts(text: str, limit: int) -> list[str]:
    """The text in pieces of at most *limit* characters that end at paragraphs, lines or words where they can."""
    parts = []
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        cut = next((at for end in ("\n\n", "\n", " ") if (at := window.rfind(end)) > limit // 2), limit)
        parts.append(window[:cut].strip("\n"))
        start += cut
    return [*parts, text[start:].strip("\n")]


def _size(size: float) -> str:
    if size < 1000:
        return f"{size:.0f} bytes"
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"


web_fetch = WebFetch()
