"""The doctor of model servers: a good one has nothing wrong, and each defect is named by the right finding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit import ConfigError
from agentkit.cli.probe import show_report
from agentkit.messages import user
from agentkit.runtime.answers import read_stream, read_whole
from agentkit.runtime.engine import Request
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.runtime.probe import CHECKS, Finding, Report, probe_server, suggest_protocol

from .fake_server import KEY, MODEL, fake_server  # beside this file

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

BAD = ("warn", "missing")


def bad(report: Report) -> dict[str, str]:
    return {f.id: f.detail for f in report.findings if f.state in BAD}


async def look(
    *defects: str, model: str | None = None, key: str | None = KEY, timeout: float = 20.0
) -> Report:
    with fake_server(*defects) as server:
        return await probe_server(server.url, model, key, timeout=timeout)


async def test_a_good_server_has_no_bad_finding_and_everything_is_known_of_it() -> None:
    report = await look(model=MODEL)
    assert {f.id: f.state for f in report.findings if f.state != "ok"} == {}
    assert set(CHECKS) - {f.id for f in report.findings} == {"server.key", "tools.text"}
    assert (report.kind, report.model, report.protocol) == ("vllm", MODEL, "native")
    assert report["server.context"].detail.startswith("40,960")
    assert report.requests <= 15


async def test_a_server_with_the_older_name_for_thoughts_is_good_too() -> None:
    report = await look("reasoning_content")
    assert bad(report) == {} and report["reasoning.out"].detail == "reasoning_content"


# defect -> (the finding that names it, words that it says, further findings that cannot but follow)
DEFECTS: dict[str, tuple[str, str] | tuple[str, str, set[str]]] = {
    "under another path": ("server.reachable", "/api/v1 is"),
    "web page": ("server.reachable", "web page"),
    "wrong key": ("server.key", "wants an API key"),
    "key wanted for chat only": ("server.key", "no key"),
    "no list of models": ("server.models", "does not list"),
    "no models": ("server.models", "serves no model"),
    "short context": ("server.context", "2,048"),
    "error inside 200": ("chat.whole", "crashed", {"chat.streamed"}),
    "empty answer": ("chat.whole", "empty", {"chat.streamed"}),
    "empty choices": ("chat.whole", "no choices"),
    "system refused": ("chat.system", "not supported"),
    "error in the stream": ("chat.streamed", "CUDA out of memory"),
    "choices null": ("stream.events", "choices is null"),
    "junk in the stream": ("stream.events", "not JSON"),
    "breaks off": ("stream.events", "breaks off"),
    "stalls": ("stream.events", "says nothing more for 0.5 s"),
    "connection closes": ("stream.events", "closes in the middle"),
    "goes on after [DONE]": ("stream.events", "after [DONE]"),
    "lines of JSON": ("chat.streamed", "lines of JSON", {"tools.streamed"}),
    "no [DONE]": ("stream.events", "[DONE]"),
    "does not stream": ("stream.events", "whole JSON"),
    "text accumulated": ("stream.events", "repeats the text"),
    "one lump": ("stream.incremental", "one piece"),
    "all at once": ("stream.incremental", "at once"),
    "buffered": ("stream.incremental", "at once"),
    "half characters": ("text.unicode", "broken between pieces"),
    "ASCII only": ("text.unicode", "'?'"),
    "read as Latin-1": ("text.unicode", "Latin-1"),
    "not UTF-8": ("text.unicode", "UTF-8"),
    "finish says stop with calls": ("finish.reason", "'stop' where it made tool calls"),
    "finish says stop when cut": ("finish.reason", "max_tokens cut"),
    "no finish reason": ("finish.reason", "no finish_reason"),
    "max_tokens ignored": ("limits.max_tokens", "6 tokens were asked for, 20 words"),
    "stop ignored": ("limits.stop", "runs on"),
    "stop string left in": ("limits.stop", "left in"),
    "total is wrong": ("usage.whole", "total_tokens", {"usage.streamed"}),
    "usage null": ("usage.whole", "no token counts"),
    "no usage when streamed": ("usage.streamed", "no token counts"),
    "stream options refused": ("usage.streamed", "refused"),
    "cached tokens not reported": ("usage.cached", "not reported"),
    "no prefix cache": ("usage.cached", "none of it"),
    "thinking switch ignored": ("thinking.switch", "although chat_template_kwargs says not to"),
    "thinking stays off": ("thinking.switch", "although chat_template_kwargs says to think"),
    "template arguments refused": ("thinking.switch", "refused"),
    "inline think": ("reasoning.out", "inline"),
    "think tag leaks": ("reasoning.out", "leaks"),
    "odd reasoning field": ("reasoning.out", "inner_monologue"),
    "thoughts hidden": ("reasoning.out", "hidden"),
    "reasoning not read back": ("reasoning.in", "do not reach the prompt"),
    "reasoning read under another name": ("reasoning.in", "read as reasoning_content"),
    "answer in reasoning": ("reasoning.answer", "thinking off"),
    "answer in reasoning when streamed": ("reasoning.answer", "streamed"),
    "answer in reasoning with thinking on": ("reasoning.answer", "thinking on"),
    "tools refused": ("tools.whole", "--enable-auto-tool-choice", {"tools.streamed"}),
    "500 on tools": ("tools.whole", "--jinja", {"tools.streamed"}),
    "tools ignored": ("tools.whole", "never reach the prompt", {"tools.streamed"}),
    "call in text": ("tools.whole", "in content", {"tools.streamed"}),
    "call in text when streamed": ("tools.streamed", "in content"),
    "call in reasoning": ("tools.whole", "swallowed into reasoning", {"tools.streamed"}),
    "call in text as well": ("tools.whole", "as well", {"tools.streamed"}),
    "function_call": ("tools.whole", "function_call", {"tools.streamed"}),
    "call without a name": ("tools.whole", "no name", {"tools.streamed"}),
    "hangs": ("chat.streamed", "no answer within"),
    "call in reasoning after thoughts": ("tools.thinking", "swallowed into reasoning"),
    "call lost when streamed": ("tools.streamed", "lost"),
    "hangs on tools": ("tools.whole", "no answer within"),
    "arguments as object": ("tools.arguments", "object"),
    "arguments not JSON": ("tools.arguments", "not JSON"),
    "arguments encoded twice": ("tools.arguments", "not a JSON object"),
    "arguments accumulated": ("tools.arguments", "so far"),
    "arguments sent twice": ("tools.arguments", "twice"),
    "arguments repeated at the end": ("tools.arguments", "twice"),
    "no id": ("tools.ids", "no id"),
    "same id twice": ("tools.ids", "same id"),
    "id changes": ("tools.ids", "changes"),
    "id repeated": ("tools.ids", "repeated"),
    "index always 0": ("tools.ids", "share the index 0"),
    "no index": ("tools.ids", "no index"),
    "parallel calls dropped": ("tools.parallel", "one call came"),
    "parallel calls lost when streamed": ("tools.parallel", "2 calls when asked whole"),
    "parallel calls merged": ("tools.parallel", "run together"),
    "tool role refused": ("tools.results", "Unexpected role"),
    "strict ignored": ("tools.strict", "break the schema"),
    "strict refused": ("tools.strict", "refused"),
    "schema ignored": ("schema.enforced", "ignored"),
    "schema refused": ("schema.enforced", "refused"),
}


@pytest.mark.parametrize("defect", DEFECTS)
async def test_each_defect_is_named_by_one_finding(defect: str) -> None:
    check, words, *follows = DEFECTS[defect]
    key = None if "key" in defect else KEY
    report = await look(defect, key=key, timeout=0.5 if "hangs" in defect or defect == "stalls" else 20.0)
    found = bad(report)
    assert words in found.get(check, ""), found
    assert found.keys() - {check} == (follows[0] if follows else set()), found
    assert defect.startswith(("server", "chat")) or report.requests <= 20


async def test_a_hiccup_of_the_server_is_not_held_against_it() -> None:
    assert bad(await look("one hiccup")) == {}


async def test_a_model_that_does_not_think_is_no_defect() -> None:
    with fake_server("model does not think") as server:
        report = await probe_server(server.url + "/chat/completions", None, KEY)
    assert bad(report).keys() == {"thinking.switch"}  # its name is that of a model that thinks
    assert report["reasoning.out"].state == "unknown"


async def test_what_the_model_does_not_do_is_not_the_servers_fault() -> None:
    report = await look("model never calls", "required ignored")
    assert (
        report["tools.streamed"].state == "unknown"
        and "the model did not call" in report["tools.whole"].detail
    )
    assert bad(report) == {} and report.protocol == "hermes"
    mute = await look("model never calls", "required ignored", "model writes no calls")
    assert bad(mute).keys() == {"tools.text"} and mute.protocol == "react"


async def test_a_model_that_must_be_made_to_call_still_shows_that_calls_are_parsed() -> None:
    report = await look("model never calls")
    assert "tool_choice=required" in report["tools.whole"].detail
    assert report["tools.streamed"].state == "ok" and report.protocol == "native"


async def test_a_model_that_was_trained_on_code_is_said_to_get_its_tools_as_python(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = (Finding("tools.streamed", "ok", "parsed as tool_calls"),)
    report = Report("http://127.0.0.1:1/v1", "llama.cpp", "qwen2.5-coder-1.5b-instruct", 1, found)
    assert report.protocol == OpenAICompatible(report.url, report.model).protocol == "python"
    assert show_report(report, as_json=False) == 0
    assert "offer its tools as python" in capsys.readouterr().out


async def test_token_counts_that_never_change_prove_nothing() -> None:
    report = await look("prompt tokens constant")
    assert report["reasoning.in"].state == "unknown" and bad(report) == {}


async def test_a_model_that_is_not_served_is_named_with_those_that_are() -> None:
    report = await look(model="qwen3-8b")
    assert bad(report).keys() == {"server.models"} and report.model == MODEL
    assert report["server.models"].fix == f"-m {MODEL}"


async def test_a_missing_v1_is_found_and_the_rest_is_looked_at_all_the_same() -> None:
    with fake_server() as server:
        report = await probe_server(server.url.removesuffix("/v1"), None, KEY)
    assert bad(report).keys() == {"server.reachable"}
    assert report["server.reachable"].fix == f"--url {server.url}" and report.url == server.url


async def test_where_nothing_listens_nothing_else_is_asked() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it
        report = await probe_server(f"127.0.0.1:{taken.getsockname()[1]}/v1")
    assert bad(report).keys() == {"server.reachable"} and report.requests == 0


@pytest.mark.parametrize(
    "url",
    ["", "http://", "http://[::1", "http://x:99999/v1", "ftp://x/v1", "http://x:1/v1,http://y:1/v1"],
)
async def test_what_is_no_url_is_said_to_be_none(url: str) -> None:
    with pytest.raises(ConfigError, match="http://HOST:PORT/v1"):
        await probe_server(url)


async def test_the_tools_alone_take_few_requests_and_give_the_same_protocol() -> None:
    for defect in ("", "tools refused", "call in text", "index always 0"):
        with fake_server(defect) as server:
            short = await probe_server(server.url, None, KEY, tools_only=True)
            full = await probe_server(server.url, None, KEY)
        assert short.requests <= 6 and (short.protocol, defect) == (full.protocol, defect)


@pytest.mark.parametrize(("defect", "protocol"), [("", "native"), ("tools ignored", "hermes")])
async def test_an_engine_that_doubts_whether_its_tools_were_read_asks_the_probe_once(
    defect: str, protocol: str
) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "wonderful " * 30, "parameters": {}}}
    with fake_server(defect) as server:
        async with OpenAICompatible(server.url, MODEL, KEY) as engine:
            for _ in range(2):
                async for _ in engine.stream(Request((user("wonderful " * 40),), [tool])):
                    pass
            asked = len(server.requests)
            async for _ in engine.stream(Request((user("wonderful " * 40),), [tool])):
                pass
        assert engine.protocol == protocol and len(server.requests) == asked + 1
        assert ("tools" in server.requests[-1]) == (protocol == "native")


@pytest.mark.parametrize(
    ("states", "protocol"),
    [
        ({}, "native"),
        ({"tools.streamed": "ok"}, "native"),
        ({"tools.streamed": "warn"}, "native"),
        ({"tools.streamed": "missing"}, "hermes"),
        ({"tools.streamed": "missing", "tools.text": "ok"}, "hermes"),
        ({"tools.streamed": "missing", "tools.text": "warn"}, "react"),
        ({"tools.whole": "missing", "tools.streamed": "unknown"}, "hermes"),
        ({"tools.whole": "missing", "tools.streamed": "ok"}, "native"),
        ({"tools.streamed": "ok", "tools.arguments": "missing"}, "hermes"),
        ({"tools.streamed": "ok", "tools.arguments": "warn"}, "native"),
        ({"tools.streamed": "ok", "tools.ids": "missing"}, "hermes"),
        ({"tools.streamed": "ok", "tools.results": "missing"}, "hermes"),
        ({"tools.streamed": "unknown", "tools.text": "ok"}, "hermes"),
        ({"tools.streamed": "unknown", "tools.text": "warn"}, "react"),
    ],
)
def test_the_protocol_follows_from_the_findings(states: dict[str, Any], protocol: str) -> None:
    assert suggest_protocol([Finding(check, state, "") for check, state in states.items()]) == protocol


def doctor(*args: str, key: str | None = KEY) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AGENTKIT_")}
    environment |= {"AGENTKIT_API_KEY": key} if key else {}
    command = [str(Path(sys.executable).with_name("agentkit")), "doctor", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_command_prints_json_and_succeeds_when_nothing_is_broken() -> None:
    with fake_server("wrong key", "inline think") as server:  # "wrong key": only the right one is taken
        done = doctor("--url", server.url, "-m", MODEL, "--json")
    said = json.loads(done.stdout)
    assert (said["kind"], said["model"], said["protocol"]) == ("vllm", MODEL, "native")
    assert [f["id"] for f in said["findings"] if f["state"] != "ok"] == ["reasoning.out"]
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_prints_a_table_that_says_what_to_change_and_fails() -> None:
    with fake_server("tools refused") as server:
        done = doctor("--url", server.url)
    row = next(line for line in done.stdout.splitlines() if "tools, streamed" in line)
    assert (
        row.startswith("✗") and "→ start it with --enable-auto-tool-choice --tool-call-parser hermes" in row
    )
    assert "agentkit would offer its tools as hermes" in done.stdout
    assert (done.returncode, done.stderr) == (1, "")


def test_the_key_is_never_printed() -> None:
    with fake_server("wrong key") as server:
        done = doctor("--url", server.url, key="sk-not-this-one")
    assert done.returncode == 1 and "refuses the key" in done.stdout
    assert "sk-not-this-one" not in done.stdout + done.stderr


_EVENT = {
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x"},
            "delta": {
                "content": "x",
                "reasoning": "y",
                "tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}],
            },
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}},
    "error": None,
}
_ANYTHING: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1.5, "", "text", [], [None], {}, {"a": 1}, [[]], ["\ud800"]]
)


def spoilt(value: Any, draw: Any) -> Any:
    """*value* with anything in the place of some of its parts."""
    if draw(st.integers(0, 7)) == 0:
        return draw(_ANYTHING)
    if isinstance(value, dict):
        return {k: spoilt(v, draw) for k, v in value.items()}
    return [spoilt(v, draw) for v in value] if isinstance(value, list) else value


@given(st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.e2e
def test_whatever_a_server_sends_it_is_read_without_failing(data: Any) -> None:
    events = [spoilt(_EVENT, data.draw) for _ in range(3)]
    read_whole(json.dumps(events[0]).encode(), "", False)
    stream = b"".join(b"data: " + json.dumps(e).encode() + b"\n\n" for e in events)
    read_stream({}, [(0.0, stream)], "", False)
