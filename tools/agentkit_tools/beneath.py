"""Folders that nothing leads out of: what is below one is opened step by step, so no link, `..` or race escapes."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, Final

from agentkit.errors import ConfigError, ToolError

__all__ = [
    "SECRETS",
    "Place",
    "Root",
    "find",
    "may_hold",
    "open_file",
    "open_folder",
    "opened",
    "refused",
    "said",
    "shown",
]

# What nobody expects a model to look at, or to change: secrets, and what Git runs.
SECRETS: Final = (
    *(".git", ".ssh", ".gnupg", ".aws", ".netrc", ".pgpass", ".pypirc", ".git-credentials"),
    *(".env*", "!.env.example", "!.env.sample", "!.env.template"),
    *("*.pem", "*.key", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
)
_STEP: Final = os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | _STEP
_DEEPEST, _MOST_LINKS = 200, 40  # each step holds a descriptor
# proc, sysfs, debugfs, tracefs, securityfs, cgroup, cgroup2, bpf: the kernel's own, not the user's files
_KERNEL: Final = frozenset(
    (0x9FA0, 0x62656572, 0x64626720, 0x74726163, 0x73636673, 0x27E0EB, 0x63677270, 0xCAFE4A11)
)


@dataclass(frozen=True, slots=True)
class Root:
    """An open folder; paths lead to what is below it. `deny`: see `refused`."""

    fd: int
    path: str  # absolute, without links
    given: str  # absolute, as the user wrote it
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: an open folder and a name in it ("." for the root), `info` None if nothing is there.

    The name is no link; whoever opens it must not follow one that has come there since.
    """

    root: Root
    folder: int
    name: str
    info: os.stat_result | None
    path: str  # from the root, without links


