"""A home of its own for what hosting leaves on the disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentkit.runtime.server import stop


@pytest.fixture
def short_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ak"))  # short, for the sake of the sockets' addresses
    for name, variable in (
        ("run", "XDG_RUNTIME_DIR"),
        ("state", "XDG_STATE_HOME"),
        ("cache", "XDG_CACHE_HOME"),
    ):
        (path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(path / name))
    yield path
    stop()
    shutil.rmtree(path)
