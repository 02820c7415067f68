"""An MCP server over one SQLite database, for reading only: a program of its own, started with the file's path in DATABASE."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations

ROWS = 50  # of one answer
SECONDS = 5.0  # for one query
READS = ToolAnnotations(read_only_hint=True)

server = MCPServer("database", version="1.0", log_level="WARNING")


@server.tool(annotations=READS)
def list_tables() -> str:
    """List the database's tables."""
    return "\n".join(name for (name,) in _rows("SELECT name FROM sqlite_master WHERE type = 'table'")[1])


@server.tool(annotations=READS)
def describe_table(table: str) -> str:
    """Show the columns of a table, and how many rows it has."""
    columns = _rows("SELECT name, type FROM pragma_table_info(?)", table)[1]
    if not columns:
        raise ToolError(f"there is no table {table!r}; list_tables shows those there are")
    ((count,),) = _rows(f'SELECT count(*) FROM "{table}"')[1]
    return "\n".join([*(f"{name} {kind}" for name, kind in columns), f"({count} rows)"])


@server.tool(annotations=READS)
def query(sql: str) -> str:
    """Run one SELECT statement (SQLite) and get its rows."""
    columns, rows = _rows(sql)
    lines = [" | ".join(columns), *(" | ".join(map(_shown, row)) for row in rows[:ROWS])]
    if len(rows) > ROWS:
        lines.append(f"(only the first {ROWS} rows are shown)")
    return "\n".join(lines) if rows else "(no rows)"


def _rows(sql: str, *values: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
    uri = f"{Path(os.environ['DATABASE']).absolute().as_uri()}?mode=ro"
    until = time.monotonic() + SECONDS
    with closing(sqlite3.connect(uri, uri=True)) as database:
        database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # another file could be written
        database.set_progress_handler(lambda: time.monotonic() > until, 100_000)
        try:
            done = database.execute(sql, values)
            return [c[0] for c in done.description or ()], done.fetchmany(ROWS + 1)
        except sqlite3.Error as exc:
            raise ToolError(f"the database says: {exc}") from exc


def _shown(value: object) -> str:
    return "NULL" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    server.run()
