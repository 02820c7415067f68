"""The sixty tasks: each can be done with its tools, and its check believes nothing else."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from agentkit.calling import call_tool
from agentkit.evals import Call, Case, Outcome, Suite
from agentkit.evals.tasks import Group, Task, tasks
from agentkit.evals.tasks.answers import Answer, Date, Duration, Name, Names, NotFound, Number, Says, Time
from agentkit.evals.tasks.world import TaskWorld
from agentkit.messages import ToolCall

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]  # sandboxes, servers, parsers in processes of their own

SUITE: Any = tasks()
IDS = [*SUITE.by_id]
CONCLUDED = (  # what is asked there stands in no result just so: it is counted, or one of several
    *("files-find", "files-count", "files-chain", "git-branches", "git-count", "git-uncommitted"),
    *("web-json", "web-person", "web-paged", "sql-tables"),
)


def case_of(id: str) -> Case:
    cases: Sequence[Case] = SUITE.cases()
    return next(case for case in cases if case.id == id)


def task_of(id: str) -> Task:
    group_and_task: tuple[Group, Task] = SUITE.by_id[id]
    return group_and_task[1]


def right(task: Task) -> str:
    return task.answer.right if task.answer is not None else "Done."


def said(*answers: str, calls: tuple[Call, ...] = ()) -> Outcome:
    return Outcome(answers, calls, "answer")


async def solve(world: TaskWorld, task: Task) -> tuple[Call, ...]:
    """Make the calls of the task's solution."""
    tools = {tool.name: tool for tool in world.tools}
    calls = []
    for n, (name, arguments) in enumerate(task.solution):
        result = await call_tool(ToolCall(f"c{n}", name, arguments), tools)
        calls.append(Call(name, arguments, 0, n + 1, result.content, result.is_error))
    return tuple(calls)


@pytest.mark.parametrize("id", IDS)
async def test_a_task_is_passed_by_its_solution_and_by_nothing_less(id: str) -> None:
    task = task_of(id)
    children = _children()
    async with SUITE.open(case_of(id)) as world:
        assert 4 <= len(world.tools) <= 8
        assert len({tool.name for tool in world.tools}) == len(world.tools)
        before = [
            await world.check(said(text))
            for text in (
                "",
                task.prompt,
                "I am sorry, I made an error.",
                "Done. Foo, 123456 and 1999-01-01 at 03:07.",
            )
        ]
        assert not any(verdict.passed for verdict in before), before
        calls = await solve(world, task)
        assert [call.result for call in calls if call.is_error] == []
        verdict = await world.check(said(f"Here it is: **{right(task)}**", calls=calls))
        assert verdict.passed, (verdict.why, [call.result for call in calls])
        if task.answer is not None:
            assert not (await world.check(said("", calls=calls))).passed
            assert not (await world.check(said(task.prompt, calls=calls))).passed
        if task.answer is not None and id not in CONCLUDED and not isinstance(task.answer, NotFound):
            assert not calls or "" in [task.answer.fault(call.result) for call in calls]
        assert not (await world.check(Outcome((right(task),), calls, "budget"))).passed
    assert not world.workspace.parent.exists()
    assert [thread.name for thread in threading.enumerate() if "serve_forever" in thread.name] == []
    assert _children() <= children


def _children() -> set[str]:
    task = f"/proc/{os.getpid()}/task"
    found: set[str] = set()
    for thread in os.listdir(task):
        with suppress(OSError):  # a thread may end meanwhile
            found |= {*Path(task, thread, "children").read_text().split()}
    return found


# --- the suite as a whole


def test_there_are_sixty_tasks_in_six_groups_of_ten() -> None:
    cases = SUITE.cases()
    assert len({case.id for case in cases}) == 60
    assert {
        c: sum(case.category == c for case in cases) for c in ("files", "git", "time", "data", "web", "sql")
    } == {
        "files": 10,
        "git": 10,
        "time": 10,
        "data": 10,
        "web": 10,
        "sql": 10,
    }
    assert {case.max_requests for case in cases} == {8, 10}
    assert len({case.turns for case in cases}) == 60


