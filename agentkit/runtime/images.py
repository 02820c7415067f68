"""Pictures that tools made, shown to models that can see them: after the results, as a message of the user's."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator

from agentkit.messages import Artifact, Message

__all__ = ["pictures", "sees"]

MOST, LARGEST = 4, 5 << 20  # pictures of one turn, bytes of one
_MAGIC = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
}
# names under which models that take images are served; Qwen3.5 and later do in all sizes
_SEEING = re.compile(
    r"(^|[-_./])(vl|omni|vision|llava|pixtral|internvl|minicpm-v|moondream|smolvlm)|[a-z\d.]+-?vl\b|qwen3\.\d|gemma-?3-(4|12|27)b",
    re.IGNORECASE,
)


def sees(model: str) -> bool:
    """Whether a model of this name takes images."""
    return bool(_SEEING.search(model))


def pictures(message: Message) -> bytes | None:
    """The pictures among the results of *message* as a chat message of its own; None where there are none."""
    key = "pictures"
    if key not in message._wire:
        content: list[object] = []
        for artifact in (a for r in message.results for a in r.artifacts if a.mime in _MAGIC):
            data = _read(artifact)
            if data is not None and len(content) < 2 * MOST:
                url = f"data:{artifact.mime};base64,{base64.b64encode(data).decode()}"
                content.append({"type": "text", "text": f"{artifact.name}:"})
                content.append({"type": "image_url", "image_url": {"url": url}})
        text = json.dumps({"role": "user", "content": content}, ensure_ascii=False) if content else ""
        message._wire[key] = text.encode("utf-8", "replace")
    return message._wire[key] or None


def _read(artifact: Artifact) -> bytes | None:
    data = artifact.data
    if data is None and artifact.path is not None:
        with contextlib.suppress(OSError), _opened(artifact.path) as fd:
            info = os.fstat(fd)
            if stat.S_ISREG(info.st_mode) and info.st_size <= LARGEST:
                data = os.read(fd, LARGEST + 1)
    if data is None or len(data) > LARGEST or not data.startswith(_MAGIC[artifact.mime]):
        return None
    return data


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    """The file, no link on the way followed: the code that made it may have put one there since."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *folders, name = path.strip("/").split("/")
        for folder in folders:
            below = os.open(folder, flags | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        below = os.open(name, flags, dir_fd=fd)
        os.close(fd)
        fd = below
        yield fd
    finally:
        os.close(fd)