@contextmanager
def opened(path: str | Path, deny: Sequence[str] = ()) -> Iterator[Root]:
    """Open *path* as a root. Raises `ConfigError` if it is no folder."""
    given = os.path.abspath(Path(path).expanduser())
    try:
        fd = os.open(given, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise ConfigError(f"{given} cannot be a root of the file tools: {exc.strerror}.") from exc
    try:
        yield Root(fd, os.path.realpath(given), given, tuple(deny))
    finally:
        os.close(fd)


@contextmanager
def find(root: Root, asked: str, make_folders: bool = False) -> Iterator[Place]:
    """Where *asked* leads, for as long as the body runs. Links are followed while they stay below the root.

    Raises `ToolError` where the path leads out of it, through nothing, or to what `root.deny` names.
    """
    stack = [(root.fd, "")]
    try:
        with said(asked):
            place = _walk(root, asked, stack, make_folders)
        yield place
    finally:
        for fd, _ in stack[1:]:
            os.close(fd)


def _walk(root: Root, asked: str, stack: list[tuple[int, str]], make_folders: bool) -> Place:
    todo = _below(root, _plain(asked))
    links = 0
    while todo:
        if len(stack) > _DEEPEST:
            raise ToolError(f"{shown(asked)} is too deep")
        folder = stack[-1][0]
        name = todo.pop(0)
        if name == "..":
            if len(stack) == 1:
                raise _outside(asked, root)
            os.close(stack.pop()[0])
            continue
        info = _look(folder, name)
        if info is None and not name.isascii():
            name = _same_letters(folder, name)
            info = _look(folder, name)
        if refused(name, root.deny):
            raise ToolError(f"{shown(asked)} is kept from you: {shown(name)} may hold secrets")
        if info is not None and stat.S_ISLNK(info.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            target = os.readlink(name, dir_fd=folder)
            if target.startswith("/"):
                try:
                    todo[:0] = _below(root, target)
                except ToolError:
                    raise _outside(asked, root) from None
                while len(stack) > 1:
                    os.close(stack.pop()[0])
            else:
                todo[:0] = _split(target)
            continue
        if not todo:
            return Place(root, folder, name, info, "/".join([n for _, n in stack[1:]] + [name]))
        if info is None:
            if not make_folders:
                raise ToolError(f"there is no folder {shown(name)} on the way to {shown(asked)}")
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
        elif not stat.S_ISDIR(info.st_mode):
            raise ToolError(f"{shown(name)} in {shown(asked)} is not a folder")
        stack.append((os.open(name, _LOOK, dir_fd=folder), name))
    here = stack[-1]
    path = "/".join(n for _, n in stack[1:])
    return Place(root, here[0], ".", os.stat(here[0]), path or ".")


def may_hold(root: Root, asked: str) -> bool:
    """Whether *asked* is relative, or names something below *root* as far as its text goes."""
    try:
        _below(root, _plain(asked))
    except ToolError:
        return False
    return True


def _plain(asked: str) -> str:
    """The path that was meant: file: URLs and ~ as everywhere else."""
    path = asked
    if path[:5].lower() == "file:":
        from urllib.parse import unquote, urlsplit

        try:
            url = urlsplit(path)
        except ValueError:
            raise ToolError(f"{shown(asked)} is not a path") from None
        if url.netloc not in ("", "localhost"):
            raise ToolError(f"{shown(asked)} is on another machine")
        path = unquote(url.path, errors="surrogateescape")
    if path == "~" or path.startswith("~/"):
        path = os.path.expanduser(path)
    try:
        if b"\0" in os.fsencode(path):
            raise ToolError(f"{shown(asked)} is not a path: it has a NUL byte")
    except UnicodeEncodeError:
        raise ToolError(f"{shown(asked)} is not a path: it has half a character") from None
    return path


def _below(root: Root, path: str) -> list[str]:
    """The steps of *path* from the root; only its text is looked at."""
    steps = _split(path)
    if not path.startswith("/"):
        return steps
    for base in (root.path, root.given):
        above = _split(base)
        if steps[: len(above)] == above:
            return steps[len(above) :]
    raise _outside(path, root)


def _split(path: str) -> list[str]:
    return [step for step in path.split("/") if step not in ("", ".")]


def _outside(asked: str, root: Root) -> ToolError:
    return ToolError(f"{shown(asked)} is outside of {root.given}; use a path relative to that folder")


def _look(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _same_letters(folder: int, name: str) -> str:
    """The one name that is written with the same letters, as é and é are."""
    wanted = unicodedata.normalize("NFC", name)
    with open_folder(folder) as fd:
        same = [n for n in os.listdir(fd) if unicodedata.normalize("NFC", n) == wanted]
    return same[0] if len(same) == 1 else name


def refused(name: str, deny: Sequence[str]) -> bool:
    """Whether *name*, one step of a path, is one of the globs; "!glob" makes exceptions to those before it."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    verdict = False
    for glob in deny:
        if fnmatchcase(folded, glob.removeprefix("!").casefold()):
            verdict = not glob.startswith("!")
    return verdict


@contextmanager
def open_folder(folder: int, name: str = ".") -> Iterator[int]:
    """A descriptor to list it by. Raises OSError, `NotADirectoryError` also for links."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _STEP, dir_fd=folder)
    try:
        if _of_the_kernel(fd):
            raise PermissionError(errno.EACCES, "it is the kernel's, not a folder of files")
        yield fd
    finally:
        os.close(fd)


def open_file(folder: int, name: str) -> BinaryIO:
    """Open a regular file to read it. Raises OSError for anything else, without waiting for it."""
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)  # to open a device can do things
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, _kind(info.st_mode))
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | _STEP, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) or _of_the_kernel(fd):
            raise OSError(errno.EINVAL, "it is not a file on a disk")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "it is a folder"
    if stat.S_ISFIFO(mode):
        return "it is a pipe, not a file"
    if stat.S_ISSOCK(mode):
        return "it is a socket, not a file"
    return "it is a device, not a file"


def _of_the_kernel(fd: int) -> bool:
    """Whether it is in /proc or the like, wherever that is mounted: there are the secrets of processes."""
    if sys.platform != "linux":
        return False
    buffer = (ctypes.c_long * 32)()  # struct statfs begins with the file system's type
    return ctypes.CDLL(None).fstatfs(fd, buffer) == 0 and (buffer[0] & 0xFFFFFFFF) in _KERNEL


@contextmanager
def said(asked: str) -> Iterator[None]:
    """What the system refuses, in words for the model."""
    try:
        yield
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            reason = "there is no such file or folder"
        elif exc.errno == errno.ENOTDIR:
            reason = "it is no folder, or leads through something that is none"
        elif exc.errno == errno.ELOOP:
            reason = "it is a link in a circle, or was changed while it was opened"
        else:
            reason = exc.strerror or str(exc)
        raise ToolError(f"{shown(asked)}: {reason}") from None


def shown(name: str) -> str:
    """A path or name as it is told: quoted, its control characters escaped, and not too long."""
    return repr(name if len(name) <= 200 else f"{name[:160]}…{name[-39:]}")
