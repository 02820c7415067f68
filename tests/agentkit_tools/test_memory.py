"""The notebook: what is kept, how it is found again, and who else may use it meanwhile."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from agentkit.errors import ToolError
from agentkit.tools import Tool, Toolset
from agentkit_tools.memory import Memory, memory

pytestmark = pytest.mark.anyio


async def opened(path: Path, **settings: int) -> dict[str, Tool]:
    async with Memory(path, **settings).open(print) as tools:  # type: ignore[arg-type]
        return {t.name: t for t in tools}


@pytest.fixture
async def notebook(tmp_path: Path) -> dict[str, Tool]:
    return await opened(tmp_path / "notes" / "notes.db")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("dentists", "1."),
        ("When do I have to see the dentist?", "1."),
        ("dent", "1."),
        ("小白", "2."),
        ("猫", "2."),
        ("我的猫叫什么名字", "2."),
        ("さくら", "3."),
        ("CAFÉ", "4."),
        ("cafe", "4."),
        ("health", "1."),
        ("C++", "5."),
        ("😀", "6."),
        ("naive AND (", "7."),
    ],
)
async def test_a_note_is_found_by_its_words_in_any_script(
    notebook: dict[str, Tool], query: str, found: str
) -> None:
    texts = [
        "The dentist is on Thursday",
        "我的猫叫小白,喜欢吃鱼",
        "妹の名前はさくらです",
        "They meet in the café",
    ]
    for text in [*texts, "Writes c++ at work", "Likes 😀", "A naïve note"]:
        notebook["remember"](text, ["health"] if "dentist" in text else None)
    assert notebook["recall"](query).startswith(found)


async def test_what_is_not_there_is_said_and_nothing_gives_the_latest(notebook: dict[str, Tool]) -> None:
    assert notebook["recall"]("x") == "The notebook is empty."
    notebook["remember"]("one")
    notebook["remember"]("two")
    assert notebook["recall"]("submarine").startswith("No note")
    assert notebook["recall"]().startswith("2. two")
    assert len(notebook["recall"](limit=1).splitlines()) == 1


async def test_the_same_fact_is_kept_once_with_all_its_tags(notebook: dict[str, Tool]) -> None:
    notebook["remember"]("Likes  tea", ["drinks"])
    assert notebook["remember"]("likes tea", ["#hot"]) == "Already known, as note 1."
    assert notebook["recall"]("hot").endswith("drinks, hot)")


async def test_what_was_forgotten_is_gone_and_its_number_is_not_used_again(notebook: dict[str, Tool]) -> None:
    notebook["remember"]("secret")
    assert notebook["forget"](1) == "Forgot note 1: secret"
    assert notebook["recall"]("secret") == "The notebook is empty."
    assert notebook["remember"]("other") == "Remembered as note 2."
    for wrong in (1, 0, -1, 2**70):
        with pytest.raises(ToolError, match="no note"):
            notebook["forget"](wrong)


async def test_it_does_not_grow_without_end(tmp_path: Path) -> None:
    tools = await opened(tmp_path / "n.db", max_notes=2, max_length=10)
    for text in ("", " ", "x" * 11):
        with pytest.raises(ToolError):
            tools["remember"](text)
    tools["remember"]("a")
    tools["remember"]("b")
    with pytest.raises(ToolError, match="full"):
        tools["remember"]("c")
    assert tools["remember"]("b").startswith("Already")


async def test_odd_characters_do_no_harm(notebook: dict[str, Tool]) -> None:
    notebook["remember"]("half \ud800 and \0 nul 'quote' \"double\"")
    for query in ("\ud800", "\0", '"', "'", "*", "NEAR(a b)", "text:half", "-half", "half^2"):
        notebook["recall"](query)
    assert "quote" in notebook["recall"]("half")


async def test_only_its_user_may_read_it_and_it_is_there_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with memory.open(print) as tools:
        tools[0]("a fact")
    async with Memory().open(print) as tools:
        assert "a fact" in tools[1]("fact")
    path = tmp_path / "state" / "agentkit" / "memory" / "notes.db"
    assert isinstance(memory, Toolset)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700


async def test_threads_and_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "n.db"
    code = (
        "import anyio, sys\nfrom agentkit_tools.memory import Memory\n"
        "async def main():\n"
        "    async with Memory(sys.argv[1]).open(print) as tools:\n"
        "        for n in range(20): tools[0](f'{sys.argv[2]} {n}')\n"
        "anyio.run(main)"
    )
    start = subprocess.Popen
    processes = [start([sys.executable, "-c", code, str(path), f"p{n}"]) for n in range(2)]
    tools = await opened(path)
    failed: list[Exception] = []

    def write(name: str) -> None:
        try:
            for n in range(20):
                tools["remember"](f"{name} {n}")
        except Exception as exc:
            failed.append(exc)

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [p.wait() for p in processes] == [0, 0] and failed == []
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM notes").fetchone() == (100,)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("damage", ["scribbled", "foreign", "newer", "folder"])
async def test_a_notebook_that_cannot_be_used_is_reported_and_left_as_it_is(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "n.db"
    if damage == "scribbled":
        path.write_bytes(b"not a database" * 500)
    elif damage == "folder":
        path.mkdir()
    else:
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE mine (x)" if damage == "foreign" else "PRAGMA user_version = 99")
            db.commit()
    before = path.read_bytes() if path.is_file() else b""
    tools = await opened(path)
    for name, argument in (("remember", "x"), ("recall", "x"), ("forget", 1)):
        with pytest.raises(ToolError, match="tell the user"):
            tools[name](argument)
    assert (path.read_bytes() if path.is_file() else b"") == before
