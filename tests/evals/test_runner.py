"""A small suite on agentkit and on others, before a scripted model server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from agentkit.errors import ConfigError, EngineError
from agentkit.evals import Case
from agentkit.evals.runner import Progress, choose, evaluate
from agentkit.evals.systems import AgentkitSystem, SystemFailed, switched, switches, variants
from agentkit.planner import Aids, React

from .small_suite import Sums, model, suite

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
Serve = Callable[..., Any]


def ids(cases: Sequence[Case]) -> list[str]:
    return [case.id for case in cases]


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


class Canned:
    """A system that says what it is told to, and knows how often it was opened and asked."""

    versions: Mapping[str, str] = {"canned": "1"}

    def __init__(self, answer: Callable[[Case], Sequence[str]], name: str = "canned") -> None:
        self.name, self._answer = name, answer
        self.opened = 0
        self.asked: list[str] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        self.opened += 1
        yield

    async def answer(self, session: Any, case: Case, model: str) -> Sequence[str]:
        self.asked.append(case.id)
        await anyio.lowlevel.checkpoint()
        return self._answer(case)


async def run(url: str, folder: Path, *systems: Any, **rest: Any) -> list[Mapping[str, Any]]:
    return await evaluate(
        suite, systems or [AgentkitSystem()], upstream=url, model="stub-model", folder=folder, **rest
    )


async def test_agentkit_does_a_suite_case_by_case(serve: Serve, tmp_path: Path) -> None:
    server = serve(model)
    seen: list[Progress] = []
    rows = await run(server.url, tmp_path, progress=seen.append)
    ended = {row["id"]: (row["passed"], row["ended"], row["requests"]) for row in rows}
    assert list(ended) == ids(suite.cases())
    assert ended["sum-1"] == (True, "answer", 2) and ended["talk"] == (True, "answer", 4)
    assert ended["hello"] == (True, "answer", 1) and ended["eager"] == (False, "first_round", 1)
    assert ended["spin"] == (False, "budget", 3)
    first = rows[0]
    assert first["calls"] == [
        {"name": "add", "arguments": {"a": 1, "b": 2}, "turn": 0, "round": 1, "is_error": False}
    ]
    assert (first["answers"], first["prompt_tokens"], first["completion_tokens"]) == (["3"], 1000, 10)
    assert first["versions"].keys() == {"agentkit"}
    assert [p.done for p in seen] == list(range(11)) and seen[-1].total == 10 and seen[-1].left == 0
    assert seen[0].left is None and (seen[-1].system_done, seen[-1].system_passed) == (10, 8)
    assert {(r["temperature"], r["seed"], r["max_tokens"]) for r in server.requests} == {(0, 0, 99)}
    about = json.loads((tmp_path / "machine.json").read_text())
    assert about["model"] == "stub-model" and about["suite"] == "sums"


async def test_what_is_done_is_not_done_again(serve: Serve, tmp_path: Path) -> None:
    server = serve(model)
    some = await run(server.url, tmp_path, only=["sum-2", "talk"])
    asked, seen = len(server.requests), list[Progress]()
    assert await run(server.url, tmp_path, only=["talk", "sum-2"], progress=seen.append) == some
    assert len(server.requests) == asked and [p.done for p in seen] == [2]
    rows = await run(server.url, tmp_path)
    assert len(rows) == 10 and [r for r in rows if r["id"] in ("sum-2", "talk")] == some
    assert len(written(tmp_path)) == 10


async def test_what_was_asked_once_is_not_asked_again_without_its_row(serve: Serve, tmp_path: Path) -> None:
    server = serve(model)
    before = await run(server.url, tmp_path)
    asked = len(server.requests)
    (tmp_path / "rows.jsonl").unlink()
    after = await run(server.url, tmp_path)
    assert len(server.requests) == asked
    same = ("id", "passed", "answers", "calls", "requests", "prompt_tokens", "model_seconds")
    assert [[r[k] for k in same] for r in after] == [[r[k] for k in same] for r in before]


async def test_systems_come_one_after_the_other_and_are_opened_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(model)
    lazy = Canned(lambda case: ["7"] * len(case.turns))
    rows = await run(server.url, tmp_path, lazy, AgentkitSystem(), only=["sum"])
    assert [r["system"] for r in rows] == ["canned"] * 6 + ["agentkit"] * 6
    assert lazy.opened == 1 and lazy.asked == [f"sum-{n}" for n in range(1, 7)]
    assert [r["passed"] for r in rows] == [False] * 6 + [True] * 6  # 7 is right, but it did not call add
    await run(server.url, tmp_path, lazy, only=["sum"])
    assert lazy.opened == 1


async def test_several_cases_at_once_are_each_done_once(serve: Serve, tmp_path: Path) -> None:
    server = serve(model)
    rows = await run(server.url, tmp_path, jobs=4)
    assert ids(suite.cases()) == [r["id"] for r in rows] and sum(r["passed"] for r in rows) == 8
    assert len(written(tmp_path)) == 10


async def test_a_system_that_breaks_down_has_not_passed_even_where_nothing_was_to_be_done(
    serve: Serve, tmp_path: Path
) -> None:
    def fail(case: Case) -> Sequence[str]:
        if case.id == "hello":
            raise SystemFailed("its worker has died")
        raise KeyError("choices")

    server = serve(model)
    rows = await run(server.url, tmp_path, Canned(fail), only=["hello", "talk"])
    assert [(r["id"], r["passed"], r["ended"], r["error"]) for r in rows] == [
        ("talk", False, "error", "KeyError: 'choices'"),
        ("hello", False, "error", "its worker has died"),
    ]


async def test_fewer_answers_than_turns_are_no_answer(serve: Serve, tmp_path: Path) -> None:
    (row,) = await run(serve(model).url, tmp_path, Canned(lambda case: ["30"]), only=["talk"])
    assert (row["passed"], row["ended"]) == (False, "budget")


async def test_who_takes_too_long_has_not_passed(serve: Serve, tmp_path: Path) -> None:
    class Slow(Sums):
        def cases(self) -> Sequence[Case]:
            return [Case("slow", "quiet", suite.cases()[0].turns, timeout=0.05)]

    class Sleeper(Canned):
        async def answer(self, session: Any, case: Case, model: str) -> Sequence[str]:
            await anyio.sleep_forever()
            raise AssertionError

    (row,) = await evaluate(
        Slow(), [Sleeper(lambda case: [])], upstream=serve(model).url, model="m", folder=tmp_path
    )
    assert (row["passed"], row["ended"], row["why"]) == (False, "timeout", "ended by timeout")


async def test_the_time_of_a_slow_model_is_not_the_systems(serve: Serve, tmp_path: Path) -> None:
    class Brief(Sums):
        def cases(self) -> Sequence[Case]:
            return [replace(case, timeout=1.0) for case in suite.cases() if case.id == "hello"]

    def slow(x: Any) -> None:
        time.sleep(1.2)  # it is time that is measured
        model(x)

    url = serve(slow).url
    (row,) = await evaluate(Brief(), [AgentkitSystem()], upstream=url, model="m", folder=tmp_path)
    assert (row["passed"], row["ended"]) == (True, "answer")


async def test_a_model_server_that_fails_ends_it_and_is_no_row(serve: Serve, tmp_path: Path) -> None:
    def broken(x: Any) -> None:
        x.reply(503, json.dumps({"error": {"message": "out of memory"}}))

    server = serve(*[model] * 4, broken)
    with pytest.raises(EngineError, match=r"out of memory.*run this again"):
        await run(server.url, tmp_path)
    assert [r["id"] for r in written(tmp_path)] == ["sum-1", "sum-2"]
    server.handlers[:] = [model]
    assert sum(r["passed"] for r in await run(server.url, tmp_path)) == 8


async def test_a_model_server_that_fails_several_cases_at_once_is_one_error(
    serve: Serve, tmp_path: Path
) -> None:
    together = threading.Barrier(4)

    def broken(x: Any) -> None:
        together.wait(20)
        x.reply(503, json.dumps({"error": {"message": "out of memory"}}))

    with pytest.raises(EngineError, match=r"out of memory.*run this again"):
        await run(serve(broken).url, tmp_path, jobs=4)


async def test_a_model_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"127.0.0.1:9.*run this again"):
        await run("http://127.0.0.1:9/v1", tmp_path)
    assert not (tmp_path / "rows.jsonl").exists() or not (tmp_path / "rows.jsonl").read_text()


async def test_a_folder_is_for_one_model(serve: Serve, tmp_path: Path) -> None:
    server = serve(model)
    await run(server.url, tmp_path, only=["hello"])
    with pytest.raises(ConfigError, match=r"results of stub-model, not of other"):
        await evaluate(suite, [AgentkitSystem()], upstream=server.url, model="other", folder=tmp_path)


async def test_the_time_left_is_known_from_the_cases_that_are_done(serve: Serve, tmp_path: Path) -> None:
    server, seen = serve(model), list[Progress]()
    await run(server.url, tmp_path, only=["sum-1", "sum-2"])
    await run(server.url, tmp_path, only=["sum"], progress=seen.append)
    assert [p.done for p in seen] == [2, 3, 4, 5, 6]
    assert seen[0].left is not None and seen[0].left > 0 == seen[-1].left


@pytest.mark.e2e
def test_what_was_killed_goes_on_where_it_was(serve: Serve, tmp_path: Path) -> None:
    """With kill -9, in the middle of a case: done cases are not run again, its first answer is not asked again."""
    reached, held = threading.Event(), threading.Event()

    def hold(x: Any) -> None:
        reached.set()
        held.wait(30)
        x.http.close_connection = True

    program = (
        "import sys, anyio, runpy; from pathlib import Path; from agentkit.evals.runner import evaluate; "
        "from agentkit.evals.systems import AgentkitSystem; suite = runpy.run_path(sys.argv[1])['suite']; "
        "anyio.run(lambda: evaluate(suite, [AgentkitSystem()], upstream=sys.argv[2], model='stub-model', "
        "folder=Path(sys.argv[3])))"
    )
    server = serve(*[model] * 7, hold)  # three cases, and the first request of the fourth
    file = str(Path(__file__).with_name("small_suite.py"))
    command = [sys.executable, "-c", program, file, server.url, str(tmp_path)]
    process = subprocess.Popen(command)
    assert reached.wait(30)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    held.set()
    assert len(written(tmp_path)) == 3
    server.handlers[:], asked = [model], len(server.requests)
    subprocess.run(command, check=True, timeout=60)
    rows = written(tmp_path)
    assert [r["id"] for r in rows] == ids(suite.cases()) and sum(r["passed"] for r in rows) == 8
    assert len(server.requests) - asked == sum(r["requests"] for r in rows) - 7


def test_cases_are_chosen_by_category_id_and_pattern() -> None:
    cases = suite.cases()
    assert ids(choose(cases, only=["spin", "quiet"])) == ["hello", "eager", "spin"]
    assert ids(choose(cases, only=["s*-[12]"])) == ["sum-1", "sum-2"]
    assert ids(choose(cases, limit=1)) == ["sum-1", "talk", "hello", "spin"]
    with pytest.raises(ConfigError, match=r"did you mean 'talk'.*sum, talk, quiet, endless"):
        choose(cases, only=["tlak"])


def test_a_sample_is_even_the_same_each_time_and_part_of_a_greater_one() -> None:
    cases = suite.cases()
    four = choose(cases, sample=4, seed=3)
    assert [c.category for c in four] == ["sum", "talk", "quiet", "endless"]
    assert choose(list(reversed(cases)), sample=4, seed=3) == four[::-1]
    assert set(ids(four)) < set(ids(choose(cases, sample=7, seed=3)))
    assert len({tuple(ids(choose(cases, sample=4, seed=s))) for s in range(20)}) > 5
    assert choose(cases, sample=99) == list(cases)


def test_each_aid_has_its_switch() -> None:
    assert {s[1:] for s in switches()} >= {*Aids.__dataclass_fields__} | {"reminder", "guidance", "guided"}
    for name, system in variants().items():
        assert name == system.name and system.planner != React()


def test_switches_can_be_made_together() -> None:
    system = switched("-coerce", "+guided", "-guidance")
    assert system.name == "agentkit -coerce +guided -guidance"
    assert system.planner == React(guidance="", guided="always", aids=Aids(coerce=False))
    assert switched() == AgentkitSystem()
    with pytest.raises(ConfigError, match=r"by '\+coerce'; there are: -coerce"):
        switched("+coerce")
