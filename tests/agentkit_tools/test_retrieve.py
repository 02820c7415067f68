"""Retrieval: which passages come first, and an index that follows the files whatever happens to it or to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentkit import ConfigError, ToolError
from agentkit_tools.retrieve import Found, Retrieve

pytestmark = pytest.mark.anyio

CONTRACT = """# Lease

## 1 Rent
The tenant pays 900 euros a month. The rent is due on the first day of the month, and what the tenant does with the house
is the tenant's own affair as long as it does no harm to it.

## 2 Repairs
The landlord repairs the roof, the heating and the windows. What does the tenant do about small repairs? He pays for them.

## 3 Termination
Either party may terminate this agreement with three months' notice in writing.

## 4 Pets
Cats are allowed. Dogs are not.
"""
MIETVERTRAG = """# Mietvertrag
Die Kündigungsfrist beträgt drei Monate zum Ende eines Kalendervierteljahres.

Die Nebenkostenabrechnung erfolgt jährlich. Der Vermieter trägt die Grundsteuer.
"""
CHINESE = """# 劳动合同

甲方每月十五日支付工资，遇节假日顺延。

# 解除

员工可以提前三十日以书面形式通知公司解除劳动合同。

# 年假

工作满一年的员工每年享有五天带薪年假。
"""
CODE = '''"""Requests from the wire."""

def parse_http_request(data: bytes) -> Request:
    """Split the head from the body."""

class ConnectionPool:
    def acquireConnection(self, timeout: float) -> Connection:
        """Wait for a free one."""
'''
NOTES = """Meeting of 12 March. The budget for the configuration database is 14,500 euros.
Version 3.11.2 was released. The what, the why, the how, and what it does about the about: all of that is to be discussed.
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, text in {
        "lease.md": CONTRACT,
        "mietvertrag.md": MIETVERTRAG,
        "合同.md": CHINESE,
        "wire.py": CODE,
        "notes.txt": NOTES,
    }.items():
        (folder / name).write_text(text)
    return folder


def over(folder: Path, **options: object) -> Retrieve:
    return Retrieve([folder], cache=folder.parent / "cache", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "file", "words"),
    [
        ("What does the contract say about termination?", "lease.md", "three months' notice"),
        ("How do I terminate the agreement", "lease.md", "three months' notice"),
        ("who repairs the heating?", "lease.md", "the roof, the heating"),
        ("are dogs allowed", "lease.md", "Dogs are not"),
        ("Kündigungsfrist", "mietvertrag.md", "drei Monate"),
        ("kuendigungsfrist", "mietvertrag.md", "drei Monate"),
        ("Wie lang ist die Frist?", "mietvertrag.md", "drei Monate"),
        ("Kündigung", "mietvertrag.md", "drei Monate"),
        ("Nebenkosten", "mietvertrag.md", "jährlich"),
        ("Grundsteuererhöhung", "mietvertrag.md", "Grundsteuer"),
        ("如何解除劳动合同？", "合同.md", "提前三十日"),
        ("年假有几天", "合同.md", "五天带薪年假"),
        ("什么时候发工资", "合同.md", "十五日支付工资"),
        ("薪", "合同.md", "带薪年假"),
        ("parse_http_request", "wire.py", "def parse_http_request"),
        ("parseHttpRequest", "wire.py", "def parse_http_request"),
        ("http request parsing", "wire.py", "def parse_http_request"),
        ("acquire_connection", "wire.py", "acquireConnection"),
        ("connection pool", "wire.py", "class ConnectionPool"),
        ("terminaton", "lease.md", "three months' notice"),
        ("ladnlord", "lease.md", "The landlord repairs"),
        ("config", "notes.txt", "configuration database"),
        ("14500", "notes.txt", "14,500 euros"),
        ("3.11.2", "notes.txt", "Version 3.11.2"),
        ("WINDOWS", "lease.md", "the windows"),
    ],
)
def test_the_best_passage_comes_first(corpus: Path, query: str, file: str, words: str) -> None:
    best = over(corpus).search(query).passages[0]
    assert Path(best.file).name == file and words in best.text


def test_a_word_that_is_nowhere_is_said_to_have_been_replaced(corpus: Path) -> None:
    assert over(corpus).search("terminaton").instead[0][0] == "terminaton"


def test_passages_say_where_they_are(corpus: Path) -> None:
    found = over(corpus).search("dogs cats pets")
    best = found.passages[0]
    assert best.label.startswith("lines ") and "Lease" in best.heading
    assert list(found.passages) == sorted(found.passages, key=lambda p: -p.score)


def test_a_query_of_stop_words_alone_is_still_looked_for(corpus: Path) -> None:
    assert over(corpus).search("what about the how and why").passages
    with pytest.raises(ToolError, match="no words"):
        over(corpus).search("?!")


