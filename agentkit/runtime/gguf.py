"""The few facts about a GGUF file that its header tells; the weights are not read."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from agentkit.errors import ModelNotFound

__all__ = ["Header", "read_header"]

# Value types of the GGUF specification (ggml/docs/gguf.md): number -> struct format; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 2**20  # bytes of a string we need; a longer one is not the header of a model


@dataclass(frozen=True, slots=True)
class Header:
    architecture: str  # "qwen3", "qwen2", …
    context: int  # tokens the model was trained for; 0 where the file does not say
    name: str


def read_header(path: str | os.PathLike[str]) -> Header:
    """Raises `ModelNotFound` where there is no GGUF file at *path*."""
    found: dict[str, Any] = {}
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelNotFound(f"{path} is not a GGUF file; llama.cpp runs only those.")
            _, _, count = _read(file, "<IQQ")
            for _ in range(min(count, 4096)):
                key = _string(file)
                kind = _read(file, "<I")[0]
                found[key] = _value(file, kind)
                context = found.get(f"{found.get('general.architecture')}.context_length")
                if context is not None and "general.name" in found:
                    break
    except OSError as exc:
        raise ModelNotFound(f"{path} cannot be read: {exc.strerror}.") from exc
    except (struct.error, ValueError) as exc:
        raise ModelNotFound(
            f"{path} is damaged: its GGUF header cannot be read; get the file again."
        ) from exc
    architecture = str(found.get("general.architecture", ""))
    context = found.get(f"{architecture}.context_length", 0)
    return Header(
        architecture, context if isinstance(context, int) else 0, str(found.get("general.name", ""))
    )


def _read(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _string(file: BinaryIO) -> str:
    (length,) = _read(file, "<Q")
    if length > _LONGEST:
        raise ValueError("a string longer than a header has")
    return file.read(length).decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind in _SCALARS:
        return _read(file, "<" + _SCALARS[kind])[0]
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        raise ValueError("an unknown type of value")
    inner, count = _read(file, "<IQ")
    if count > 10_000_000:
        raise ValueError("an array longer than a header has")
    if inner in _SCALARS:
        file.seek(struct.calcsize("<" + _SCALARS[inner]) * count, os.SEEK_CUR)
    else:
        for _ in range(count):
            _value(file, inner)
    return None
