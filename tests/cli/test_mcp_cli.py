"""`agentkit mcp`, as a process, with real servers: what is printed, what is written, and the exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e  # each test starts many processes

COMMAND = str(Path(sys.executable).with_name("agentkit"))


class Home:
    """A user who has nothing yet, and what `agentkit` does for them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / ".config/agentkit/mcp.json"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "AGENTKIT_"))}
        self.environment = {**kept, "HOME": str(path), "COLUMNS": "120"}

    def __call__(self, *args: str, text: str | None = None, **variables: str) -> Any:
        stdin: Any = {"input": text} if text is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run(
            [COMMAND, "mcp", *args],
            env={**self.environment, **variables},
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=60,
            **stdin,
        )

    def write(self, name: str, content: Any) -> Path:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return file

    def servers(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.config.read_text())["mcpServers"]
        return found


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


TIME = {"command": "mcp-server-time", "args": ["--local-timezone", "UTC"]}


def test_what_was_added_is_listed_called_and_removed_again(home: Home) -> None:
    done = home("list")
    assert (done.returncode, done.stdout) == (0, "") and "no servers yet" in done.stderr
    done = home("add", "time", "--", "mcp-server-time", "--local-timezone", "UTC")
    assert done.returncode == 0 and "time written to ~/.config/agentkit/mcp.json" in done.stdout
    assert home.servers() == {"time": TIME}
    assert home.config.stat().st_mode & 0o777 == 0o600

    done = home("list")
    assert done.stdout == "~/.config/agentkit/mcp.json\n  time  mcp-server-time --local-timezone UTC\n"
    done = home("call", "time", "get_current_time", "timezone=Asia/Tokyo")
    assert done.returncode == 0 and json.loads(done.stdout)["timezone"] == "Asia/Tokyo", done.stderr

    done = home("remove", "time", "tine")
    assert done.returncode == 1 and "no server tine in your config; nothing was removed" in done.stderr
    assert home("remove", "time").returncode == 0 and home.servers() == {}


def test_the_options_of_add_become_settings(home: Home) -> None:
    added = home(
        *("add", "docs", "https://example.org/mcp", "--header", "Authorization: Bearer ${TOKEN}"),
        *("-H", "X-A=b", "--timeout", "90s"),
    )
    assert added.returncode == 0 and added.stderr == ""
    added = home("add", "-e", "KEY=ghp_x", "--cwd", "/", "git", "--", "uvx", "mcp-server-git", "-r", ".")
    assert "git: env.KEY holds a secret in the clear" in added.stderr and "ghp_x" not in added.stderr
    assert home.servers() == {
        "docs": {
            "type": "http",
            "url": "https://example.org/mcp",
            "headers": {"Authorization": "Bearer ${TOKEN}", "X-A": "b"},
            "tool_timeout": 90.0,
        },
        "git": {"command": "uvx", "args": ["mcp-server-git", "-r", "."], "env": {"KEY": "ghp_x"}, "cwd": "/"},
    }
    for args, why in (
        (("git", "--", "x"), "there is a server 'git' already; --force replaces it"),
        (("a.json", "--", "x"), "would be taken for a file"),
        (("new", "https://h", "more"), "one URL, please"),
        (("new", "x", "-H", "nonsense"), "expected Name: value"),
    ):
        refused = home("add", *args)
        assert refused.returncode == 2 and why in refused.stderr
    assert home("add", "new", "http://").stderr.startswith(
        "agentkit: MCP config: server 'new': 'url' must be"
    )
    assert list(home.servers()) == ["docs", "git"]
    assert home("add", "--force", "git", "--", "x").returncode == 0
    assert home.servers()["git"] == {"command": "x"}


def test_a_file_with_comments_is_kept_beside_the_new_one(home: Home) -> None:
    text = '{\n  // mine\n  "other": 1,\n  "mcpServers": {"a": {"command": "x", "custom": true}}\n}'
    home.write(".config/agentkit/mcp.json", text)
    assert home("add", "b", "--", "y").returncode == 0
    assert home.config.with_name("mcp.json.old").read_text() == text
    assert json.loads(home.config.read_text()) == {
        "other": 1,
        "mcpServers": {"a": {"command": "x", "custom": True}, "b": {"command": "y"}},
    }


