"""`agentkit eval`, as a process, before a scripted model server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ..evals.small_suite import model
from .conftest import OnTerminal

COMMAND = str(Path(sys.executable).with_name("agentkit"))
SUITE = str(Path(__file__).parents[1] / "evals" / "small_suite.py")
Serve = Callable[..., Any]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "AGENTKIT_"))}
    return {**ours, "HOME": str(tmp_path), "COLUMNS": "160"}


def measure(
    url: str, folder: Path, environment: dict[str, str], *args: str
) -> subprocess.CompletedProcess[str]:
    return command(folder, environment, "suite", SUITE, "-m", f"stub-model@{url}", *args)


def command(folder: Path, environment: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "eval", *args],
        env=environment,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_suite_becomes_a_table_and_a_folder_of_results(
    serve: Serve, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = measure(serve(model).url, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sums, stub-model\n\n")
    assert re.search(r"sum +6/6 100\.0 \[61\.0–100\.0\]", done.stdout)
    assert re.search(r"all +8/10 80\.0", done.stdout) and "1 budget" in done.stdout
    assert "agentkit: 10/10; agentkit passed 8 of 10\n" in done.stderr
    assert "the other 7 will take about 0 s" in done.stderr
    folder = tmp_path / "agentkit-eval" / "sums-stub-model"
    assert {"machine.json", "rows.jsonl", "answers.jsonl", "turns.jsonl"} <= {
        p.name for p in folder.iterdir()
    }
    again = command(tmp_path, environment, "table", str(folder))
    assert again.stdout == done.stdout
    marked = command(tmp_path, environment, "table", str(folder), "--markdown").stdout
    assert "| sum | 6/6 100.0 [61.0–100.0] |" in marked


@pytest.mark.e2e
def test_json_has_each_system_and_what_an_aid_is_worth(
    serve: Serve, tmp_path: Path, environment: dict[str, str]
) -> None:
    server = serve(model)
    args = ("--json", "-o", "here")
    assert measure(server.url, tmp_path, environment, "--only", "sum-1", *args).returncode == 0
    done = measure(server.url, tmp_path, environment, "--only", "sum-1", "--without", "reminder", *args)
    (system,) = json.loads(done.stdout)["systems"]
    assert system["system"] == "agentkit -reminder" and system["overall"]["passed"] == 1
    (table,) = json.loads(command(tmp_path, environment, "table", "here", "--json").stdout)
    assert [s["system"] for s in table["systems"]] == ["agentkit", "agentkit -reminder"]
    (pair,) = table["compared"]
    assert (pair["a"], pair["b"], pair["cases"], pair["p"]) == ("agentkit", "agentkit -reminder", 1, 1.0)


@pytest.mark.e2e
def test_an_ablation_has_a_row_for_each_switch(
    serve: Serve, tmp_path: Path, environment: dict[str, str]
) -> None:
    done = measure(serve(model).url, tmp_path, environment, "--ablate", "--limit", "1", "--jobs", "4")
    assert done.returncode == 0, done.stderr
    for name in ("agentkit -coerce", "agentkit -guidance", "agentkit +guided"):
        assert name in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["table", "nothing"], 1, "nothing has no results"),
        (["suite", SUITE, "-m", "m@http://127.0.0.1:9/v1", "--only", "smu"], 1, "did you mean 'sum'?"),
        (["suite", SUITE, "-m", "m@http://127.0.0.1:9/v1", "--without", "luck"], 1, "no aid to switch"),
        (
            ["suite", SUITE, "-m", "m@http://127.0.0.1:9/v1", "--without", "coerce", "--ablate"],
            2,
            "leave out",
        ),
        (["suite", "empty.py", "-m", "m@http://127.0.0.1:9/v1"], 1, "has no `suite`"),
        (["suite", SUITE, "-m", "m@http://127.0.0.1:9/v1", "--limit", "0"], 2, "limit"),
    ],
)
@pytest.mark.e2e
def test_what_cannot_work_is_one_sentence(
    args: list[str], code: int, says: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "empty.py").touch()
    done = command(tmp_path, environment, *args)
    assert done.returncode == code and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(find_spec("bfcl_eval") is not None, reason="bfcl-eval is installed")
def test_without_its_data_bfcl_says_how_to_get_it(tmp_path: Path, environment: dict[str, str]) -> None:
    done = command(tmp_path, environment, "bfcl", "-m", "m@http://127.0.0.1:9/v1")
    assert done.returncode == 1 and "bfcl-eval" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.e2e
def test_ids_may_come_from_a_file(serve: Serve, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "ids.txt").write_text("sum-3\nhello\n")
    done = measure(serve(model).url, tmp_path, environment, "--only", "@ids.txt", "--json")
    assert json.loads(done.stdout)["systems"][0]["overall"]["total"] == 2


@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_what_was_stopped_goes_on_with_the_same_command(
    serve: Serve, tmp_path: Path, environment: dict[str, str], number: signal.Signals, code: int
) -> None:
    reached, held = threading.Event(), threading.Event()

    def hold(x: Any) -> None:
        reached.set()
        held.wait(30)
        x.http.close_connection = True

    server = serve(*[model] * 7, hold)
    process = subprocess.Popen(
        [COMMAND, "eval", "suite", SUITE, "-m", f"stub-model@{server.url}", "-o", "here"],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reached.wait(30)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    held.set()
    assert process.returncode == code and "Traceback" not in said
    if number == signal.SIGINT:
        assert "the same command goes on from here" in said
    server.handlers[:], asked = [model], len(server.requests)
    done = measure(server.url, tmp_path, environment, "-o", "here")
    assert done.returncode == 0 and "3 of 10 cases are done already" in done.stderr
    assert "the other 7 will take about" in done.stderr and re.search(r"all +8/10", done.stdout)
    assert len(server.requests) - asked == 14  # 21 in all; 7 answers were there


@pytest.mark.e2e
def test_a_terminal_shows_a_bar_with_the_time_left(
    serve: Serve, tmp_path: Path, environment: dict[str, str], on_terminal: OnTerminal
) -> None:
    server = serve(model)
    args = [COMMAND, "eval", "suite", SUITE, "-m", f"stub-model@{server.url}"]
    screen = on_terminal(args, tmp_path, environment, [])
    assert "━" in screen and "10/10 passed 8 of 10" in screen and "the other 7 will take about" in screen


@pytest.mark.e2e
def test_a_server_that_is_not_there_is_one_sentence_with_what_to_do(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    done = measure("http://127.0.0.1:9/v1", tmp_path, environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "127.0.0.1:9" in done.stderr and "run this again" in done.stderr.splitlines()[-1]


def test_what_is_measured_is_one_server(tmp_path: Path, environment: dict[str, str]) -> None:
    done = measure("http://127.0.0.1:9/v1,http://127.0.0.1:10/v1", tmp_path, environment)
    assert done.returncode == 1 and "needs one model server" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