def test_what_is_asked_is_the_same_in_each_run() -> None:
    again: Suite = tasks()
    assert again.cases() == SUITE.cases()
    text = " ".join(message.text for case in SUITE.cases() for turn in case.turns for message in turn)
    assert tempfile.gettempdir() not in text and "127.0.0.1" not in text


@pytest.mark.parametrize("id", ["git-who", "files-find"])
async def test_tools_answer_the_same_in_each_run(id: str) -> None:
    results = []
    for _ in range(2):
        async with SUITE.open(case_of(id)) as world:
            shown = [(tool.name, tool.description, tool.parameters) for tool in world.tools]
            results.append((shown, await solve(world, task_of(id))))
    assert results[0] == results[1]


@pytest.mark.parametrize("id", [id for id in IDS if task_of(id).answer is not None])
def test_no_answer_is_in_the_question(id: str) -> None:
    answer = task_of(id).answer
    assert answer is not None and answer.fault(task_of(id).prompt)


@pytest.mark.parametrize("id", [id for id in IDS if task_of(id).answer is not None])
def test_the_right_answers_of_others_are_wrong(id: str) -> None:
    answer = task_of(id).answer
    assert answer is not None
    others = {right(task_of(other)) for other in IDS} - {answer.right}
    # that something is not there is the same of all things; that Git has 6 branches is right of tables
    assert [text for text in others if not answer.fault(text)] == []


# --- the files


async def test_a_file_that_was_changed_besides_fails_the_task() -> None:
    async with SUITE.open(case_of("files-change")) as world:
        await solve(world, task_of("files-change"))
        assert (await world.check(said("Done."))).passed
        (world.workspace / "todo.md").write_text("gone")
        assert (await world.check(said("Done."))).why == "todo.md was changed"


async def test_a_file_that_was_removed_or_added_fails_the_task() -> None:
    async with SUITE.open(case_of("files-setting")) as world:
        (world.workspace / "copy.ini").write_text("x")
        assert (await world.check(said("8473"))).why == "copy.ini was added"
        (world.workspace / "copy.ini").unlink()
        (world.workspace / "todo.md").unlink()
        assert (await world.check(said("8473"))).why == "todo.md was removed"


async def test_scratch_files_of_the_code_interpreter_do_no_harm_but_changed_data_does() -> None:
    async with SUITE.open(case_of("data-rows")) as world:
        (world.workspace / "scratch.py").write_text("x")
        assert (await world.check(said("181"))).passed
        (world.workspace / "sales.csv").write_text("x")
        assert not (await world.check(said("181"))).passed


async def test_who_did_not_look_cannot_say_that_it_is_not_there() -> None:
    async with SUITE.open(case_of("files-missing")) as world:
        assert (await world.check(said("There is no phone number."))).why == "did not look"
        failed = Call("read_file", {"path": "contact.csv"}, 0, 1, "there is no such file", is_error=True)
        assert not (await world.check(said("There is no phone number.", calls=(failed,)))).passed
        search = Call(
            "read_file", {"path": "contacts.csv", "column": "phone"}, 0, 1, "no such column", is_error=True
        )
        assert (await world.check(said("There is no phone number.", calls=(search,)))).passed


async def test_only_the_last_turns_answer_counts() -> None:
    async with SUITE.open(case_of("files-setting")) as world:
        assert not (await world.check(said("8473", "I do not know"))).passed
        assert not (await world.check(Outcome((), (), "answer"))).passed


async def test_the_database_can_only_be_read() -> None:
    async with SUITE.open(case_of("sql-tables")) as world:
        tools = {tool.name: tool for tool in world.tools}

        async def query(sql: str) -> str:
            result = await call_tool(ToolCall("c", "query", {"sql": sql}), tools)
            assert result.is_error
            return result.content

        assert "readonly" in await query("DELETE FROM staff")
        assert "attached" in await query("ATTACH 'other.sqlite' AS other")
        assert "interrupted" in await query(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        )


