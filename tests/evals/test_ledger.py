"""Rows that outlive whoever writes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agentkit.errors import ConfigError
from agentkit.evals.ledger import Ledger, Lines


def row(id: str, system: str = "agentkit", suite: str = "sums") -> dict[str, str]:
    return {"suite": suite, "system": system, "id": id}


def test_what_was_added_is_there_for_the_next_process(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new" / "rows.jsonl")
    assert ledger.rows == [] and not (tmp_path / "new").exists()
    for added in (row("a"), row("b"), row("a", "raw"), row("c", suite="tasks")):
        ledger.append(added)
    ledger.close()
    again = Ledger(tmp_path / "new" / "rows.jsonl")
    assert again.rows == ledger.rows and len(again.rows) == 4
    assert again.done("sums", "agentkit") == {"a", "b"}
    assert again.done("sums", "raw") == {"a"} and again.done("tasks", "raw") == set()


@pytest.mark.parametrize("cut", [1, 2, 3, 20, 35, 50, 60])
def test_a_line_torn_anywhere_costs_that_line_only(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    ledger = Ledger(path)
    for id in ("first", "zweite – ü"):
        ledger.append(row(id))
    ledger.close()
    whole = path.read_bytes()
    last = whole[whole.index(b"\n") + 1 :]
    path.write_bytes(whole[: -min(cut, len(last))])

    ledger = Ledger(path)
    assert ledger.done("sums", "agentkit") == {"first"}
    ledger.append(row("third"))
    assert [r["id"] for r in Ledger(path).rows] == ["first", "third"]
    assert path.read_bytes().count(b"\n") == 2
    ledger.close()


def test_a_line_that_is_not_json_or_no_object_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(row("a")).encode() + b'\n\0\0\0\n\n[1]\n\xff\n{"suite"\n')
    assert Ledger(path).rows == [row("a")]


def test_what_a_model_wrote_is_kept_to_the_character(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "x.jsonl")
    values = [{"text": text} for text in ("\u2028 and \x85", "漢字", "\ud83d", "a\r\nb", "\0")]
    for value in values:
        lines.append(value)
    lines.close()
    assert list(lines) == values
    lines.path.read_text("utf-8")  # for other programs, too


def test_only_the_owner_may_read_and_only_one_may_append(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    path.chmod(0o644)
    first, second = Ledger(path), Ledger(path)
    first.append(row("a"))
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="Another run"):
        second.append(row("b"))
    first.close()
    second.append(row("b"))
    second.close()
    assert Ledger(path).done("sums", "agentkit") == {"a", "b"}


FULL = """
import resource, signal, sys
from pathlib import Path
from agentkit.errors import ConfigError
from agentkit.evals.ledger import Lines

lines = Lines(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for n in range(100):
        lines.append({"n": n, "ballast": "x" * 50})
except ConfigError as exc:
    print(exc)
"""


def test_a_line_that_has_no_room_is_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    said = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True).stdout
    assert said == f"{path} cannot grow; make room on its disk and run this again.\n"
    assert [line["n"] for line in Lines(path)] == list(range(path.read_bytes().count(b"\n")))
    assert path.read_bytes().endswith(b"}\n") and path.stat().st_size > 900


WRITER = """
import sys
from pathlib import Path
from agentkit.evals.ledger import Lines

lines = Lines(Path(sys.argv[1]))
n = len(list(lines))
print(n, flush=True)
while True:
    lines.append({"n": n, "ballast": str(n % 10) * 3_000_000})
    n += 1
"""


def test_killed_while_it_writes_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    for _ in range(3):
        before = len(list(Lines(path)))
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert int(writer.stdout.readline()) == before
        size = path.stat().st_size if path.exists() else 0
        while not path.exists() or path.stat().st_size < size + 5_000_000:
            assert writer.poll() is None
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        found = list(Lines(path))
        assert [line["n"] for line in found] == list(range(len(found))) and len(found) > before
        assert all(line["ballast"] == str(line["n"] % 10) * 3_000_000 for line in found)
