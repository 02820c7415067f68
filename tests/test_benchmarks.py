"""Benchmarks that measure agentkit alone still run, and see what is wrong. How fast it is, is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import leaks, parsers

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("kind", parsers.TEXTS)
@pytest.mark.parametrize("chunk", parsers.CHUNKS)
def test_agentkit_reads_each_text_of_the_benchmark_as_it_was_written(kind: str, chunk: int) -> None:
    wanted = parsers.turn(kind, 5000)
    text = parsers.content(wanted)
    assert 4000 < len(text) < 6000
    pieces = [text[i : i + chunk] for i in range(0, len(text), chunk)]
    (said, calls) = parsers.agentkit()(pieces)()
    assert (said, calls) == (parsers.before_calls(wanted), wanted[2])


def test_a_parser_that_loses_a_call_or_takes_too_long_gets_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "SHORT", 0)
    wanted = parsers.turn("calls", 5000)
    done = parsers.one_run(lambda pieces: lambda: (parsers.before_calls(wanted), []), [], wanted, 20)
    assert "wrong" in done and "rate" not in done
    read = parsers.agentkit()
    assert "at_most" in parsers.one_run(read, [""] * 100, wanted, 1e-9)


def test_a_table_of_parsers_has_a_line_for_each_text_and_size_of_its_pieces() -> None:
    found = {
        name: {
            (text, size, chunk): {"rate": rate}
            for text in parsers.TEXTS
            for size in (1000, 2000)
            for chunk in parsers.CHUNKS
        }
        for name, rate in (("agentkit", 2.0), ("vllm", 1.0))
    }
    lines = parsers.table(found, (1000, 2000), (1000,)).splitlines()
    assert len(lines) == 2 + len(parsers.TEXTS) * len(parsers.CHUNKS)
    assert lines[2] == "| prose | 4 | 2 | 2 | 2 | 1 |"
    assert [line.endswith(": pass") for line in parsers.goals(found, (1000, 2000))] == [True, True]
    found["vllm"]["prose", 1000, 4] = {"rate": 4.0}
    assert "prose of 1 kB at 4: 0.50 times as fast" in parsers.goals(found, (1000, 2000))[1]


def test_leaks_writes_a_curve_and_a_verdict(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "leaks.py"),
        "--runs",
        "8",
        "-o",
        str(tmp_path / "l.png"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "8 runs: memory grows by" in done.stdout
    record = json.loads((tmp_path / "l.json").read_text())
    assert [sample["run"] for sample in record["samples"]] == [0, 8]
    assert (tmp_path / "l.png").read_bytes().startswith(b"\x89PNG")


def test_growth_is_that_of_memory_once_all_is_warm() -> None:
    samples = [
        leaks.Sample(run, 30 + run / 500 if run >= leaks.WARM else run / 10, 1, 1, 1)
        for run in range(0, 5000, 100)
    ]
    assert leaks.growth(samples) == pytest.approx(2)
