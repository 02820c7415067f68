"""Passages from the user's files that say something about a question: BM25 over an index that is kept, and kept up to date."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import stat
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from math import log
from pathlib import Path
from threading import Event
from typing import Final, Literal, NamedTuple

from agentkit.errors import ConfigError, ToolError
from agentkit.tools import Notify, Tool, tool
from agentkit_tools.beneath import SECRETS, open_file, refused, shown
from agentkit_tools.document_formats import Unreadable, decode, sniff
from agentkit_tools.documents import MissingLibrary, to_text

__all__ = ["Found", "Passage", "Retrieve", "retrieve"]

_VERSION: Final = (
    1  # of the index: another one is built beside it when terms or passages are made differently
)
_PASSAGE, _OVERLAP = 300, 40  # tokens
_SECONDS: Final = 60  # one call spends on reading files; the next one reads on
_QUERY_TERMS: Final = 40
_OTHER_WORD: Final = 0.5  # what a word that is only like the one asked for counts
_WORTH: Final = 0.3  # of the best passage's score: what has less is left out

_SKIPPED_FOLDERS: Final = frozenset(
    "node_modules __pycache__ site-packages venv env vendor target build dist bower_components".split()
)
_SKIPPED_FILES: Final = re.compile(
    r"(package-lock\.json|yarn\.lock|pnpm-lock\.yaml|uv\.lock|poetry\.lock|cargo\.lock|.*\.min\.(js|css)|.*\.map|.*~"
    r"|.*\.(png|jpe?g|gif|webp|bmp|ico|tiff?|heic|svg|mp[34]|m4[av]|wav|flac|ogg|mov|avi|mkv|webm|zip|gz|bz2|xz|zst|7z"
    r"|rar|tar|tgz|whl|jar|iso|img|so|o|a|dll|dylib|exe|bin|pyc|class|wasm|woff2?|ttf|otf|eot|db|sqlite3?|gguf"
    r"|safetensors|pt|pth|onnx|npy|npz|parquet|arrow|feather|pkl|pickle|h5))",
    re.IGNORECASE,
)
_DOCUMENTS: Final = (".pdf", ".docx", ".xlsx", ".xls", ".pptx", ".epub", ".rtf", ".odt", ".ods", ".odp")
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files(id INTEGER PRIMARY KEY, path TEXT UNIQUE, seen TEXT, checked INTEGER, hash TEXT, note TEXT);
CREATE TABLE IF NOT EXISTS passages(id INTEGER PRIMARY KEY, file INTEGER, label TEXT, heading TEXT, text TEXT);
CREATE INDEX IF NOT EXISTS passages_of ON passages(file);
CREATE TABLE IF NOT EXISTS vocabulary(term TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(heading, body,
    tokenize = "porter unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc' tokenchars '_'");
"""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a file, and how well it fits the question, compared with the others."""

    file: str  # relative to the working folder if it is below that
    label: str  # where in the file: "page 3", "lines 10-40", "slide 2"
    heading: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gives: passages, best first; `more` fit but had no room."""

    passages: tuple[Passage, ...]
    more: int = 0
    instead: tuple[tuple[str, str], ...] = ()  # a word that is nowhere, and one like it that was looked for
    unread: tuple[str, ...] = ()  # files that could not be read, and why
    files: tuple[str, ...] = ()  # some of those there are, if nothing was found
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Retrieve:
    """`retrieve` over the files and folders in *paths*: what the user's documents say about a question.

    The index is kept in the user's cache folder; each call first takes in what has changed. In folders, hidden files,
    dependencies, build results and media are left out, and links are not followed.

    Args:
        paths: files and folders; by default the working folder.
        max_tokens: of one answer, roughly.
        max_results: passages in one answer.
        max_files: how many files are read at most.
        max_bytes: of one file.
        deny: globs of names that are never read, such as keys; "!glob" makes an exception to those before it.
        cache: the folder that the index is kept in.
    """

    paths: Sequence[str | Path] | str | Path = (".",)
    max_tokens: int = 2000
    max_results: int = 6
    max_files: int = 2000
    max_bytes: int = 20_000_000
    deny: tuple[str, ...] = SECRETS
    cache: str | Path | None = None
    scope: Literal["run", "agent"] = "agent"

    def __post_init__(self) -> None:
        given = (self.paths,) if isinstance(self.paths, str | Path) else tuple(self.paths)
        object.__setattr__(self, "paths", given)

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        import anyio.to_thread

        absolute = _absolute(self.paths)

        async def retrieve(query: str) -> str:
            over = Event()
            try:
                found = await anyio.to_thread.run_sync(
                    lambda: _search(self, absolute, query, over.is_set), abandon_on_cancel=True
                )
            finally:
                over.set()
            return _show(found, query)

        where = ", ".join(_relative(path) for path in absolute[:8]) + ("…" if len(absolute) > 8 else "")
        retrieve.__doc__ = f"""Search the user's files ({"working folder" if where == "." else where}): passages about something, with file and page.

        Args:
            query: What to look for: a question, or words that the text may use.
        """
        yield [tool(effects=["reads"])(retrieve)]

    def search(self, query: str) -> Found:
        """What the tool finds, as data. Raises `ToolError` for a query without words."""
        return _search(self, _absolute(self.paths), query, lambda: False)


