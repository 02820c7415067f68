"""How each model wants to be sampled, and when it thinks: what its card says, for what the user leaves open."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, replace

from agentkit.errors import ConfigError
from agentkit.messages import Message
from agentkit.runtime.engine import ModelSettings

__all__ = ["OUTPUT_TOKENS", "recommended", "soft_switch", "thinks", "writes_code"]

# From the Qwen3 model card, "Best Practices".
_THINKING = ModelSettings(temperature=0.6, top_p=0.95, top_k=20, min_p=0.0)
_NOT_THINKING = ModelSettings(temperature=0.7, top_p=0.8, top_k=20, min_p=0.0)
OUTPUT_TOKENS = 32_768  # "an output length of 32,768 tokens for most queries"
# A 1.5B model that is to write calls, not prose: the likeliest token is the right one. It may repeat itself for ever.
_DEMO = ModelSettings(temperature=0.0, max_tokens=1024)

_SWITCH = re.compile(r"(?<!\S)/(no_)?think(?!\S)")


def soft_switch(messages: Sequence[Message]) -> bool | None:
    """What the most recent `/think` or `/no_think` in user or system text asks for (Qwen3 model card, soft switch)."""
    for message in reversed(messages):
        if message.role in ("user", "system") and "think" in (text := message.text):
            switches = _SWITCH.findall(text)
            if switches:
                return not switches[-1]
    return None


def thinks(model: str, settings: ModelSettings, switch: bool | None = None) -> bool | None:
    """Whether *model* thinks before it answers, asked so; None for a model that is not of the Qwen3 family.

    `switch` is what `soft_switch` found; it has no effect with the hard switch off.
    """
    name = model.lower()
    if "qwen3" not in name:
        return None
    if "instruct" in name or "coder" in name:  # the 2507 and Coder lines know one mode each
        return False
    if "thinking" in name:
        return True
    if settings.thinking is False:
        return False
    return switch if switch is not None else True


def writes_code(model: str) -> bool:
    """Whether *model* calls tools best in Python: Qwen2.5-Coder, which was trained on code and not on calls (docs/evals.md)."""
    name = model.lower()
    return name == "demo" or "qwen2.5-coder" in name


def recommended(model: str, given: ModelSettings, switch: bool | None = None) -> ModelSettings:
    """*given*, with what it leaves open as the card of *model* recommends; unknown models are left to their server.

    Raises `ConfigError` for greedy decoding of a model that thinks, which its card forbids.
    """
    mode = thinks(model, given, switch)
    if mode is not None:
        if mode and given.temperature == 0:
            raise ConfigError(
                f"{model} must not be sampled at temperature 0 while it thinks: its model card warns of endless "
                "repetitions. Leave the temperature open (0.6), or switch thinking off."
            )
        preset = _THINKING if mode else _NOT_THINKING
    elif model.lower() == "demo":
        preset = _DEMO
    else:
        return given
    gaps = {f.name: getattr(preset, f.name) for f in fields(given) if getattr(given, f.name) is None}
    return replace(given, **gaps)
