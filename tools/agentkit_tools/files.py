"""Reading, searching and changing the user's files, below given folders and nowhere else."""

from __future__ import annotations

import codecs
import json
import os
import re
import secrets
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, BinaryIO, Final, Literal

from agentkit import Tool, ToolError, tool
from agentkit.tools import Notify, closest
from agentkit_tools.beneath import (
    SECRETS,
    Place,
    Root,
    find,
    may_hold,
    open_file,
    open_folder,
    opened,
    refused,
    said,
    shown,
)
from agentkit_tools.edits import replace_text

__all__ = ["Files", "ReadFile", "files", "read_file"]

_LARGEST_READ: Final = 1 << 30  # bytes of a file that is read in pieces
_LARGEST_SEARCH: Final = 20_000_000  # bytes of a file that is searched
_ENTRIES, _MATCHES = 400, 50  # of one answer
_NEAR = 5  # of one answer that has only most of the words
_WORDS = 12  # of a query, at most
_VISITS: Final = 50_000  # entries looked at in one walk
_SECONDS: Final = 10.0  # for one walk, and for all of a search
_DEEPEST: Final = 60  # folders in folders; each one being walked holds a descriptor
_BULKY: Final = frozenset(
    "node_modules __pycache__ .venv venv .tox .mypy_cache .ruff_cache .pytest_cache .cache".split()
)
_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True, slots=True)
class Files:
    """`read_file`, `list_files`, `search_files`, `write_file` and `edit_file` for all that is below the *roots*.

    Links are followed while they stay below a root. Files are replaced whole or not at all, and by `write_file` only if they were
    read before, so that a model does not undo what it has not seen.

    Args:
        roots: folders; relative paths are tried in each, and new files go to the first.
        write: whether there are `write_file` and `edit_file`.
        deny: globs of names, in any folder, that are neither shown nor touched; "!glob" makes exceptions.
        max_output: characters of one answer; a longer file is read in pieces.
        max_size: bytes of a file that is written or edited.
    """

    roots: Sequence[str | Path] | str | Path = (".",)
    write: bool = True
    deny: Sequence[str] = SECRETS
    max_output: int = 20_000
    max_size: int = 10_000_000
    scope: Literal["run", "agent"] = "agent"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        given = [self.roots] if isinstance(self.roots, str | Path) else self.roots
        with ExitStack() as stack:
            roots = tuple(stack.enter_context(opened(path, self.deny)) for path in given)
            yield _tools(_Shelf(roots, self.max_output, self.max_size), self.write)


@dataclass(frozen=True, slots=True)
class ReadFile:
    """`read_file` and `list_files` for everything below *root* (by default where the program runs), and nothing else."""

    root: str | Path = "."
    scope: Literal["run", "agent"] = "agent"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        async with Files((self.root,), write=False).open(notify) as tools:
            yield [t for t in tools if t.name in ("read_file", "list_files")]


files: Final = Files()
read_file: Final = ReadFile()