async def test_no_git_argument_is_taken_for_an_option() -> None:
    async with SUITE.open(case_of("git-last")) as world:
        tools = {tool.name: tool for tool in world.tools}
        for name, arguments in (
            ("git_show", {"commit": "--output=x"}),
            ("git_diff", {"from_ref": "--output=x"}),
        ):
            assert (await call_tool(ToolCall("c", name, arguments), tools)).is_error
        assert not (world.workspace / "x").exists()


# --- answers


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Number(1234.5), "It is **1,234.50** euros."),
        (Number(1234.5), "€1 234.5".replace(" ", "\u202f")),
        (Number(12), "12."),
        (Number(12), "- 12km"),
        (Number(-3), "The result is −3."),
        (Number(25.4, within=0.006), "25.403 °C"),
        (Name("Ines", ("Mara", "Jonas")), "ines, not Mara"),
        (Name("São Paulo"), "sao paulo"),
        (Names(("Moss", "Undertow"), ("Bridges",)), "- *Undertow*\n- *Moss*"),
        (Says(("git switch -c",)), "Use `git switch -c topic`."),
        (Date(date(2026, 5, 9)), "It is on 9 May 2026."),
        (Date(date(2026, 5, 9)), "May 9th, 2026"),
        (Date(date(2026, 5, 9)), "2026-05-09"),
        (Date(date(2026, 9, 30)), "Sept. 30, 2026"),
        (Time(20, 45), "until 8:45 PM"),
        (Time(20, 45), "20:45:00."),
        (Time(9, 5), "9:05 a.m."),
        (Time(9, 5), "At 09:05."),
        (Time(21, 0), "9 pm"),
        (Duration(9, 35), "9 hours and 35 minutes"),
        (Duration(9, 35), "0 days, 9 hours and 35 minutes"),
        (Duration(9, 35), "9h35"),
        (Duration(9, 35), "9:35"),
        (Duration(9, 35), "575 minutes"),
        (Duration(23, 30), "23.5 hours"),
        (Number(3), "There are 3:\n1. main\n2. charts"),
        (Number(3), "3. "),
        (NotFound(r"\d{3}"), "The file doesn’t list one."),
        (
            task_of("time-missing").answer,
            "It leaves Osaka at 12:05; when it lands in Vienna is not in the file.",
        ),
        (task_of("web-missing").answer, "The page has no price for dogs. Adults pay 13.50, students 9.00."),
        (Number(7), "<think>8? 9?</think>7"),
    ],
)
def test_answers_are_taken_as_people_write_them(answer: Answer, text: str) -> None:
    assert answer.fault(text) == ""


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (Number(12), "112 or 12.5 or 3:12 or 2026-12-01 or v12 or 1,212"),
        (Number(12), "-12"),
        (Number(3), "There are four:\n1. main\n2. charts\n3. stations\n4. topics"),
        (Number(5), " ".join(map(str, range(30)))),
        (Number(7), "<think>7</think>8"),
        (Name("Ines", ("Mara", "Jonas")), "Mara or Ines"),
        (Name("Ines", tuple("ABCD")), "Ines, A, B, C, D"),
        (Name("Ines"), "Inessa"),
        (Names(("Moss", "Undertow"), ("Bridges",)), "Moss"),
        (Names(("Moss", "Undertow"), ("Bridges",)), "Moss, Undertow, Bridges"),
        (Date(date(2026, 5, 9)), "2026-05-19"),
        (Date(date(2026, 5, 9)), "19 May 2026"),
        (Date(date(2026, 5, 9)), "9 May 2025"),
        (Time(20, 45), "8:45 AM"),
        (Time(8, 45), "8:45 PM"),
        (Time(20, 45), "20:451"),
        (Duration(9, 35), "19 hours and 35 minutes"),
        (Duration(9, 35), "9 hours"),
        (task_of("time-missing").answer, "It does not say, but it lands in Vienna at 18:20."),
        (task_of("web-missing").answer, "Dogs pay 5.25. There is no other price."),
        (NotFound(r"\d{3}"), "No, but try 555 0121."),
        (NotFound(r"\d{3}"), "Here you are."),
    ],
)
def test_near_misses_are_not_taken(answer: Answer, text: str) -> None:
    assert answer.fault(text)
