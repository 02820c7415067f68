"""Look at, hand over, remove a directory that untrusted code writes to: no symlink in it is followed."""

from __future__ import annotations

import contextlib
import mimetypes
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agentkit.messages import Artifact

_MAX_DEPTH = 50
_MAX_ARTIFACTS = 50
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The regular files of a workspace: name relative to it -> what changes when the file does."""

    files: Mapping[str, tuple[int, int, int, int]]  # inode, mtime and ctime in ns, size
    entries: int
    disk: int  # bytes
    deep: bool = False  # too deep to see all of it


def _walk(fd: int, above: str = "", depth: int = 0) -> Iterator[tuple[int, str, str, os.stat_result]]:
    """Each entry below the directory *fd*: (fd of its directory, its name, its path below the top, lstat)."""
    for entry in os.scandir(fd):
        try:
            info = os.stat(entry.name, dir_fd=fd, follow_symlinks=False)
        except OSError:
            continue
        path = above + entry.name
        yield fd, entry.name, path, info
        if stat.S_ISDIR(info.st_mode) and depth < _MAX_DEPTH:
            with contextlib.suppress(OSError):
                below = _open_directory(fd, entry.name)
                try:
                    yield from _walk(below, path + "/", depth + 1)
                finally:
                    os.close(below)


def _open_directory(fd: int, name: str) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except PermissionError:  # the code made it unreadable; it is ours all the same
        path = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            os.chmod(f"/proc/self/fd/{path}", 0o700)
        finally:
            os.close(path)
        return os.open(name, _DIRECTORY, dir_fd=fd)


def take_snapshot(workspace: Path, max_entries: int) -> Snapshot:
    """Look at no more than *max_entries* entries and a few."""
    files: dict[str, tuple[int, int, int, int]] = {}
    entries = disk = 0
    deep = False
    try:
        top = os.open(workspace, _DIRECTORY)
    except OSError:  # somebody removed it
        return Snapshot({}, 0, 0)
    try:
        for _, name, path, info in _walk(top):
            entries += 1
            disk += info.st_blocks * 512
            deep = deep or path.count("/") >= _MAX_DEPTH
            if stat.S_ISREG(info.st_mode) and not name.startswith("."):
                files[path] = (info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_size)
            if entries > max_entries:
                break
    finally:
        os.close(top)
    return Snapshot(files, entries, disk, deep)


def changed_files(workspace: Path, before: Snapshot, after: Snapshot) -> tuple[Artifact, ...]:
    """The files that are new or other than before, hidden ones and bytecode left out."""
    names = [
        name
        for name, identity in after.files.items()
        if before.files.get(name) != identity
        and name.isprintable()  # it will be read by the model, and on a terminal
        and "__pycache__/" not in name
        and "/." not in f"/{name}"
    ]
    return tuple(
        Artifact(
            name,
            mimetypes.guess_type(name)[0] or "application/octet-stream",
            path=str(workspace / name),
            size=after.files[name][3],
        )
        for name in sorted(names)[:_MAX_ARTIFACTS]
    )


def create_file(workspace: Path, stem: str, suffix: str, owner: int | None) -> tuple[int, str]:
    """A new file there, of a name that was free: its descriptor, its name."""
    top = os.open(workspace, _DIRECTORY)
    try:
        for number in range(1, 10_000):
            name = f"{stem}-{number}{suffix}"
            with contextlib.suppress(FileExistsError):
                fd = os.open(name, _NEW_FILE, 0o644, dir_fd=top)
                if owner is not None:
                    os.fchown(fd, owner, owner)
                return fd, name
    finally:
        os.close(top)
    raise FileExistsError(f"{workspace}/{stem}-…{suffix}")


def copy_in(source: Path, workspace: Path, name: str, owner: int | None) -> None:
    """Copy a file there as *name*, in place of any file or link of that name; no link is followed there."""
    with source.open("rb") as reading:
        fd, made = create_file(workspace, f".{name}", ".part", owner)
        try:
            with open(fd, "wb") as writing:
                shutil.copyfileobj(reading, writing, 1 << 20)
            top = os.open(workspace, _DIRECTORY)
            try:
                os.rename(made, name, src_dir_fd=top, dst_dir_fd=top)
            finally:
                os.close(top)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(workspace / made)
            raise


def hand_over(workspace: Path, giver: int, uid: int, gid: int) -> None:
    """Make the workspace, and what in it belongs to uid *giver*, belong to *uid* and *gid*; hard links are
    left alone, they may be somebody's elsewhere."""
    top = os.open(workspace, _DIRECTORY)
    try:
        os.chown(top, uid, gid)
        for fd, name, _, info in _walk(top):
            if info.st_uid == giver and (info.st_nlink == 1 or stat.S_ISDIR(info.st_mode)):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
    finally:
        os.close(top)


def remove(directory: Path) -> None:
    """Remove it with all it holds, however odd its modes and however deep."""
    try:
        take_snapshot(directory, max_entries=1_000_000)  # makes every directory readable
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except (OSError, RecursionError):  # deeper than Python can go
        subprocess.run(["rm", "-rf", "--", str(directory)], stderr=subprocess.DEVNULL, check=False)
