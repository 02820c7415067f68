"""A config file's text -> its values, and the lines they stand on: JSON with comments, TOML, YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agentkit.errors import ConfigError

__all__ = ["kind_of", "line_of", "plain_json", "read"]


def read(path: Path, where: str) -> tuple[Mapping[str, Any], str]:
    """The object that a file holds, and its text. Raises `ConfigError`, which calls the file `where`."""
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{where}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{where}: is a directory; expected a JSON file") from None
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{where}: is not UTF-8 text (byte {exc.start})") from None
    except (OSError, ValueError) as exc:  # ValueError: a path with a NUL in it
        raise ConfigError(f"{where}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from None
    form, decode = {".toml": ("TOML", _toml), ".yaml": ("YAML", _yaml), ".yml": ("YAML", _yaml)}.get(
        path.suffix, ("JSON", _json)
    )
    try:
        values = decode(text, where)
    except (ValueError, RecursionError) as exc:  # a number too long, or too deep
        raise ConfigError(f"{where}: not usable {form}: {exc}") from None
    if not isinstance(values, dict):
        raise ConfigError(f'{where}: must be an object, {{"mcpServers": {{…}}}}, not {kind_of(values)}')
    return values, text


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(plain_json(text))
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"{where}, line {exc.lineno}, column {exc.colno}: not valid JSON: {exc.msg}"
        ) from None


def _toml(text: str, where: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{where}: not valid TOML: {exc}") from None


def _yaml(text: str, where: str) -> Any:
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError:
        raise ConfigError(f"{where}: to read YAML, pip install pyyaml") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{where}{place}: not valid YAML: {getattr(exc, 'problem', None) or exc}") from None


_STRING = r'"(?:\\.|[^"\\\n])*"'


def plain_json(text: str) -> str:
    """Comments and trailing commas become spaces, so that errors still name the file's lines and columns."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)

    text = re.sub(_STRING + r"|//[^\n]*|/\*.*?\*/", blank, text, flags=re.DOTALL)
    return re.sub(_STRING + r"|,(?=\s*[}\]])", blank, text)


def line_of(text: str, keys: Sequence[str | int]) -> int:
    """The line on which the value under these keys, or the last of them that there is, stands; 0 if nowhere.

    Python's decoder keeps no positions. As this is only asked about text that has been read, which is known
    to be valid, looking at the tokens will do. In TOML and YAML it is the line that looks like it.
    """
    plain = plain_json(text)
    try:
        json.loads(plain)
    except ValueError:
        return _line_like(text, keys)
    on_the_way = [(len(path), at) for path, at in _places(plain) if path == tuple(keys[: len(path)])]
    return plain.count("\n", 0, max(on_the_way)[1]) + 1 if on_the_way else 0


def _places(plain: str) -> Iterator[tuple[tuple[str | int, ...], int]]:
    """Each key and list element of a valid JSON text, as the keys that lead to it, and where it begins."""
    trail: list[str | int] = []
    key_next = False
    for token in re.finditer(_STRING + r"|[{}\[\],:]|[^\s{}\[\],:\"]+", plain):
        match token[0]:
            case "}" | "]":
                trail.pop()
                key_next = False
            case ",":
                last = trail[-1]
                trail[-1] = last + 1 if isinstance(last, int) else last
                key_next = isinstance(last, str)
            case ":":
                pass
            case key if key_next:
                trail[-1] = json.loads(key)
                key_next = False
                yield tuple(trail), token.start()
            case value:
                if trail and isinstance(trail[-1], int):
                    yield tuple(trail), token.start()
                if value in ("{", "["):
                    trail.append("" if value == "{" else 0)
                    key_next = value == "{"


def _line_like(text: str, keys: Sequence[str | int]) -> int:
    """The line of a TOML or YAML text on which the innermost key stands that can be found, each looked for
    below the one before."""
    lines = text.splitlines()
    at = 0
    for key in keys:
        name = re.escape(str(key))
        for number in range(at, len(lines)):
            if re.match(rf"""\s*(?:\[.*\b)?["']?{name}\b|\s*(?:- )?name:\s*["']?{name}\b""", lines[number]):
                at = number
                break
    return at + 1 if lines else 0


_KINDS: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: value is None, "null"),
    (lambda value: isinstance(value, bool), "true or false"),
    (lambda value: isinstance(value, str), "a string"),
    (lambda value: isinstance(value, int | float), "the number {}"),
    (lambda value: isinstance(value, list | tuple), "a list"),
    (lambda value: isinstance(value, Mapping), "an object"),
)


def kind_of(value: Any) -> str:
    """What a JSON value is, in a reader's words."""
    for holds, words in _KINDS:
        if holds(value):
            return words.format(f"{value:.12g}" if isinstance(value, float) else str(value)[:20])
    return type(value).__name__
