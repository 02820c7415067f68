"""agentkit beside other frameworks: the same cases, model server, sampling and seed; each peer in an environment of its own.

    python benchmarks/compare.py bfcl -m demo
    python benchmarks/compare.py tasks -m NAME@http://127.0.0.1:8000/v1 --systems agentkit,openai,smolagents_code
    python benchmarks/compare.py table agentkit-eval/*
    python benchmarks/compare.py keep agentkit-eval/bfcl-demo

The environments are made when they are first needed, from peers/requirements/, in the user's cache (--setup makes them and
does no more); how each peer is driven, and by which of its docs, says its module in peers/adapters/. What is stopped goes
on with the same command. Peers only reach a recorder on loopback, which fills in the sampling that they leave open.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import anyio
import click
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from agentkit.cli import command, warn
from agentkit.cli.eval import case_options, evals, from_bfcl, measure
from agentkit.errors import ConfigError
from agentkit.evals.systems import AgentkitSystem, System, SystemFailed

if TYPE_CHECKING:
    from agentkit.evals.recorder import Session
    from agentkit.evals.suite import Case

FOLDER = Path(__file__).parent / "peers"
PEERS = {  # adapter -> whose requirements it needs
    "openai": "openai",
    "openai_required": "openai",
    "qwen_agent": "qwen_agent",
    "openai_agents": "openai_agents",
    "pydantic_ai": "pydantic_ai",
    "smolagents_code": "smolagents",
    "smolagents_tools": "smolagents",
    "langgraph": "langgraph",
    "strands": "strands",
}
SYSTEMS = ("agentkit", *PEERS)
RESULTS = Path(__file__).parent / "results"
KEPT = (  # of a row
    "suite system category id passed ended requests prompt_tokens completion_tokens model_seconds overhead_seconds versions"
).split()
_LINE = 64 * 2**20  # bytes of an answer, at most


def environments(names: Iterable[str]) -> dict[str, Path]:
    """The Python of each of those environments; what is missing is made."""
    found = {name: environment(name) for name in dict.fromkeys(names)}
    missing = [name for name, folder in found.items() if not complete(folder)]
    if missing:
        warn(f"making environments for {', '.join(missing)}, about a minute each.")
    for name in missing:
        _make(name, found[name])
    return {name: python_in(folder) for name, folder in found.items()}


def environment(name: str) -> Path:
    """The folder of an environment, which may not be there: another one for other requirements or another Python."""
    from platformdirs import user_cache_path

    wanted = (FOLDER / "requirements" / f"{name}.txt").read_bytes()
    key = hashlib.sha256(sys.version.encode() + wanted).hexdigest()[:12]
    return user_cache_path("agentkit") / "peers" / f"{name}-{key}"


def python_in(folder: Path) -> Path:
    return folder / "bin" / "python"


def complete(folder: Path) -> bool:
    return (folder / "complete").exists()


def _make(name: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if complete(folder):  # by another process, while this one waited
            return
        wanted = FOLDER / "requirements" / f"{name}.txt"
        for step in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [str(python_in(folder)), "-m", "pip", "install", "--quiet", "--no-input", "-r", str(wanted)],
        ):
            if subprocess.run(step, stdout=sys.stderr).returncode:
                raise ConfigError(f"The environment for {name} could not be made: {' '.join(step)} failed.")
        (folder / "complete").touch()


@dataclass
class Worker:
    """A process of peers/worker.py."""

    process: Process
    lines: BufferedByteReceiveStream
    log: IO[bytes]  # its stderr
    versions: Mapping[str, str]

    @classmethod
    async def start(cls, name: str, python: Path) -> Worker:
        log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        # in a session of its own: Ctrl-C is for us, who then stop it
        process = await anyio.open_process(
            [str(python), str(FOLDER / "worker.py"), name], stderr=log, start_new_session=True
        )
        assert process.stdout is not None
        worker = cls(process, BufferedByteReceiveStream(process.stdout), log, {})
        try:
            worker.versions = (await worker.line())["versions"]
        except BaseException:
            await worker.stop()
            raise
        return worker

    async def ask(self, case: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send(json.dumps(case).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise self._gone() from None
        return await self.line()

    async def line(self) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(await self.lines.receive_until(b"\n", _LINE))
        except (anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
            raise self._gone() from None
        return said

    def _gone(self) -> SystemFailed:
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        return SystemFailed(f"its process ended: {last or 'without a word'}")

    async def stop(self) -> None:
        with anyio.CancelScope(shield=True):
            if self.process.returncode is None:
                self.process.kill()
            await self.process.wait()
            await self.process.aclose()
        self.log.close()


class Peer:
    """Another framework, as the adapter *name* drives it with the Python of its environment."""

    def __init__(self, name: str, python: Path) -> None:
        self.name, self._python = name, python
        self.versions: Mapping[str, str] = {}
        self._idle: list[Worker] = []

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[None]:
        try:
            self._idle.append(await Worker.start(self.name, self._python))
        except SystemFailed as exc:
            raise ConfigError(f"{self.name} does not start with {self._python}: {exc}") from exc
        self.versions = self._idle[0].versions
        try:
            yield
        finally:
            while self._idle:
                await self._idle.pop().stop()

    async def answer(self, session: Session, case: Case, model: str) -> Sequence[str]:
        worker = self._idle.pop() if self._idle else await Worker.start(self.name, self._python)
        try:
            said = await worker.ask(as_line(session, case, model))
        except BaseException:  # it is gone, or its time is over and it works on
            await worker.stop()
            raise
        self._idle.append(worker)
        if said["error"]:
            raise SystemFailed(said["error"])
        return tuple(said["answers"])


def as_line(session: Session, case: Case, model: str) -> dict[str, Any]:
    return {
        "id": case.id,
        "base_url": session.base_url,
        "tools_url": session.tools_url,
        "turn_url": session.turn_url,
        "api_key": session.api_key,
        "model": model,
        "turns": [[{"role": m.role, "content": m.text} for m in turn] for turn in case.turns],
        "tools": [
            {"name": t.name, "description": t.description, "parameters": t.parameters} for t in session.tools
        ],
        "max_requests": case.max_requests,
        "max_tokens": case.max_tokens,
        "temperature": 0.0,
        "seed": 0,
    }


def systems_named(names: Sequence[str]) -> list[System]:
    """agentkit and peers by their names, their environments made. Raises `ConfigError` for a name that there is not."""
    for name in names:
        if name not in SYSTEMS:
            raise ConfigError(f"There is no system {name!r}; there are: {', '.join(SYSTEMS)}.")
    pythons = environments(PEERS[name] for name in names if name in PEERS)
    return [Peer(name, pythons[PEERS[name]]) if name in PEERS else AgentkitSystem() for name in names]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """agentkit beside other frameworks, on the same cases and the same model server.

    \b
    python benchmarks/compare.py bfcl -m demo
    python benchmarks/compare.py tasks -m demo --systems agentkit,openai
    python benchmarks/compare.py table agentkit-eval/*
    python benchmarks/compare.py keep agentkit-eval/bfcl-demo
    """


def compare_options(fn: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--setup", is_flag=True, help="Make the peers' environments, and do no more."),
        click.option(
            "--systems",
            default=",".join(SYSTEMS),
            metavar="NAME,…",
            help=f"Those of: {', '.join(SYSTEMS)}.  [default: all]",
        ),
        case_options,
    ):
        fn = option(fn)
    return fn


@command(main)
@compare_options
def bfcl(
    systems: str, setup: bool, only: tuple[str, ...], sample: int | None, seed: int, **options: Any
) -> None:
    """The Berkeley function calling leaderboard, as `agentkit eval bfcl` has it."""
    ready = systems_named(systems.split(","))
    if not setup:
        suite, only = from_bfcl(only, sample, seed)
        measure(suite, ready, only=only, **options)


@command(main)
@compare_options
def tasks(systems: str, setup: bool, **options: Any) -> None:
    """Sixty tasks, as `agentkit eval tasks` has them."""
    ready = systems_named(systems.split(","))
    if not setup:
        from agentkit.evals.tasks import tasks

        measure(tasks(), ready, **options)


@command(main)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", help="What to call them.  [default: as FOLDER]")
def keep(folder: Path, name: str | None) -> None:
    """Put the results in FOLDER into results/ beside this file: what the tables are made of, without what was said.

    A system that has not done all of the cases is left out.
    """
    from agentkit.evals.ledger import Ledger

    into = RESULTS / (name or folder.name)
    into.mkdir(parents=True, exist_ok=True)
    rows = Ledger(folder / "rows.jsonl").rows
    done = Counter(row["system"] for row in rows)
    whole = [system for system, cases in done.items() if cases == max(done.values())]
    kept = [row for row in rows if row["system"] in whole]
    lines = [json.dumps({key: _rounded(row[key]) for key in KEPT}, ensure_ascii=False) for row in kept]
    (into / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (into / "machine.json").write_bytes((folder / "machine.json").read_bytes())
    warn(f"{len(lines)} rows of {', '.join(whole)} are in {into}.")


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


main.add_command(evals.commands["table"])

if __name__ == "__main__":
    main()