retrieve: Final = Retrieve()


def _absolute(paths: Sequence[str | Path] | str | Path) -> list[str]:
    assert not isinstance(paths, str | Path)
    found = []
    for path in paths:
        real = os.path.realpath(Path(path).expanduser())
        if not os.path.exists(real):
            raise ConfigError(f"There is no file or folder {str(path)!r} to retrieve from.")
        found.append(real)
    return list(dict.fromkeys(found))


def _relative(path: str) -> str:
    here = os.path.realpath(".")
    return os.path.relpath(path, here) if path == here or path.startswith(f"{here.rstrip('/')}/") else path


def _search(setup: Retrieve, paths: Sequence[str], query: str, cancelled: Callable[[], bool]) -> Found:
    asked = _query_terms(query)
    if not asked:
        raise ToolError("the query has no words to look for")
    place = _index_file(setup, paths)
    for attempt in (1, 2):
        try:
            with closing(_opened(place)) as db:
                unread = _update(db, setup, paths, cancelled)
                return _rank(db, setup, asked, unread)
        except sqlite3.DatabaseError as exc:
            passing = isinstance(exc, sqlite3.OperationalError) and re.search(
                "locked|full|readonly|unable to open", str(exc)
            )
            if passing or attempt == 2:
                raise ToolError(f"the index {place} cannot be used: {exc}") from exc
            for suffix in ("", "-wal", "-shm"):  # broken: it is built anew
                Path(f"{place}{suffix}").unlink(missing_ok=True)
    raise AssertionError("the second attempt returns or raises")


def _index_file(setup: Retrieve, paths: Sequence[str]) -> Path:
    from platformdirs import user_cache_path

    folder = Path(setup.cache).expanduser() if setup.cache else user_cache_path("agentkit") / "retrieve"
    what = json.dumps([_VERSION, sorted(paths), setup.deny, setup.max_files, setup.max_bytes])
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ToolError(f"the index cannot be kept in {folder}: {exc.strerror}") from exc
    return folder / f"{hashlib.sha256(what.encode()).hexdigest()[:20]}.sqlite"


def _opened(place: Path) -> sqlite3.Connection:
    os.close(os.open(place, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))  # it holds what private files say
    db = sqlite3.connect(place, timeout=30, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";\n"):
            db.execute(statement)
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


# Bringing the index up to date


class _File(NamedTuple):
    path: str
    folder: int  # open while it is looked at
    name: str
    info: os.stat_result
    named: bool  # the user named it, rather than a folder that it is in


