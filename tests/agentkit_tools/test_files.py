"""The file tools: what they read and change, and that nothing leads out of their folders."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkit import ConfigError, Tool, ToolError
from agentkit_tools.beneath import find, open_file, opened, refused
from agentkit_tools.edits import replace_text
from agentkit_tools.files import Files, ReadFile

pytestmark = pytest.mark.anyio
SECRET = "the secret of the house"


class Desk:
    """The tools of an open toolset, called as Python functions."""

    def __init__(self, tools: dict[str, Tool]) -> None:
        self.tools = tools

    def __getattr__(self, name: str) -> Any:
        return self.tools[name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "folder").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text(SECRET)
    (tmp_path / "rooted").mkdir()
    (tmp_path / "rooted" / "secret.txt").write_text(SECRET)
    return tmp_path / "root"


@pytest.fixture
async def desk(root: Path) -> Any:
    async with Files((root,), max_output=2000, max_size=5000).open(print) as tools:
        yield Desk({t.name: t for t in tools})


async def test_every_tool_says_what_it_does_and_read_file_alone_only_reads(root: Path) -> None:
    async with Files(root).open(print) as tools:
        assert [(t.name, sorted(t.effects or ())) for t in tools] == [
            ("read_file", ["reads"]),
            ("list_files", ["reads"]),
            ("search_files", ["reads"]),
            ("write_file", ["destroys", "writes"]),
            ("edit_file", ["destroys", "reads", "writes"]),
        ]
    async with ReadFile(root).open(print) as tools:
        assert [t.name for t in tools] == ["read_file", "list_files"]
    async with Files(root, write=False).open(print) as tools:
        assert [t.name for t in tools] == ["read_file", "list_files", "search_files"]
    with pytest.raises(ConfigError, match="cannot be a root"):
        async with Files(root / "missing").open(print):
            pass


def links(root: Path) -> None:
    (root / "abs").symlink_to(root.parent / "outside" / "secret.txt")
    (root / "rel").symlink_to("../outside/secret.txt")
    (root / "dir").symlink_to("../outside")
    (root / "folder" / "up").symlink_to("..")
    (root / "folder" / "upup").symlink_to("../..")
    (root / "chain").symlink_to("folder/upup")
    (root / "self").symlink_to("self")
    (root / "proc").symlink_to("/proc/self/root")
    (root / "cwd").symlink_to("/proc/self/cwd")


WAYS_OUT = [
    *(
        "../outside/secret.txt",
        "folder/../../outside/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "abs",
        "rel",
    ),
    *("dir/secret.txt", "folder/up/../../outside/secret.txt", "folder/upup/outside/secret.txt"),
    *("chain/outside/secret.txt", "self", "proc/etc/passwd", "cwd/x", "~/secret.txt", "file:///etc/passwd"),
    *(
        "file:../outside/secret.txt",
        "FILE://localhost/etc/passwd",
        "file://host/x",
        "file:///%2e%2e/etc/passwd",
    ),
    *("{root}/../outside/secret.txt", "{root}ed/secret.txt", "folder/..//..///outside/secret.txt", "..", "/"),
    *("a\0b", "file:///a%00b", "\ud800", "x" * 300, "a/" * 3000 + "a", "/proc/self/environ", "/dev/zero", ""),
]


@pytest.mark.parametrize("path", WAYS_OUT)
async def test_nothing_outside_of_the_root_is_read_or_written(desk: Any, root: Path, path: str) -> None:
    links(root)
    path = path.replace("{root}", str(root))
    calls: list[Callable[[], str]] = [
        lambda: desk.read_file(path),
        lambda: desk.write_file(path, "taken"),
        lambda: desk.write_file(path, "taken", append=True),
        lambda: desk.edit_file(path, "secret", "taken"),
        lambda: desk.search_files("secret", path) if path else desk.read_file(path),
        lambda: desk.list_files(path) if path else desk.read_file(path),
    ]
    for call in calls:
        with pytest.raises(ToolError) as refusal:
            call()
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 900
    assert (root.parent / "outside" / "secret.txt").read_text() == SECRET
    assert sorted(p.name for p in root.parent.iterdir()) == ["outside", "root", "rooted"]
    assert os.listdir(root.parent / "outside") == ["secret.txt"]


async def test_what_is_meant_and_inside_is_found_however_it_is_written(desk: Any, root: Path) -> None:
    links(root)
    (root / "folder" / "a b.txt").write_text("here")
    (root / "in").symlink_to("folder/a b.txt")
    (root / "absolute").symlink_to(root / "folder")
    (root / "e\u0301.txt").write_text("accent")
    for path in (
        *("folder/a b.txt", "./folder//a b.txt", "folder/up/folder/a b.txt", "in", "absolute/a b.txt"),
        *(f"{root}/folder/a b.txt", f"file://{root}/folder/a%20b.txt", "folder/../folder/a b.txt"),
    ):
        assert desk.read_file(path) == "here"
    assert desk.read_file("\u00e9.txt") == "accent"
    with pytest.raises(ToolError, match=r"did you mean 'folder/a b.txt'\?"):
        desk.read_file("folder/A_b.txt")
    desk.write_file("in", "there")
    assert (root / "in").is_symlink() and (root / "folder" / "a b.txt").read_text() == "there"


@pytest.mark.parametrize("name", [".env", ".ENV.local", ".git/config", "a/.Git/hooks/x", "id_rsa", "k.PEM"])
async def test_secrets_are_neither_shown_nor_touched(desk: Any, root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(SECRET)
    (root / "link").symlink_to(name)
    for path in (name, "link"):
        with pytest.raises(ToolError, match="kept from you"):
            desk.read_file(path)
        with pytest.raises(ToolError, match="kept from you"):
            desk.write_file(path, "x")
    assert SECRET not in desk.search_files("secret")
    assert Path(name).name not in desk.list_files(recursive=True)
    assert not refused(".env.example", Files().deny) and refused(".envrc", Files().deny)


async def test_devices_pipes_and_sockets_are_not_waited_for(
    desk: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)  # a socket's path must be short
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for path in ("pipe", "socket", "folder"):
            with pytest.raises(ToolError, match=path):
                desk.read_file(path)
            with pytest.raises(ToolError, match=path):
                desk.edit_file(path, "a", "b")
            with pytest.raises(ToolError, match=path):
                desk.write_file(path, "x")
    assert "pipe (no file)" in desk.list_files()
    assert desk.search_files("x").startswith("(nothing found")


async def test_a_question_finds_the_lines_with_most_of_its_words(desk: Any, root: Path) -> None:
    (root / "notes.md").write_text(
        "Paid: the hall\nTomas pays the deposit\nThe venue wants its deposit in May\n"
    )
    found = desk.search_files("who pays the deposit for the venue")
    assert found.splitlines() == [
        "notes.md:2: Tomas pays the deposit",
        "notes.md:3: The venue wants its deposit in May",
        "[no line has just that; these have most of its words]",
    ]
    assert desk.search_files("Tomas pays").splitlines() == ["notes.md:2: Tomas pays the deposit"]
    # one word of three is no answer, and words without end are none either
    assert desk.search_files("hall rents rooms").startswith("(nothing found")
    assert desk.search_files(" ".join(c * 100 for c in "abcdefghijkl")).startswith("(nothing found")


async def test_proc_is_closed_even_below_a_root() -> None:
    async with ReadFile("/").open(print) as (read, _):
        for path in ("/proc/self/environ", "proc/self/root/proc/self/environ"):
            with pytest.raises(ToolError):
                read(path)


async def test_a_file_is_read_whole_or_in_pieces(desk: Any, root: Path) -> None:
    (root / "a.txt").write_text("".join(f"line {n}\n" for n in range(1, 11)))
    assert desk.read_file("a.txt").endswith("line 10\n")
    assert desk.read_file("a.txt", 3, 2) == "line 3\nline 4\n\n[the file goes on; read on with start_line=5]"
    with pytest.raises(ToolError, match="fewer than 11 lines"):
        desk.read_file("a.txt", 11)
    (root / "big.txt").write_text("".join(f"number {n}\n" for n in range(1000)))
    seen, start = "", 1
    while True:
        page = desk.read_file("big.txt", start)
        text, _, note = page.partition("\n[")
        seen += text
        if not note:
            break
        start = int(note.split("start_line=")[1].rstrip("]"))
    assert seen == (root / "big.txt").read_text()


async def test_a_very_long_line_does_not_stop_the_reading(desk: Any, root: Path) -> None:
    (root / "long.txt").write_text("x" * 50_000 + "\nlast\n")
    page = desk.read_file("long.txt")
    assert len(page) < 2200 and "line 1 is cut" in page and "start_line=2" in page
    assert desk.read_file("long.txt", 2) == "last\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "(the file is empty)"),
        (b"\xef\xbb\xbfbom\r\nend", "bom\nend"),
        ("größe\n".encode("utf-16"), "größe\n\n[the file is UTF-16]"),
        (b"caf\xe9", "caf\ufffd\n[the file is not UTF-8 text; what could not be read is shown as \ufffd]"),
        (b"\x89PNG\0\0", "'x.png' is a binary file (image/png) of 6 bytes, not text."),
    ],
)
async def test_encodings_are_read_or_told(desk: Any, root: Path, data: bytes, text: str) -> None:
    (root / "x.png").write_bytes(data)
    assert desk.read_file("x.png") == text


async def test_a_sparse_giant_is_refused_at_once(desk: Any, root: Path) -> None:
    with (root / "giant").open("wb") as file:
        file.write(b"text\n")
        file.seek(1 << 40)
        file.truncate()
    (root / "giant").open("r+b").close()
    assert "binary" in desk.read_file("giant")
    with pytest.raises(ToolError, match="larger"):
        desk.edit_file("giant", "text", "x")
    assert "too large to be searched" in desk.search_files("text")


async def test_writing_replaces_whole_files_and_keeps_their_mode(desk: Any, root: Path) -> None:
    assert desk.write_file("new/deep/a.txt", "one\n") == "Wrote 1 line to 'new/deep/a.txt'."
    file = root / "new" / "deep" / "a.txt"
    file.chmod(0o750)
    os.link(file, root / "hard")
    assert "in place of 4 bytes" in desk.write_file("new/deep/a.txt", "two\n")
    assert desk.write_file("new/deep/a.txt", "three", append=True) == "Added 1 line to 'new/deep/a.txt'."
    assert file.read_text() == "two\nthree" and stat.S_IMODE(file.stat().st_mode) == 0o750
    assert (root / "hard").read_text() == "one\n"  # what shares the old data keeps it
    assert os.listdir(file.parent) == ["a.txt"]
    file.chmod(0o440)
    with pytest.raises(ToolError, match="read-only"):
        desk.write_file("new/deep/a.txt", "x")
    with pytest.raises(ToolError, match="read-only"):
        desk.edit_file("new/deep/a.txt", "two", "x")
    for path, content in (
        ("folder", "x"),
        ("new/", "x"),
        (".", "x"),
        ("b", "x" * 5001),
        ("b", "\ud800"),
        ("hard/x", "x"),
    ):
        with pytest.raises(ToolError):
            desk.write_file(path, content)
    assert not (root / "b").exists()


async def test_what_a_file_holds_is_only_replaced_once_it_was_read(desk: Any, root: Path) -> None:
    (root / "app.ini").write_text("port = 80\nlevel = info\n")
    with pytest.raises(ToolError, match=r"is there already, and you have not read it: read_file shows"):
        desk.write_file("app.ini", "level = debug")
    assert (root / "app.ini").read_text() == "port = 80\nlevel = info\n"
    desk.read_file("app.ini")
    assert "in place of 23 bytes" in desk.write_file("app.ini", "port = 80\nlevel = debug\n")
    (root / "empty").touch()
    (root / "grows.log").write_text("1\n")
    desk.write_file("empty", "x")
    desk.write_file("grows.log", "2\n", append=True)
    assert (root / "grows.log").read_text() == "1\n2\n"


async def test_a_name_without_its_folder_is_found_if_there_is_only_one(desk: Any, root: Path) -> None:
    (root / "folder" / "deep").mkdir()
    (root / "folder" / "deep" / "app.log").write_text("ERROR\n")
    for look in (desk.read_file, lambda path: desk.search_files("ERROR", path)):
        with pytest.raises(ToolError, match=r"did you mean 'folder/deep/app.log'\?"):
            look("app.log")
    with pytest.raises(ToolError, match=r"did you mean 'folder/deep'\?"):
        desk.list_files("deep")
    (root / "folder" / "app.log").touch()
    with pytest.raises(ToolError, match=r"there is no file 'app.log'$"):
        desk.read_file("app.log")


async def test_a_search_for_the_name_of_a_file_says_where_it_belongs(desk: Any, root: Path) -> None:
    (root / "app.ini").write_text("port = 80\n")
    with pytest.raises(
        ToolError, match="'app.ini' is a file: read_file shows it; to search in it, give it as path"
    ):
        desk.search_files("app.ini")
    with pytest.raises(ToolError, match=r"did you mean query='port', path='app.ini'\?$"):
        desk.search_files("app.ini", pattern="port", regex=True)
    assert "nothing found" in desk.search_files("other.ini")


async def test_an_edit_keeps_the_files_encoding_and_line_ends(desk: Any, root: Path) -> None:
    for encoding in ("utf-16", "utf-8-sig"):
        (root / "a.txt").write_bytes("größe\r\nzwei\r\n".encode(encoding))
        assert desk.edit_file("a.txt", "größe\nzwei", "1\n2") == "Edited 'a.txt': line 1."
        assert (root / "a.txt").read_bytes() == "1\r\n2\r\n".encode(encoding)
    (root / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ToolError, match="not a UTF-8 text"):
        desk.edit_file("a.txt", "caf", "x")


SOURCE = "def f(x):\n    if x:\n        return 1\n    return 2\n\n\ndef g(x):\n    return 3\n"


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("return 2", "return 5", SOURCE.replace("return 2", "return 5")),
        ("    return 2  \n\n\ndef g(x):", "    return 2\n\ndef g(x):", SOURCE.replace("\n\n\n", "\n\n")),
        (
            "if x:\n    return 1",
            "if not x:\n    return 0",
            SOURCE.replace("if x", "if not x").replace("1", "0"),
        ),
        ("    return 2\\n\\n\\ndef g", "    return 2\\n\\ndef g", SOURCE.replace("\n\n\n", "\n\n")),
        ("def g(x):\r\n    return 3", "G = 3", SOURCE.replace("def g(x):\n    return 3", "G = 3")),
    ],
)
def test_old_text_is_found_though_its_white_space_is_not_right(old: str, new: str, changed: str) -> None:
    assert replace_text(SOURCE, old, new)[0] == changed


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return", "x", r"there 3 times \(lines 3, 4, 8\)"),
        ("", "x", "empty"),
        ("return 2", "return 2", "the same"),
        ("return 9\n", "x", "Nearest is line"),
        ("def f(x):\n    if y:\n", "x", "Nearest is line 1:\ndef f"),
        ("something else altogether", "x", "not in the file"),
        ("return 7", "return 3", "new_text is there already"),
        ("if x:\n  return 1\n return 2", "x", "Nearest is line 2"),
    ],
)
def test_what_cannot_be_replaced_is_told_with_what_comes_nearest(old: str, new: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        replace_text(SOURCE, old, new)


@given(st.text("ab \n\t", max_size=40), st.text("ab \n\t", max_size=12), st.text("ab \n", max_size=12))
def test_an_edit_changes_what_python_would_change_or_nothing_but_white_space_was_off(
    text: str, old: str, new: str
) -> None:
    try:
        changed, how = replace_text(text, old, new)
    except ToolError:
        return
    if "white space" not in how:
        assert changed == text.replace(old, new) and text.count(old) == 1
    else:
        assert old not in text


async def test_folders_are_listed_with_globs_and_within_bounds(desk: Any, root: Path) -> None:
    for name in ("a.py", "b.md", "src/c.py", "src/deep/d.py", "node_modules/e.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("12345")
    (root / "in\nname").write_text("")
    assert desk.list_files("src") == "c.py (5 bytes)\ndeep/"
    assert "a.py (5 bytes)\n" in desk.list_files() and "'in\\nname' (0 bytes)" in desk.list_files()
    assert desk.list_files(pattern="*.{py,md}") == "a.py (5 bytes)\nb.md (5 bytes)"
    found = desk.list_files(pattern="**/*.py").splitlines()
    assert found[:3] == ["a.py (5 bytes)", "src/c.py (5 bytes)", "src/deep/d.py (5 bytes)"]
    assert found[3] == "[node_modules/ was not looked into]"
    assert desk.list_files("folder") == "(empty)"
    assert desk.list_files(pattern="*a*a*a*a*a*a*a*a*a*b").startswith("(nothing is named")
    for n in range(450):
        (root / "folder" / f"{n}").touch()
    assert "[50 more are not shown" in desk.list_files("folder") or "cut here" in desk.list_files("folder")
    with pytest.raises(ToolError, match="is a file"):
        desk.list_files("a.py")


async def test_lines_are_found_by_text_or_expression(desk: Any, root: Path) -> None:
    (root / "a.py").write_text("import os\nprint('Hello')\n" + "x" * 500 + "needle" + "y" * 500 + "\n")
    (root / "folder" / "b.txt").write_text("hello\r\nHELLO\n")
    (root / "c.bin").write_bytes(b"\0hello")
    (root / "link").symlink_to("../outside/secret.txt")
    assert (
        desk.search_files("hello") == "a.py:2: print('Hello')\nfolder/b.txt:1: hello\nfolder/b.txt:2: HELLO"
    )
    assert desk.search_files("Hello") == "a.py:2: print('Hello')"
    assert desk.search_files("hello", pattern="*.txt", path="folder").startswith("folder/b.txt:1")
    assert desk.search_files(r"^HEL+O$", regex=True) == "folder/b.txt:2: HELLO"
    assert "taken as a regular expression" in desk.search_files("import|absent")
    assert "needle" in desk.search_files("needle") and len(desk.search_files("needle")) < 300
    assert desk.search_files("secret") == "(nothing found in 2 files)"
    (root / "many").write_text("same\n" * 1000)
    assert "only the first 50 lines" in desk.search_files("same")
    for query in ("(", "x" * 2000):
        with pytest.raises(ToolError, match="regular expression"):
            desk.search_files(query, regex=True)


async def test_an_expression_that_never_ends_is_ended(
    desk: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentkit_tools.files._SECONDS", 0.3)
    (root / "a.txt").write_text("a" * 60 + "!\n")
    with pytest.raises(ToolError, match="takes too long"):
        desk.search_files("(a|a)*$", regex=True)


async def test_several_roots_are_one_place_to_look(root: Path) -> None:
    other = root.parent / "rooted"
    (root / "a.txt").write_text("a")
    async with Files((root, other)).open(print) as tools:
        desk = Desk({t.name: t for t in tools})
        assert desk.read_file("secret.txt") == desk.read_file(str(other / "secret.txt")) == SECRET
        assert desk.search_files("house", str(other)).startswith(f"{other}/secret.txt:1")
        desk.write_file(f"{other}/new/b.txt", "b")
        desk.write_file("c.txt", "c")
        assert (other / "new" / "b.txt").read_text() == "b" and (root / "c.txt").read_text() == "c"
        with pytest.raises(ToolError, match="outside"):
            desk.read_file("../outside/secret.txt")


steps = st.sampled_from(
    ["..", ".", "", "folder", "up", "upup", "dir", "abs", "rel", "chain", "new", "~", "secret.txt", "é"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.lists(steps, max_size=7), st.booleans())
def test_wherever_a_path_leads_it_is_below_the_root(root: Path, path: list[str], absolute: bool) -> None:
    if not (root / "dir").is_symlink():
        links(root)
    asked = "/".join(path)
    with opened(root) as top:
        try:
            with find(top, f"{root}/{asked}" if absolute else asked) as place:
                real = Path(os.path.realpath(f"{root}/{asked}"))
                assert real == root / place.path or "~" in path[:1]
                assert os.path.realpath(f"/proc/self/fd/{place.folder}").startswith(str(root))
        except ToolError:
            return


async def test_swapping_folders_for_links_never_leads_out(desk: Any, root: Path) -> None:
    """Inside all files say "inside"; an attacker exchanges folders and files for links to the outside all the time."""
    outside = root.parent / "outside"
    (outside / "f").write_text(SECRET)
    for name in ("d", "d/e"):
        (root / name).mkdir()
    for name in ("f", "d/f", "d/e/f"):
        (root / name).write_text("inside")
    (root / "to_out").symlink_to(outside)
    (root / "to_secret").symlink_to(outside / "f")
    done = threading.Event()
    swaps = 0
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    if exchange is None:
        pytest.skip("this system cannot exchange two names")

    def attack() -> None:
        nonlocal swaps
        here, at_once = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        pairs = [("d", "to_out", outside), ("d/e", "to_out", outside), ("f", "to_secret", outside / "f")]
        while not done.is_set():
            for victim, link, target in pairs:
                for _ in range(2):
                    exchange(here, os.fsencode(root / victim), here, os.fsencode(root / link), at_once)
                    swaps += 1
                if not (root / link).is_symlink():  # a write replaced it, as it should
                    (root / link).unlink(missing_ok=True)
                    (root / link).symlink_to(target)

    attacker = threading.Thread(target=attack)
    attacker.start()
    read = 0
    try:
        for n in range(200):
            for path in ("d/f", "d/e/f", "f"):
                try:
                    assert SECRET not in desk.read_file(path)
                    read += 1
                    if n % 5 == 0:
                        desk.write_file(path, "inside")
                        desk.edit_file(path, "inside", "inside ")
                    if n % 50 == 0:
                        assert SECRET not in desk.search_files("secret") + desk.list_files(recursive=True)
                except ToolError:
                    continue
    finally:
        done.set()
        attacker.join()
    assert (outside / "f").read_text() == (outside / "secret.txt").read_text() == SECRET
    assert sorted(os.listdir(outside)) == ["f", "secret.txt"]
    assert swaps > 1000 and read > 100


def test_a_name_that_becomes_a_link_before_it_is_opened_is_not_followed(root: Path) -> None:
    (root / "f").write_text("inside")
    with opened(root) as top, find(top, "f") as place:
        (root / "f").unlink()
        (root / "f").symlink_to("../outside/secret.txt")
        with pytest.raises(OSError):
            open_file(place.folder, place.name)


@pytest.mark.parametrize("length", [1999, 2000, 2001, 8000, 8004])
async def test_a_line_of_any_length_is_got_past(desk: Any, root: Path, length: int) -> None:
    (root / "a.txt").write_text("é" * length + "\nlast\n", encoding="utf-8")
    page = desk.read_file("a.txt")
    assert page.startswith("é" * 1999) and (page.endswith("last\n") or "start_line=2]" in page)
    assert desk.read_file("a.txt", 2) == "last\n"
