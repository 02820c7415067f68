"""What a run gains when a call begins while a model still writes the next one: a real model, two slow tools.

    python benchmarks/overlap.py qwen3-4b@http://127.0.0.1:8000/v1
    python benchmarks/overlap.py http://127.0.0.1:8080/v1 --protocol hermes --rounds 8

The model is asked for two things: to start a backup, which takes 4 s, and to save a note, which takes 1 s and whose text it
has to write. With `React(overlap=True)`, the default, the backup runs while the note is written; with False, as in frameworks that
wait for the whole answer, both begin at its end. The two take turns, at temperature 0, so that they write the same; a run whose calls
are not those two is listed, and not counted. Figures are medians of wall time, in seconds. What can be gained is the time that the note
takes to write, or the 3 s that the backup takes longer, whichever is less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

import anyio  # noqa: E402

from agentkit import Agent, ModelSettings, React, ToolCall  # noqa: E402
from agentkit.events import ToolStarted  # noqa: E402
from agentkit.runtime.openai_compatible import OpenAICompatible  # noqa: E402

BACKUP, NOTE = 4.0, 1.0  # seconds that the tools take
SAID = "The photos are being copied to the second disk. Do not switch it off before tomorrow at noon, and tell Anna when it is done."
TASK = (
    "Start a backup of the folder photos. At the same time, save a note with the title Backup that says: "
    f"{SAID} Make both calls at once, the backup first."
)


async def start_backup(folder: str) -> str:
    """Start a backup of a folder.

    Args:
        folder: the folder's name
    """
    await anyio.sleep(BACKUP)
    return f"The backup of {folder} is done."


async def save_note(title: str, text: str) -> str:
    """Save a note.

    Args:
        title: the note's title
        text: what the note says
    """
    await anyio.sleep(NOTE)
    return f"The note {title} is saved."


async def one_run(engine: OpenAICompatible, overlap: bool) -> tuple[dict[str, float], str]:
    """Seconds until each call began and until the answer; and what was wrong with the run, or ""."""
    agent = Agent(
        engine,
        tools=[start_backup, save_note],
        planner=React(overlap=overlap),
        settings=ModelSettings(temperature=0, thinking=False),
    )
    took: dict[str, float] = {}
    began = time.perf_counter()
    async with agent.stream(TASK) as run:
        async for event in run:
            if isinstance(event, ToolStarted):
                took[f"{event.call.name} begins"] = time.perf_counter() - began
    took["the answer is there"] = time.perf_counter() - began
    turns = [message for message in run.result.messages if message.role == "assistant"]
    calls = [(c.name, dict(c.arguments)) for c in turns[0].calls if isinstance(c, ToolCall)]
    wanted = [
        ("start_backup", {"folder": "photos"}),
        ("save_note", {"title": "Backup", "text": SAID}),
    ]
    right = calls == wanted and len(turns) == 2 and run.result.stopped == "answer"
    return took, "" if right else f"{len(turns)} turns, the first calls {calls}"


async def measure(server: str, protocol: Any, rounds: int) -> None:
    model, _, url = server.rpartition("@")
    took: dict[bool, dict[str, list[float]]] = {True: defaultdict(list), False: defaultdict(list)}
    wrong: list[str] = []
    async with OpenAICompatible(url, model or None, protocol=protocol) as engine:
        await one_run(engine, True)  # the server reads the prompt's beginning
        for n in range(rounds):
            for overlap in (True, False) if n % 2 else (False, True):
                seconds, fault = await one_run(engine, overlap)
                if fault:
                    wrong.append(f"overlap {overlap}: {fault}")
                    continue
                for what, value in seconds.items():
                    took[overlap][what].append(value)
        print(f"{engine.model}, tools offered as {engine.protocol}; {rounds} rounds")
    print(f"{len(wrong)} of {2 * rounds} runs were not right", *wrong, sep="\n  ")
    if not (took[True] and took[False]):
        raise SystemExit("Nothing to compare.")
    print("| seconds until | with overlap | without | ratio |\n|---|---|---|---|")
    for what in took[True]:
        ours, other = statistics.median(took[True][what]), statistics.median(took[False][what])
        print(f"| {what} | {ours:.2f} | {other:.2f} | {ours / other:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("server", help="its URL, and the name of its model before an @ where it has several")
    parser.add_argument(
        "--protocol",
        default="native",
        choices=["native", "hermes", "python"],
        help="how tools are offered; calls in a block of Python begin when it is over",
    )
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    anyio.run(partial(measure, given.server, given.protocol, given.rounds))


if __name__ == "__main__":
    main()
