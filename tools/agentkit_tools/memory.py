"""A notebook that outlives the run: what the model wants to know next time, in one SQLite file, found by its words."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import unicodedata
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from agentkit import Tool, ToolError, tool
from agentkit.tools import Notify

__all__ = ["Memory", "memory"]

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    text TEXT NOT NULL,
    tags TEXT NOT NULL,
    made TEXT NOT NULL,
    same TEXT NOT NULL UNIQUE
);
CREATE VIRTUAL TABLE words USING fts5(text, tags, tokenize="porter unicode61 remove_diacritics 2");
"""
_PATIENCE: Final = 20.0  # seconds to wait for another process that writes
_TAGS, _TAG, _SHOWN, _FOUND = 10, 50, 1500, 20  # tags and their characters; characters and notes of an answer
# Scripts that write words without spaces: each character and each pair of neighbours is a word
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]+"
)
_COMMON: Final = frozenset(
    "a about am an and any are as at be been by can could did do does for from had has have how i in is it know me my"
    " of on or our remember should tell that the their there these they this to was we were what when where which who"
    " whose why will with would you your".split()
)
_OPENING: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Memory:
    """`remember`, `recall` and `forget`: notes that the model keeps from run to run.

    Runs and processes may share a notebook. A damaged file is reported and left as it is.

    Args:
        path: the SQLite file; None: one per user, where this system keeps programs' state.
        max_notes: how many notes it holds.
        max_length: characters of one note.
    """

    path: Path | str | None = None
    max_notes: int = 10_000
    max_length: int = 2_000
    scope: Literal["run", "agent"] = "agent"

    @asynccontextmanager
    async def open(self, notify: Notify) -> AsyncIterator[Sequence[Tool]]:
        path = Path(self.path).expanduser().absolute() if self.path is not None else _default_path()

        @tool(effects=("writes",))
        def remember(text: str, tags: list[str] | None = None) -> str:
            """Keep a note for later conversations.

            Args:
                text: One fact, understandable on its own.
                tags: A few words to find it by.
            """
            return self._remember(path, text, tags or [])

        @tool(effects=("reads",))
        def recall(query: str = "", limit: int = 5) -> str:
            """Find notes kept earlier; without a query, the latest.

            Args:
                query: Words that the note or its tags may have.
                limit: How many notes at most.
            """
            return self._recall(path, query, min(max(limit, 1), _FOUND))

        @tool(effects=("writes", "destroys"))
        def forget(id: int) -> str:
            """Delete a note.

            Args:
                id: Its number, as recall shows it.
            """
            return self._forget(path, id)

        yield [remember, recall, forget]

    def _remember(self, path: Path, text: str, tags: Sequence[str]) -> str:
        text = _storable(text).strip()
        if not text:
            raise ToolError("text is empty; say what to remember")
        if len(text) > self.max_length:
            raise ToolError(
                f"that is {len(text):,} characters; a note has {self.max_length:,} at most: keep what matters"
            )
        named = _tags(tags)
        same = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        with _notebook(path) as db, _change(db):
            row = db.execute("SELECT id, tags FROM notes WHERE same = ?", (same,)).fetchone()
            if row is not None:
                merged = _tags([*row[1].split(","), *named])
                db.execute("UPDATE notes SET tags = ? WHERE id = ?", (",".join(merged), row[0]))
                db.execute("UPDATE words SET tags = ? WHERE rowid = ?", (_words(" ".join(merged)), row[0]))
                return f"Already known, as note {row[0]}."
            (count,) = db.execute("SELECT count(*) FROM notes").fetchone()
            if count >= self.max_notes:
                raise ToolError(
                    f"the notebook is full ({count:,} notes); forget what is of no use any more, then try again"
                )
            made = datetime.now(UTC).strftime("%Y-%m-%d")
            values = (text, ",".join(named), made, same)
            note = db.execute(
                "INSERT INTO notes (text, tags, made, same) VALUES (?, ?, ?, ?)", values
            ).lastrowid
            db.execute(
                "INSERT INTO words (rowid, text, tags) VALUES (?, ?, ?)",
                (note, _words(text), _words(" ".join(named))),
            )
        return f"Remembered as note {note}."

    def _recall(self, path: Path, query: str, limit: int) -> str:
        match = _match(query)
        with _notebook(path) as db:
            (count,) = db.execute("SELECT count(*) FROM notes").fetchone()
            if not query.strip():
                rows = db.execute(
                    "SELECT id, text, tags, made FROM notes ORDER BY id DESC LIMIT ?", (limit,)
                ).fetchall()
            elif match:
                rows = db.execute(
                    "SELECT notes.id, notes.text, notes.tags, made FROM words JOIN notes ON notes.id = words.rowid"
                    " WHERE words MATCH ? ORDER BY bm25(words, 1.0, 2.0), notes.id DESC LIMIT ?",
                    (match, limit),
                ).fetchall()
            else:  # nothing but signs
                rows = db.execute(
                    "SELECT id, text, tags, made FROM notes WHERE instr(text, ?) ORDER BY id DESC LIMIT ?",
                    (_storable(query).strip(), limit),
                ).fetchall()
        if not count:
            return "The notebook is empty."
        if not rows:
            return f"No note has these words; there are {count:,} notes. Try other words, or none for the latest."
        lines = []
        for note, text, tags, made in rows:
            cut = text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"
            about = ", ".join([made, *tags.split(",")] if tags else [made])
            lines.append(f"{note}. {cut} ({about})")
        return "\n".join(lines)

    def _forget(self, path: Path, note: int) -> str:
        with _notebook(path) as db, _change(db):
            if not -(2**63) <= note < 2**63 or not (
                row := db.execute("SELECT text FROM notes WHERE id = ?", (note,)).fetchone()
            ):
                raise ToolError(f"there is no note {note}; recall shows the numbers of notes")
            db.execute("DELETE FROM notes WHERE id = ?", (note,))
            db.execute("DELETE FROM words WHERE rowid = ?", (note,))
        text = row[0] if len(row[0]) <= 100 else f"{row[0][:100]} …"
        return f"Forgot note {note}: {text}"


