"""A terminal for the commands that ask somebody."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

OnTerminal = Callable[[Sequence[str], Path, Mapping[str, str], Sequence[tuple[str, str]]], str]


@pytest.fixture
def on_terminal() -> OnTerminal:
    """Run a command on a terminal of its own, type each answer once its prompt stands there; what was on the screen."""
    return _on_terminal


def _on_terminal(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], answers: Sequence[tuple[str, str]]
) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    screen, left = "", list(answers)
    try:
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the program has ended
                break
            screen += piece.decode(errors="replace")
            if b"\x1b[6n" in piece:
                os.write(ours, b"\x1b[1;1R")  # where the cursor is, as terminals say when they are asked
            if left and left[0][0] in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen):
                os.write(ours, left.pop(0)[1].encode())
        assert process.wait(timeout=20) == 0, screen
    finally:
        process.kill()
        os.close(ours)
    assert not left, screen
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen)
