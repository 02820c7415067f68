"""From names to weights, and the demo model's pieces to one file."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from agentkit import ConfigError, ModelNotFound
from agentkit.runtime import connect
from agentkit.runtime.demo import join
from agentkit.runtime.models import resolve
from agentkit.runtime.openai_compatible import OpenAICompatible
from agentkit.runtime.replicas import Replicas
from agentkit.testing import ScriptedEngine

WHOLE = os.urandom(300_000)
SHA256 = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def pieces(tmp_path: Path) -> list[Path]:
    found = []
    for n in range(3):
        piece = tmp_path / f"part{n}.bin"
        piece.write_bytes(WHOLE[n * 100_000 : (n + 1) * 100_000])
        found.append(piece)
    return found


def test_pieces_become_one_file_and_only_once(pieces: list[Path], tmp_path: Path) -> None:
    target, said = tmp_path / "cache" / "model.gguf", list[str]()
    for _ in range(2):
        assert join(pieces, target, len(WHOLE), SHA256, said.append).read_bytes() == WHOLE
    assert len(said) == 1


def test_damaged_pieces_are_an_error_and_leave_nothing(pieces: list[Path], tmp_path: Path) -> None:
    pieces[1].write_bytes(b"x" * 100_000)
    with pytest.raises(ModelNotFound, match="SHA-256"):
        join(pieces, tmp_path / "cache" / "model.gguf", len(WHOLE), SHA256)
    assert (
        not list((tmp_path / "cache").glob("model.gguf*.part"))
        and not (tmp_path / "cache" / "model.gguf").exists()
    )


JOIN = (
    "import sys; from pathlib import Path; from agentkit.runtime.demo import join; from agentkit import ModelNotFound\n"
    "folder, size, sha = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
    "try: join(sorted(folder.glob('part*.bin')), folder / 'cache' / 'model.gguf', size, sha, print)\n"
    "except ModelNotFound as exc: sys.exit(str(exc))\n"
)


def test_two_processes_at_once_join_it_once(pieces: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", JOIN, str(tmp_path), str(len(WHOLE)), SHA256]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [p.communicate(timeout=30)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0] and "".join(said).count("joining") == 1
    assert (tmp_path / "cache" / "model.gguf").read_bytes() == WHOLE


def test_a_full_disk_is_one_sentence_and_leaves_nothing(pieces: list[Path], tmp_path: Path) -> None:
    def small_files() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    command = [sys.executable, "-c", JOIN, str(tmp_path), str(len(WHOLE)), SHA256]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files, timeout=30)
    assert done.returncode == 1 and "the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["model.gguf.lock"]


def test_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "my-model.gguf"
    file.write_bytes(b"GGUF")
    found = resolve(str(file))
    assert (found.name, found.path, found.found) == ("my-model", file.resolve(), "path")


@pytest.mark.parametrize(
    ("name", "says"),
    [("qwen3-4", "did you mean 'qwen3-4b'"), ("./x.gguf", "no file"), (".", "is a directory")],
)
def test_what_cannot_be_found_says_what_would_work(name: str, says: str) -> None:
    with pytest.raises(ModelNotFound, match=says):
        resolve(name)


def test_a_url_is_a_server_and_may_name_its_model() -> None:
    named, first = connect("Qwen3-4B@http://h:1/v1"), connect("http://h:1/v1/")
    assert isinstance(named, OpenAICompatible) and isinstance(first, OpenAICompatible)
    assert (named.base_url, named.model, first.model) == ("http://h:1/v1", "Qwen3-4B", None)


def test_several_urls_are_replicas_of_one_model() -> None:
    several = connect("Qwen3-4B@http://h1:8000/v1, https://h2:8000/v1/")
    assert isinstance(several, Replicas) and several.model == "Qwen3-4B"
    assert several.base_urls == ("http://h1:8000/v1", "https://h2:8000/v1")
    assert connect("http://h1:1/v1,http://h2:1/v1").model is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["m@http://h1:1/v1,h2:1/v1", "m@http://h1:1/v1,m@http://h2:1/v1", "http://h1:1/v1,"]
)
def test_what_is_no_list_of_urls_says_how_it_is_written(name: str) -> None:
    with pytest.raises(ConfigError, match="write NAME@http://HOST:PORT/v1,http://HOST:PORT/v1"):
        connect(name)


def test_an_engine_is_taken_as_it_is() -> None:
    engine = ScriptedEngine([])
    assert connect(engine) is engine
