"""The JSON value in a model's final answer, whatever it is wrapped in."""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["find_json"]

_FENCE = re.compile(r"```\w*\s*\n?(.*?)```", re.DOTALL)
_VALUE = re.compile(r"""[{\["]|-?\d|\b(?:true|false|null)\b""")


def find_json(text: str) -> Any:
    """The whole text if it is JSON, else what a fence holds, else the first JSON value in the prose, repaired if need be.

    Raises ValueError where there is none.
    """
    for candidate in (text, *(m[1] for m in _FENCE.finditer(text))):
        try:
            return json.loads(candidate)
        except (ValueError, RecursionError):
            pass
    decoder = json.JSONDecoder()
    for kinds in ("{[", ""):  # an object anywhere says more than a number before it
        for start in list(_VALUE.finditer(text))[:200]:
            if not kinds or start[0] in kinds:
                try:
                    return decoder.raw_decode(text, start.start())[0]
                except (ValueError, RecursionError):
                    pass
        if not kinds:
            break
        opened = min((i for i in map(text.find, kinds) if i >= 0), default=-1)
        if opened >= 0:
            import json_repair  # slow to import; only broken answers need it

            value = json_repair.loads(text[opened:].removesuffix("```"))
            if value not in ("", {}, []):
                return value
    raise ValueError("there is no JSON in it")