def _tools(shelf: _Shelf, write: bool) -> list[Tool]:
    @tool(effects=("reads",))
    def read_file(path: str, start_line: int = 1, max_lines: int = 1000) -> str:
        """Read a text file.

        Args:
            path: Path of the file, relative to the working folder.
            start_line: First line to read, counted from 1.
            max_lines: How many lines to read at most.
        """
        return shelf.read(path, max(start_line, 1), max(max_lines, 1))

    @tool(effects=("reads",))
    def list_files(path: str = ".", pattern: str = "", recursive: bool = False) -> str:
        """List the files and folders in a folder.

        Args:
            path: Path of the folder, relative to the working folder.
            pattern: Only names like this: "*.py", or "src/**/*.py" for all folders below.
            recursive: Whether to list the folders in it too.
        """
        return shelf.list_folder(path, pattern, recursive)

    @tool(effects=("reads",))
    def search_files(query: str, path: str = ".", pattern: str = "", regex: bool = False) -> str:
        """Find the lines that contain a text, in all files of a folder.

        Args:
            query: The text; capitals matter only if it has some.
            path: The folder or file to search.
            pattern: Only files with names like this: "*.py".
            regex: Whether query is a regular expression.
        """
        return shelf.search(query, path, pattern, regex)

    @tool(effects=("writes", "destroys"))
    def write_file(path: str, content: str, append: bool = False) -> str:
        """Write a text file; what was in it is replaced.

        Args:
            path: Path of the file, relative to the working folder. Missing folders are made.
            content: The whole new text.
            append: Add content to the end of the file instead.
        """
        return shelf.write(path, content, append)

    @tool(effects=("reads", "writes", "destroys"))
    def edit_file(path: str, old_text: str, new_text: str, replace_all: bool = False) -> str:
        """Replace a piece of a text file.

        Args:
            path: Path of the file, relative to the working folder.
            old_text: What is there now, exactly, with enough lines around it to be there only once.
            new_text: What to put in its place.
            replace_all: Replace each place where old_text is.
        """
        return shelf.edit(path, old_text, new_text, replace_all)

    readers = [read_file, list_files, search_files]
    return [*readers, write_file, edit_file] if write else readers