@pytest.fixture
def clients(home: Home) -> Home:
    """A user of many clients."""
    home.write(
        ".cursor/mcp.json",
        {
            "mcpServers": {
                "time": TIME,
                "bad": {"args": ["x"]},
                "hub": {"url": "https://h/mcp", "headers": {"Authorization": "Bearer ghp_literal"}},
            }
        },
    )
    home.write(
        ".config/Code/User/mcp.json",
        """{
          // VS Code
          "inputs": [{"type": "promptString", "id": "the-key", "description": "Key", "password": true}],
          "servers": {"vs": {"command": "x", "env": {"KEY": "${input:the-key}"}, "envFile": "~/.env"},},
        }""",
    )
    home.write(
        ".gemini/settings.json",
        {"mcpServers": {"gem": {"command": "x", "env": {"A": "$A_TOKEN"}, "timeout": 5000, "trust": True}}},
    )
    home.write(
        ".codex/config.toml",
        '[mcp_servers.cx]\nurl = "https://c/mcp"\nbearer_token_env_var = "CX"\nenabled = false\n',
    )
    home.write(".config/zed/settings.json", '{"context_servers": {"zed": {"command": "z"}}, /* , */}')
    home.write(".codeium/windsurf/mcp_config.json", {"mcpServers": {"surf": {"serverUrl": "https://s/mcp"}}})
    home.write(".claude.json", {"numStartups": 1})
    home.write(".lmstudio/mcp.json", "{not json")
    return home


IMPORTED = {
    "time": TIME,
    "hub": {"type": "http", "url": "https://h/mcp", "headers": {"Authorization": "Bearer ghp_literal"}},
    "gem": {"command": "x", "env": {"A": "${A_TOKEN}"}, "autoApprove": ["*"], "tool_timeout": 5.0},
    "cx": {
        "type": "http",
        "url": "https://c/mcp",
        "headers": {"Authorization": "Bearer ${CX}"},
        "disabled": True,
    },
    "zed": {"command": "z"},
    "surf": {"type": "http", "url": "https://s/mcp"},
}


def test_import_takes_over_what_the_clients_have(clients: Home) -> None:
    done = clients("import", "--dry-run")
    assert done.returncode == 0 and not clients.config.exists()
    assert "~/.cursor/mcp.json  (Cursor)\n  + time  mcp-server-time --local-timezone UTC\n" in done.stdout
    assert "✗ bad  has neither 'command'" in done.stdout
    assert ".lmstudio/mcp.json, line 1, column 2: not valid JSON" in done.stdout
    assert "+ cx  https://c/mcp  (disabled)" in done.stdout

    done = clients("import")
    vs = {"command": "x", "env": {"KEY": "${input:the-key}"}, "envFile": f"{clients.path}/.env"}
    assert done.returncode == 0 and clients.servers() == {**IMPORTED, "vs": vs}
    assert "7 written to ~/.config/agentkit/mcp.json" in done.stdout
    assert clients.config.stat().st_mode & 0o777 == 0o600
    assert "hub: headers.Authorization holds a secret in the clear" in done.stderr
    assert "the input 'the-key' is asked when it is needed; AGENTKIT_INPUT_THE_KEY answers it" in done.stderr
    assert "ghp_literal" not in done.stdout + done.stderr

    again = clients("import")
    assert again.stdout.count("is in your config already") == 7 and "written" not in again.stdout

    # a client's other idea of a server does not replace one that is there
    clients.write(".cursor/mcp.json", {"mcpServers": {"time": {"command": "other"}}})
    assert "! time  other  differs from time in your config" in clients("import").stdout
    assert clients.servers()["time"] == TIME
    assert clients("import", "--force", "-s", "time").returncode == 0
    assert clients.servers()["time"] == {"command": "other"}


def test_inputs_of_one_name_in_two_files_stay_apart(home: Home) -> None:
    for name in ("a", "b"):
        home.write(
            f"{name}/.vscode/mcp.json",
            {
                "inputs": [{"type": "promptString", "id": "token", "password": True}],
                "servers": {name: {"command": "x", "env": {"T": "${input:token}"}}},
            },
        )
    assert home("import", "a", "b").returncode == 0
    assert home.servers() == {
        "a": {"command": "x", "env": {"T": "${input:token}"}},
        "b": {"command": "x", "env": {"T": "${input:b-token}"}},
    }
    assert [i["id"] for i in json.loads(home.config.read_text())["inputs"]] == ["token", "b-token"]
    assert home("import", "a", "b").stdout.count("is in your config already") == 2


def test_import_of_a_project_keeps_its_folder(home: Home) -> None:
    entry = {"command": "./run", "args": ["${workspaceFolder}", "${userHome}"], "envFile": ".env"}
    home.write("work/.vscode/mcp.json", {"servers": {"s": entry}})
    work = home.path / "work"
    assert home("import", str(work)).returncode == 0
    assert home.servers() == {
        "s": {"command": f"{work}/run", "args": [str(work), "${userHome}"], "envFile": f"{work}/.env"}
    }


