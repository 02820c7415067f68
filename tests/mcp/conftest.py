"""No test sees what another one, or a user, has kept: listings, tokens, logs, approvals."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

PLACES = ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


@pytest.fixture(scope="module", autouse=True)
def _no_users_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """For fixtures that serve the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        for name in PLACES:
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        yield


@pytest.fixture(autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's files are kept, all below one folder."""
    folder = tmp_path_factory.mktemp("kept")
    for name in PLACES:
        monkeypatch.setenv(name, os.fspath(folder / name[4:-5].lower()))
    return folder
