"""A server without the SDK, quick to start, that misbehaves as its arguments say.

garbage            writes text on stdout before it answers
stubborn           ignores EOF and SIGTERM
daemon             starts a process in a session of its own, that ignores SIGTERM too
silent             answers nothing
pages              lists one tool on each page
dies-on=FILE       a call of `die` ends the process while FILE exists, and removes it
notes=FILE         writes there when it starts and what notifications it gets, a line each
tools=FILE         lists the tools named there, a line each, as well; `relist` reads it again and says so
slow-start=SECONDS answers nothing for so long
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

options = dict(option.partition("=")[::2] for option in sys.argv[1:])
daemon = 0

if "stubborn" in options:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "daemon" in options:
    sleeper = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", sleeper], start_new_session=True, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    daemon = process.pid


def note(line: str) -> None:
    if path := options.get("notes"):
        with open(path, "a") as file:
            print(line, file=file)


note("started")
time.sleep(float(options.get("slow-start", 0)))

ANYTHING = {"type": "object", "properties": {}}
TOOLS: list[object] = [
    {
        "name": "pids",
        "description": "Process ids.",
        "inputSchema": ANYTHING,
        "annotations": {"readOnlyHint": True},
    },
    {"name": "die", "description": "Ends the server.", "inputSchema": ANYTHING},
    {"name": "die_readonly", "inputSchema": ANYTHING, "annotations": {"readOnlyHint": True}},
    {"name": "fail", "inputSchema": ANYTHING},
    {"name": "hang", "inputSchema": ANYTHING},
    {"name": "off_schema", "inputSchema": ANYTHING},
    {"name": "structured", "inputSchema": ANYTHING, "outputSchema": {"type": "object", "required": ["x"]}},
]
if "sloppy" in options:
    TOOLS += [
        {"name": "dots.and/slashes", "inputSchema": ANYTHING},
        {"name": "dots_and_slashes", "inputSchema": ANYTHING},
        {"name": "größe", "inputSchema": ANYTHING},
        {"name": "x" * 100, "inputSchema": ANYTHING},
        {"name": "twice", "description": "first", "inputSchema": ANYTHING},
        {"name": "twice", "description": "second", "inputSchema": ANYTHING},
        {"name": "no_schema"},
        {"name": "no_type", "inputSchema": {"properties": {"a": {"type": "string"}}}},
        {"name": "list_schema", "inputSchema": [], "description": 7, "annotations": "none"},
        {"description": "nameless"},
        "not even an object",
    ]
if "tools" in options:
    TOOLS += [
        {"name": name, "inputSchema": ANYTHING, "annotations": {"readOnlyHint": True}}
        for name in ("relist", "freeze", "progress")
    ]


def named_tools() -> list[object]:
    if "tools" not in options:
        return []
    with open(options["tools"]) as file:
        return [
            {"name": name, "description": about, "inputSchema": ANYTHING}
            for name, _, about in (line.strip().partition(" ") for line in file)
        ]


named = named_tools()


def answer(method: str, params: dict[str, object]) -> dict[str, object]:
    if method == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
        return {**result, "serverInfo": {"name": "raw", "version": "0.1"}}
    if method == "tools/list":
        if "pages" not in options:
            return {"tools": TOOLS + named}
        at = int(str(params.get("cursor") or 0))
        more = {"nextCursor": str(at + 1)} if at + 1 < len(TOOLS) else {}
        return {"tools": TOOLS[at : at + 1], **more}
    if method == "tools/call":
        return call(str(params["name"]))
    raise LookupError(method)


def call(name: str) -> dict[str, object]:
    global named
    if name == "relist":
        named = named_tools()
        print(json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}), flush=True)
    if name == "freeze":  # answers nothing any more, not even a ping
        note("frozen")
        if os.path.exists(path := options.get("dies-on", "/")):
            os.remove(path)
            time.sleep(600)
    if name.startswith("die") and os.path.exists(path := options.get("dies-on", "/")):
        if path != "/":
            os.remove(path)
        print(
            "Traceback (most recent call last):\n  frame\nOSError: disk on fire", file=sys.stderr, flush=True
        )
        os._exit(1)
    if name == "fail":
        raise ValueError("the fridge is empty")
    if name == "off_schema":
        return {"content": "not a list"}
    if name == "structured":
        return {"content": [], "structuredContent": {"y": 1}}
    return {"content": [{"type": "text", "text": f"{name}: {os.getpid()} {daemon}"}]}


if "garbage" in options:
    print("Welcome to the server!\n{not json", flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        note(message["method"])
    if "id" not in message or "silent" in options:
        continue
    if message["method"] == "tools/call" and message["params"]["name"] == "hang":
        note("hangs")
        continue
    if message["method"] == "tools/call" and message["params"]["name"] == "progress":
        token = message["params"]["_meta"]["progressToken"]
        for step in range(5):
            time.sleep(0.15)
            params = {"progressToken": token, "progress": step}
            print(
                json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}),
                flush=True,
            )
    reply: dict[str, object] = {"jsonrpc": "2.0", "id": message["id"]}
    try:
        reply["result"] = answer(message["method"], message.get("params") or {})
    except LookupError:
        reply["error"] = {"code": -32601, "message": "Method not found"}
    except ValueError as exc:
        reply["error"] = {"code": -32000, "message": str(exc)}
    print(json.dumps(reply), flush=True)
while "stubborn" in options:
    time.sleep(600)