@dataclass(frozen=True, slots=True)
class _Shelf:
    """What the tools do; paths as the model gives them, text as it gets it."""

    roots: tuple[Root, ...]
    max_output: int
    max_size: int
    changing: threading.Lock = field(default_factory=threading.Lock)  # one change at a time loses none
    seen: set[str] = field(default_factory=set)  # files that were read or written here

    def _find(self, asked: str, make_folders: bool = False) -> AbstractContextManager[Place]:
        """The place in the first root that has something there, or else in the first that may."""
        possible = [root for root in self.roots if may_hold(root, asked)]
        for root in possible if len(possible) > 1 else ():
            with suppress(ToolError), find(root, asked) as place:
                if place.info is not None:
                    return find(root, asked, make_folders)
        return find((possible or self.roots)[0], asked, make_folders)

    def _told(self, place: Place, path: str) -> str:
        """How *path* of a root is called: from the first root as it is, from another with where that is."""
        return path if place.root is self.roots[0] else os.path.join(place.root.given, path)

    def read(self, asked: str, first: int, count: int) -> str:
        with self._find(asked) as place:
            _must_be_file(place, asked)
            self.seen.add(_key(place))
            with said(asked), open_file(place.folder, place.name) as file:
                return _page(file, shown(asked), first, count, self.max_output)

    def list_folder(self, asked: str, pattern: str, recursive: bool) -> str:
        with self._find(asked) as place, _folder(place, asked) as fd:
            wanted = _globs(pattern)
            deep = recursive or "/" in pattern or "**" in pattern
            walk = _Walk(place.root.deny, deep)
            lines: list[str] = []
            more = 0
            for _, _, path, info in walk.entries(fd):
                if not _matches(path, wanted):
                    continue
                if len(lines) < _ENTRIES:
                    lines.append(_entry(path, info))
                else:
                    more += 1
        notes = list(walk.notes)
        if more:
            notes.append(f"{more} more are not shown; give a pattern or a folder further down")
        if not lines:
            lines = [f"(nothing is named like {pattern!r})" if pattern else "(empty)"]
        return _cut("\n".join(lines), self.max_output) + "".join(f"\n[{note}]" for note in notes)

    def search(self, query: str, asked: str, pattern: str, regex: bool) -> str:
        if not query:
            raise ToolError("query is empty; to see which files there are, use list_files")

        def searched(text: str, expression: str | None) -> _Search:
            search = _Search(text, _compiled(expression) if expression is not None else None)
            with self._find(asked) as place:
                self._search(search, place, asked, _globs(pattern))
            return search

        search, note = searched(query, query if regex else None), ""
        if not search.found and not regex and re.search(r"[\\|*+?\[(^$]", query):
            with suppress(ToolError):
                again = searched(query, query)
                if again.found:
                    search, note = again, "query was taken as a regular expression"
        words = [] if search.found or regex else list(dict.fromkeys(re.findall(r"\w{4,}", query.lower())))
        if len(words) > 1:  # a question rather than what a line would say
            one = f"(?:{'|'.join(words[:_WORDS])})"
            with suppress(ToolError):  # of words without end: then nothing is found, as before
                if near := _with_most(words, searched(query.lower(), f"{one}[^\\n]*{one}").found):
                    search.found, note = near, "no line has just that; these have most of its words"
        if not search.found and "." in query and self._is_file(query):
            meant = f"query={pattern!r}, path={query!r}" if re.fullmatch(r"[\w ]+", pattern) else ""
            raise ToolError(
                f"{shown(query)} is a file: read_file shows it; to search in it, give it as path, and what to find as query"
                + (f": did you mean {meant}?" if meant else "")
            )
        found = search.found or [f"(nothing found in {search.files} files)"]
        notes = [*([note] if note else []), *search.notes]
        return _cut("\n".join(found), self.max_output) + "".join(f"\n[{n}]" for n in notes)

    def _search(self, search: _Search, place: Place, asked: str, wanted: list[list[str]]) -> None:
        with closing(search):
            if place.info is not None and stat.S_ISREG(place.info.st_mode):
                with said(asked), open_file(place.folder, place.name) as file:
                    search.look(file, self._told(place, place.path))
                return
            with _folder(place, asked) as fd:
                walk = _Walk(place.root.deny, deep=True, until=search.until)
                above = "" if place.path == "." else f"{place.path}/"
                for folder, name, path, info in walk.entries(fd):
                    if not stat.S_ISREG(info.st_mode) or not _matches(path, wanted):
                        continue
                    with suppress(OSError), open_file(folder, name) as file:
                        search.look(file, self._told(place, above + path))
                    if search.full:
                        break
                search.notes += walk.notes

    def _is_file(self, asked: str) -> bool:
        with suppress(ToolError), self._find(asked) as place:
            return place.info is not None and stat.S_ISREG(place.info.st_mode)
        return False

    def write(self, asked: str, content: str, append: bool) -> str:
        if asked.endswith("/"):
            raise ToolError(f"{shown(asked)} is a folder's name; give the file's name too")
        with self.changing, self._find(asked, make_folders=True) as place:
            before = b""
            if place.info is not None:
                _must_be_file(place, asked)
                before = self._whole(place, asked) if append else b""
                if not append and place.info.st_size and _key(place) not in self.seen:
                    raise ToolError(
                        f"{shown(asked)} is there already, and you have not read it: read_file shows what is in it, "
                        "edit_file changes a part of it, append=true adds to it"
                    )
            data = before + _encoded(content, _encoding(before)[0])
            self._replace(place, asked, data)
            self.seen.add(_key(place))
            told = shown(self._told(place, place.path))
            if append and place.info is not None:
                return f"Added {_count(content)} to {told}."
            was = f" in place of {place.info.st_size:,} bytes" if place.info is not None else ""
            return f"Wrote {_count(content)} to {told}{was}."

    def edit(self, asked: str, old: str, new: str, everywhere: bool) -> str:
        with self.changing, self._find(asked) as place:
            _must_be_file(place, asked)
            data = self._whole(place, asked)
            encoding, bom = _encoding(data)
            try:
                text = data[len(bom) :].decode(encoding)
            except UnicodeDecodeError:
                raise ToolError(f"{shown(asked)} is not a UTF-8 text and cannot be edited") from None
            if "\0" in text:
                raise ToolError(f"{shown(asked)} is a binary file and cannot be edited")
            changed, how = replace_text(text, old, new, everywhere)
            self._replace(place, asked, bom + _encoded(changed, encoding))
            self.seen.add(_key(place))
            return f"Edited {shown(self._told(place, place.path))}: {how}."

    def _whole(self, place: Place, asked: str) -> bytes:
        with said(asked), open_file(place.folder, place.name) as file:
            data = file.read(self.max_size + 1)
        if len(data) > self.max_size:
            raise ToolError(f"{shown(asked)} is larger than {_size(self.max_size)} and cannot be changed")
        return data

    def _replace(self, place: Place, asked: str, data: bytes) -> None:
        """Put a new file in the place of the old one, whose hard links and watchers keep what they had."""
        if len(data) > self.max_size:
            raise ToolError(f"that is {_size(len(data))}; a file may have {_size(self.max_size)}")
        if place.name == ".":
            raise ToolError(f"{shown(asked)} is a folder")
        before = place.info
        with said(asked):
            if before is not None:
                if not before.st_mode & 0o222:
                    raise ToolError(f"{shown(asked)} is read-only")
                flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                os.close(os.open(place.name, flags, dir_fd=place.folder))  # may it be written?
            temporary = f".{secrets.token_hex(8)}.tmp"
            fd = os.open(
                temporary,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o666 if before is None else 0o600,
                dir_fd=place.folder,
            )
            try:
                with os.fdopen(fd, "wb") as file:
                    file.write(data)
                    file.flush()
                    if before is not None:
                        with suppress(PermissionError):
                            os.fchown(fd, before.st_uid, before.st_gid)
                        os.fchmod(fd, before.st_mode & 0o777)
                    os.fsync(fd)
                os.rename(temporary, place.name, src_dir_fd=place.folder, dst_dir_fd=place.folder)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary, dir_fd=place.folder)
                raise


