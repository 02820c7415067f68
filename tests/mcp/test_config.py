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
from agentkit.mcp.config import open_config, user_config
from agentkit.mcp.documents import line_of
from agentkit.mcp.imports import entry_of, secrets_in, shown
from agentkit.mcp.inputs import Input

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
        ({"command": ["x", "y"], "type": "local"}, "stdio"),
        ({"cmd": "x"}, "stdio"),
        ({"transport": {"type": "streamable-http", "url": "http://h/x"}}, "http"),
        ({"type": "remote", "url": "http://h/x"}, "http"),
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
        one(command="x", description="a", comand="y", gallery=True, sandbox={})
    assert [record.getMessage() for record in caplog.records] == [
        "MCP config: server 's': not used: comand, sandbox"
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
        ({"command": [7]}, "'command' must be a string, not the number 7"),
        ({"command": []}, "'command' must be a string, not a list"),
        ({"command": "x", "args": "a b"}, "'args' must be a list of strings, not a string"),
        ({"command": "x", "args": [[]]}, "'args' must hold strings, not a list"),
        ({"command": "x", "env": ["A=1"]}, "'env' must be an object of strings, not a list"),
        ({"command": "x", "env": {"A": {}}}, "'env.A' must hold strings, not an object"),
        ({"command": "x", "env": {"A": "${NOT_SET}"}}, "'env.A' needs the environment variable NOT_SET"),
        ({"command": "x", "args": ["${file:key}"]}, "'args' has '${file:key}', which is not understood"),
        ({"command": "x", "envFile": "/no/such"}, "'envFile' /no/such cannot be read: No such file"),
        ({"command": "x", "env_vars": ["A B"]}, "'env_vars' must be a list of names of variables"),
        ({"command": "x", "tools": {"t": {"enabled": 1}}}, "'enabled' must be true or false"),
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


@pytest.mark.parametrize(
    "config",
    [
        {"mcpServers": {"s": {"command": "x"}}},
        {"servers": {"s": {"type": "stdio", "command": "x"}}, "inputs": []},
        {"mcp_servers": {"s": {"command": "x"}}},
        {"context_servers": {"s": {"source": "custom", "command": "x"}}},
        {"context_servers": {"s": {"command": {"path": "x", "args": []}}}},
        {"mcp": {"servers": {"s": {"command": "x"}}}},
        {"mcp": {"s": {"type": "local", "command": ["x"], "enabled": True}}, "theme": "dark"},
        {"mcpServers": [{"name": "s", "command": "x"}]},
        {"experimental": {"modelContextProtocolServers": [{"name": "s", "transport": {"command": "x"}}]}},
        {"s": {"command": "x"}},
    ],
)
def test_every_clients_form_says_the_same(config: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    [spec] = load_config(config)
    assert spec == ServerSpec("s", command="x") and not caplog.records


def test_toml_and_yaml_are_read_and_their_errors_placed(tmp_path: Path) -> None:
    toml = tmp_path / "config.toml"
    toml.write_text("""model = "x"
[mcp_servers.a]
command = "x"
env = {K = "v"}
startup_timeout_sec = 20
[mcp_servers.a.tools.search]
approval_mode = "approve"
[mcp_servers.b]
url = "http://h/mcp"
enabled = false
""")
    a, b = load_config(toml)
    assert (a.command, a.env, a.startup_timeout, a.approve) == ("x", {"K": "v"}, 20, ("search",))
    assert b.disabled
    pytest.importorskip("yaml")
    yaml = tmp_path / "config.yaml"
    yaml.write_text("mcpServers:\n  - name: a\n    command: x\n  - name: b\n    args: 7\n    command: x\n")
    with pytest.raises(ConfigError, match=r"config.yaml, line 5: server 'b': 'args' must be a list"):
        load_config(yaml)
    yaml.write_text("a: [\n")
    with pytest.raises(ConfigError, match=r"config.yaml, line 2, column 1: not valid YAML"):
        load_config(yaml)
    toml.write_text("a = \n")
    with pytest.raises(ConfigError, match="not valid TOML: .* line 1"):
        load_config(toml)


def test_of_two_servers_of_one_name_the_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text('{"mcpServers": {"b": {"command": "from-file"}, "c": {"command": "c"}}}')
    mapping = {"mcpServers": {"a": {"command": "a"}, "b": {"command": "b"}}}
    specs = load_config(mapping, file, ServerSpec("c", url="http://h"))
    assert [(s.name, s.command or s.url) for s in specs] == [
        ("a", "a"),
        ("b", "from-file"),
        ("c", "http://h"),
    ]
    assert [s.origin for s in specs] == ["MCP config", str(file), ""]


@pytest.mark.parametrize(
    ("settings", "line", "message"),
    [
        (
            '"command": "x",\n"args": ["a",\n"${NOT_SET_ANYWHERE}"]',
            7,
            "'args' needs the environment variable",
        ),
        ('"command": "x",\n"env": {"A": "1", // ok\n"B": {}}', 7, "'env.B' must hold strings"),
        ('"comm": "x"', 4, "has neither 'command'"),
        ('"command": "x", /* why\nnot */ "type":\n"ws"', 6, "'type' is 'ws'"),
        (
            '"command": "x",\n"tools": {"include": [],\n"exclude": 7}',
            7,
            "'exclude' must be a list of strings",
        ),
        ('"command": "x",\n"timeout": "1"', 6, "'timeout' must be a positive number"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_key(
    tmp_path: Path, settings: str, line: int, message: str
) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(
        f'{{"theme": "command",\n"mcpServers": {{\n"other": {{"command": "args"}},\n"s": {{\n{settings}\n}},\n}}}}'
    )
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert str(error.value).startswith(f"{file}, line {line}: server 's': {message}")


VSCODE = """{
  "inputs": [
    {"type": "promptString", "id": "api-key", "description": "API key", "password": true},
    {"type": "pickString", "id": "zone", "options": ["eu", {"label": "US", "value": "us"}], "default": "eu"},
    {"type": "promptString", "id": "org", "default": "me"},
  ],
  "servers": {
    "a": {"command": "x", "args": ["${input:org}"], "env": {"KEY": "${input:api-key}"}},
    "b": {"url": "http://h/${input:zone}", "headers": {"Authorization": "Bearer ${input:api-key}"}},
  },
}"""


def test_an_input_is_asked_once_for_all_servers_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(VSCODE)
    asked: list[Input] = []

    def ask(question: Input) -> str | None:
        asked.append(question)
        return {"api-key": "s3cret", "zone": "us"}.get(question.id)

    a, b = load_config(file, ask=ask)
    assert a.args == ("me",) and a.env == {"KEY": "s3cret"}
    assert b.url == "http://h/us" and b.headers == {"Authorization": "Bearer s3cret"}
    assert "s3cret" not in repr((a, b))
    assert sorted(asked, key=lambda i: i.id) == [
        Input("api-key", "API key", password=True),
        Input("org", default="me"),
        Input("zone", default="eu", options=("eu", "us")),
    ]


def test_without_a_terminal_the_error_names_the_input_and_what_answers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(VSCODE)

    def nobody(question: Input) -> None:
        return None

    with pytest.raises(ConfigError) as error:
        load_config(file, ask=nobody)
    assert str(error.value) == (
        f"{file}, line 8: server 'a': 'env.KEY' needs the input 'api-key' (API key);"
        " answer it by setting AGENTKIT_INPUT_API_KEY"
    )
    monkeypatch.setenv("AGENTKIT_INPUT_API_KEY", "k")
    a, b = load_config(file, ask=nobody)
    assert (a.args, a.env["KEY"], b.url) == (("me",), "k", "http://h/eu")
    monkeypatch.setenv("AGENTKIT_INPUT_ZONE", "moon")
    with pytest.raises(
        ConfigError, match=r"'url' needs the input 'zone' .AGENTKIT_INPUT_ZONE. to be one of eu, us"
    ):
        load_config(file, ask=nobody)


def test_an_undeclared_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs the input 'x', which is not among the file's 'inputs'"):
        one(command="x", args=["${input:x}"])


def test_folders_are_those_of_the_project_that_the_file_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / "project/.vscode/mcp.json"
    file.parent.mkdir(parents=True)
    entry = {
        "command": "./run",
        "args": ["${workspaceFolder}/a", "${userHome}", "${workspaceFolderBasename}"],
    }
    file.write_text(
        json.dumps({"servers": {"s": entry | {"cwd": "sub", "envFile": "${workspaceFolder}/.env"}}})
    )
    project = tmp_path / "project"
    (project / ".env").write_text("# keys\nexport A=1\nB = 'two words' # why\nC=\"x\\ny\"\nD=d # c\n\n")
    [spec] = load_config(file)
    assert spec.args == (f"{project}/a", str(tmp_path / "home"), "project")
    assert (spec.command, spec.cwd) == (f"{project}/run", f"{project}/sub")
    assert spec.env == {"A": "1", "B": "two words", "C": "x\ny", "D": "d"}
    users = tmp_path / "home/.cursor/mcp.json"
    users.parent.mkdir(parents=True)
    users.write_text('{"mcpServers": {"s": {"command": "x", "args": ["${workspaceFolder}"]}}}')
    [spec] = load_config(users)
    assert spec.args == (os.getcwd(),)


def test_env_wins_over_its_file_and_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("A=1\nB=2\n")
    assert one(command="x", envFile=str(tmp_path / "e"), env={"B": "3"}).env == {"A": "1", "B": "3"}
    (tmp_path / "e").write_text("A=1\nwhat is this\n")
    with pytest.raises(ConfigError, match=r"'envFile' .*/e, line 2, is not NAME=value"):
        one(command="x", envFile=str(tmp_path / "e"))


def test_a_timeout_has_the_unit_of_the_client_whose_file_it_is_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, timeout, seconds in ((".gemini", 500, 0.5), (".roo", 3600, 3600), (".cursor", 30000, 30)):
        file = tmp_path / folder / ("settings.json" if folder == ".gemini" else "mcp.json")
        file.parent.mkdir()
        file.write_text(json.dumps({"mcpServers": {"s": {"command": "x", "timeout": timeout}}}))
        [spec] = load_config(file)
        assert spec.tool_timeout == seconds
    assert len(caplog.records) == 1 and ".cursor" in caplog.text and "taken as milliseconds" in caplog.text
    assert one(command="x", timeout=0).tool_timeout == 86400
    assert one(command="x", timeout={"startup": 1500, "request": 2500}).tool_timeout == 2.5
    assert one(command="x", sse_read_timeout=300).tool_timeout == 300
    assert one(command="x", connectionTimeout=1500).startup_timeout == 1.5


def test_a_url_without_a_type_is_what_its_client_means(tmp_path: Path) -> None:
    file = tmp_path / ".gemini/settings.json"
    file.parent.mkdir()
    servers = {
        "a": {"url": "http://h/x"},
        "b": {"httpUrl": "http://h/x"},
        "c": {"url": "http://h", "type": "http"},
    }
    file.write_text(json.dumps({"mcp": {"allowed": []}, "mcpServers": servers}))
    assert [spec.transport for spec in load_config(file)] == ["sse", "http", "http"]


def test_gemini_and_qwen_code_have_bare_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V", "value")
    file = tmp_path / ".qwen/settings.json"
    file.parent.mkdir()
    file.write_text('{"mcpServers": {"s": {"command": "x", "args": ["$V ${V} $5 $"]}}}')
    [spec] = load_config(file)
    assert spec.args == ("value value $5 $",)


@pytest.mark.parametrize(
    ("entry", "approved"),
    [
        ({}, ()),
        ({"autoApprove": ["a", "b"]}, ("a", "b")),
        ({"alwaysAllow": ["a"], "autoApprove": ["a"]}, ("a",)),
        ({"autoApprove": True}, ("*",)),
        ({"trust": True}, ("*",)),
        ({"trust": False}, ()),
        ({"default_tools_approval_mode": "approve"}, ("*",)),
        ({"tools": {"t": {"approval_mode": "approve"}, "u": {"approval_mode": "prompt"}}}, ("t",)),
    ],
)
def test_approval_is_read_in_each_spelling(entry: dict[str, Any], approved: tuple[str, ...]) -> None:
    assert one(command="x", **entry).approve == approved


def test_credentials_are_headers_or_settings_for_oauth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOK", "t")
    monkeypatch.setenv("KEY", "k")

    def far(**entry: Any) -> tuple[Any, ...]:
        spec = one(url="http://h", **entry)
        return dict(spec.headers), spec.auth, spec.scopes

    assert far() == ({}, None, ())
    assert far(bearer_token_env_var="TOK") == ({"Authorization": "Bearer t"}, None, ())
    assert far(http_headers={"A": "1"}, env_http_headers={"B": "KEY"}) == ({"A": "1", "B": "k"}, None, ())
    assert far(auth="oauth") == ({}, {}, ())
    assert far(auth="${TOK}") == ({"Authorization": "Bearer t"}, None, ())
    assert far(oauth=False) == ({}, {"enabled": False}, ())
    oauth = {"clientId": "i", "client_secret": "${KEY}", "callbackPort": 8080, "scopes": "read, write"}
    assert far(oauth=oauth) == (
        {},
        {"client_id": "i", "client_secret": "k", "redirect_port": 8080},
        ("read", "write"),
    )
    assert far(scopes=["a"])[2] == ("a",)


def test_variables_are_passed_on_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "1")
    monkeypatch.delenv("GONE", raising=False)
    assert one(command="x", env_vars=["HERE", "GONE", {"name": "HERE"}], env={"A": "2"}).env == {
        "HERE": "1",
        "A": "2",
    }


def test_a_name_is_a_server_of_the_users_own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with pytest.raises(
        ConfigError, match="time: there is no such file, and no server of that name in .* none"
    ):
        load_config("time")
    mine = user_config()
    mine.parent.mkdir(parents=True)
    mine.write_text(
        '{"mcpServers": {"time": {"command": "x", "disabled": true}, "b": {"command": "${NOT_SET}"}}}'
    )
    [spec] = load_config("time")  # the other one's variables need not be set
    assert (spec.name, spec.command, spec.disabled) == ("time", "x", False)
    with pytest.raises(ConfigError, match="tine: there is no such file, and no server .* which has time, b"):
        load_config("tine")


@pytest.mark.parametrize(
    ("entry", "keys", "line"),
    [
        ({"command": "x", "args": ["-k", "v"], "env": {"HOME": "/h", "API_KEY": "${K}"}}, [], "x -k v"),
        ({"command": "x", "env": {"API_KEY": "abc", "A": "ghp_x"}}, ["env.API_KEY", "env.A"], "x"),
        ({"command": "x", "args": ["--token", "abc", "-v"]}, ["args[1]"], "x --token … -v"),
        ({"command": "x", "args": ["--api-key=abc", "y"]}, ["args[0]"], "x --api-key=… y"),
        ({"command": "x", "args": ["--token", "${T}", "--author"]}, [], "x --token ${T} --author"),
        ({"url": "http://u:p@h/x?token=a&b=2"}, ["url"], "http://h/x?…"),
        ({"url": "${BASE}/x?page=2"}, [], "${BASE}/x?…"),
        ({"url": "http://h", "headers": {"X": "Bearer abc"}}, ["headers.X"], "http://h"),
        (
            {"url": "http://h", "oauth": {"client_id": "i", "client_secret": "s"}},
            ["oauth.client_secret"],
            "http://h",
        ),
    ],
)
def test_secrets_in_the_clear_are_noticed_and_never_shown(
    entry: dict[str, Any], keys: list[str], line: str
) -> None:
    assert (secrets_in(entry), shown(entry)) == (keys, line)


LOADED: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"command": st.sampled_from(["x", "/bin/x", "${V}/x"])},
    optional={
        "args": st.lists(
            st.sampled_from(["a", "${V}", "${V:-d}", "${input:i}", "", "${userHome}"]), max_size=3
        ),
        "env": st.dictionaries(st.sampled_from("AB"), st.sampled_from(["1", "${V}"])),
        "cwd": st.just("/tmp"),
        "timeout": st.integers(1, 999),
        "startup_timeout": st.floats(0.5, 99),
        "tools": st.lists(st.sampled_from(["a*", "b"])),
        "disabledTools": st.lists(st.sampled_from(["a*", "b"])),
        "alwaysAllow": st.lists(st.sampled_from(["a*", "b"])),
        "oauth": st.sampled_from([{"clientId": "x", "scopes": "a b"}, False, {}]),
        "mode": st.just("legacy"),
        "lazy": st.booleans(),
        "sampling": st.booleans(),
        "log": st.just("/tmp/log"),
        "idle_timeout": st.integers(1, 99),
    },
)


@given(LOADED)
def test_settings_taken_over_mean_what_they_meant(entry: dict[str, Any]) -> None:
    config = {"mcpServers": {"s": entry}, "inputs": [{"id": "i", "default": "answer"}]}
    file = open_config(config)
    again = {**config, "mcpServers": {"s": entry_of(file.spec("s", None))}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("V", "/value")
        before, after = load_config(config, ask=lambda i: None), load_config(again, ask=lambda i: None)
    assert before == after


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON, min_size=1, max_size=3))
def test_the_line_of_every_value_is_found(values: dict[str, Any]) -> None:
    lines: dict[tuple[Any, ...], int] = {}
    number = 1

    def write(value: Any, keys: tuple[Any, ...]) -> str:
        """JSON with each value on a line of its own, remembering which."""
        nonlocal number
        if isinstance(value, list | dict):
            items = enumerate(value) if isinstance(value, list) else value.items()
            text = "[" if isinstance(value, list) else "{"
            for position, (key, item) in enumerate(items):
                number += 1
                lines[(*keys, key)] = number
                name = f"{json.dumps(key)}: " if isinstance(value, dict) else ""
                text += ("," if position else "") + f" // {{\n{name}" + write(item, (*keys, key))
            return text + ("]" if isinstance(value, list) else "}")
        return json.dumps(value)

    text = write(values, ())
    assert {keys: line_of(text, keys) for keys in lines} == lines


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
    "oauth",
    "envFile",
    "env_vars",
    "transport",
    "autoApprove",
    "scopes",
    "x",
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [
            "stdio",
            "http",
            "${X}",
            "${X:-",
            "${X:-d}",
            "~nobody/x",
            "http://h:99999",
            "a\0b",
            "${}",
            "${input:x}",
        ]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(KEYS), VALUES), st.booleans())
def test_a_config_is_loaded_or_refused_with_a_config_error(entry: dict[str, Any], starts: bool) -> None:
    try:
        [spec] = load_config(
            {"mcpServers": {"s": {"command": "x", **entry} if starts else entry}}, ask=lambda i: None
        )
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
