"""A scripted chat-completions server that takes no time of its own: for speed.py. Standard library only.

    python stub.py          prints {"port": …}, and ends when its stdin does

What it does is said in the path, so that every client passes it on: `http://127.0.0.1:PORT/steps-20_words-200_run-x/v1`.

    run    under what name requests are counted         steps  turns that call tools, before the answer (3)
    words  pieces of the answer, each its own event (20)  calls  tool calls in each of those turns (1)
    tool   which: add, slow or note (add)               long   pieces of the argument of `note` (1)
    delay  milliseconds before each answer (0)          text   1: calls are written into the text
    pause  milliseconds between two calls (0)           keep   1: what was asked is kept (0)

Turn i calls add(a=<the last result>, b=i), so the answer has the sum of 1…steps only if every result came back. What kind
of client asks is seen by its request: tools offered natively, in the prompt (Qwen-Agent), or smolagents, which ends by calling
`final_answer`. `GET /stats/RUN` says how many requests, bytes and connections a run took, and when it paused;
`GET /bodies/RUN` has the requests themselves.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

ARGUMENTS = 4  # characters of arguments in each event
END = " END"


def answer_pieces(result: int, words: int) -> list[str]:
    return [f"The answer is {result}.", *(f" w{i % 97}" for i in range(max(0, words - 2))), END]


def pieces(text: str, size: int = ARGUMENTS) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def results_in(body: Mapping[str, Any]) -> tuple[str, int, int]:
    """How the client speaks of tools, how many results it has sent back, and the last of them."""
    messages = body["messages"]
    names = {tool["function"]["name"] for tool in body.get("tools") or ()}
    if "final_answer" in names:
        kind, mark, said = "smolagents", "Observation:\n", "user"
    elif not names and "<tools>" in text_of(messages[0]["content"]):
        kind, mark, said = "prompt", "<tool_response>", "user"
    else:
        kind, mark, said = "native", "", "tool"
    found: list[str] = []
    for message in messages:
        if message["role"] == said:
            text = text_of(message["content"])
            parts = text.split(mark)[1:] if mark else [text]
            for part in parts:
                numbers = re.findall(r"^\s*(-?\d+)\b", part, re.MULTILINE)
                found += numbers if kind == "smolagents" else numbers[:1] or ["0"]
    return kind, len(found), int(found[-1]) if found else 0


class Scenario:
    def __init__(self, path: str) -> None:
        self.given = dict(pair.split("-", 1) for pair in path.split("_"))
        self.run = self.given.get("run", "")

    def __getitem__(self, key: str) -> int:
        return int(self.given.get(key, {"steps": 3, "words": 20, "calls": 1, "long": 1}.get(key, 0)))

    def turn(self, body: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[str]]]]:
        """What the model says next: pieces of text, and calls with the pieces of their arguments."""
        kind, results, last = results_in(body)
        step, calls = results // self["calls"], self["calls"]
        if step >= self["steps"]:
            said = answer_pieces(last, self["words"])
            if kind == "smolagents":
                return [], [("final_answer", ['{"answer": "', *said, '"}'])]
            return said, []
        made = [self.call(last, step, n) for n in range(calls)]
        if kind == "prompt" or self["text"]:
            texts = [
                f'<tool_call>\n{{"name": "{name}", "arguments": {"".join(args)}}}\n</tool_call>'
                for name, args in made
            ]
            return [
                piece for n, t in enumerate(texts) for piece in (("", "\n") if n else ()) + tuple(pieces(t))
            ], []
        return [], made

    def call(self, last: int, step: int, n: int) -> tuple[str, list[str]]:
        name = self.given.get("tool", "add")
        if name == "note":
            return name, ['{"text": "', *(f" w{i % 97}" for i in range(self["long"])), '"}']
        given = {"a": last, "b": step + 1} if name == "add" else {"n": n + 1}
        return name, pieces(json.dumps(given))


class Counts:
    def __init__(self) -> None:
        self.requests = self.bytes = self.streamed = self.largest = 0
        self.paused = 0  # when the first pause between two calls began, in nanoseconds of time.perf_counter
        self.connections: set[int] = set()
        self.bodies: list[Any] = []


COUNTS: dict[str, Counts] = defaultdict(Counts)


class Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.read, self.answering = bytearray(), False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.to = transport

    def data_received(self, data: bytes) -> None:
        self.read += data
        if not self.answering:
            self.next()

    def next(self) -> None:
        end = self.read.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.read[:end]).decode("latin-1")
        length = re.search(r"(?im)^content-length: *(\d+)", head)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(self.read) < size:
            return
        body = bytes(self.read[end + 4 : size])
        del self.read[:size]
        self.answering = True
        task = asyncio.ensure_future(self.answer(head.split(" ", 2)[1], body))
        task.add_done_callback(self.answered)

    def answered(self, task: asyncio.Task[None]) -> None:
        self.answering = False
        if (exc := task.exception()) is not None:
            print(f"stub: {exc!r}", file=sys.stderr, flush=True)
            self.to.close()
        elif self.read:
            self.next()

    def whole(self, value: object) -> None:
        content = json.dumps(value).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.to.write(head % len(content) + content)

    async def answer(self, path: str, content: bytes) -> None:
        first, _, rest = path.strip("/").partition("/")
        if first == "stats":
            c = COUNTS.pop(rest, Counts())
            return self.whole(
                {
                    "requests": c.requests,
                    "bytes": c.bytes,
                    "streamed": c.streamed,
                    "largest": c.largest,
                    "connections": len(c.connections),
                    "paused": c.paused,
                }
            )
        if first == "bodies":
            return self.whole(COUNTS[rest].bodies)
        if not rest.endswith("chat/completions"):
            return self.whole({"object": "list", "data": [{"id": "stub", "object": "model"}]})
        scenario, body = Scenario(first), json.loads(content)
        count = COUNTS[scenario.run]
        count.requests += 1
        count.bytes += len(content)
        count.largest = max(count.largest, len(content))
        count.streamed += bool(body.get("stream"))
        count.connections.add(id(self))
        if scenario["keep"]:
            count.bodies.append(body)
        text, calls = scenario.turn(body)
        if scenario["delay"]:
            await asyncio.sleep(scenario["delay"] / 1000)
        written = len(text) + sum(len(args) for _, args in calls)
        prompt = len(content) // 4
        usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        ids = [f"call_{count.requests}_{n}" for n in range(len(calls))]
        if not body.get("stream"):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(text) or None}
            if calls:
                message["tool_calls"] = [
                    {"id": i, "type": "function", "function": {"name": name, "arguments": "".join(args)}}
                    for i, (name, args) in zip(ids, calls, strict=True)
                ]
            reason = "tool_calls" if calls else "stop"
            choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
            return self.whole({**self.common(body, "chat.completion"), "choices": [choice], "usage": usage})
        self.to.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        common = json.dumps(self.common(body, "chat.completion.chunk"))[:-1]
        for delta, finish in deltas(text, calls, ids):
            if not delta and finish is None:  # between two calls
                count.paused = count.paused or time.perf_counter_ns()
                await asyncio.sleep(scenario["pause"] / 1000)
                continue
            choices = f'[{{"index": 0, "delta": {json.dumps(delta)}, "logprobs": null, "finish_reason": {json.dumps(finish)}}}]'
            self.event(f'{common}, "choices": {choices}}}')
            await asyncio.sleep(0)  # each leaves by itself
        if (body.get("stream_options") or {}).get("include_usage"):
            self.event(f'{common}, "choices": [], "usage": {json.dumps(usage)}}}')
        self.event("[DONE]")
        self.to.write(b"0\r\n\r\n")

    def common(self, body: Mapping[str, Any], kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body.get("model", "stub")}

    def event(self, payload: str) -> None:
        content = f"data: {payload}\n\n".encode()
        self.to.write(b"%x\r\n%b\r\n" % (len(content), content))


def deltas(
    text: list[str], calls: list[tuple[str, list[str]]], ids: list[str]
) -> Iterator[tuple[dict[str, Any], str | None]]:
    yield {"role": "assistant", "content": ""}, None
    for piece in text:
        yield {"content": piece} if piece else {}, None
    for n, (name, args) in enumerate(calls):
        if n:
            yield {}, None
        function: dict[str, Any] = {"name": name, "arguments": ""}
        yield {"tool_calls": [{"index": n, "id": ids[n], "type": "function", "function": function}]}, None
        for piece in args:
            yield {"tool_calls": [{"index": n, "function": {"arguments": piece}}]}, None
    yield {}, "tool_calls" if calls else "stop"


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=8192)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