def _key(place: Place) -> str:
    return os.path.join(place.root.path, place.path)


def _must_be_file(place: Place, asked: str) -> None:
    """Say no to what is none, with the name that was probably meant."""
    if place.info is None:
        names: list[str] = []
        with suppress(OSError), open_folder(place.folder) as fd:
            names = [n for n in os.listdir(fd) if not refused(n, place.root.deny)][:2000]
        near = closest(place.name, names)
        here = os.path.join(os.path.dirname(place.path), near) if near else _elsewhere(place)
        raise ToolError(
            f"there is no file {shown(asked)}" + (f"; did you mean {shown(here)}?" if here else "")
        )
    if stat.S_ISDIR(place.info.st_mode):
        raise ToolError(f"{shown(asked)} is a folder; list_files shows what is in it")
    if not stat.S_ISREG(place.info.st_mode):
        raise ToolError(f"{shown(asked)} is a pipe, a socket or a device, not a file")


def _elsewhere(place: Place) -> str:
    """The one place below the root that has this name, as models leave out the folder; "" if there is none, or several."""
    found: list[str] = []
    with suppress(OSError), open_folder(place.root.fd) as fd:
        walk = _Walk(place.root.deny, deep=True, until=time.monotonic() + 1)
        for _, name, path, _ in walk.entries(fd):
            if name == place.name:
                found.append(path)
            if len(found) > 1:
                return ""
    return found[0] if found else ""


@contextmanager
def _folder(place: Place, asked: str) -> Iterator[int]:
    if place.info is None:
        here = _elsewhere(place)
        raise ToolError(
            f"there is no folder {shown(asked)}" + (f"; did you mean {shown(here)}?" if here else "")
        )
    if not stat.S_ISDIR(place.info.st_mode):
        raise ToolError(f"{shown(asked)} is a file, not a folder; read_file shows what is in it")
    with ExitStack() as stack:
        with said(asked):
            fd = stack.enter_context(open_folder(place.folder, place.name))
        yield fd