def _update(
    db: sqlite3.Connection, setup: Retrieve, paths: Sequence[str], cancelled: Callable[[], bool]
) -> list[str]:
    """Take in what is new or changed and drop what is gone. Returns what could not be read, and why."""
    known = {row[0]: row[1:] for row in db.execute("SELECT path, seen, checked, hash, note FROM files")}
    unread, seen = list[str](), set[str]()
    end, behind = time.monotonic() + _SECONDS, 0
    for file in _files(setup, paths):
        if file.path in seen:
            continue
        if len(seen) >= setup.max_files:
            unread.append(f"all but the first {setup.max_files} files (that is the limit)")
            break
        seen.add(file.path)
        state, checked, digest, note = known.get(file.path, ("", 0, "", ""))
        now = _state(file.info)
        # A file that was written just before we read it may have been written again without its times telling.
        if state != now or file.info.st_mtime_ns > checked - 2_000_000_000:
            if cancelled():
                return unread
            if time.monotonic() > end:
                behind += 1
                continue
            note = _take_in(db, setup, file, digest, cancelled)
        if note:
            unread.append(f"{_relative(file.path)} {note}")
    gone = known.keys() - seen
    if gone:
        db.execute("BEGIN IMMEDIATE")
        for path in gone:
            _drop(db, path)
        db.execute("COMMIT")
    return unread + ([f"{behind} files, which the next call will read"] if behind else [])


def _state(info: os.stat_result) -> str:
    return f"{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def _files(setup: Retrieve, paths: Sequence[str]) -> Iterator[_File]:
    for path in paths:
        parent, name = os.path.split(path)
        try:
            if not os.path.isdir(path):
                with _folder(parent) as fd:
                    yield _File(path, fd, name, os.stat(name, dir_fd=fd, follow_symlinks=False), True)
                continue
            for top, folders, names, fd in os.fwalk(path, follow_symlinks=False):
                folders[:] = sorted(f for f in folders if not _left_out(f, setup) and not _is_venv(f, fd))
                for name in sorted(names):
                    if _left_out(name, setup) or _SKIPPED_FILES.fullmatch(name):
                        continue
                    with suppress(OSError):
                        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
                        if stat.S_ISREG(info.st_mode):
                            yield _File(os.path.join(top, name), fd, name, info, False)
        except OSError:
            continue  # it is gone; so is what the index has of it


@contextmanager
def _folder(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _left_out(name: str, setup: Retrieve) -> bool:
    return name.startswith(".") or name.lower() in _SKIPPED_FOLDERS or refused(name, setup.deny)


def _is_venv(name: str, folder: int) -> bool:
    return os.access(f"{name}/pyvenv.cfg", os.F_OK, dir_fd=folder)


def _take_in(
    db: sqlite3.Connection, setup: Retrieve, file: _File, digest: str, cancelled: Callable[[], bool]
) -> str:
    """Put a file into the index in place of what it was. Returns why it could not be read, or ""."""
    checked, passages, note = time.time_ns(), list[_Piece](), ""
    try:
        if file.info.st_size > setup.max_bytes:
            raise ToolError(f"{shown(file.name)} is larger than {setup.max_bytes // 1_000_000} MB")
        with open_file(file.folder, file.name) as opened:
            data = opened.read(setup.max_bytes + 1)
        found = hashlib.sha256(data).hexdigest()
        if found == digest:
            db.execute(
                "UPDATE files SET seen = ?, checked = ? WHERE path = ?",
                (_state(file.info), checked, file.path),
            )
            row = db.execute("SELECT note FROM files WHERE path = ?", (file.path,)).fetchone()
            return str(row[0]) if row else ""
        passages = _passages(data, file.name, cancelled)
    except ToolError as exc:
        found = "" if isinstance(exc, MissingLibrary) else hashlib.sha256(str(exc).encode()).hexdigest()
        text = str(exc).removeprefix(shown(file.name)).strip()
        if file.named or file.name.lower().endswith(_DOCUMENTS) or "larger" in text:
            note = text
        if isinstance(exc, MissingLibrary):
            checked = 0  # it may be installed by the next call
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    if cancelled():
        return note
    rows = [(p, _terms(p.text), _terms(f"{p.heading}\n{Path(file.name).stem}")) for p in passages]
    db.execute("BEGIN IMMEDIATE")
    try:
        _drop(db, file.path)
        number = db.execute(
            "INSERT INTO files(path, seen, checked, hash, note) VALUES (?, ?, ?, ?, ?)",
            (file.path, _state(file.info), checked, found, note),
        ).lastrowid
        for passage, body, heading in rows:
            row = db.execute(
                "INSERT INTO passages(file, label, heading, text) VALUES (?, ?, ?, ?)",
                (number, passage.label, passage.heading, passage.text),
            ).lastrowid
            db.execute(
                "INSERT INTO words(rowid, heading, body) VALUES (?, ?, ?)",
                (row, " ".join(heading), " ".join(body)),
            )
        words = {(w,) for _, body, heading in rows for w in (*body, *heading) if _is_word(w)}
        db.executemany("INSERT OR IGNORE INTO vocabulary VALUES (?)", words)
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")
    return note


def _drop(db: sqlite3.Connection, path: str) -> None:
    """For use in a transaction: two processes may be at it."""
    for (number,) in db.execute("SELECT id FROM files WHERE path = ?", (path,)).fetchall():
        db.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM passages WHERE file = ?)", (number,))
        db.execute("DELETE FROM passages WHERE file = ?", (number,))
        db.execute("DELETE FROM files WHERE id = ?", (number,))


