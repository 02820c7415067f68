"""Run a suite on systems: case by case, each in its world, before one model server; to be gone on with at any time."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any

import anyio

from agentkit import __version__
from agentkit.errors import AgentkitError, ConfigError, one_error
from agentkit.evals.ledger import Ledger
from agentkit.evals.recorder import Recorder
from agentkit.evals.suite import Case, Ended, Outcome, Suite, Verdict
from agentkit.evals.systems import System, SystemFailed
from agentkit.tools import closest

__all__ = ["Progress", "choose", "evaluate", "read_machine"]

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation has come."""

    system: str  # the one that is at work
    done: int  # of the cases of all systems, those of earlier runs included
    total: int
    system_done: int
    system_passed: int
    left: float | None  # seconds, about; None: nothing has been measured by which to tell


def choose(
    cases: Sequence[Case],
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> list[Case]:
    """Those of *cases* that are to be run, in their order.

    `only` has names of categories, ids, or patterns of either ("live_*"); `limit` takes the first so many of each
    category, `sample` so many of all, drawn from the categories in equal parts. The same `seed` draws the same cases,
    and a smaller sample is part of a greater one. Raises `ConfigError` for what there is not.
    """
    for name in only:
        if not any(_named(case, name) for case in cases):
            known = list(dict.fromkeys(case.category for case in cases))
            hint = closest(name, [*known, *(case.id for case in cases)])
            raise ConfigError(
                f"There is no category and no id {name!r}{f'; did you mean {hint!r}?' if hint else '.'} "
                f"The categories are: {', '.join(known)}."
            )
    wanted = [case for case in cases if not only or any(_named(case, name) for name in only)]
    if limit is not None:
        wanted = [case for case, place in _placed(wanted) if place < limit]
    if sample is not None:
        drawn = sorted(wanted, key=lambda case: hashlib.sha256(f"{seed}:{case.id}".encode()).digest())
        drawn = [case for case, _ in sorted(_placed(drawn), key=lambda placed: placed[1])]
        ids = {case.id for case in drawn[:sample]}
        wanted = [case for case in wanted if case.id in ids]
    return wanted


def _named(case: Case, name: str) -> bool:
    return any(known == name or fnmatchcase(known, name) for known in (case.category, case.id))


def _placed(cases: Sequence[Case]) -> list[tuple[Case, int]]:
    """Each case, and how many of its category come before it."""
    seen: dict[str, int] = {}
    placed = []
    for case in cases:
        placed.append((case, seen.get(case.category, 0)))
        seen[case.category] = placed[-1][1] + 1
    return placed


async def evaluate(
    suite: Suite,
    systems: Sequence[System],
    *,
    upstream: str,
    model: str,
    folder: Path,
    api_key: str | None = None,
    only: Sequence[str] = (),
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[Progress], object] = lambda _: None,
) -> list[Row]:
    """Run the cases that `choose` takes on each of *systems*, one system after the other; their rows, in that order.

    `upstream` is the model server's URL (…/v1), `model` one of its models. `jobs` cases run at once. Each row is
    in *folder* as soon as its case is done, and a case that has its row there is not run again; the model's answers
    are there too, and what has been asked before is not asked again. `progress` is told after each case, and at first.
    What a system fails over is a row; raises `EngineError` when the model server fails, `ConfigError` for a folder
    with results of another model.
    """
    cases = choose(suite.cases(), only=only, limit=limit, sample=sample, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    await _describe(folder, suite, upstream, model, api_key)
    ledger = Ledger(folder / "rows.jsonl")
    pace, rows = _Pace(jobs), dict[tuple[str, str], Row]()

    def take(row: Row) -> None:
        rows[row["system"], row["id"]] = row
        pace.add(row)

    for row in ledger.rows:
        if row["suite"] == suite.name:
            take(row)
    wanted = [(system.name, case) for system in systems for case in cases]

    def tell(name: str) -> None:
        left = [(of, case) for of, case in wanted if (of, case.id) not in rows]
        own = [rows[name, case.id]["passed"] for case in cases if (name, case.id) in rows]
        done = len(wanted) - len(left)
        progress(Progress(name, done, len(wanted), len(own), sum(own), pace.left(left)))

    with closing(ledger):
        async with Recorder(upstream, model, api_key=api_key, folder=folder, parallel=jobs) as recorder:
            for system in systems:
                tell(system.name)
                todo = [case for case in cases if (system.name, case.id) not in rows]
                if not todo:
                    continue

                async def work(system: System = system, queue: Iterator[Case] = iter(todo)) -> None:
                    for case in queue:  # which the others take from, too
                        row = await _run(suite, system, case, recorder, model)
                        ledger.append(row)
                        take(row)
                        tell(system.name)

                with one_error():
                    try:
                        async with system.open(), anyio.create_task_group() as group:
                            for _ in range(jobs):
                                group.start_soon(work)
                    except* AgentkitError as several:  # of a server that fails, many may hear at once
                        raise several.exceptions[0] from None
    return [rows[name, case.id] for name, case in wanted]


async def _run(suite: Suite, system: System, case: Case, recorder: Recorder, model: str) -> Row:
    """One case on one system."""
    async with suite.open(case) as world:
        with recorder.session(f"{system.name}/{case.id}", case, world.tools) as session:
            answers: Sequence[str] = ()
            ended: Ended = "timeout"
            error, began = "", time.monotonic()
            with anyio.move_on_after(case.timeout) as session.limit:
                try:
                    answers = await system.answer(session, case, model)
                    ended = session.ended or ("answer" if len(answers) == len(case.turns) else "budget")
                except Exception as exc:  # whatever it is, it is the system's failure
                    ended = session.ended or "error"
                    error = "" if session.ended else _line(exc)
            took = time.monotonic() - began
        outcome = Outcome(tuple(answers), tuple(session.calls), ended, error)
        # what broke off has not done the case, even where nothing was to be done
        verdict = Verdict(False, error or f"ended by {ended}")
        if ended not in ("error", "timeout"):
            verdict = await world.check(outcome)
    return {
        "suite": suite.name,
        "system": system.name,
        "id": case.id,
        "category": case.category,
        "passed": verdict.passed,
        "why": verdict.why,
        "ended": ended,
        "error": error,
        "answers": list(answers),
        "calls": [
            {
                "name": call.name,
                "arguments": dict(call.arguments),
                "turn": call.turn,
                "round": call.round,
                "is_error": call.is_error,
            }
            for call in session.calls
        ],
        "requests": session.requests,
        "prompt_tokens": session.prompt_tokens,
        "completion_tokens": session.completion_tokens,
        "model_seconds": session.model_seconds,
        "overhead_seconds": max(0.0, took - session.waited),
        "versions": dict(system.versions),
    }


def _line(exc: Exception) -> str:
    said = " ".join(str(exc).split())
    if not isinstance(exc, SystemFailed | AgentkitError):
        said = f"{type(exc).__name__}: {said}"
    return said[:500]


class _Pace:
    """How long cases take: as long as those like them took, model and all, whether or not they had to be asked again."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._took: dict[tuple[str, ...], list[float]] = {}

    def add(self, row: Row) -> None:
        seconds = row["model_seconds"] + row["overhead_seconds"]
        for like in self._like(row["system"], row["category"]):
            self._took.setdefault(like, []).append(seconds)

    def left(self, cases: Sequence[tuple[str, Case]]) -> float | None:
        """Seconds for those cases, each with the system that does it; None before anything was measured."""
        if not self._took:
            return None
        kinds = Counter((system, case.category) for system, case in cases)
        return sum(n * self._mean(*kind) for kind, n in kinds.items()) / self._jobs

    def _mean(self, system: str, category: str) -> float:
        return next(fmean(self._took[like]) for like in self._like(system, category) if like in self._took)

    @staticmethod
    def _like(system: str, category: str) -> tuple[tuple[str, ...], ...]:
        return (system, category), ("", category), ()


async def _describe(folder: Path, suite: Suite, upstream: str, model: str, api_key: str | None) -> None:
    """Write down what is measured with what: machine.json. Raises `ConfigError` if the folder is another model's."""
    from agentkit.runtime.openai_compatible import OpenAICompatible

    path = folder / "machine.json"
    before = read_machine(folder)
    if before and before.get("model") != model:
        raise ConfigError(
            f"{folder} has results of {before.get('model')}, not of {model}; give another folder for these."
        )
    engine = OpenAICompatible(upstream, model, api_key)
    async with engine:
        context = await engine.context_length()
    about = {
        "suite": suite.name,
        "model": model,
        "server": engine.kind,
        "context": context,
        "temperature": 0.0,
        "seed": 0,
        "agentkit": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "began": before.get("began") or datetime.now(UTC).isoformat(timespec="seconds"),
    }
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_machine(folder: Path) -> dict[str, Any]:
    """What a folder's results were measured with; empty if there are none."""
    try:
        found: dict[str, Any] = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise ConfigError(f"{folder / 'machine.json'} cannot be read ({exc}); give another folder.") from exc
    return found
