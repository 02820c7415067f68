"""`agentkit eval`: how well agents do on a model, case by case, and the tables of what was measured."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from agentkit.cli import command, in_loop, model_option, warn

if TYPE_CHECKING:
    from agentkit.evals.runner import Progress
    from agentkit.evals.suite import Suite
    from agentkit.evals.systems import System

__all__ = ["case_options", "evals", "from_bfcl", "measure"]

_F = TypeVar("_F", bound=Callable[..., Any])
_A_FEW = 3  # cases, from which the time for the others can be told


@click.group(name="eval")
def evals() -> None:
    """Measure how well agents do on a model.

    \b
    agentkit eval bfcl -m demo                    which tools are called, and how: 200 cases
    agentkit eval tasks -m demo                   sixty tasks, checked by what became of them
    agentkit eval suite ./my_suite.py -m demo     cases of your own
    agentkit eval bfcl -m demo --ablate           what each of agentkit's aids for small models is worth
    agentkit eval table agentkit-eval/*           what was measured

    What is stopped, however it is, goes on from there with the same command: results and the model's answers are kept
    in the folder (-o). To measure again with the answers that are there, remove its rows.jsonl; to ask again, the folder.
    """


def case_options(fn: _F) -> _F:
    """Which cases, on which model, and where to: what all commands have that measure something."""
    for option in reversed(
        [
            model_option,
            click.option(
                "--only",
                multiple=True,
                metavar="CATEGORY|ID",
                help="These cases: a category, an id, a pattern (live_*), or @FILE with one of them a line.",
            ),
            click.option("--limit", type=click.IntRange(1), help="The first so many of each category."),
            click.option(
                "--sample",
                type=click.IntRange(1),
                help="So many, drawn at random (of bfcl: not among the 200).",
            ),
            click.option("--seed", type=int, default=0, show_default=True, help="For --sample."),
            click.option(
                "-o",
                "--folder",
                type=click.Path(file_okay=False, path_type=Path),
                help="Where results are kept.  [default: agentkit-eval/SUITE-MODEL]",
            ),
            click.option(
                "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cases at once."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object, not tables."),
        ]
    ):
        fn = option(fn)
    return fn


def aid_options(fn: _F) -> _F:
    """With which of its aids for small models agentkit is measured."""
    for option in reversed(
        [
            click.option("--ablate", is_flag=True, help="Also agentkit with each of its aids switched."),
            click.option(
                "--without", multiple=True, metavar="AID", help="Without one of its aids: coerce, …"
            ),
            click.option(
                "--protocol",
                type=click.Choice(["native", "hermes", "react", "python"]),
                help="How tools are offered to the model.  [default: as for any server]",
            ),
            click.option(
                "--with", "with_", multiple=True, metavar="AID", help="With one that is off by default."
            ),
        ]
    ):
        fn = option(fn)
    return fn


@command(evals)
@case_options
@aid_options
def bfcl(
    only: tuple[str, ...],
    sample: int | None,
    seed: int,
    ablate: bool,
    without: tuple[str, ...],
    with_: tuple[str, ...],
    protocol: Any,
    **options: Any,
) -> None:
    """The Berkeley function calling leaderboard: 200 fixed cases, others by --only ID or --sample.

    What a model calls is compared with what is right; in the category multi_turn_base, what has become of simulated APIs.
    """
    suite, only = from_bfcl(only, sample, seed)
    measure(suite, _aided(ablate, without, with_, protocol), only=only, **options)


@command(evals)
@case_options
@aid_options
def tasks(
    ablate: bool, without: tuple[str, ...], with_: tuple[str, ...], protocol: Any, **options: Any
) -> None:
    """Sixty tasks with files, Git, times, data, web pages and a database, each with a budget."""
    from agentkit.evals.tasks import tasks

    measure(tasks(), _aided(ablate, without, with_, protocol), **options)


@command(evals)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@case_options
@aid_options
def suite(
    file: Path,
    ablate: bool,
    without: tuple[str, ...],
    with_: tuple[str, ...],
    protocol: Any,
    **options: Any,
) -> None:
    """Cases of your own: FILE is Python, and its `suite` an `agentkit.evals.Suite`."""
    measure(_loaded(file), _aided(ablate, without, with_, protocol), **options)


def from_bfcl(only: Sequence[str], sample: int | None, seed: int) -> tuple[Suite, tuple[str, ...]]:
    """BFCL with the cases that are asked for, and what `only` has to choose among them yet."""
    from agentkit.evals.bfcl import COUNTS
    from agentkit.evals.bfcl import bfcl as berkeley

    names = tuple(_names(only))
    if sample is not None:
        return berkeley(sample=(sample, seed)), names
    if names and not any(name in COUNTS or set("*?[") & set(name) for name in names):
        return berkeley(ids=names), ()  # which need not be among the 200
    return berkeley(), names


def _aided(ablate: bool, without: Sequence[str], with_: Sequence[str], protocol: Any) -> list[System]:
    from agentkit.evals.systems import speaking, switched, variants

    if ablate and (without or with_):
        raise click.UsageError("--ablate makes each switch by itself; leave out --without and --with.")
    system = switched(*(f"-{aid}" for aid in without), *(f"+{aid}" for aid in with_))
    systems = [system, *variants().values()] if ablate else [system]
    return [speaking(system, protocol) for system in systems] if protocol else [*systems]


@command(evals)
@click.argument("folders", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--markdown", is_flag=True, help="As Markdown.")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list.")
def table(folders: tuple[Path, ...], markdown: bool, as_json: bool) -> None:
    """The tables of what is in FOLDERS; those of one suite and one model are put together."""
    from agentkit.errors import ConfigError
    from agentkit.evals.ledger import Ledger
    from agentkit.evals.runner import read_machine
    from agentkit.evals.table import as_json as figures
    from agentkit.evals.table import report

    groups: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
    for folder in folders:
        rows = Ledger(folder / "rows.jsonl").rows
        if not rows:
            raise ConfigError(f"{folder} has no results; `agentkit eval bfcl -o {folder}` makes some.")
        model = read_machine(folder).get("model", "an unknown model")
        for row in rows:
            groups.setdefault((row["suite"], model), {})[row["system"], row["id"]] = row
    made = []
    for (name, model), found in groups.items():
        rows = sorted(
            found.values(), key=lambda row: row["system"] != "agentkit"
        )  # first what others stand beside
        if as_json:
            made.append({"suite": name, "model": model, **figures(rows)})
        else:
            click.echo(_headed(name, model, report(rows, markdown=markdown), markdown))
    if as_json:
        click.echo(json.dumps(made, ensure_ascii=False, indent=2))


def _headed(suite: str, model: str, tables: str, markdown: bool = False) -> str:
    return f"{'### ' if markdown else ''}{suite}, {model}\n\n{tables}\n"


def _names(only: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in only:
        names += Path(name[1:]).read_text(encoding="utf-8").split() if name.startswith("@") else [name]
    return names


def _loaded(file: Path) -> Suite:
    import importlib.util
    import sys

    from agentkit.errors import ConfigError

    name = f"agentkit_suite_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is not a Python file.")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    if not hasattr(module, "suite"):
        raise ConfigError(f"{file} has no `suite`; set it to an object with `name`, `cases` and `open`.")
    return cast("Suite", module.suite)


def measure(
    suite: Suite,
    systems: Sequence[System],
    *,
    model: str | None,
    only: Sequence[str],
    folder: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Run *suite* on *systems* with a bar that says how far it is, and print what came of it."""
    from agentkit.evals.runner import evaluate
    from agentkit.evals.table import as_json as figures
    from agentkit.evals.table import report

    only = _names(only)
    suite.cases()  # what cannot be measured is said before a model is loaded

    async def run() -> tuple[str, Path, list[Any]]:
        async with _server(model) as (upstream, name, key):
            into = folder or Path("agentkit-eval") / f"{suite.name}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}"
            with _Bar() as bar:
                rows = await evaluate(
                    suite,
                    systems,
                    upstream=upstream,
                    model=name,
                    api_key=key,
                    folder=into,
                    only=only,
                    progress=bar.show,
                    **options,
                )
            return name, into, rows

    try:
        name, into, rows = in_loop(run)
    except KeyboardInterrupt:
        warn("stopped; the same command goes on from here.")
        raise
    if as_json:
        found = {"suite": suite.name, "model": name, "folder": str(into), **figures(rows)}
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        click.echo(_headed(suite.name, name, report(rows)))
    warn(f"every turn of it is in {into}.")


@asynccontextmanager
async def _server(model: str | None) -> AsyncIterator[tuple[str, str, str | None]]:
    """The server that *model* names, started if it must be: its URL, the model's name there, its key."""
    from agentkit.errors import ConfigError, EngineError
    from agentkit.runtime import connect
    from agentkit.runtime.local import Local
    from agentkit.runtime.openai_compatible import OpenAICompatible
    from agentkit.runtime.replicas import Replicas

    engine = connect(model, warn)
    if isinstance(engine, Replicas):
        raise ConfigError(
            f"What is measured needs one model server, and {model} names several; name one of them."
        )
    if not isinstance(engine, Local | OpenAICompatible):
        raise ConfigError(f"What is measured needs a model server, and {model} is run without one.")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engine)
        if isinstance(engine, OpenAICompatible):
            name = engine.model or (await engine.models())[0]
            yield engine.base_url, name, os.environ.get("AGENTKIT_API_KEY")
            return
        server = engine.server
        assert server is not None
        try:
            yield server.base_url, server.model, server.api_key
        except EngineError as exc:
            gone = await server.why_gone(0.5)
            if gone:
                raise EngineError(f"{exc} {gone}") from exc
            raise


class _Bar:
    """How far it is, on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = Bar(
            TextColumn("{task.fields[system]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, system="", said="")
        self._first: int | None = None  # how many cases were done at first
        self._foretold = False
        self._line = 0

    def __enter__(self) -> _Bar:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, exc, tb)

    def show(self, at: Progress) -> None:
        if self._first is None:
            self._first = at.done
            if at.done:
                self._say(f"{at.done} of {at.total} cases are done already.")
        todo = at.total - at.done
        known = at.left is not None and (self._first > 0 or at.done - self._first >= _A_FEW)
        if known and todo and not self._foretold:
            self._foretold = True
            self._say(f"the other {todo} will take about {_about(at.left or 0)}.")
        said = f"passed {at.system_passed} of {at.system_done}"
        if known and todo:
            said += f", about {_about(at.left or 0)} left"
        self._bar.update(self._task, completed=at.done, total=at.total, system=at.system, said=said)
        step = max(1, at.total // 20)
        if not self._console.is_terminal and at.done // step > self._line:
            self._line = at.done // step
            self._say(f"{at.done}/{at.total}; {at.system} {said}")

    def _say(self, text: str) -> None:
        self._console.print(f"agentkit: {text}", markup=False)


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
