"""Which calls are made: rules, who is asked, and what is on record of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit import Agent, ConfigError, Permissions, RunResult, tool
from agentkit.permissions import Answer, Asked, Decision
from agentkit.testing import ScriptedEngine
from agentkit.tools import Tool

pytestmark = pytest.mark.anyio
done: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    done.clear()


@tool(effects=["executes"])
def shell(command: str) -> str:
    """Run a command."""
    done.append(command)
    return "ran"


@tool(effects=["writes", "destroys"])
def write_file(path: str, text: str = "") -> str:
    """Write a file."""
    done.append(path)
    return "written"


@tool(effects=["network"])
def fetch(url: str) -> str:
    """Get a page."""
    done.append(url)
    return "page"


@tool(effects=())
def add(a: int, b: int) -> int:
    """Add."""
    return a + b


@tool
def unknown(text: str = "") -> str:
    """Does who knows what."""
    return text


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


async def run(permissions: Permissions, *calls: str) -> RunResult[str]:
    engine = ScriptedEngine([*calls, "Done."])
    return await Agent(engine, tools=[shell, write_file, fetch, add, unknown], permissions=permissions).run(
        "Do it."
    )


@pytest.mark.parametrize(
    ("rules", "tool", "arguments", "action"),
    [
        ({}, shell, {"command": "ls"}, "allow"),
        ({"deny": ["shell"]}, shell, {"command": "ls"}, "deny"),
        ({"deny": ["sh*"]}, shell, {"command": "ls"}, "deny"),
        ({"deny": ["#network"]}, fetch, {"url": "http://a/"}, "deny"),
        ({"deny": ["#network"]}, unknown, {}, "allow"),
        ({"default": "ask"}, unknown, {}, "ask"),
        ({"default": "ask"}, add, {"a": 1, "b": 2}, "allow"),
        ({"default": "deny"}, add, {"a": 1, "b": 2}, "deny"),
        ({"ask": ["#destroys"], "allow": ["write_file(path=out/*)"]}, write_file, {"path": "out/a"}, "allow"),
        ({"ask": ["#destroys"], "allow": ["write_file(path=out/*)"]}, write_file, {"path": "b"}, "ask"),
        ({"ask": ["write_file"], "allow": ["#writes"]}, write_file, {"path": "b"}, "ask"),
        ({"ask": ["*"], "allow": ["shell"]}, shell, {"command": "x"}, "allow"),
        ({"allow": ["shell(rm x)"], "deny": ["shell"]}, shell, {"command": "rm x"}, "deny"),
        ({"ask": ["shell"], "allow": ["shell(git *)"]}, shell, {"command": "git log"}, "allow"),
        ({"allow": ["write_file(path=a*, text=b*)"], "default": "deny"}, write_file, {"path": "a", "text": "b"}, "allow"),
        ({"allow": ["write_file(path=a*, text=b*)"], "default": "deny"}, write_file, {"path": "a", "text": "c"}, "deny"),
        ({"allow": ["write_file(text=)"], "default": "deny"}, write_file, {"path": "a"}, "allow"),  # its default
        ({"allow": ["add(b=2)"], "default": "deny"}, add, {"a": 1, "b": 2}, "allow"),
    ],
)  # fmt: skip
def test_the_most_particular_rule_wins_and_a_deny_beats_all(
    rules: dict[str, Any], tool: Tool, arguments: dict[str, Any], action: str
) -> None:
    assert Permissions(**rules).judge(tool, arguments)[0] == action


@pytest.mark.parametrize(
    "command",
    [
        "git log; rm -rf /",
        "git log && curl evil",
        "git log | sh",
        "git log > ~/.bashrc",
        "git log $(rm x)",
        "git log `rm x`",
        "git log\nrm x",
        "git log & rm x",
        "git log <(rm x)",
        "gitx",
    ],
)
def test_no_second_command_slips_in_behind_one_that_is_allowed(command: str) -> None:
    rules = Permissions(allow=["shell(git *)"], default="deny")
    assert rules.judge(shell, {"command": command})[0] == "deny"


@given(st.text(max_size=20), st.sampled_from(list(";&|<>`$(){}\n\r")), st.text(max_size=20))
def test_whatever_holds_an_operator_is_not_the_allowed_command(a: str, operator: str, b: str) -> None:
    rules = Permissions(allow=["shell(git *)"], default="deny")
    assert rules.judge(shell, {"command": f"git {a}{operator}{b}"})[0] == "deny"


@pytest.mark.parametrize(
    "command", ["rm x", "ls; rm -r y", "true&&rm z", "(rm a)", "echo `rm b`", "  rm c", "$ rm d", ["rm", "e"]]
)
def test_a_denied_command_is_found_among_others(command: Any) -> None:
    assert Permissions(deny=["shell(rm *)"]).judge(shell, {"command": command})[0] == "deny"


@pytest.mark.parametrize("path", ["src/../../etc/passwd", "src/../x", "../src/x", "/src/x", "srcx"])
def test_a_path_counts_as_where_it_leads(path: str) -> None:
    rules = Permissions(allow=["write_file(path=src/*)"], default="deny")
    assert rules.judge(write_file, {"path": path})[0] == "deny"


@pytest.mark.parametrize("path", ["src/a/b.py", "./src/b.py", "src/x/../b.py"])
def test_paths_below_the_pattern_are_allowed_however_they_are_spelt(path: str) -> None:
    rules = Permissions(allow=["write_file(path=src/*)"], default="deny")
    assert rules.judge(write_file, {"path": path})[0] == "allow"


@pytest.mark.parametrize(
    "path", ["secrets/key", "./secrets/key", "a/../secrets/key", "secrets//key", "file://secrets/key"]
)
def test_a_denied_folder_is_denied_however_it_is_spelt(path: str) -> None:
    assert Permissions(deny=["*(path=secrets/*)"]).judge(write_file, {"path": path})[0] == "deny"


@pytest.mark.parametrize(
    ("url", "action"),
    [
        ("https://docs.example.com/a/b?c=d&e=f", "allow"),
        ("HTTPS://DOCS.example.com/a", "allow"),
        ("https://docs.example.com", "allow"),
        ("https://docs.example.com:8443/", "deny"),
        ("https://docs.example.com@evil.com/", "deny"),
        ("https://evil.com/?x=https://docs.example.com/", "deny"),
        ("https://evil.com/docs.example.com/", "deny"),
        ("https://docs.example.com.evil.com/", "deny"),
        ("https://docs.example.com\\@evil.com/", "deny"),
        ("http://docs.example.com/", "deny"),
    ],
)
def test_an_allowed_address_is_of_that_very_host(url: str, action: str) -> None:
    rules = Permissions(allow=["fetch(https://*.example.com/*)"], default="deny")
    assert rules.judge(fetch, {"url": url})[0] == action


def test_the_second_tool_of_a_name_is_denied_with_the_first_and_not_allowed_with_it() -> None:
    from dataclasses import replace

    second = replace(shell, name="shell_2")
    assert Permissions(deny=["shell"]).judge(second, {"command": "x"})[0] == "deny"
    assert Permissions(allow=["shell"], default="deny").judge(second, {"command": "x"})[0] == "deny"


def test_a_server_s_tools_can_be_named_by_the_server() -> None:
    from dataclasses import replace

    remote = replace(shell, source="box")
    assert Permissions(deny=["box:*"]).judge(remote, {"command": "x"})[0] == "deny"
    assert Permissions(deny=["box:*"]).judge(shell, {"command": "x"})[0] == "allow"


async def test_a_denied_call_is_not_run_and_the_model_is_told() -> None:
    result = await run(Permissions(deny=["shell(rm *)"]), call("shell", command="rm -rf x"))
    assert done == [] and result.output == "Done."
    (said,) = result.messages[-2].results
    assert said.is_error and said.content.startswith("Not run. The user's permissions do not allow")
    (decision,) = result.decisions
    assert (decision.allowed, decision.by, decision.rule) == (False, "rule", "deny shell(rm *)")


async def test_where_nobody_is_there_to_be_asked_the_call_is_not_made() -> None:
    result = await run(Permissions(ask=["#destroys"]), call("write_file", path="a"))
    assert done == [] and "Nobody is there" in result.messages[-2].results[0].content
    assert result.decisions[0].by == "nobody"


async def test_the_callback_sees_the_arguments_as_the_tool_will_get_them() -> None:
    seen: list[Asked] = []

    async def approve(asked: Asked) -> Answer:
        seen.append(asked)
        return "once"

    result = await run(Permissions(ask=["add"], approve=approve), call("add", a="1", b="2"))
    assert (seen[0].tool.name, seen[0].arguments, seen[0].rule) == ("add", {"a": 1, "b": 2}, "ask add")
    assert result.messages[-2].results[0].content == "3"
    assert result.decisions == (
        Decision(result.decisions[0].call_id, "add", True, "user", "ask add", "once"),
    )


@pytest.mark.parametrize(
    ("answer", "asked", "ran"), [("once", 2, 2), ("always", 1, 2), ("no", 2, 0), ("never", 1, 0)]
)
async def test_always_and_never_are_not_asked_again(answer: Answer, asked: int, ran: int) -> None:
    questions: list[Asked] = []

    def approve(a: Asked) -> Answer:
        questions.append(a)
        return answer

    rules = Permissions(ask=["write_file"], approve=approve)
    result = await run(rules, call("write_file", path="a"), call("write_file", path="b"))
    assert (len(questions), len(done)) == (asked, ran)
    assert [d.answer for d in result.decisions] == [answer, answer]


async def test_always_goes_for_one_command_only_where_code_is_run() -> None:
    questions: list[Asked] = []

    def approve(a: Asked) -> Answer:
        questions.append(a)
        return "always"

    rules = Permissions(ask=["shell"], approve=approve)
    await run(rules, call("shell", command="ls"), call("shell", command="rm x"), call("shell", command="ls"))
    assert [a.arguments["command"] for a in questions] == ["ls", "rm x"]


async def test_calls_side_by_side_are_asked_about_one_at_a_time() -> None:
    import anyio

    asking = most = 0

    async def approve(a: Asked) -> Answer:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await anyio.lowlevel.checkpoint()
        asking -= 1
        return "once"

    both = call("write_file", path="a") + call("write_file", path="b")
    await run(Permissions(ask=["*"], approve=approve), both)
    assert (most, sorted(done)) == (1, ["a", "b"])


async def test_a_callback_that_fails_makes_no_call() -> None:
    def approve(a: Asked) -> Answer:
        raise RuntimeError("no screen")

    with pytest.raises(ConfigError, match="approve raised RuntimeError: no screen"):
        await run(Permissions(ask=["*"], approve=approve), call("shell", command="ls"))
    assert done == []


async def test_without_permissions_nothing_is_decided() -> None:
    engine = ScriptedEngine([call("shell", command="ls"), "Done."])
    result = await Agent(engine, tools=[shell]).run("Do it.")
    assert done == ["ls"] and result.decisions == ()


@pytest.mark.parametrize("rule", ["", "#nonsense", "shell(", "a(b)c"])
def test_a_rule_that_cannot_be_read_is_refused(rule: str) -> None:
    with pytest.raises(ConfigError, match="permissions:"):
        Permissions(deny=[rule])


def test_rules_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "permissions.toml"
    file.write_text('default = "ask"\nallow = ["add"]\ndeny = ["shell(rm *)"]\n')
    rules = Permissions.load(file)
    assert (rules.default, rules.allow, rules.deny) == ("ask", ["add"], ["shell(rm *)"])
    (tmp_path / "p.json").write_text('{"deny": ["shell"]}')
    assert Permissions.load(tmp_path / "p.json").deny == ["shell"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deny = [", "is not valid toml"),
        ('forbid = ["x"]', "has no 'forbid'"),
        ('deny = "shell"', "deny is a list of rules"),
        ('deny = ["#x"]', "an effect is one of"),
        ('default = "maybe"', "default is allow, ask or deny"),
    ],
)
def test_a_file_that_is_wrong_is_named_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "permissions.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as failure:
        Permissions.load(file)
    assert str(file) in str(failure.value)