def test_import_without_anything_to_take_says_so(home: Home) -> None:
    done = home("import")
    assert done.returncode == 1 and "no servers found" in done.stderr
    home.write("empty.json", {"theme": 1})
    done = home("import", "empty.json")
    assert done.returncode == 1 and 'no "mcpServers" in it' in done.stdout


def test_list_says_where_each_server_is_from_and_which_are_disabled(clients: Home) -> None:
    clients.write(".config/agentkit/mcp.json", {"mcpServers": {"mine": {"command": "m", "disabled": True}}})
    clients.write(".mcp.json", {"mcpServers": {"of-project": {"command": "x", "args": ["--token", "abc"]}}})
    assert clients("list").stdout == "~/.config/agentkit/mcp.json\n  mine  m  (disabled)\n"
    listed = clients("list", "--all", "--json")
    found = {row["name"]: row for row in json.loads(listed.stdout)}
    assert found["surf"]["client"] == "Windsurf" and found["mine"]["disabled"]
    assert "has neither 'command'" in found["bad"]["error"]
    assert clients("list", ".mcp.json").stdout == ".mcp.json  (Claude Code)\n  of-project  x --token …\n"


def test_check_says_of_each_server_what_is_wrong(home: Home) -> None:
    home.write(
        ".config/agentkit/mcp.json",
        {
            "mcpServers": {
                "time": TIME,
                "key": {"command": "x", "env": {"K": "${NOT_SET}"}},
                "gone": {"command": "no-such-program"},
                "off": {"command": "x", "disabled": True},
            }
        },
    )
    done = home("check")
    assert done.returncode == 1
    assert "✓ time" in done.stdout and "get_current_time(timezone)" in done.stdout
    assert "line 1: server 'key': 'env.K' needs the environment variable NOT_SET" in done.stdout
    assert "✗ gone" in done.stdout and "no-such-program" in done.stdout
    assert "disabled: off" in done.stderr


def test_check_without_any_servers_is_wrong_usage(home: Home) -> None:
    done = home("check")
    assert done.returncode == 2 and "you have no servers yet" in done.stderr
    done = home("check", "tine")
    assert (done.returncode, done.stdout) == (1, "") and "tine: there is no such file" in done.stderr


PICTURES = '''
from mcp.server import MCPServer
from mcp.server.mcpserver import Image

mcp = MCPServer("pictures", instructions="Draws.", log_level="WARNING")

@mcp.tool()
def draw(title: str, size: int) -> list:
    """Draw."""
    return [f"{title!r} {size!r}", Image(data=b"\\x89PNG\\r\\n\\x1a\\n", format="png")]

@mcp.resource("res://hello")
def hello() -> str: return "hello"

@mcp.resource("res://{name}/x")
def named(name: str) -> str: return name

@mcp.prompt()
def greet(name: str) -> str: return f"Say hi to {name}"

mcp.run()
'''


def test_arguments_are_read_as_the_tool_wants_them_and_images_saved_under_new_names(home: Home) -> None:
    script = home.write("pictures.py", PICTURES)
    file = home.write("p.json", {"mcpServers": {"p": {"command": sys.executable, "args": [str(script)]}}})
    by_key = home("call", str(file), "draw", "title=7", "size=7", "-o", "out")
    as_json = home(
        *("call", "p", "draw", "-", "-o", "out", "--mcp", str(file)), text='{"title": "x y", "size": 2}'
    )
    for done, text, name in ((by_key, "'7' 7\n", "draw.png"), (as_json, "'x y' 2\n", "draw-2.png")):
        assert (done.returncode, done.stdout) == (0, text), done.stderr
        assert f"saved out/{name} (image/png, 8 bytes)" in done.stderr
        assert (home.path / "out" / name).read_bytes() == b"\x89PNG\r\n\x1a\n"


def test_what_cannot_be_called_is_said(home: Home) -> None:
    home.write("time.json", {"mcpServers": {"time": TIME}})
    home.write("two.json", {"mcpServers": {"time": TIME, "b": TIME}})
    for args, code, why in (
        (("time.json", "get_current_time", "nonsense"), 2, "expected KEY=VALUE"),
        (("time.json", "get_current_time", "{nonsense"), 2, "not valid JSON"),
        (
            ("two.json", "get_current_time"),
            1,
            "two.json: has time, b; say which: SERVER, with --mcp two.json",
        ),
        (("c", "get_current_time", "--mcp", "two.json"), 1, "two.json: no server 'c' in it"),
        (("c", "get_current_time"), 1, "c: there is no such file, and no server of that name in"),
    ):
        done = home("call", *args)
        assert (done.returncode, done.stdout) == (code, "") and why in done.stderr, done.stderr