# Passages: about _PASSAGE tokens each, cut where a text allows it, with the end of the one before


class _Piece(NamedTuple):
    label: str
    heading: str
    text: str


def _passages(data: bytes, name: str, cancelled: Callable[[], bool]) -> list[_Piece]:
    try:
        if sniff(data, None, name) == "text":
            markdown = name.lower().endswith((".md", ".markdown", ".mdx"))
            return list(_cut(decode(data), "", markdown))
    except Unreadable as exc:
        raise ToolError(f"{shown(name)} {exc}") from None
    pieces: list[_Piece] = []
    headings: list[str] = []
    for page in to_text(data, None, name, cancelled=cancelled).pages:
        pieces += _cut(page.text, page.label, True, headings)
    return pieces


def _cut(text: str, label: str, markdown: bool, headings: list[str] | None = None) -> Iterator[_Piece]:
    """Without a *label*, passages are labelled by the numbers of their lines."""
    path = [] if headings is None else headings  # as "# Contract", "## Termination"
    held: list[tuple[int, str]] = []  # numbered lines
    table: list[str] = []  # the header of the table that we are in
    size, fresh, above = 0, 0, ""

    def piece() -> _Piece:
        where = label or (
            f"lines {held[0][0]}-{held[-1][0]}" if held[0][0] != held[-1][0] else f"line {held[0][0]}"
        )
        return _Piece(where, above, "\n".join(line for _, line in held).strip("\n"))

    for number, whole in enumerate(text.splitlines(), 1):
        is_heading = markdown and re.match(r"#{1,6} \S", whole) is not None
        if is_heading:
            if fresh and size >= _PASSAGE // 5:
                yield piece()
                held, size, fresh = [], 0, 0
            level = len(whole) - len(whole.lstrip("#"))
            path[:] = [h for h in path if len(h) - len(h.lstrip("#")) < level] + [whole.strip()]
        in_table = whole.startswith("|")
        table = [*table, whole] if in_table and len(table) < 2 else table if in_table else []
        for line in _short(whole):
            if not held and not line.strip():
                continue
            cost = _tokens(line)
            if fresh and size + cost > _PASSAGE:
                yield piece()
                held = _tail(held) if not in_table else [(number, head) for head in table]
                size, fresh = sum(_tokens(t) for _, t in held), 0
            if not fresh:
                above = " > ".join(h.lstrip("#").strip() for h in path)
            held.append((number, line))
            size += cost
            fresh += bool(line.strip())
    if fresh:
        yield piece()


