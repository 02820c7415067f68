from __future__ import annotations

import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentkit.errors import ConfigError
from agentkit.mcp import ServerSpec, load_config

CONFIGS = Path(__file__).parents[2] / "mcp_configs"


def one(**entry: Any) -> ServerSpec:
    [spec] = load_config({"mcpServers": {"s": entry}})
    return spec


@pytest.mark.parametrize("name", ["time", "fetch", "git", "filesystem"])
def test_the_packaged_configs_load(name: str) -> None:
    [spec] = load_config(CONFIGS / f"{name}.json")
    assert spec.name == name and spec.transport == "stdio" and spec.args


def test_both_forms_comments_and_trailing_commas_are_read(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text("""\ufeff{
      // VS Code writes these
      "servers": {
        "a": {"command": "x", "args": ["http://not-a-comment", "a,]",],}, /* and
        these */
        "b": {"type": "http", "url": "https://example.org/mcp",},
      },
    }""")
    a, b = load_config(str(file))
    assert (a.name, a.args) == ("a", ("http://not-a-comment", "a,]"))
    assert (b.name, b.transport, b.url) == ("b", "http", "https://example.org/mcp")


@pytest.mark.parametrize(
    ("entry", "transport"),
    [
        ({"command": "x"}, "stdio"),
        ({"command": "x", "type": "stdio"}, "stdio"),
        ({"url": "http://h/mcp"}, "http"),
        ({"url": "http://h/sse"}, "sse"),
        ({"url": "http://h/sse?key=1"}, "sse"),
        ({"url": "http://h/assets"}, "http"),
        ({"httpUrl": "http://h/sse"}, "http"),
        ({"serverUrl": "http://h/mcp"}, "http"),
        ({"url": "http://h/x", "transport": "sse"}, "sse"),
        ({"url": "http://h/sse", "type": "streamable-http"}, "http"),
        ({"url": "http://h/x", "type": "streamableHttp"}, "http"),
        ({"url": "http://h/x", "transportType": "streamable_http"}, "http"),
        ({"command": "x", "url": "http://h/x", "type": "http"}, "http"),
    ],
)
def test_the_transport_is_what_each_client_would_take(entry: dict[str, Any], transport: str) -> None:
    assert one(**entry).transport == transport


def test_variables_stand_in_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V", "value")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    spec = one(
        command="${V}",
        args=["${env:V}-${V}", "${UNSET:-a b}", "${EMPTY}", "${EMPTY:-full}", "$V", 7],
        env={"K": "${V}", "N": 1, "T": True, "GONE": None},
        cwd="/${V}",
    )
    assert spec.command == "value" and spec.cwd == "/value"
    assert spec.args == ("value-value", "a b", "", "full", "$V", "7")
    assert spec.env == {"K": "value", "N": "1", "T": "true"}
    far = one(url="http://${V}/mcp", headers={"Authorization": "Bearer ${V}"})
    assert far.url == "http://value/mcp" and far.headers == {"Authorization": "Bearer value"}
    assert "Bearer" not in repr(far)


def test_timeouts_are_seconds_unless_they_can_only_be_milliseconds(caplog: pytest.LogCaptureFixture) -> None:
    assert (one(command="x").startup_timeout, one(command="x").tool_timeout) == (60, 60)
    assert one(command="x", timeout=30).tool_timeout == 30
    assert one(command="x", timeout=30, tool_timeout=5, startup_timeout=9).tool_timeout == 5
    assert one(command="x", timeout=30000).tool_timeout == 30
    assert "'timeout' is 30000; taken as milliseconds" in caplog.text


@pytest.mark.parametrize(
    ("entry", "taken"),
    [
        ({}, "ab ac b"),
        ({"tools": ["a*"]}, "ab ac"),
        ({"includeTools": ["a*"], "excludeTools": ["*c"]}, "ab"),
        ({"disabledTools": ["b"]}, "ab ac"),
        ({"tools": {"include": ["a?"], "exclude": ["ab"]}}, "ac"),
    ],
)
def test_tools_are_chosen_by_globs(entry: dict[str, Any], taken: str) -> None:
    spec = one(command="x", **entry)
    assert [tool for tool in ("ab", "ac", "b") if spec.takes(tool)] == taken.split()


def test_a_disabled_server_needs_nothing_else() -> None:
    assert one(command="${NOT_SET_ANYWHERE}", disabled=True).disabled
    assert one(command="x", enabled=False).disabled


