"""Servers that people really use and nobody here wrote, from npm, driven through a config as users write it.

Needs AGENTKIT_NPM, a directory where npm has installed them; the browser's also Debian's chromium. Skipped without.
"""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentkit.errors import ToolError
from agentkit.mcp import MCPServers
from agentkit.tools import Tool

FOLDER = Path(os.environ.get("AGENTKIT_NPM", "nowhere"), "node_modules")
pytestmark = [pytest.mark.anyio, pytest.mark.e2e]


def command(package: str, binary: str) -> str:
    if not (FOLDER / package).is_dir() or shutil.which("node") is None:
        pytest.skip(f"AGENTKIT_NPM is no directory where npm has installed {package}")
    return str(FOLDER / ".bin" / binary)


@asynccontextmanager
async def opened(**server: Any) -> AsyncIterator[dict[str, Tool]]:
    notices: list[str] = []
    async with MCPServers({"mcpServers": {"it": server}}).open(notices.append) as tools:
        assert not notices
        yield {t.name: t for t in tools}


async def test_filesystem_reads_and_writes_in_its_directory_and_nowhere_else(tmp_path: Path) -> None:
    server = command("@modelcontextprotocol/server-filesystem", "mcp-server-filesystem")
    root = tmp_path / "root"
    root.mkdir()
    async with opened(command=server, args=[str(root)]) as tools:
        written = {"path": str(root / "a.txt"), "content": "Grüße"}
        assert not (await tools["write_file"].handler(written)).is_error
        read = await tools["read_text_file"].handler({"path": str(root / "a.txt")})
        assert "Grüße" in read.content
        with pytest.raises(ToolError, match="denied"):
            output = await tools["read_text_file"].handler({"path": "/etc/passwd"})
            assert output.is_error
            raise ToolError(output.content)


async def test_memory_remembers_what_it_was_told(tmp_path: Path) -> None:
    server = command("@modelcontextprotocol/server-memory", "mcp-server-memory")
    env = {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")}
    ada = {"name": "Ada", "entityType": "person", "observations": ["likes marzipan"]}
    async with opened(command=server, env=env) as tools:
        await tools["create_entities"].handler({"entities": [ada]})
    async with opened(command=server, env=env) as tools:
        assert "marzipan" in (await tools["search_nodes"].handler({"query": "Ada"})).content


async def test_sequential_thinking_counts_the_thoughts() -> None:
    server = command("@modelcontextprotocol/server-sequential-thinking", "mcp-server-sequential-thinking")
    async with opened(command=server) as tools:
        thought = {"thought": "First.", "thoughtNumber": 1, "totalThoughts": 2, "nextThoughtNeeded": True}
        said = await tools["sequentialthinking"].handler(thought)
    assert '"thoughtNumber": 1' in said.content


@pytest.fixture
def page() -> Iterator[str]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<title>Shop</title><h1>Llamas</h1><button>Buy one</button>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


async def test_playwright_looks_at_a_page(page: str, tmp_path: Path) -> None:
    server = command("@playwright/mcp", "playwright-mcp")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    args = [
        "--headless",
        "--no-sandbox",
        "--isolated",
        "--executable-path",
        chromium,
        "--output-dir",
        str(tmp_path),
    ]
    async with opened(command=server, args=args, timeout=120, env={"HOME": str(tmp_path)}) as tools:
        seen = await tools["browser_navigate"].handler({"url": page})
        seen = seen if "Llamas" in seen.content else await tools["browser_snapshot"].handler({})
        assert "Llamas" in seen.content and "Buy one" in seen.content
        await tools["browser_close"].handler({})