def _short(line: str) -> list[str]:
    """The line in pieces that are no passage by themselves: sentences, or whatever is as long as can be."""
    if _tokens(line) <= _PASSAGE:
        return [line]
    pieces, held = [], ""
    for sentence in re.split(r"(?<=[.!?;]) +|(?<=[。！？；])", line):
        while _tokens(sentence) > _PASSAGE:
            at = _PASSAGE if not sentence[: 4 * _PASSAGE].isascii() else 3 * _PASSAGE
            at = sentence.rfind(" ", at // 2, at) if " " in sentence[at // 2 : at] else at
            pieces += [held] if held else []
            pieces, held, sentence = [*pieces, sentence[:at]], "", sentence[at:].lstrip()
        if held and _tokens(held) + _tokens(sentence) > _PASSAGE // 2:
            pieces, held = [*pieces, held], ""
        held += (" " if held and held.isascii() else "") + sentence
    return [*pieces, held] if held else pieces


def _tail(lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    kept: list[tuple[int, str]] = []
    left = _OVERLAP
    for number, line in reversed(lines):
        left -= _tokens(line)
        if left < 0:
            if not kept and " " in line:  # the last words of a long line
                kept = [(number, "…" + " ".join(line[-4 * _OVERLAP :].split(" ")[1:]))]
            elif not kept:
                kept = [(number, "…" + line[-_OVERLAP:])]
            break
        kept.insert(0, (number, line))
    return kept


def _tokens(text: str) -> int:
    """Roughly what Qwen's tokenizer makes of it."""
    if text.isascii():
        return len(text) // 4 + 1
    wide = sum(c >= "\u0250" for c in text)
    return (len(text) - wide) // 4 + int(wide * 0.8) + 1


# Terms: what is looked for. Words without case and accents (FTS5 stems English ones), parts of identifiers, pairs of
# characters where no spaces separate words.

_UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS: Final = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff"
_TERM: Final = re.compile(
    rf"(?P<run>[{_UNSPACED}]+)|(?P<number>\d+(?:[.,]\d+)+)|(?P<word>(?:[^\W_{_UNSPACED}]|[{_MARKS}])+"
    rf"(?:[_'’-](?:[^\W_{_UNSPACED}]|[{_MARKS}])+)*)"
)
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _terms(text: str) -> list[str]:
    found: list[str] = []
    for match in _TERM.finditer(unicodedata.normalize("NFKC", text)):
        if match["run"]:
            run = match["run"]
            found += [run[i : i + 2] for i in range(len(run))]  # the last character by itself, too
        elif match["number"]:
            found.append(re.sub(r"[.,]", "_", re.sub(r",(?=\d{3}\b)", "", match["number"])))
        else:
            found += _parts(match["word"])
    return found


@lru_cache(maxsize=100_000)
def _parts(word: str) -> tuple[str, ...]:
    if "'" in word or "’" in word:
        word = re.sub(r"['’](s|t|re|ve|ll|d|m)?\b", "", word, flags=re.IGNORECASE)
    parts = [_fold(p) for p in re.split(r"[_'’-]", _HUMP.sub("_", word)) if p]
    return (*parts, "".join(parts)) if len(parts) > 1 else tuple(parts)


def _fold(word: str) -> str:
    word = word.casefold()
    if word.isascii():
        return word
    bare = "".join(c for c in unicodedata.normalize("NFD", word) if not "\u0300" <= c <= "\u036f")
    return unicodedata.normalize("NFC", bare)


def _is_word(term: str) -> bool:
    """Whether other words may be like it: not for numbers, nor for pairs of characters."""
    return 4 <= len(term) <= 40 and term.isalpha() and not re.match(rf"[{_UNSPACED}]", term)


_STOP_WORDS: Final = frozenset(
    # English
    """a about all also am an and any anything are as at be been being between but by can could describe did do does doing
    explain find for from get give had has have how i if in into is it its just know let like list look me mention mentioned
    mentions more most my need no not of on or our please said say says search should show so some something tell than that
    the their them then there these they this those to up us use want was we were what when where whether which who whom whose
    why will with would you your"""
    # German, French, Spanish
    """ aber als am an auch auf aus bei bin bis das dass dem den der des die dies diese dieser doch durch ein eine einem einen
    einer eines er es fur gibt hat haben ich im ist kann konnen mit nach nicht noch nur oder sich sie sind so steht uber um und
    uns von vor war was welche welcher welches wenn wer werden wie wird wo wurde zu zum zur zwischen
    au aux avec ce ces cette comment dans de du elle en est et il ils je la le les leur mais ne nous ou par pas pour quand que
    quel quelle quelles quels qui quoi sa se ses son sont sur un une vous y
    al como con cual cuales cuando del donde el ella es esta este hay las lo los mas para pero por porque se ser sin sobre su
    sus una uno unos""".split()
)
_STOP_PHRASES: Final = re.compile(
    "请问|请|帮我|告诉我|一下|什么时候|为什么|什么|怎么样|怎样|怎么|如何|哪些|哪个|哪里|多少|是否|有没有|关于|以及|是不是|可以|[吗呢吧啊]"
    "|について|ですか|ますか|とは|何ですか|どのように"
)


def _query_terms(query: str) -> list[str]:
    """Its terms, each once, without the words that a question is made of if there are others."""
    terms = list(dict.fromkeys(_terms(query)))
    telling = list(dict.fromkeys(_terms(_STOP_PHRASES.sub(" ", query))))
    telling = [t for t in telling if t not in _STOP_WORDS and (len(t) > 1 or not t.isascii() or t.isdigit())]
    # The last character of a run is only for those who ask for a single one.
    pairs = {t[1] for t in telling if len(t) == 2 and _is_unspaced(t)}
    telling = [t for t in telling if not (len(t) == 1 and t in pairs)]
    return (telling or terms)[:_QUERY_TERMS]


def _is_unspaced(term: str) -> bool:
    return re.match(rf"[{_UNSPACED}]", term) is not None


# Ranking


@dataclass(slots=True)
class _Scores:
    db: sqlite3.Connection
    count: int
    seen: dict[str, dict[int, float]] = field(default_factory=dict)

    def of(self, term: str) -> dict[int, float]:
        """BM25 of every passage that has the term.

        FTS5 gives a term no weight if half of the passages have it, which in a few short files most words do; so its
        IDF is taken out and the one that Lucene uses put in its place.
        """
        if term not in self.seen:
            star = "*" if len(term) == 1 and _is_unspaced(term) else ""
            rows = self.db.execute(
                "SELECT rowid, -bm25(words, 1.5, 1.0) FROM words WHERE words MATCH ?", (f'"{term}"{star}',)
            ).fetchall()
            n, total = len(rows), self.count
            theirs = max(log((total - n + 0.5) / (n + 0.5)), 1e-6) if n else 1.0
            factor = log(1 + (total - n + 0.5) / (n + 0.5)) / theirs
            self.seen[term] = {row: score * factor for row, score in rows}
        return self.seen[term]


def _rank(db: sqlite3.Connection, setup: Retrieve, asked: Sequence[str], unread: Sequence[str]) -> Found:
    db.execute("BEGIN")  # one state of the index, whoever writes to it
    scores = _Scores(db, db.execute("SELECT count(*) FROM passages").fetchone()[0])
    total: dict[int, float] = {}
    matched: dict[int, int] = {}
    instead: list[tuple[str, str]] = []
    for term in asked:
        hits = dict(scores.of(term))
        others = _longer(db, term)
        if not hits and not others and _is_word(term):
            others = _alike(db, term)
            instead += [(term, others[0])] if others else []
        for other in others:
            for row, score in scores.of(other).items():
                hits[row] = max(hits.get(row, 0.0), _OTHER_WORD * score)
        for row, score in hits.items():
            total[row] = total.get(row, 0.0) + score
            matched[row] = matched.get(row, 0) + 1
    for row in total:  # half of the words together say more than one of them often
        total[row] *= 0.5 + 0.5 * matched[row] / len(asked)
    order = sorted(total, key=lambda row: (-total[row], row))
    order = [row for row in order if total[row] >= _WORTH * total[order[0]]]
    if not order:
        names = [
            _relative(p)
            for (p,) in db.execute("SELECT path FROM files WHERE id IN (SELECT file FROM passages)")
        ]
        rows = db.execute("SELECT DISTINCT heading FROM passages WHERE heading <> '' LIMIT 15")
        return Found((), 0, (), tuple(unread), tuple(sorted(names)), tuple(h for (h,) in rows))
    passages: list[Passage] = []
    left = setup.max_tokens
    for row in order[: 4 * setup.max_results]:
        if len(passages) == setup.max_results:
            break
        path, label, heading, text = db.execute(
            "SELECT path, label, heading, text FROM passages JOIN files ON file = files.id WHERE passages.id = ?",
            (row,),
        ).fetchone()
        cost = _tokens(text) + 20
        if passages and cost > left:
            break
        if any(text in p.text or p.text in text for p in passages):
            continue  # a copy of the file
        if cost > left:
            text = text[: 3 * max(left, 50)] + " …"
        passages.append(Passage(_relative(path), label, heading, text, total[row]))
        left -= cost
    return Found(tuple(passages), len(order) - len(passages), tuple(instead), tuple(unread))


def _longer(db: sqlite3.Connection, term: str) -> list[str]:
    """Words that have this one in them: "config" is in "configuration", "frist" in "kündigungsfrist"."""
    if not _is_word(term):
        return []
    inside = f"*{term}*" if len(term) >= 5 else f"{term}*"
    rows = db.execute(
        "SELECT term FROM vocabulary WHERE term GLOB ? AND term <> ? ORDER BY length(term), term LIMIT 12",
        (inside, term),
    )
    return [word for (word,) in rows]


def _alike(db: sqlite3.Connection, term: str) -> list[str]:
    """Words that may have been meant by one that is nowhere: spelled nearly the same, or what it is composed of."""
    from difflib import get_close_matches

    plain = re.sub("([aou])e", r"\1", term)  # ae, oe, ue for ä, ö, ü
    if db.execute("SELECT 1 FROM vocabulary WHERE term = ?", (plain,)).fetchone():
        return [plain]
    rows = db.execute(
        "SELECT term FROM vocabulary WHERE abs(length(term) - ?) <= 2 AND (term GLOB ? OR term GLOB ?) LIMIT 4000",
        (len(term), f"{term[:2]}*", f"*{term[-3:]}"),
    )
    close = get_close_matches(term, [word for (word,) in rows], n=3, cutoff=0.78)
    if close or len(term) < 8:
        return close
    rows = db.execute(
        "SELECT term FROM vocabulary WHERE term = substr(?1, 1, length(term)) OR term = substr(?1, -length(term))"
        " ORDER BY length(term) DESC LIMIT 6",
        (term,),
    )
    return [word for (word,) in rows]


def _show(found: Found, query: str) -> str:
    notes = []
    if found.instead:
        words = "; ".join(f"{a!r} is nowhere, {b!r} was looked for" for a, b in found.instead)
        notes.append(f"Note: {words}.")
    if found.unread:
        shown_few = "; ".join(found.unread[:2])
        more = f"; and {len(found.unread) - 2} more" if len(found.unread) > 2 else ""
        notes.append(f"Not read: {shown_few}{more}.")
    if not found.passages:
        lines = [f"Nothing found for {query[:200]!r}."]
        if found.headings:
            lines.append(f"Headings in the files: {'; '.join(found.headings)}.")
        if found.files:
            lines.append(f"Files: {', '.join(found.files[:15])}{', …' if len(found.files) > 15 else ''}.")
        else:
            lines.append("There is no file with text.")
        if found.files:
            lines.append(
                "Try again with other words that the text may use: synonyms, names, or the files' language."
            )
        return "\n".join(lines + notes)
    parts = []
    for n, passage in enumerate(found.passages, 1):
        heading = f" ({passage.heading})" if passage.heading else ""
        parts.append(f"[{n}] {passage.file}, {passage.label}{heading}\n{passage.text}")
    if found.more > 0:
        parts.append(f"[{found.more} more passages match less well; for others, ask in other words]")
    return "\n\n".join(notes + parts)
