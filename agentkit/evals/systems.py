"""What is measured: systems that answer a case. Here agentkit, and agentkit with each of its aids switched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from agentkit import __version__
from agentkit.agent import Agent
from agentkit.errors import ConfigError, EngineError
from agentkit.evals.suite import Case
from agentkit.messages import Message
from agentkit.planner import Aids, Limits, Planner, React
from agentkit.runtime.engine import ModelSettings

if TYPE_CHECKING:
    from agentkit.evals.session import Session
    from agentkit.runtime import protocols

__all__ = ["AgentkitSystem", "System", "SystemFailed", "speaking", "switched", "switches", "variants"]


class SystemFailed(Exception):
    """A system broke down over a case; the text says how, in one line."""


class System(Protocol):
    """Something that answers cases: a framework with its agent, or the bare loop."""

    @property
    def name(self) -> str: ...

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what it is made of, by package; complete once it is open."""
        ...

    def open(self) -> AbstractAsyncContextManager[Any]:
        """Start what it needs, once for many cases."""
        ...

    async def answer(self, session: Session, case: Case, model: str) -> Sequence[str]:
        """Do the case with the session's model and tools: an answer for each turn, fewer where it gave up.

        It calls `session.next_turn` before each turn but the first. A refusal of the recorder (`session.ended`) ends it
        and is no failure. May be called for several cases at once. Raises `SystemFailed`.
        """
        ...


@dataclass(frozen=True, slots=True)
class AgentkitSystem:
    """An `Agent` in this process, with that planner; the case's budget is its limit."""

    name: str = "agentkit"
    planner: Planner = React()
    settings: ModelSettings = ModelSettings(temperature=0.0, seed=0)
    protocol: protocols.Protocol | None = (
        None  # how tools are offered; None: as `OpenAICompatible` does by itself
    )
    versions: Mapping[str, str] = field(default_factory=lambda: {"agentkit": __version__})

    def open(self) -> AbstractAsyncContextManager[Any]:
        return nullcontext()

    async def answer(self, session: Session, case: Case, model: str) -> Sequence[str]:
        from agentkit.runtime.openai_compatible import OpenAICompatible

        given = [m.text for m in case.turns[0] if m.role == "system"]
        agent = Agent(
            OpenAICompatible(session.base_url, model, session.api_key, protocol=self.protocol),
            instructions="\n\n".join(given) or None,
            tools=session.tools,
            planner=self.planner,
            settings=replace(self.settings, max_tokens=case.max_tokens),
            limits=Limits(max_turns=case.max_requests),
        )
        answers: list[str] = []
        said: Sequence[Message] = ()
        async with agent:
            for i, turn in enumerate(case.turns):
                if i == 0:
                    turn = tuple(m for m in turn if m.role != "system")
                else:
                    session.next_turn()
                try:
                    result = await agent.run([*said, *turn])
                except EngineError:
                    if session.ended is None:
                        raise
                    break
                if result.stopped == "max_turns":
                    break
                answers.append(result.output)
                said = result.messages
        return answers


def switches() -> list[str]:
    """What can be switched, one at a time: "-coerce" takes an aid away, "+guided" adds one that is off by default.

    They are the switches and the texts of `React` and its `Aids`; a text is taken away by leaving it empty, a number
    (of votes) becomes 3.
    """
    off = (False, "auto")
    return [
        ("+" if type(default) is int or default in off else "-") + name
        for name, default in _defaults().items()
    ]


def _defaults() -> dict[str, bool | str | int]:
    holders = (Aids(), React())
    found = {f.name: (f.type, getattr(h, f.name)) for h in holders for f in fields(h)}
    return {
        name: default
        for name, (kind, default) in found.items()
        if name != "overlap"
        and (kind in ("bool", "str", "int") or name == "guided")  # which changes no answer
    }


def switched(*which: str) -> AgentkitSystem:
    """agentkit with those switches made: `switched("-coerce", "-hints")`. Raises `ConfigError` for one that there is not."""
    changes: dict[str, Any] = {}
    for switch in which:
        if switch not in switches():
            raise ConfigError(f"There is no aid to switch by {switch!r}; there are: {' '.join(switches())}.")
        default = _defaults()[switch[1:]]
        if type(default) is int:
            changes[switch[1:]] = 3
        else:
            changes[switch[1:]] = (
                "always" if default == "auto" else "" if isinstance(default, str) else not default
            )
    ours = {f.name for f in fields(Aids)}
    aids = replace(Aids(), **{name: v for name, v in changes.items() if name in ours})
    rest = {name: v for name, v in changes.items() if name not in ours}
    return AgentkitSystem(" ".join(("agentkit", *which)), replace(React(), aids=aids, **rest))


def speaking(system: AgentkitSystem, protocol: protocols.Protocol) -> AgentkitSystem:
    """*system* with its tools offered by that protocol."""
    return replace(system, name=f"{system.name} {protocol}", protocol=protocol)


def variants() -> dict[str, AgentkitSystem]:
    """For an ablation: agentkit with one switch made, by its name ("agentkit -coerce"), for each switch that there is."""
    made = [switched(switch) for switch in switches()]
    return {system.name: system for system in made}