def _page(file: BinaryIO, path: str, first: int, count: int, limit: int) -> str:
    """*count* lines from the *first*, and how to get at the rest."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8192)
    encoding, bom = _encoding(start)
    if encoding == "utf-8" and (b"\0" in start or start.startswith(b"%PDF-")):
        return _binary(path, start, size)
    if size > _LARGEST_READ or (encoding != "utf-8" and size > _LARGEST_SEARCH):
        raise ToolError(f"{path} is {_size(size)}, which is too large; search_files or code can look into it")
    lines: Iterator[str]
    if encoding == "utf-8":  # line ends can be counted without decoding
        file.seek(len(bom))
        if not _skip_lines(file, first - 1):
            lines = iter(())
        else:
            lines = (
                line.decode("utf-8", "replace") for line in iter(lambda: file.readline(limit * 4 + 4), b"")
            )
    else:
        text = (start + file.read()).removeprefix(bom).decode(encoding, "replace")
        lines = iter(text.splitlines(keepends=True)[first - 1 :])
    taken: list[str] = []
    room, cut = limit, False
    last, whole = first - 1, True
    for piece in lines:
        if whole and last - first + 1 >= count:
            cut = True
            break
        if whole:
            last += 1
        whole = piece.endswith("\n")
        if len(piece) > room:
            cut = True
            if not taken:  # nothing smaller can be asked for
                taken.append(piece[:room])
                if not whole:
                    _skip_lines(file, 1)
                whole = False
            else:
                last -= 1
            break
        taken.append(piece)
        room -= len(piece)
    text = "".join(taken).replace("\r\n", "\n")
    notes = []
    if not taken:
        if first == 1:
            return "(the file is empty)"
        raise ToolError(f"{path} has fewer than {first} lines")
    if cut and len(taken) == 1 and not whole and room == limit:
        notes.append(
            f"line {last} is cut, it is longer than {limit:,} characters; go on with start_line={last + 1}"
        )
    elif cut:
        notes.append(f"the file goes on; read on with start_line={last + 1}")
    if encoding != "utf-8":
        notes.append(f"the file is {encoding[:6].upper()}")
    elif "\ufffd" in text:
        notes.append("the file is not UTF-8 text; what could not be read is shown as �")
    return text + "".join(f"\n[{note}]" for note in notes)


def _skip_lines(file: BinaryIO, lines: int) -> bool:
    """Move to after as many line ends; False where there are fewer, or nothing after them."""
    while lines:
        at = file.tell()
        chunk = file.read(1 << 20)
        if not chunk:
            return False
        there = chunk.count(b"\n")
        if there < lines:
            lines -= there
            continue
        end = 0
        for _ in range(lines):
            end = chunk.index(b"\n", end) + 1
        file.seek(at + end)
        break
    return True


def _encoding(data: bytes) -> tuple[str, bytes]:
    """The encoding that its first bytes name, and those bytes."""
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return encoding, bom
    return "utf-8", b""


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError:
        raise ToolError("the text has half a character (a lone surrogate); write it out whole") from None


def _binary(path: str, start: bytes, size: int) -> str:
    import mimetypes

    name = path.strip("'\"").lower()
    kind = mimetypes.guess_type(name)[0]
    if start.startswith(b"\x7fELF"):
        kind = "a program"
    elif start.startswith(b"SQLite format 3\0"):
        kind = "an SQLite database"
    document = name.endswith((".pdf", ".docx", ".xlsx", ".pptx"))
    hint = "; read_document can read it, if you have that" if document else ""
    return f"{path} is a binary file{f' ({kind})' if kind else ''} of {_size(size)}, not text{hint}."


class _Walk:
    """The entries of a folder and, if *deep*, of those in it; `notes` say what was left out."""

    def __init__(self, deny: Sequence[str], deep: bool, until: float | None = None) -> None:
        self.notes: list[str] = []
        self._deny = deny
        self._deep = deep
        self._until = until if until is not None else time.monotonic() + _SECONDS
        self._left = _VISITS

    def entries(
        self, fd: int, above: str = "", depth: int = 0
    ) -> Iterator[tuple[int, str, str, os.stat_result]]:
        """Of each: the open folder it is in, its name there, its path from where the walk began, and its lstat."""
        for name in sorted(os.listdir(fd)):
            self._left -= 1
            if self._left < 0 or time.monotonic() > self._until:
                self._note("there are too many files to look at all; name a folder further down")
                return
            if refused(name, self._deny):
                self._note("files that may hold secrets are not shown")
                continue
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError:
                continue  # gone since
            yield fd, name, above + name, info
            if not self._deep or not stat.S_ISDIR(info.st_mode):
                continue
            if name in _BULKY:
                self._note(f"{name}/ was not looked into")
            elif depth >= _DEEPEST:
                self._note(f"folders deeper than {_DEEPEST} were not looked into")
            else:
                try:
                    with open_folder(fd, name) as inner:
                        yield from self.entries(inner, f"{above}{name}/", depth + 1)
                except OSError as exc:
                    self._note(f"{shown(above + name)} was not looked into: {exc.strerror}")

    def _note(self, note: str) -> None:
        if note not in self.notes and len(self.notes) < 8:
            self.notes.append(note)


def _with_most(words: Sequence[str], lines: Sequence[str]) -> list[str]:
    """The lines with the most of the words, if that is half of them and at least two."""
    count = {line: sum(word in line.lower() for word in words) for line in lines}
    most = max(count.values(), default=0)
    return [line for line in lines if count[line] == most][:_NEAR] if most >= max(2, len(words) / 2) else []


class _Search:
    """One search through many files: the lines found so far, and what a regular expression's process may take."""

    def __init__(self, query: str, expression: str | None) -> None:
        self.found: list[str] = []
        self.notes: list[str] = []
        self.files = 0
        self.until = time.monotonic() + _SECONDS
        self._query = query
        self._fold = query == query.lower()
        self._expression = expression
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None

    @property
    def full(self) -> bool:
        return len(self.found) >= _MATCHES or time.monotonic() > self.until

    def look(self, file: BinaryIO, path: str) -> None:
        data = file.read(_LARGEST_SEARCH + 1)
        if len(data) > _LARGEST_SEARCH:
            self.notes[:] = [*self.notes[:5], f"{shown(path)} is too large to be searched"]
            return
        encoding, bom = _encoding(data)
        if encoding == "utf-8" and b"\0" in data[:8192]:
            return
        self.files += 1
        text = data[len(bom) :].decode(encoding, "replace").replace("\r\n", "\n")
        places = self._expression_in(text) if self._expression is not None else self._query_in(text)
        lines = text.split("\n") if places else []
        for number, column in places:
            if len(self.found) == _MATCHES:
                self.notes.append(f"only the first {_MATCHES} lines are shown; search for something rarer")
                break
            line = lines[number]
            start = 0 if len(line) <= 200 else max(column - 60, 0)
            cut = line[start : start + 200]
            self.found.append(
                f"{_printable(path)}:{number + 1}: {'…' if start else ''}{cut}{'…' if start + 200 < len(line) else ''}"
            )

    def _query_in(self, text: str) -> list[tuple[int, int]]:
        query = self._query.replace("\r\n", "\n")
        hay = text.lower() if self._fold else text
        places: list[tuple[int, int]] = []
        at = line = counted = 0
        while len(places) <= _MATCHES and (at := hay.find(query, at)) >= 0:
            line += hay.count("\n", counted, at)
            counted = at
            places.append((line, at - hay.rfind("\n", 0, at) - 1))
            end = hay.find("\n", at)
            if end < 0:
                break
            at = end + 1
        return places

    def _expression_in(self, text: str) -> list[tuple[int, int]]:
        """A process does it: an expression that never ends would hold up every thread of this one."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _MATCHER, str(int(_SECONDS) + 1)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._timer = threading.Timer(_SECONDS, self._process.kill)
            self._timer.daemon = True
            self._timer.start()
            self._send(json.dumps([self._expression, self._fold, _MATCHES + 1]).encode())
        self._send(text.encode("utf-8", "surrogatepass"))
        answer = _pipe(self._process.stdout).readline()
        if not answer:
            raise ToolError(
                "the regular expression takes too long; make it simpler, or search for a plain text"
            )
        return [(number, column) for number, column in json.loads(answer)]

    def _send(self, data: bytes) -> None:
        assert self._process is not None
        pipe = _pipe(self._process.stdin)
        with suppress(BrokenPipeError):  # then there is no answer either
            pipe.write(len(data).to_bytes(8, "big") + data)
            pipe.flush()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            with suppress(BrokenPipeError):
                _pipe(self._process.stdin).close()
            _pipe(self._process.stdout).close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None
    return stream


_MATCHER: Final = """
import json, re, resource, sys
seconds = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
def read():
    size = sys.stdin.buffer.read(8)
    return sys.stdin.buffer.read(int.from_bytes(size, "big")) if size else None
