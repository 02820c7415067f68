"""Which calls may be made: rules that allow, ask or deny, by tool, by effect and by argument."""

from __future__ import annotations

import inspect
import json
import posixpath
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, get_args

import anyio

from agentkit.errors import AgentkitError, ConfigError
from agentkit.tools import Effect, Tool

__all__ = ["Action", "Answer", "Approve", "Asked", "Decision", "Gate", "Permissions"]

Action: TypeAlias = Literal["allow", "ask", "deny"]
Answer: TypeAlias = Literal["once", "always", "no", "never"]

_RULE = re.compile(r"([^#()]*)(?:#(\w+))?(?:\((.*)\))?", re.DOTALL)
_NAMED = re.compile(r"\s*([A-Za-z_]\w*)\s*=")
_EFFECTS = get_args(Effect)
_OPERATORS = re.compile(r"[;&|<>`$(){}\n\r]")  # of a shell: what follows one is another command
_COMMANDS = ("command", "cmd", "script")


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that somebody is to decide on."""

    tool: Tool
    arguments: Mapping[str, Any]
    rule: str  # that wants it asked; "" where the default does
    always: str  # what "always" and "never" would go for, in words


Approve: TypeAlias = Callable[[Asked], Awaitable[Answer] | Answer]


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a call was made, and who said so."""

    call_id: str
    tool: str
    allowed: bool
    by: Literal["default", "rule", "user", "nobody"]  # "nobody": it was to be asked, and there was nobody
    rule: str = ""  # "deny shell(rm *)"
    answer: Answer | None = None  # of the user; one that was remembered counts as theirs


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a run's calls may do.

    A rule is the name of a tool, the effect of tools, or both, and patterns of arguments in which `*` stands for
    anything: "shell", "mcp_*", "server:tool", "#destroys", "write_file(path=src/*)", "shell(git status*)". A pattern
    without a name is for the tool's first argument. A deny that matches wins; of the others the most particular one does,
    and ask before allow where they are alike. *default* is for calls that no rule matches; tools that only compute
    (whose effects are declared to be none) are not asked about by it.

    An allow reads arguments strictly: a path with `..` counts as where it leads, an address must have the pattern's own
    host, and a pattern for a command does not let a second one follow. That keeps a model in line; what holds against code
    that wants out is the sandbox.

    Args:
        approve: decides on the calls to be asked about: "once", "always", "no" or "never"; may be async. Without it they
            are denied. "always" and "never" are remembered as long as the `Agent` lives.

    Raises:
        ConfigError: a rule cannot be read.
    """

    allow: Sequence[str] = ()
    ask: Sequence[str] = ()
    deny: Sequence[str] = ()
    default: Action = "allow"
    approve: Approve | None = None
    _rules: tuple[_Rule, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.default not in get_args(Action):
            raise ConfigError(f"permissions: default is allow, ask or deny, not {self.default!r}")
        for name in get_args(Action):
            texts = getattr(self, name)
            if isinstance(texts, str) or not all(isinstance(t, str) for t in texts):
                raise ConfigError(f"permissions: {name} is a list of rules such as 'shell(git *)'")
        rules = tuple(_rule(action, text) for action in get_args(Action) for text in getattr(self, action))
        object.__setattr__(self, "_rules", rules)

    @classmethod
    def load(cls, path: Any, approve: Approve | None = None) -> Permissions:
        """Read a .toml or .json file with lists `allow`, `ask`, `deny` and a `default`.

        Raises:
            ConfigError: it cannot be read, or holds something else.
        """
        from pathlib import Path

        file = Path(path)
        try:
            text = file.read_text("utf-8")
            if file.suffix == ".toml":
                import tomllib

                found: Any = tomllib.loads(text)
            else:
                found = json.loads(text)
        except OSError as exc:
            raise ConfigError(f"{file} cannot be read: {exc.strerror}.") from None
        except ValueError as exc:
            raise ConfigError(f"{file} is not valid {file.suffix.lstrip('.') or 'JSON'}: {exc}.") from None
        known = (*get_args(Action), "default")
        if not isinstance(found, dict) or (unknown := [key for key in found if key not in known]):
            what = f"has no {unknown[0]!r}" if isinstance(found, dict) else "is a table"
            raise ConfigError(f"{file}: a permissions file {what}; it may hold {', '.join(known)}.")
        try:
            return cls(**found, approve=approve)
        except ConfigError as exc:
            raise ConfigError(f"{file}: {exc}") from None

    def extended(
        self, *, allow: Sequence[str] = (), ask: Sequence[str] = (), deny: Sequence[str] = ()
    ) -> Permissions:
        """These with more rules."""
        return replace(self, allow=(*self.allow, *allow), ask=(*self.ask, *ask), deny=(*self.deny, *deny))

    def judge(self, tool: Tool, arguments: Mapping[str, Any]) -> tuple[Action, str]:
        """What becomes of a call, and the rule that says so ("" for the default)."""
        matching = [rule for rule in self._rules if rule.matches(tool, arguments)]
        if tool.approved:
            matching.append(
                _Rule("allow", f"{tool.name} (approved in its server's configuration)", tool.name)
            )
        if not matching:
            only_computes = self.default == "ask" and tool.effects == frozenset()
            return ("allow" if only_computes else self.default), ""
        won = max(matching, key=_weight)
        return won.action, f"{won.action} {won.text}"


@dataclass(frozen=True, slots=True)
class _Rule:
    action: Action
    text: str
    tool: str = ""
    effect: str = ""
    arguments: tuple[tuple[str, str], ...] = ()  # name ("": the first one) and pattern

    def matches(self, tool: Tool, arguments: Mapping[str, Any]) -> bool:
        if self.effect and self.effect not in (tool.effects or ()):
            return False
        if self.tool and not any(fnmatchcase(name, self.tool) for name in self._names(tool)):
            return False
        properties = tool.parameters.get("properties") or {}
        for name, pattern in self.arguments:
            name = name or next(iter(properties), next(iter(arguments), ""))
            about = properties.get(name)
            default = about.get("default") if isinstance(about, Mapping) else None
            value = arguments.get(name, default)
            if value is None:
                return False
            text = _text(value, joined=self.action == "deny")
            runs = name in _COMMANDS or "executes" in (tool.effects or ())
            if self.action == "deny":
                if not any(fnmatchcase(form, pattern) for form in _forms(text, runs)):
                    return False
            elif not _strictly(text, pattern, runs):
                return False
        return True

    def _names(self, tool: Tool) -> Iterator[str]:
        yield tool.name
        if tool.source:
            yield f"{tool.source}:{tool.name}"
        if self.action != "allow":  # of two tools with one name the second is called "name_2"
            yield re.sub(r"_\d+$", "", tool.name)


def _weight(rule: _Rule) -> tuple[bool, int, int, bool, bool]:
    exact = bool(rule.tool) and not re.search(r"[*?\[]", rule.tool)
    named = 2 if exact else 1 if rule.tool.strip("*") else 0
    return rule.action == "deny", len(rule.arguments), named, bool(rule.effect), rule.action == "ask"


def _rule(action: Action, text: str) -> _Rule:
    match = _RULE.fullmatch(text.strip())
    if match is None or not any(match.groups()):
        raise ConfigError(
            f"permissions: {text!r} is no rule; write a tool, an effect, a pattern: shell, #destroys, shell(git *)"
        )
    name, effect, inner = (group or "" for group in match.groups())
    if effect and effect not in _EFFECTS:
        raise ConfigError(f"permissions: {text!r}: an effect is one of {', '.join(_EFFECTS)}")
    return _Rule(action, text.strip(), name.strip(), effect, tuple(_patterns(inner)) if inner else ())


def _patterns(inner: str) -> Iterator[tuple[str, str]]:
    """ "a=x*, b=y" as pairs; a comma separates where a name follows it."""
    first = _NAMED.match(inner)
    if first is None:
        yield "", inner.strip()
        return
    for part in re.split(r",(?=\s*[A-Za-z_]\w*\s*=)", inner):
        name, _, pattern = part.partition("=")
        yield name.strip(), pattern.strip()


def _text(value: Any, joined: bool) -> str:
    if joined and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)  # a command as a list of its words
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _forms(text: str, runs: bool) -> Iterator[str]:
    """What a deny is compared with: the text, the path it stands for, each command in it."""
    yield text
    text = text.removeprefix("file://")
    if "://" not in text:
        path = posixpath.normpath(text)
        yield path
        yield f"{path}/"
    if runs:
        for command in _OPERATORS.split(text):
            yield command.strip()


def _strictly(text: str, pattern: str, runs: bool) -> bool:
    if runs and set(_OPERATORS.findall(text)) - set(_OPERATORS.findall(pattern)):
        return False
    if "://" in pattern:
        from urllib.parse import urlsplit

        wanted, given = urlsplit(pattern), urlsplit(text)
        if re.search(r"[\s\\]", text) or given.scheme.lower() != wanted.scheme.lower():
            return False
        if not fnmatchcase(given.netloc.lower(), wanted.netloc.lower()) or "@" in given.netloc:
            return False
        rest = posixpath.normpath(given.path or "/") + text[len(text.split("?")[0]) :]
        return fnmatchcase(rest, (wanted.path or "/") + pattern[len(pattern.split("?")[0]) :])
    if "://" not in text and ".." in text.split("/"):
        text = posixpath.normpath(text)
    return fnmatchcase(text, pattern) or fnmatchcase(text.removeprefix("./"), pattern)


@dataclass(slots=True)
class Gate:
    """The permissions of an agent, and what its user has said for always."""

    permissions: Permissions
    _remembered: dict[tuple[str, ...], bool] = field(default_factory=dict)
    _one: anyio.Lock = field(default_factory=anyio.Lock)  # question at a time

    async def decide(self, call_id: str, tool: Tool, arguments: Mapping[str, Any]) -> Decision:
        """Whether the call may be made; asks where that is to be asked."""
        action, rule = self.permissions.judge(tool, arguments)
        if action != "ask":
            return Decision(call_id, tool.name, action == "allow", "rule" if rule else "default", rule)
        approve = self.permissions.approve
        if approve is None:
            return Decision(call_id, tool.name, False, "nobody", rule)
        key, always = _scope(tool, arguments)
        async with self._one:
            if key in self._remembered:
                allowed = self._remembered[key]
                return Decision(call_id, tool.name, allowed, "user", rule, "always" if allowed else "never")
            try:
                said = approve(Asked(tool, arguments, rule, always))
                answer = await said if inspect.isawaitable(said) else said
            except AgentkitError:
                raise
            except Exception as exc:
                raise ConfigError(f"approve raised {type(exc).__name__}: {exc}") from exc
            if answer not in get_args(Answer):
                raise ConfigError(f"approve answers once, always, no or never, not {answer!r}")
            if answer in ("always", "never"):
                self._remembered[key] = answer == "always"
        return Decision(call_id, tool.name, answer in ("once", "always"), "user", rule, answer)


def _scope(tool: Tool, arguments: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """What an answer for always goes for: the tool, or, where a call runs code, just this call."""
    if tool.effects is None or "executes" in tool.effects:
        return (tool.source, tool.name, json.dumps(arguments, sort_keys=True, default=str)), "this very call"
    return (tool.source, tool.name), f"every call of {tool.name}"
