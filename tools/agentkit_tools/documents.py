"""Documents as text: PDF, Word, Excel, PowerPoint, HTML, CSV and more, read in a child process that a bad file cannot leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any, Final, Literal

from agentkit.errors import ToolError
from agentkit.tools import Notify, Tool, tool
from agentkit_tools.beneath import SECRETS, Root, find, open_file, opened, said, shown
from agentkit_tools.document_formats import HARMLESS, Unreadable, parse, sniff

__all__ = ["Document", "MissingLibrary", "Page", "ReadDocument", "read_document", "to_text"]

_LARGEST: Final = 100_000_000  # bytes of a file
_SECONDS: Final = 60  # of the processor, for one document; twice that by the clock
_MEMORY: Final = 1_500_000_000  # bytes of address space
_REMEMBERED: Final = 4  # documents, so that the next page does not mean to read it all again


class MissingLibrary(ToolError):
    """The library that reads such a document is not installed; the message names the extra."""


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a document: its `label` ("page 3", "slide 2", "sheet 'Costs', rows 1-60") and its text as Markdown."""

    label: str
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says. Pages of a PDF and slides are as in the file; what has no pages is cut into some of 4,000 characters."""

    kind: str
    pages: tuple[Page, ...]
    title: str = ""
    notes: tuple[str, ...] = ()  # what a reader should know, such as pages that were left out


def to_text(
    data: bytes,
    mime: str | None = None,
    name: str = "",
    *,
    seconds: int = _SECONDS,
    memory: int = _MEMORY,
    cancelled: Callable[[], bool] = lambda: False,
) -> Document:
    """The text of a document's bytes; what kind it is, they say themselves, and *mime* and *name* only where they do not.

    Anything but plain text and CSV is read in a child process, which may use that many *seconds* of the processor and
    that much *memory* (bytes). Blocks until then, or until *cancelled* says so.

    Raises:
        ToolError: it cannot be read, in one sentence that says why.
    """
    if len(data) > _LARGEST:
        raise ToolError(f"{_named(name)} is larger than {_LARGEST // 1_000_000} MB and is not read")
    try:
        harmless = sniff(data, mime, name) in HARMLESS
    except Unreadable as exc:
        raise ToolError(f"{_named(name)} {exc}") from None
    answer = parse(data, mime, name) if harmless else _in_child(data, mime, name, seconds, memory, cancelled)
    if missing := answer.get("missing"):
        raise MissingLibrary(
            f"{_named(name)} cannot be read without {missing}; the user can install it: pip install 'agentkit[documents]'"
        )
    if error := answer.get("error"):
        raise ToolError(f"{_named(name)} {error}")
    pages = tuple(Page(str(label), str(text)) for label, text in answer["pages"])
    return Document(str(answer["kind"]), pages, str(answer["title"]), tuple(map(str, answer["notes"])))


def _named(name: str) -> str:
    return shown(name) if name else "the document"


def _in_child(
    data: bytes, mime: str | None, name: str, seconds: int, memory: int, cancelled: Callable[[], bool]
) -> dict[str, Any]:
    plan = {"seconds": seconds, "memory": memory, "mime": mime, "name": name, "path": sys.path}
    program = Path(__file__).with_name("document_formats.py")
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as answered:
        asked.write(json.dumps(plan).encode() + b"\n" + data)
        asked.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(program)],
            stdin=asked,
            stdout=answered,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={},
            start_new_session=True,
        )
        try:
            status = _wait(child, 2 * seconds, cancelled)
        finally:
            child.kill()
            child.wait()
        answered.seek(0)
        answer = answered.read()
    if status is None or status in (-signal.SIGXCPU, -signal.SIGALRM, -signal.SIGKILL):
        return {"error": f"was not read within {seconds} seconds"}
    if status < 0 or status > 1:
        return {"error": "crashes the parser or needs too much memory: it is broken, or meant to do harm"}
    try:
        found = json.loads(answer)
    except ValueError:
        return {"error": "is broken, or has too much text"}
    return dict(found)


def _wait(child: subprocess.Popen[bytes], seconds: float, cancelled: Callable[[], bool]) -> int | None:
    """Its exit status; None if it was not done in time, or nobody wants to know any more."""
    end = monotonic() + seconds
    while monotonic() < end and not cancelled():
        try:
            return child.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    return None


@dataclass(frozen=True, slots=True)
class ReadDocument:
    """`read_document` for files below *root* (by default where the program runs), and no others.

    Args:
        root: the folder.
        max_chars: characters of one answer; the model is told how to read on.
        deny: globs of names that are never read, such as keys; "!glob" makes an exception to those before it.
    """

    root: str | Path = "."
    max_chars: int = 8000
    deny: tuple[str, ...] = SECRETS
    scope: Literal["run", "agent"] = "agent"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        import anyio.to_thread

        remembered: dict[tuple[object, ...], Document] = {}
        with opened(self.root, self.deny) as root:

            @tool(effects=["reads"])
            async def read_document(path: str, page: int = 1, part: int = 1) -> str:
                """Read a document as text: PDF, Word, Excel, PowerPoint, HTML, CSV, EPUB, RTF or OpenDocument.

                Args:
                    path: Path of the file, relative to the working folder.
                    page: Page, slide or piece of a sheet to begin with, counted from 1.
                    part: Part of that page to begin with, if the page is long.
                """
                over = Event()
                try:
                    document = await anyio.to_thread.run_sync(
                        lambda: _load(root, path, remembered, over.is_set), abandon_on_cancel=True
                    )
                finally:
                    over.set()
                return _show(document, path, page, part, self.max_chars)

            yield [read_document]


read_document: Final = ReadDocument()


def _load(
    root: Root, path: str, remembered: dict[tuple[object, ...], Document], cancelled: Callable[[], bool]
) -> Document:
    with find(root, path) as place, said(path), open_file(place.folder, place.name) as file:
        info = os.fstat(file.fileno())
        key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, path)
        if key in remembered:
            return remembered[key]
        data = file.read(_LARGEST + 1)
    document = to_text(data, None, path, cancelled=cancelled)
    while len(remembered) >= _REMEMBERED:
        remembered.pop(next(iter(remembered)), None)
    remembered[key] = document
    return document


def _show(document: Document, path: str, page: int, part: int, limit: int) -> str:
    """As many pages as fit, from there on; what comes before them says what it is, what comes last how to go on."""
    count = len(document.pages)
    if not 1 <= page <= count:
        raise ToolError(f"{shown(path)} has {count} pages; there is no page {page}")
    head = [f"{path}: {document.kind}, {count} page{'s' * (count != 1)}"]
    if page == 1 and part <= 1:
        head += [f"Title: {document.title}"] * bool(document.title)
        head += _sheets(document.pages)
        head += [f"Note: {note}" for note in document.notes]
    text = "\n".join(head)
    left = max(limit - len(text), 500)
    for n in range(page, count + 1):
        of = document.pages[n - 1]
        name = f"page {n} of {count}" + (f": {of.label}" if of.label not in ("", f"page {n}") else "")
        body = of.text
        begin = (max(part, 1) - 1) * limit if n == page else 0
        if begin and begin >= len(body):
            raise ToolError(f"page {page} of {shown(path)} has {-(-len(body) // limit) or 1} parts")
        if n > page and len(body) > left:
            return f"{text}\n\n[The document goes on: read_document with page={n}]"
        piece = body[begin : begin + limit]
        cut = begin + limit < len(body)
        name += f", part {begin // limit + 1} of {-(-len(body) // limit)}" if begin or cut else ""
        text += f"\n\n[{name}]\n{piece or '(no text on this page)'}"
        if cut:
            return f"{text}\n\n[This page goes on: read_document with page={n}, part={begin // limit + 2}]"
        left -= len(piece) + len(name) + 5
    return f"{text}\n\n[End of the document]"


def _sheets(pages: Sequence[Page]) -> list[str]:
    """Where each sheet of a workbook begins, if there are several."""
    first: dict[str, int] = {}
    for n, page in enumerate(pages, 1):
        if page.label.startswith("sheet "):
            first.setdefault(page.label[6:].rpartition(", rows")[0] or page.label[6:], n)
    places = [f"{name} on page {n}" for name, n in list(first.items())[:40]]
    return [f"Sheets: {', '.join(places)}"] if len(first) > 1 else []