query, fold, most = json.loads(read())
find = re.compile(query, re.IGNORECASE if fold else 0).search
while (data := read()) is not None:
    found = []
    for number, line in enumerate(data.decode("utf-8", "surrogatepass").split("\\n")):
        match = find(line)
        if match:
            found.append((number, match.start()))
            if len(found) == most:
                break
    print(json.dumps(found), flush=True)
"""


def _compiled(query: str) -> str:
    """*query*, if it is a regular expression; small, for to compile a big one is work too."""
    if len(query) > 1000:
        raise ToolError("the regular expression is longer than 1,000 characters")
    try:
        re.compile(query)
    except (re.error, OverflowError, RecursionError) as exc:
        raise ToolError(f"{query!r} is not a regular expression: {exc}") from None
    return query


def _globs(pattern: str) -> list[list[str]]:
    """The pattern's steps, once for each way to read its {a,b}."""
    ways = [pattern.strip().removeprefix("./")]
    for _ in range(4):
        opened_out = []
        for way in ways:
            braces = re.search(r"\{([^{}]*)\}", way)
            words = braces[1].split(",") if braces else [""]
            opened_out += [
                way[: braces.start()] + word + way[braces.end() :] if braces else way for word in words[:20]
            ]
        ways = opened_out[:60]
    return [steps for way in ways if (steps := [s for s in way.split("/") if s])]