def test_relative_paths_are_relative_to_the_config_file(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text('{"mcpServers": {"s": {"command": "./bin/run", "cwd": "work", "args": ["./as-it-is"]}}}')
    [spec] = load_config(file)
    assert (spec.command, spec.cwd) == (str(tmp_path / "bin/run"), str(tmp_path / "work"))
    assert spec.args == ("./as-it-is",)
    assert one(command="~/x").command == os.path.expanduser("~/x")
    assert one(command="uvx").command == "uvx" and one(command="uvx").cwd is None


def test_unknown_keys_are_warned_about_and_harmless_ones_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        one(command="x", autoApprove=["a"], comand="y", envFile=".env")
    assert [record.getMessage() for record in caplog.records] == [
        "MCP config: server 's': not used: comand, envFile"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
        ("", ", line 1, column 1: not valid JSON: Expecting value"),
        ('{\n  "mcpServers": {\n    "a" 1}}', ", line 3, column 9: not valid JSON: Expecting ':' delimiter"),
        ("{ /* never closed\n", ", line 1, column 3: not valid JSON"),
        ("[" * 100_000, "not usable JSON"),
        ("9" * 5000, "not usable JSON"),
        ("[]", 'must be an object, {"mcpServers": {…}}, not a list'),
        ("{}", 'no "mcpServers" in it'),
        ('{"mcpServers": {}}', "it names no servers"),
        ('{"mcpServers": ["a"]}', "the servers must be an object of name: settings, not a list"),
    ],
)
def test_an_unusable_file_is_named_with_the_place(
    tmp_path: Path, text: str | bytes | None, message: str
) -> None:
    file = tmp_path / "mcp.json"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert str(error.value).startswith(str(file)) and message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_directory_is_not_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory; expected a JSON file"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, "must be an object, not the number 7"),
        ({}, "has neither 'command' (a program to start) nor 'url' (a server to reach)"),
        ({"command": "x", "url": "http://h"}, "has both 'command' and 'url'"),
        ({"command": ""}, "'command' is empty"),
        ({"command": ["x"]}, "'command' must be a string, not a list"),
        ({"command": "x", "args": "a b"}, "'args' must be a list of strings, not a string"),
        ({"command": "x", "args": [[]]}, "'args' must hold strings, not a list"),
        ({"command": "x", "env": ["A=1"]}, "'env' must be an object of strings, not a list"),
        ({"command": "x", "env": {"A": {}}}, "'env.A' must hold strings, not an object"),
        ({"command": "x", "env": {"A": "${NOT_SET}"}}, "'env.A' needs the environment variable NOT_SET"),
        ({"command": "x", "args": ["${input:key}"]}, "'args' has '${input:key}', which is not understood"),
        ({"command": "x", "type": "http"}, "'url' is missing, and 'type' is 'http'"),
        ({"url": "http://h", "type": "stdio"}, "'command' is missing, and 'type' is 'stdio'"),
        ({"url": "http://h", "type": "ws"}, "'type' is 'ws'; known are stdio, http and sse"),
        ({"url": "h:80/mcp"}, "'url' must be an http:// or https:// address"),
        ({"url": "http://[::1"}, "'url' must be an http:// or https:// address"),
        ({"command": "x", "timeout": "1m"}, "'timeout' must be a positive number of seconds, not a string"),
        ({"command": "x", "tool_timeout": 0}, "'tool_timeout' must be a positive number of seconds"),
        ({"command": "x", "tool_timeout": float("nan")}, "'tool_timeout' must be a positive number"),
        ({"command": "x", "disabled": "yes"}, "'disabled' must be true or false, not a string"),
        ({"command": "x", "mode": "new"}, "'mode' is 'new'; known are auto, legacy"),
    ],
)
def test_a_wrong_server_is_named_with_its_key(entry: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config({"mcpServers": {"ok": {"command": "x"}, "bad": entry}})
    assert str(error.value).startswith("MCP config: server 'bad': ") and message in str(error.value)


KEYS = (
    "command",
    "args",
    "env",
    "cwd",
    "url",
    "headers",
    "type",
    "tools",
    "timeout",
    "disabled",
    "mode",
    "x",
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["stdio", "http", "${X}", "${X:-", "${X:-d}", "~nobody/x", "http://h:99999", "a\0b", "${}"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.booleans())
def test_a_config_is_loaded_or_refused_with_a_config_error(entry: dict[str, Any], starts: bool) -> None:
    try:
        [spec] = load_config({"mcpServers": {"s": {"command": "x", **entry} if starts else entry}})
    except ConfigError as exc:
        assert str(exc).startswith("MCP config: server 's'")
    else:
        assert spec.name == "s"


@given(
    st.text(st.sampled_from('{}[]",:/* \n\\ab1'), max_size=40)
    | VALUES.map(lambda v: json.dumps({"servers": v}))
)
def test_any_text_in_a_file_is_refused_with_a_config_error(text: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(text)
        file.flush()
        with pytest.raises(ConfigError):  # no such text has a server with a command or a url
            load_config(file.name)


@given(st.text(st.sampled_from("${}:-ABenv_ "), max_size=30))
def test_expansion_gives_text_or_a_config_error(text: str) -> None:
    try:
        [arg] = one(command="x", args=[text]).args
    except ConfigError as exc:
        assert "'args'" in str(exc)
    else:
        assert "${" not in text or arg != text or "}" not in text.partition("${")[2]
