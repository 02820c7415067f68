"""The command, as a process: what is on stdout, on stderr, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = str(Path(sys.executable).with_name("agentkit"))
Serve = Callable[..., Any]


@pytest.fixture
def home() -> Iterator[dict[str, str]]:
    """The environment of a user who has nothing yet."""
    with tempfile.TemporaryDirectory() as name:  # short: the path of a unix socket may have 108 bytes
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "HF_", "AGENTKIT_"))}
        yield {**environment, "HOME": name, "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}


def agentkit(*args: str, home: dict[str, str], text: str | None = None, cwd: Path | None = None) -> Any:
    stdin = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        [COMMAND, *args], env=home, capture_output=True, text=True, timeout=60, cwd=cwd, **stdin
    )


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_the_answer_is_on_stdout_and_the_tools_are_on_stderr(serve: Serve, home: dict[str, str]) -> None:
    server = serve(
        lambda x: x.answer(call("calculator", '{"expression": "6*7"}')), lambda x: x.answer("It is 42.")
    )
    done = agentkit("run", "-m", f"m@{server.url}", "-t", "calculator", "6 times 7?", home=home)
    assert (done.returncode, done.stdout) == (0, "It is 42.\n")
    assert '▶ calculator(expression="6*7")' in done.stderr and "✓ calculator" in done.stderr


def test_quiet_is_silent_but_for_the_answer(serve: Serve, home: dict[str, str]) -> None:
    server = serve(lambda x: x.answer("<think>\nhm\n</think>\n\n", "hi"))
    done = agentkit("run", "-q", "-m", server.url, "hello", home=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hi\n", "")


def test_json_is_one_object_with_everything(serve: Serve, home: dict[str, str]) -> None:
    server = serve(lambda x: x.answer(call("calculator", '{"expression": "6*7"}')), lambda x: x.answer("42"))
    done = agentkit("run", "--json", "-m", server.url, "-t", "calculator", "?", home=home)
    said = json.loads(done.stdout)
    assert (said["output"], said["stopped"], said["turns"]) == ("42", "answer", 2)
    assert [m["role"] for m in said["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert said["usage"]["input_tokens"] == 14


def test_the_question_may_come_from_stdin_or_be_about_it(serve: Serve, home: dict[str, str]) -> None:
    server = serve(lambda x: x.answer("ok"))
    agentkit("run", "-m", server.url, home=home, text="from a pipe\n")
    agentkit("run", "-m", server.url, "Sum it up:", home=home, text="a text\n")
    assert [r["messages"][-1]["content"] for r in server.requests] == ["from a pipe", "Sum it up:\n\na text"]


def test_a_limit_is_exit_code_3(serve: Serve, home: dict[str, str]) -> None:
    server = serve(lambda x: x.answer(call("calculator", '{"expression": "6*7"}')))
    done = agentkit("run", "--max-turns", "1", "-m", server.url, "-t", "calculator", "?", home=home)
    assert done.returncode == 3 and "--max-turns raises it" in done.stderr


def test_no_think_is_the_hard_switch(serve: Serve, home: dict[str, str]) -> None:
    server = serve(lambda x: x.answer("ok"))
    agentkit("run", "--no-think", "-m", f"Qwen3-4B@{server.url}", "?", home=home)
    assert server.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
    assert server.requests[0]["temperature"] == 0.7


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "-m", "nonsense", "?"], "There is no model 'nonsense'"),
        (["run", "-m", "qwen3-4c", "?"], "did you mean 'qwen3-4b'?"),
        (["run", "-m", "qwen3-8b", "?"], "HF_HUB_OFFLINE forbids a download"),
        (["run", "-m", "./missing.gguf", "?"], "There is no file ./missing.gguf"),
        (["run", "-m", "text.gguf", "?"], "is not a GGUF file"),
        (["run", "-m", "half.gguf", "?"], "is damaged"),
        (["run", "-t", "calculatr", "-m", "http://127.0.0.1:9/v1", "?"], "did you mean 'calculator'?"),
        (["run", "--mcp", "missing.json", "-m", "http://127.0.0.1:9/v1", "?"], "missing.json"),
        (["run", "--mcp", "broken.json", "-m", "http://127.0.0.1:9/v1", "?"], "broken.json"),
        (["mcp", "check", "broken.json"], "broken.json"),
        (["model", "stop", "nothing"], "no server runs 'nothing'"),
        (["model", "pull", "nonsense"], "There is no model 'nonsense'"),
    ],
)
@pytest.mark.e2e
def test_what_cannot_work_is_one_sentence_and_exit_code_1(
    args: list[str], says: str, home: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "half.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    (tmp_path / "broken.json").write_text('{"mcpServers": {"a": }')
    done = agentkit(*args, home=home, cwd=tmp_path)
    assert done.returncode == 1 and says in done.stderr and done.stdout == ""
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("page", ["<html>hello</html>", "garbage", '{"object": "list"}'])
@pytest.mark.e2e
def test_a_server_that_is_none_is_one_sentence(serve: Serve, home: dict[str, str], page: str) -> None:
    server = serve(lambda x: x.reply(200, page, "text/html" if "<" in page else "application/json"))
    done = agentkit("run", "-m", f"m@{server.url}", "?", home=home)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.startswith("agentkit: ")


def test_debug_shows_the_traceback(home: dict[str, str]) -> None:
    done = agentkit("run", "--debug", "-m", "nonsense", "?", home=home)
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize(
    "args", [["run"], ["run", "--max-turns", "0", "?"], ["nonsense"], ["run", "--keep-alive", "soon", "?"]]
)
def test_wrong_usage_is_exit_code_2(args: list[str], home: dict[str, str]) -> None:
    assert agentkit(*args, home=home).returncode == 2


def test_tools_are_listed_with_their_schemas(home: dict[str, str]) -> None:
    assert "calculator" in agentkit("tools", home=home).stdout
    (schema,) = json.loads(agentkit("tools", "--schema", "calculator", home=home).stdout)
    assert schema["function"]["parameters"]["required"] == ["expression"]


def test_a_chat_keeps_the_conversation_and_its_commands_work(serve: Serve, home: dict[str, str]) -> None:
    server = serve(
        lambda x: x.answer("Hello Ada."), lambda x: x.answer("Ada."), lambda x: x.answer("I do not know.")
    )
    lines = "I am Ada.\nWho am I?\n/reset\n/nonsense\nWho am I?\n/exit\n"
    done = agentkit("chat", "-m", server.url, home=home, text=lines)
    assert done.returncode == 0 and done.stdout.split() == "Hello Ada. Ada. I do not know.".split()
    assert [len(r["messages"]) for r in server.requests] == [1, 3, 1]
    assert "There is no command /nonsense" in done.stderr


def test_of_several_servers_one_that_is_there_answers(serve: Serve, home: dict[str, str]) -> None:
    server = serve(lambda x: x.answer("still here"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    done = agentkit("run", "-m", f"m@{gone},{server.url}", "?", home=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "still here\n", "")
    done = agentkit("run", "-m", f"m@{gone},{gone}x", "?", home=home)
    assert done.returncode == 1 and done.stderr.startswith("agentkit: None of the 2 replicas answers.")
    assert done.stderr.count(gone) == 2 and len(done.stderr.splitlines()) == 1


def test_ctrl_c_ends_a_run_with_130_and_no_traceback(serve: Serve, home: dict[str, str]) -> None:
    import threading

    asked, release = threading.Event(), threading.Event()

    def hang(x: Any) -> None:
        x.begin()
        asked.set()
        release.wait(20)

    server = serve(hang)
    process = subprocess.Popen(
        [COMMAND, "run", "-m", server.url, "?"], env=home, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert asked.wait(20)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    release.set()
    assert process.returncode == 130 and b"Traceback" not in error


def test_doctor_says_what_is_missing(home: dict[str, str]) -> None:
    done = agentkit("doctor", "-m", "qwen3-8b", "--json", home=home)
    findings = {f["what"]: f["state"] for f in json.loads(done.stdout)}
    assert findings["model"] == "missing" and done.returncode == 1
