"""How the models we know write calls and thoughts, and how far they read: what their servers must be told."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from agentkit.errors import ConfigError

__all__ = ["YARN_CONTEXT", "Family", "chat_template_of", "family_of", "yarn_factor"]

YARN_CONTEXT = 32_768  # tokens that Qwen3, QwQ and Qwen2.5 read without YaRN: what its factor multiplies


@dataclass(frozen=True, slots=True)
class Family:
    # json: <tool_call>{"name": …}</tool_call>; xml: <tool_call><function=name><parameter=…>; None: not known
    calls: Literal["json", "xml"] | None
    # switched: enable_thinking in the chat template; always: the template opens <think> itself
    thinks: Literal["switched", "always", "never"]
    context: int = 0  # tokens, as the model's config has it; 0: not known
    longest: int = 0  # tokens, with YaRN where the model's card vouches for it
    hybrid: bool = False  # linear attention in most layers: no prefix cache by default


# Which names -> what their cards say. 40,960 is 32,768 for an answer and 8,192 for its prompt.
_FAMILIES = (
    (r"qwen3-next-.*thinking", Family("json", "always", 262_144, 262_144, hybrid=True)),
    (r"qwen3-next-", Family("json", "never", 262_144, 262_144, hybrid=True)),
    (r"qwen3-coder-next", Family("xml", "never", 262_144, 262_144, hybrid=True)),
    (r"qwen3-coder", Family("xml", "never", 262_144, 262_144)),
    (r"qwen3\.\d", Family("xml", "switched", 262_144, 262_144, hybrid=True)),
    (r"qwen3-.*thinking", Family("json", "always", 262_144, 262_144)),
    (r"qwen3-.*instruct", Family("json", "never", 262_144, 262_144)),
    (r"qwen3-(0\.6|1\.7)b", Family("json", "switched", 40_960, 40_960)),
    (r"qwen3-", Family("json", "switched", 40_960, 131_072)),
    (r"qwq-", Family("json", "always", 40_960, 131_072)),
    (r"qwen2\.5-(coder-)?(0\.5|1\.5|3)b", Family("json", "never", 32_768, 32_768)),
    (r"qwen2\.5-(?!.*(-1m|vl-|omni))", Family("json", "never", 32_768, 131_072)),
)


def family_of(*names: str, template: str | None = None) -> Family | None:
    """The family of the model that goes by one of *names* (a repository, a directory, a served name).

    The chat template, where it is known, decides on calls and thoughts: it is what the model will be prompted with.
    """
    rows = (
        family
        for name in names
        for pattern, family in _FAMILIES
        if re.match(pattern, Path(name).name.lower())
    )
    named = next(rows, None)
    if template is None:
        return named
    calls: Literal["json", "xml"] | None = None
    if "<tool_call>" in template:
        calls = "xml" if "<function=" in template else "json"
    thinks: Literal["switched", "always", "never"] = "never"
    if "enable_thinking" in template:
        thinks = "switched"
    elif "<think>" in template.rpartition("add_generation_prompt")[2]:
        thinks = "always"
    if named is None and calls is None and thinks == "never":
        return None
    return replace(named or Family(None, "never"), calls=calls, thinks=thinks)


def chat_template_of(directory: str | os.PathLike[str]) -> str | None:
    """The chat template that comes with the weights in *directory*, if one does."""
    try:
        return Path(directory, "chat_template.jinja").read_text("utf-8", "replace")
    except OSError:
        pass
    try:
        config = json.loads(Path(directory, "tokenizer_config.json").read_bytes())
        template = config.get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return template if isinstance(template, str) else None


def yarn_factor(model: str, family: Family | None, context: int | None) -> float | None:
    """By how much YaRN has to stretch *family* for *context* tokens; None where it is not needed.

    The smallest whole factor, as short texts suffer from a larger one (4 for 131,072 tokens, says Qwen3's card).
    Raises `ConfigError` where the context is longer than the model can read.
    """
    if context is None or family is None or not family.context or context <= family.context:
        return None
    if context > family.longest:
        how = " (with YaRN)" if family.longest > family.context else ""
        raise ConfigError(
            f"{model} reads at most {family.longest:,} tokens{how}, so a context of {context:,} is too long for it."
        )
    return float(math.ceil(context / YARN_CONTEXT))