def test_passages_of_a_long_text_overlap_and_leave_nothing_out(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    sentences = [f"Sentence{n} tells us of matter{n} and nothing else at all." for n in range(600)]
    (folder / "one-line.txt").write_text(" ".join(sentences))
    (folder / "lines.txt").write_text("\n".join(s.replace("matter", "thing") for s in sentences))
    setup = over(folder, max_results=3)
    for n in range(0, 600, 37):
        for word in (f"matter{n}", f"thing{n}"):
            assert word in setup.search(word).passages[0].text
    assert any("thing99 " in p.text for p in setup.search("thing100").passages)


def test_an_answer_keeps_to_its_budget(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"number {n}. " + f"the apple is word{n} red. " * 150)
    found = over(folder, max_tokens=1000, max_results=9).search("apple")
    assert 1 <= len(found.passages) <= 4 and found.more > 0
    assert sum(len(p.text) for p in found.passages) <= 4400


# The tool


async def ask(setup: Retrieve, query: str) -> str:
    async with setup.open(print) as tools:
        assert (tools[0].name, tools[0].effects) == ("retrieve", frozenset({"reads"}))
        return (await tools[0].handler({"query": query})).content


async def test_the_model_reads_file_place_and_text(corpus: Path) -> None:
    text = await ask(over(corpus), "termination")
    assert text.startswith("[1] ") and "lease.md, lines " in text and "(Lease > 3 Termination)" in text


async def test_when_nothing_is_found_the_model_learns_what_to_try(corpus: Path) -> None:
    text = await ask(over(corpus), "photosynthesis xylophone")
    assert text.startswith("Nothing found for 'photosynthesis xylophone'.")
    assert "Lease > 3 Termination" in text and "lease.md" in text and "other words" in text


async def test_the_working_folder_is_what_it_looks_through_by_default(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpus)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    async with Retrieve().open(print) as tools:
        assert "working folder" in tools[0].description
        assert "[1] lease.md, lines" in (await tools[0].handler({"query": "termination"})).content
    [index] = (tmp_path / "xdg" / "agentkit" / "retrieve").glob("*.sqlite")
    assert index.stat().st_mode & 0o777 == 0o600


def test_a_path_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file or folder"):
        Retrieve([tmp_path / "gone"]).search("x")


# Files


def files(found: Found) -> set[str]:
    return {Path(p.file).name for p in found.passages}


def test_what_is_no_document_of_the_users_is_left_out(corpus: Path) -> None:
    text = "zebra crossing"
    for name in (
        ".git/config", "node_modules/a/readme.md", "my env/pyvenv.cfg", "my env/lib/a.py", "__pycache__/a.txt",
        ".env", "server.key", ".hidden.md", "app.min.js", "package-lock.json", "data.bin",
    ):  # fmt: skip
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(text)
    (corpus / "blob").write_bytes(b"zebra \x00\x01")
    outside = corpus.parent / "outside.txt"
    outside.write_text(text)
    (corpus / "link.txt").symlink_to(outside)
    os.mkfifo(corpus / "pipe.txt")
    (corpus / "seen.txt").write_text(text)
    found = over(corpus).search("zebra")
    assert files(found) == {"seen.txt"} and found.unread == ()


def test_files_and_folders_can_be_named_together(corpus: Path) -> None:
    setup = Retrieve([corpus / "lease.md", corpus / "notes.txt"], cache=corpus.parent / "cache")
    assert files(setup.search("termination budget")) == {"lease.md", "notes.txt"}
    assert setup.search("parse_http_request").passages == ()


def test_documents_are_searched_by_page(corpus: Path) -> None:
    docx = pytest.importorskip("docx", reason="needs: pip install 'agentkit[documents]'")
    file = docx.Document()
    file.add_heading("Insurance", 1)
    file.add_paragraph("Water damage is covered by the policy.")
    file.save(corpus / "policy.docx")
    best = over(corpus).search("is water damage covered?").passages[0]
    assert (Path(best.file).name, best.label, best.heading) == ("policy.docx", "page 1", "Insurance")


def test_a_document_that_cannot_be_read_is_named(corpus: Path) -> None:
    (corpus / "broken.docx").write_bytes(b"PK\x03\x04 no")
    setup = over(corpus)
    for _ in range(2):
        found = setup.search("termination")
        assert found.passages and "broken.docx is broken" in found.unread[0]


def test_too_many_and_too_large_files_are_said_to_be_left_out(corpus: Path) -> None:
    (corpus / "large.txt").write_text("termination " * 2000)
    assert any("large.txt is larger" in note for note in over(corpus, max_bytes=9000).search("x1").unread)
    assert any("first 2 files" in note for note in over(corpus, max_files=2).search("x1").unread)


# The index


def test_the_index_follows_the_files(corpus: Path) -> None:
    setup = over(corpus)
    assert not setup.search("zebra").passages
    (corpus / "new.txt").write_text("a zebra")
    assert files(setup.search("zebra")) == {"new.txt"}
    (corpus / "new.txt").write_text("a horse")  # of the same size, and at once
    assert not setup.search("zebra").passages and files(setup.search("horse")) == {"new.txt"}
    (corpus / "new.txt").rename(corpus / "renamed.txt")
    assert files(setup.search("horse")) == {"renamed.txt"}
    (corpus / "renamed.txt").unlink()
    assert not setup.search("horse").passages


@pytest.mark.parametrize("damage", ["garbage", "half", "middle", "empty"])
def test_a_broken_index_is_built_anew(corpus: Path, damage: str) -> None:
    setup = over(corpus)
    expected = setup.search("termination").passages
    [index] = (corpus.parent / "cache").glob("*.sqlite")
    data = index.read_bytes()
    broken = {
        "garbage": os.urandom(5000),
        "half": data[: len(data) // 2],
        "middle": data[:4096] + os.urandom(len(data) - 4096),
        "empty": b"",
    }
    index.write_bytes(broken[damage])
    assert setup.search("termination").passages == expected


def test_two_processes_can_build_it_at_once(corpus: Path) -> None:
    for n in range(60):
        (corpus / f"{n}.txt").write_text(f"number{n} is here")
    program = (
        "import sys; from agentkit_tools.retrieve import Retrieve\n"
        "for n in range(5): found = Retrieve([sys.argv[1]], cache=sys.argv[2]).search(f'number{n*9}'); print(len(found.passages))"
    )
    command = [sys.executable, "-c", program, str(corpus), str(corpus.parent / "cache")]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [p.communicate()[0].split() for p in racing] == [["1"] * 5] * 3