@pytest.mark.e2e
def test_a_failed_call_and_a_whole_result(home: Home) -> None:
    home.write("time.json", {"mcpServers": {"time": TIME}})
    failed = home("call", "time.json", "get_current_time", "timezone=Nowhere")
    assert failed.returncode == 1 and "Invalid timezone" in failed.stdout
    unknown = home("call", "time.json", "nope")
    assert "'time' has no tool 'nope'; it has get_current_time, convert_time" in unknown.stderr
    whole = home("call", "time.json", "get_current_time", "timezone=UTC", "--json")
    assert whole.returncode == 0 and json.loads(whole.stdout)["structuredContent"]["timezone"] == "UTC"
    about = json.loads(home("inspect", "time.json", "--json").stdout)
    assert about["tools"][0]["inputSchema"]["required"] == ["timezone"]
    assert about["capabilities"] and about["server"]["name"] == "mcp-time"


@pytest.mark.e2e
def test_inspect_shows_what_a_server_has(home: Home) -> None:
    script = home.write("pictures.py", PICTURES)
    file = home.write("p.json", {"mcpServers": {"p": {"command": sys.executable, "args": [str(script)]}}})
    shown = home("inspect", str(file)).stdout
    for text in (
        "p  pictures",
        "protocol      2026-07-28",
        "instructions  Draws.",
        "draw(title, size)  Draw.",
        "res://hello  hello",
        "res://{name}/x  named",
        "greet(name)",
    ):
        assert text in shown


class _Counting(BaseHTTPRequestHandler):
    """A vLLM that finds 10 tokens in a bare prompt, 100 around tools, and as many in a tool as its name has
    letters."""

    def _send(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "m", "owned_by": "vllm", "max_model_len": 8192}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tools = body.get("tools") or []
        names = [tool["function"]["name"] for tool in tools]
        self._send({"count": 10 + 100 * bool(tools) + sum(map(len, names)), "max_model_len": 8192})

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def counter() -> Iterator[str]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Counting)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    http.shutdown()
    http.server_close()


def test_cost_is_counted_by_a_model_server(home: Home, counter: str) -> None:
    file = home.write("time.json", {"mcpServers": {"time": TIME}})
    done = home("cost", str(file), "-m", counter, "--json")
    tools = [{"name": "get_current_time", "tokens": 16}, {"name": "convert_time", "tokens": 12}]
    assert json.loads(done.stdout) == {
        "exact": True,
        "total": 128,
        "frame": 100,
        "left": {"8k": 8064, "16k": 16256, "40k": 40832},
        "servers": [{"name": "time", "tokens": 28, "tools": tools}],
    }


@pytest.mark.e2e
def test_cost_is_estimated_without_one(home: Home) -> None:
    subprocess.run(["git", "init", "-q", str(home.path)], check=True)
    servers = {"time": TIME, "git": {"command": "mcp-server-git", "args": ["--repository", "."]}}
    file = home.write("two.json", {"mcpServers": servers})
    done = home("cost", str(file))
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and lines[0].split()[1] == "git"  # the dearest first
    assert "estimated at 4 bytes a token" in lines[-2] and "leaves" in lines[-1]


def test_a_password_is_asked_on_the_terminal_and_not_shown(home: Home) -> None:
    script = 'test "$KEY" = s3same && echo it is right >&2'
    config = {
        "inputs": [{"type": "promptString", "id": "key", "description": "Your key", "password": True}],
        "servers": {"s": {"command": "sh", "args": ["-c", script], "env": {"KEY": "${input:key}"}}},
    }
    file = home.write("mcp.json", config)
    refused = home("check", str(file))
    assert "needs the input 'key' (Your key); answer it by setting AGENTKIT_INPUT_KEY" in refused.stdout

    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(COMMAND, [COMMAND, "mcp", "check", str(file)], home.environment)
    said = b""
    while b"Your key: " not in said:
        said += os.read(terminal, 1024)
    os.write(terminal, b"s3same\n")
    try:
        while data := os.read(terminal, 1024):
            said += data
    except OSError:  # how Linux says that the other side has gone
        pass
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 1  # that is no MCP server
    assert b"its last words: it is right" in said and b"s3same" not in said


def test_help_imports_nothing_heavy(home: Home) -> None:
    code = (
        "import sys; from agentkit.cli.mcp import mcp; mcp.main(['--help'], standalone_mode=False);"
        "print([m for m in ('mcp', 'pydantic', 'httpx2', 'rich', 'platformdirs') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=home.environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
