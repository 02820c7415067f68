"""What a stdio server writes, in whole lines; put in the place of the SDK's own reader, which imports nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from anyio.abc import ByteReceiveStream

__all__ = ["WholeLines"]

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|(u[dD][89a-fA-F][\da-fA-F]{2})|.)"
)


class WholeLines:
    """Like anyio's `TextReceiveStream`, but a chunk ends where a line does.

    The SDK adds each chunk to what it has of a line and searches it all again: 50 MB on one line keep it busy for
    many seconds. Half a surrogate pair, which some servers cut an emoji to, is made U+FFFD: the SDK would not read
    that line, and its request would never be answered.
    """

    def __init__(self, stream: ByteReceiveStream, encoding: str = "utf-8", errors: str = "strict") -> None:
        self._stream, self._encoding, self._errors = stream, encoding, errors

    async def __aiter__(self) -> AsyncIterator[str]:
        parts: list[bytes] = []
        async for chunk in self._stream:
            head, newline, tail = chunk.rpartition(b"\n")
            if not newline:
                parts.append(chunk)
                continue
            lines = b"".join([*parts, head, newline]).decode(self._encoding, self._errors)
            parts = [tail] if tail else []
            yield _ESCAPE.sub(_whole, lines) if re.search(r"\\u[dD][89a-fA-F]", lines) else lines

    async def aclose(self) -> None:
        await self._stream.aclose()


def _whole(escape: re.Match[str]) -> str:
    return "\\ufffd" if escape[1] else escape[0]