def _matches(path: str, globs: list[list[str]]) -> bool:
    """Without "/" a glob is for the last name; else for the whole path, "**" standing for any folders."""
    steps = path.split("/")
    return not globs or any(
        fnmatchcase(steps[-1], glob[0]) if len(glob) == 1 and glob[0] != "**" else _fits(steps, glob)
        for glob in globs
    )


def _fits(steps: list[str], glob: list[str]) -> bool:
    ends = {0}  # how many steps the globs so far can have taken
    for part in glob:
        if part == "**":
            ends = set(range(min(ends), len(steps) + 1)) if ends else ends
        else:
            ends = {n + 1 for n in ends if n < len(steps) and fnmatchcase(steps[n], part)}
    return len(steps) in ends


def _entry(path: str, info: os.stat_result) -> str:
    name = _printable(path)
    if stat.S_ISDIR(info.st_mode):
        return f"{name}/"
    if stat.S_ISREG(info.st_mode):
        return f"{name} ({info.st_size} bytes)"
    return f"{name} ({'link' if stat.S_ISLNK(info.st_mode) else 'no file'})"


def _printable(path: str) -> str:
    """As it is, unless it would break the line or is no text."""
    return path if path.isprintable() else repr(path)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return (
        text[: text.rfind("\n", 0, limit) if "\n" in text[:limit] else limit]
        + "\n[cut here: too much for one answer]"
    )


def _count(text: str) -> str:
    lines = len(text.splitlines())
    return f"{lines:,} line{'' if lines == 1 else 's'}"


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
