"""A chat-completions server on loopback that behaves like a good vLLM with a scripted model, but for the defects asked for."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL, KEY = "qwen3-4b", "a-key"
CITIES = ("Zürich", "Paris", "Tokyo")


@dataclass
class Turn:
    """What the scripted model writes."""

    thought: str = ""
    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)  # name, arguments
    finish: str | None = "stop"


def written(name: str, arguments: Any) -> str:
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def pieces(text: str) -> list[str]:
    """The tokens of this model: words with the space before them."""
    return re.findall(r"\s*\S+|\s+$", text)


@dataclass
class FakeServer:
    defects: frozenset[str] = frozenset()
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[list[str]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    def bad(self, *defects: str) -> bool:
        return any(d in self.defects for d in defects)

    # ------------------------------------------------------------ the model

    def prompt(self, body: dict[str, Any]) -> list[str]:
        """The tokens of the prompt: messages, the thoughts of this turn, and the tools."""
        lines = []
        if body.get("tools") and not self.bad("tools ignored"):
            lines += [json.dumps(body["tools"])]
        for message in body["messages"]:
            lines += [message["role"], str(message.get("content") or "")]
            names: tuple[str, ...] = ("reasoning", "reasoning_content")
            if self.bad("reasoning not read back"):
                names = ()
            elif self.bad("reasoning read under another name"):
                names = ("reasoning_content",)
            lines += [message[n] for n in names if n in message]
            lines += [json.dumps(message.get("tool_calls") or "")]
        return pieces("\n".join(lines))

    def write(self, body: dict[str, Any]) -> Turn:
        last, tools = body["messages"][-1], body.get("tools") or []
        said, names = last["content"], [t["function"]["name"] for t in tools]
        thinks = (body.get("chat_template_kwargs") or {}).get("enable_thinking", True)
        if self.bad("thinking switch ignored"):
            thinks = True
        elif self.bad("thinking stays off", "model does not think"):
            thinks = False
        turn = Turn("I look at the question, and then I answer it." if thinks else "")
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        wanted = next((n for n in names if n in said), None)
        if self.bad("tools ignored", "model never calls"):
            wanted = None if body.get("tool_choice") != "required" else wanted
        if self.bad("tools ignored", "required ignored"):
            wanted = None
        named = [n for n in names if n in said]
        if last["role"] == "tool":
            turn.text = last["content"]
        elif wanted == "get_weather":
            cities = [c for c in CITIES if c in said]
            turn.calls = [(name, {"city": city}) for name, city in zip(named, cities, strict=True)]
        elif wanted == "paint":
            strict = tools[0]["function"].get("strict") and not self.bad("strict ignored")
            turn.calls = [(wanted, {"code": "zq-17-blau" if strict else "red"})]
        elif "<tools>" in str(body["messages"][0]["content"]) and not self.bad("model writes no calls"):
            turn.text = written("get_weather", {"city": "Zürich"})
        elif schema and not self.bad("schema ignored"):
            turn.text = json.dumps({"code": schema["properties"]["code"]["enum"][0]})
        elif match := re.search(r"nothing else: (.*)", said):
            turn.text = match[1]
        elif "Count" in said:
            turn.text = " ".join(str(n) for n in range(1, 21))
        elif "17 + 26" in said:
            turn.text = "43"
        else:
            turn.text = "Hello, and a good morning to you!"
        return self.limited(turn, body)

    def limited(self, turn: Turn, body: dict[str, Any]) -> Turn:
        """Cut as max_tokens and stop say."""
        for stop in () if self.bad("stop ignored") else body.get("stop") or ():
            if stop in turn.text:
                turn.text = turn.text.split(stop)[0] + (stop if self.bad("stop string left in") else "")
        room = 10**9 if self.bad("max_tokens ignored") else body.get("max_tokens") or 10**9
        thought, text = pieces(turn.thought), pieces(turn.text)
        if len(thought) + len(text) > room:
            turn.thought, turn.text = "".join(thought[:room]), "".join(text[: max(0, room - len(thought))])
            turn.finish = "stop" if self.bad("finish says stop when cut") else "length"
        if turn.calls:
            turn.finish = "stop" if self.bad("finish says stop with calls") else "tool_calls"
        if self.bad("no finish reason"):
            turn.finish = None
        return turn

    # ------------------------------------------------------------ the parsers

    def message(self, turn: Turn, body: dict[str, Any]) -> dict[str, Any]:
        """The turn as a message, as the server's parsers take it apart."""
        stream = bool(body.get("stream"))
        thought, text, calls = turn.thought, turn.text, turn.calls
        if self.bad("parallel calls dropped") or (self.bad("parallel calls lost when streamed") and stream):
            calls = calls[:1]
        if calls and (self.bad("call in text") or (self.bad("call in text when streamed") and stream)):
            text, calls, turn.finish = text + "\n".join(written(*c) for c in calls), [], "stop"
        if calls and self.bad("call lost when streamed") and stream:
            calls, turn.finish = [], "stop"
        if calls and self.bad("call in reasoning" if not thought else "call in reasoning after thoughts"):
            thought, calls, turn.finish = thought + "\n".join(written(*c) for c in calls), [], "stop"
        if self.bad("answer in reasoning") or (self.bad("answer in reasoning when streamed") and stream):
            thought, text = thought + text, ""
        if self.bad("answer in reasoning with thinking on") and turn.thought:
            thought, text = thought + text, ""
        message: dict[str, Any] = {"role": "assistant", "content": text or None, "reasoning": thought or None}
        if thought and self.bad("inline think"):
            message = {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{text}"}
        elif thought and self.bad("think tag leaks"):
            message["content"] = f"then I answer.\n</think>\n\n{text}"
        elif thought and self.bad("odd reasoning field"):
            message["inner_monologue"] = message.pop("reasoning")
        elif self.bad("reasoning_content"):
            message["reasoning_content"] = message.pop("reasoning")
        elif self.bad("thoughts hidden"):
            del message["reasoning"]
        message["tool_calls"] = [
            {
                "id": "" if self.bad("no id") else "same" if self.bad("same id twice") else f"call-{i}",
                "type": "function",
                "function": {"name": name, "arguments": self.arguments(arguments)},
            }
            for i, (name, arguments) in enumerate(calls)
        ]
        if calls and self.bad("call in text as well"):
            message["content"] = "\n".join(written(*c) for c in calls)
        if calls and self.bad("function_call"):
            message |= {"tool_calls": [], "function_call": message["tool_calls"][0]["function"]}
        if calls and self.bad("call without a name"):
            message["tool_calls"][0]["function"]["name"] = ""
        if self.bad("empty answer"):
            message |= {"content": None, "reasoning": None, "tool_calls": []}
        return message

    def arguments(self, arguments: Any) -> Any:
        if self.bad("arguments as object"):
            return arguments
        text = json.dumps(arguments, ensure_ascii=False)
        if self.bad("arguments sent twice"):
            return text + text
        if self.bad("arguments encoded twice"):
            return json.dumps(text)
        return text[:-1] if self.bad("arguments not JSON") else text

    def usage(self, turn: Turn, prompt: list[str]) -> dict[str, Any]:
        shared = 0
        for earlier in self.prompts[:-1]:
            same = next((i for i, (a, b) in enumerate(zip(earlier, prompt, strict=False)) if a != b), None)
            shared = max(shared, min(len(earlier), len(prompt)) if same is None else same)
        written_ = len(pieces(turn.thought)) + len(pieces(turn.text)) + 20 * len(turn.calls)
        usage: dict[str, Any] = {"prompt_tokens": len(prompt), "completion_tokens": written_}
        usage["total_tokens"] = 7 if self.bad("total is wrong") else len(prompt) + written_
        if self.bad("thoughts hidden"):
            usage["completion_tokens"] += 200 if turn.thought else 0
            usage["total_tokens"] = sum(usage[k] for k in ("prompt_tokens", "completion_tokens"))
        if self.bad("prompt tokens constant"):
            usage["prompt_tokens"] = 10
            del usage["total_tokens"]
        if not self.bad("cached tokens not reported"):
            cached = 0 if self.bad("no prefix cache") else shared // 16 * 16
            usage["prompt_tokens_details"] = {"cached_tokens": cached}
        return usage

    # ------------------------------------------------------------ the wire

    def events(
        self, message: dict[str, Any], turn: Turn, usage: dict[str, Any], body: dict[str, Any]
    ) -> Iterator[Any]:
        """What a streamed answer sends: JSON values, or bytes as they are."""

        def choice(finish: str | None = None, **delta: Any) -> dict[str, Any]:
            return {
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
            }

        yield choice(role="assistant", content="")
        if "function_call" in message:
            yield choice(function_call=message["function_call"])
        for name in ("reasoning", "reasoning_content", "inner_monologue", "content"):
            so_far = ""
            for piece in pieces(message.get(name) or ""):
                so_far += piece
                if name == "content" and self.bad("text accumulated"):
                    yield choice(content=so_far)
                elif name == "content" and self.bad("one lump"):
                    yield choice(content=message["content"])
                    break
                elif name == "content" and self.bad("half characters") and not piece.isascii():
                    half = piece.encode("utf-16", "surrogatepass")[2:]
                    yield choice(**{name: half[:-2].decode("utf-16", "replace")})
                    yield choice(**{name: half[-2:].decode("utf-16", "replace")})
                else:
                    yield choice(**{name: piece})
                if self.bad("error in the stream"):
                    yield {"error": {"message": "CUDA out of memory", "code": 500}}
                    return
                if self.bad("junk in the stream") and name == "content":
                    yield b"data: {oops\n\n"
                if self.bad("choices null"):
                    yield {"choices": None}
                if self.bad("breaks off") and name == "content":
                    return
        for index, call in enumerate(message["tool_calls"]):
            yield from (choice(tool_calls=[part]) for part in self.call_parts(index, call))
        yield choice(turn.finish)
        if body.get("stream_options", {}).get("include_usage") and not self.bad("no usage when streamed"):
            yield {"choices": [], "usage": usage}
        if not self.bad("no [DONE]"):
            yield b"data: [DONE]\n\n"
        if self.bad("goes on after [DONE]"):
            yield choice(content="more")

    def call_parts(self, index: int, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        first = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
        if self.bad("index always 0", "parallel calls merged"):
            first["index"] = 0
        if self.bad("parallel calls merged"):
            first["id"] = "call-0" if index == 0 else ""
            first["function"]["name"] = first["function"]["name"] if index == 0 else ""
        if self.bad("no index"):
            del first["index"]
            yield {**first, "function": call["function"]}
            return
        yield first
        text, so_far = call["function"]["arguments"], ""
        if not isinstance(text, str):
            yield {"index": first["index"], "function": {"arguments": text}}
            return
        for start in range(0, len(text), 7):
            so_far += text[start : start + 7]
            piece = so_far if self.bad("arguments accumulated") else text[start : start + 7]
            part: dict[str, Any] = {"index": first["index"], "function": {"arguments": piece}}
            if self.bad("id repeated"):
                part["id"] = first["id"]
            if self.bad("id changes"):
                part["id"] = f"{first['id']}-{start}"
            yield part
        if self.bad("arguments repeated at the end"):
            yield {"index": first["index"], "function": {"arguments": text}}

    def refusal(self, body: dict[str, Any]) -> tuple[int, str] | None:
        roles = [m["role"] for m in body["messages"]]
        if self.bad("tools refused") and body.get("tools"):
            return (
                400,
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            )
        if self.bad("500 on tools") and body.get("tools"):
            return 500, "tools param requires --jinja flag"
        if self.bad("system refused") and "system" in roles:
            return 500, "System role not supported"
        if self.bad("tool role refused") and "tool" in roles:
            return 400, "Unexpected role tool"
        if self.bad("schema refused") and "response_format" in body:
            return 400, "response_format type must be text"
        if self.bad("strict refused") and any("strict" in t["function"] for t in body.get("tools", ())):
            return 422, "unknown field strict"
        if self.bad("template arguments refused") and "chat_template_kwargs" in body:
            return 400, "unknown field chat_template_kwargs"
        if self.bad("stream options refused") and "stream_options" in body:
            return 400, "unknown field stream_options"
        if self.bad("key wanted for chat only"):
            return 401, "no key"
        if body.get("model") != MODEL and not self.bad("no list of models"):
            return 404, f"The model {body.get('model')} does not exist."
        return None

    def chat(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.requests.append(body)
        if self.bad("one hiccup") and len(self.requests) == 1:
            reply(http, 500, {"error": "out of luck"})
            return
        if self.bad("hangs") or (self.bad("hangs on tools") and body.get("tools")):
            self.release.wait(30)
            return
        refused = self.refusal(body)
        if refused:
            reply(http, refused[0], {"error": {"message": refused[1], "code": refused[0]}})
            return
        prompt = self.prompt(body)
        self.prompts.append(prompt)
        turn = self.write(body)
        message, usage = self.message(turn, body), self.usage(turn, prompt)
        if self.bad("error inside 200"):
            reply(http, 200, {"error": {"message": "the model has crashed"}})
        elif body.get("stream") and not self.bad("does not stream"):
            self.stream(http, self.events(message, turn, usage, body))
        else:
            choices = [{"index": 0, "message": message, "finish_reason": turn.finish}]
            answer = {"object": "chat.completion", "model": MODEL, "choices": choices, "usage": usage}
            if self.bad("empty choices"):
                answer["choices"] = []
            if self.bad("usage null"):
                answer["usage"] = None  # type: ignore[assignment]
            reply(http, 200, self.spoilt(json.dumps(answer, ensure_ascii=False)))

    def spoilt(self, text: str) -> bytes:
        if self.bad("ASCII only"):
            return text.encode("ascii", "replace")
        if self.bad("read as Latin-1"):
            return text.encode().decode("latin-1").encode()
        return text.encode("latin-1", "replace") if self.bad("not UTF-8") else text.encode()

    def stream(self, http: BaseHTTPRequestHandler, events: Iterator[Any]) -> None:
        data = [
            e
            if isinstance(e, bytes)
            else b"data: " + self.spoilt(json.dumps(e, ensure_ascii=self.bad("half characters"))) + b"\n\n"
            for e in events
        ]
        if self.bad("lines of JSON"):
            data = [one.removeprefix(b"data: ").strip() + b"\n" for one in data if one[6:7] == b"{"]
        http.send_response(200)
        http.send_header("Content-Type", "text/event-stream; charset=utf-8")
        if self.bad("buffered"):
            http.send_header("Content-Length", str(sum(map(len, data))))
            http.end_headers()
            http.wfile.write(b"".join(data))
            return
        http.send_header("Transfer-Encoding", "chunked")
        http.end_headers()
        for one in [b"".join(data)] if self.bad("all at once") else data:
            if self.bad("stalls") and b"content" in one and b"one" in one:
                self.release.wait(30)
                return
            http.wfile.write(f"{len(one):x}\r\n".encode() + one + b"\r\n")
        if self.bad("connection closes"):
            http.close_connection = True
            return
        http.wfile.write(b"0\r\n\r\n")

    def get(self, http: BaseHTTPRequestHandler) -> None:
        root = "/api" if self.bad("under another path") else ""
        if self.bad("web page"):
            reply(http, 200, b"<!doctype html><title>Hello</title>", "text/html")
        elif http.path == root + "/v1/models" and not self.bad("no list of models"):
            card = {"id": MODEL, "object": "model", "owned_by": "vllm", "root": MODEL}
            card["max_model_len"] = 2048 if self.bad("short context") else 40960  # type: ignore[assignment]
            reply(http, 200, {"object": "list", "data": [] if self.bad("no models") else [card]})
        elif http.path == root + "/version":
            reply(http, 200, {"version": "0.32.0"})
        else:
            reply(http, 404, {"detail": "Not Found"})


def reply(http: BaseHTTPRequestHandler, status: int, value: Any, kind: str = "application/json") -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    http.send_response(status)
    http.send_header("Content-Type", kind)
    http.send_header("Content-Length", str(len(data)))
    http.end_headers()
    http.wfile.write(data)


@contextmanager
def fake_server(*defects: str) -> Iterator[FakeServer]:
    server = FakeServer(frozenset(defects))

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def allowed(self) -> bool:
            if server.bad("wrong key") and self.headers["Authorization"] != f"Bearer {KEY}":
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                reply(self, 401, {"error": f"no such key: {self.headers['Authorization']}"})
                return False
            return True

        def do_GET(self) -> None:
            if self.allowed():
                server.get(self)

        def do_POST(self) -> None:
            if self.allowed():
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/v1/chat/completions") and not server.bad("web page"):
                    server.chat(self, body)
                else:
                    reply(self, 404, {"detail": "Not Found"})

        def log_message(self, format: str, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        server.release.set()
        http.shutdown()
        http.server_close()
        thread.join()