memory: Final = Memory()


def _default_path() -> Path:
    from platformdirs import user_state_path

    return user_state_path("agentkit") / "memory" / "notes.db"


@contextmanager
def _notebook(path: Path) -> Iterator[sqlite3.Connection]:
    """The open notebook, made if there is none; for one call, so that threads and processes share nothing else."""
    try:
        _make_private(path)
        with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as db:
            _prepare(db, path)
            yield db
    except sqlite3.OperationalError as exc:
        raise ToolError(f"the notebook {path} cannot be used now: {exc}; tell the user") from exc
    except sqlite3.DatabaseError as exc:
        raise ToolError(
            f"the notebook {path} is damaged ({exc}); it was left as it is: tell the user to repair it or to move it"
            " away, then a new one is begun"
        ) from exc
    except OSError as exc:
        raise ToolError(f"the notebook {path} cannot be opened: {exc.strerror}; tell the user") from exc


def _make_private(path: Path) -> None:
    if not path.parent.is_dir():
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():  # SQLite would make it readable for all; what it makes beside it has the same mode
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        raise ToolError(f"the notebook {path} was made by a newer agentkit; tell the user")
    if version == _VERSION:
        return
    with _OPENING:
        with _change(db):
            if db.execute("PRAGMA user_version").fetchone() == (0,):
                if db.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                    raise ToolError(f"{path} is some other program's database, not a notebook; tell the user")
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_VERSION}")
        with suppress(
            sqlite3.OperationalError
        ):  # busy, and it does not wait; all is right without it, if slower
            db.execute("PRAGMA journal_mode = WAL")


@contextmanager
def _change(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _tags(tags: Sequence[str]) -> list[str]:
    cleaned = (" ".join(_storable(tag).replace(",", " ").split()).lstrip("#")[:_TAG] for tag in tags)
    return list(dict.fromkeys(tag for tag in cleaned if tag))[:_TAGS]


def _storable(text: str) -> str:
    """Without NULs, at which SQLite's functions stop, and half characters, which UTF-8 does not have."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _words(text: str) -> str:
    """The text for the index: `unicode61` takes a run of Chinese for one word."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _UNSPACED.sub(lambda run: f" {' '.join([*run[0], *_pairs(run[0])])} ", folded)


def _pairs(run: str) -> list[str]:
    return [run[n : n + 2] for n in range(len(run) - 1)]


def _match(query: str) -> str:
    """The query for FTS5: any of its words, those that say nothing left out; longer ones may go on."""
    folded = unicodedata.normalize("NFKC", _storable(query)).casefold()[:1000]
    terms: list[str] = []
    for run in _UNSPACED.findall(folded):
        terms += [f'"{term}"' for term in (_pairs(run) or [run])]
    words = re.findall(r"\w+", _UNSPACED.sub(" ", folded))
    telling = [word for word in words if word not in _COMMON] or ([] if terms else words)
    terms += [f'"{word}"*' if len(word) > 2 else f'"{word}"' for word in telling]
    return " OR ".join(dict.fromkeys(terms[:200]))
