"""Other MCP clients: where their config files are, and what they mean by what stands in them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CLIENTS", "Client", "client_of", "files_of"]


@dataclass(frozen=True, slots=True)
class Client:
    """A program that has MCP servers in a config file, and in what its reading of a file differs.

    `home` are files below the home directory, `app` below the directory that applications keep their
    settings in (~/.config, on macOS ~/Library/Application Support), `project` below a project.
    """

    name: str
    home: tuple[str, ...] = ()
    app: tuple[str, ...] = ()
    project: tuple[str, ...] = ()
    timeout_unit: float | None = None  # of its "timeout", in seconds; None where it is not known
    url_is_sse: bool = False  # where no type is given
    bare_variables: bool = False  # $VAR as well as ${VAR}


_VSCODE_USERS = ("Code", "Code - Insiders", "VSCodium", "Cursor", "Windsurf")


def _extension(id: str, file: str) -> tuple[str, ...]:
    return tuple(f"{user}/User/globalStorage/{id}/settings/{file}" for user in _VSCODE_USERS)


# Servers of a client further down win over those of the same name further up.
CLIENTS: tuple[Client, ...] = (
    Client("Claude Desktop", app=("Claude/claude_desktop_config.json",)),
    Client("Claude Code", home=(".claude.json",), project=(".mcp.json",)),
    Client("Copilot CLI", home=(".copilot/mcp-config.json",)),
    Client(
        "VS Code",
        app=tuple(
            f"{user}/User/{file}" for user in _VSCODE_USERS[:3] for file in ("settings.json", "mcp.json")
        ),
        project=(".vscode/mcp.json",),
    ),
    Client("Cursor", home=(".cursor/mcp.json",), project=(".cursor/mcp.json",)),
    Client("Windsurf", home=(".codeium/windsurf/mcp_config.json",)),
    Client(
        "Cline",
        app=_extension("saoudrizwan.claude-dev", "cline_mcp_settings.json"),
        timeout_unit=1,
        url_is_sse=True,
    ),
    Client(
        "Roo Code",
        app=_extension("rooveterinaryinc.roo-cline", "mcp_settings.json"),
        project=(".roo/mcp.json",),
        timeout_unit=1,
        url_is_sse=True,
    ),
    Client(
        "Kilo Code",
        app=_extension("kilocode.kilo-code", "mcp_settings.json"),
        project=(".kilocode/mcp.json",),
    ),
    Client(
        "Gemini CLI",
        home=(".gemini/settings.json",),
        project=(".gemini/settings.json",),
        timeout_unit=0.001,
        url_is_sse=True,
        bare_variables=True,
    ),
    Client(
        "Qwen Code",
        home=(".qwen/settings.json",),
        project=(".qwen/settings.json",),
        timeout_unit=0.001,
        url_is_sse=True,
        bare_variables=True,
    ),
    Client("Zed", home=(".config/zed/settings.json",), project=(".zed/settings.json",)),
    Client("Continue", home=(".continue/config.yaml", ".continue/config.json")),
    Client("LM Studio", home=(".lmstudio/mcp.json", ".cache/lm-studio/mcp.json")),
    Client("Kiro", home=(".kiro/settings/mcp.json",), project=(".kiro/settings/mcp.json",)),
    Client("Amazon Q", home=(".aws/amazonq/mcp.json",), project=(".amazonq/mcp.json",), timeout_unit=0.001),
    Client("Codex", home=(".codex/config.toml",), project=(".codex/config.toml",)),
    Client(
        "opencode",
        home=(".config/opencode/opencode.json", ".config/opencode/opencode.jsonc"),
        project=("opencode.json", "opencode.jsonc"),
        timeout_unit=0.001,
    ),
    Client("Goose", home=(".config/goose/config.yaml",), timeout_unit=1),
)
_OTHER = Client("")


def files_of(client: Client, project: Path | None = None) -> Iterator[Path]:
    """The files in which the client would have servers, whether they exist or not."""
    home = Path.home()
    apps = home / "Library/Application Support"
    if sys.platform != "darwin":
        apps = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    yield from (home / file for file in client.home)
    yield from (apps / file for file in client.app)
    if project is not None and project != home:
        yield from (project / file for file in client.project)


def client_of(file: Path) -> tuple[Client, Path | None]:
    """Whose config file that is, and the project that it is of, None if it is of the user. Known by its
    path; of a file that is nobody's, the client is nameless and the project its folder."""
    file = file.absolute()
    for client in CLIENTS:
        if file in files_of(client):
            return client, None
    for client in CLIENTS:
        for known in client.project:
            if file.parts[-len(Path(known).parts) :] == Path(known).parts:
                return client, file.parents[len(Path(known).parts) - 1]
    return _OTHER, file.parent
