"""How much of its prompts a run of five steps leaves in the server's prefix cache, with agentkit and with others.

    python benchmarks/prefix.py http://127.0.0.1:8000/v1 --block 16
    python benchmarks/prefix.py NAME@http://127.0.0.1:8000/v1 --systems agentkit,langgraph

Each framework does a run of five tool steps with overhead/stub.py, which keeps what it asks; then those requests are sent to
the server, one after the other, for one token each, and its usage says how many tokens of the prompt it had read before.
What it could have had is the whole prompt of the step before, in whole blocks: vLLM keeps no others (--block, 16 tokens on a GPU
and 128 on a CPU, as its log says), llama-server has none.

The server has to tell cached tokens: vLLM with --enable-prompt-tokens-details, llama-server as it is. Its key is read from
AGENTKIT_API_KEY.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed import SYSTEMS, Bench  # noqa: E402

STEPS = 5


def requests_of(bench: Bench, system: str) -> list[dict[str, Any]]:
    """What *system* asks in a run of five steps, made its own: no other system has read the beginning for it."""
    url, run = bench.stub.url(steps=STEPS, keep=1)
    done = bench.worker(system).ask(do="run", url=url, stream=system == "qwen_agent", tools=["add", "note"])
    if "error" in done:
        raise SystemExit(f"{system}: {done['error']}")
    with urllib.request.urlopen(f"http://127.0.0.1:{bench.stub.port}/bodies/{run}") as response:
        bodies: list[dict[str, Any]] = json.load(response)
    assert len(bodies) == STEPS + 1, f"{system} has asked {len(bodies)} times"
    mark = secrets.token_hex(4)
    for body in bodies:
        first = body["messages"][0]
        if isinstance(first["content"], str):
            first["content"] = f"{mark} {first['content']}"
        else:
            first["content"][0]["text"] = f"{mark} {first['content'][0]['text']}"
    return bodies


def read(url: str, model: str, body: dict[str, Any]) -> tuple[int, int]:
    """The tokens of a prompt, and how many of them the server had read before."""
    asked = {k: v for k, v in body.items() if k in ("messages", "tools", "tool_choice")}
    asked |= {"model": model, "max_tokens": 1, "temperature": 0}
    usage = answer(f"{url}/chat/completions", asked)["usage"]
    if usage.get("prompt_tokens_details") is None:
        raise SystemExit("The server tells no cached tokens; start vLLM with --enable-prompt-tokens-details.")
    return usage["prompt_tokens"], usage["prompt_tokens_details"].get("cached_tokens") or 0


def answer(url: str, asked: dict[str, Any] | None = None) -> Any:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("AGENTKIT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(asked).encode() if asked else None, headers)
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as exc:
        why = exc.read().decode(errors="replace")[:300]
        raise SystemExit(f"{url} answered {exc.code}: {why}") from None
    except OSError as exc:
        raise SystemExit(f"{url} does not answer ({exc}); is the server running?") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("server", help="its URL, and the name of its model before an @ where it has several")
    parser.add_argument(
        "--systems", default=",".join(SYSTEMS), help="names with commas between; all by default"
    )
    parser.add_argument("--block", type=int, default=1, help="tokens of a block of the server's cache")
    given = parser.parse_args()
    model, _, url = given.server.rpartition("@")
    url = url.rstrip("/")
    if not model:
        model = answer(f"{url}/models")["data"][0]["id"]
    bench = Bench(given.systems.split(","), quick=True)
    try:
        print("| | prompt tokens of the last step | cached of what could be |\n|---|---|---|")
        for system in bench.systems:
            counted = [read(url, model, body) for body in requests_of(bench, system)]
            could = sum(prompt // given.block * given.block for prompt, _ in counted[:-1])
            had = sum(min(cached, before) for (before, _), (_, cached) in pairwise(counted))
            print(f"| {system} | {counted[-1][0]:,} | {had / could:.1%} |", flush=True)
    finally:
        bench.close()
        bench.stub.close()


if __name__ == "__main__":
    main()
