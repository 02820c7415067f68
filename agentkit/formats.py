"""The answer formats of Qwen3's model card: what to add to the prompt, and how to read the answer.

>>> boxed_answer(r"… so the sum is \\boxed{\\frac{1}{2}}.")
'\\\\frac{1}{2}'
>>> choice_answer('The capital is Paris. {"answer": "C"}')
'C'
"""

from __future__ import annotations

import re

__all__ = ["BOXED", "CHOICE", "boxed_answer", "choice_answer"]

# Word for word from the card, "Best Practices", "Standardize Output Format"
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
CHOICE = 'Please show your choice in the `answer` field with only the choice letter, e.g., `"answer": "C"`.'

_BOX = re.compile(r"\\f?boxed\s*\{")
_CHOICE = re.compile(r"""["'“]?answer["'”]?\s*:\s*["'“(]*\s*([A-Za-z])\s*(?:["'”).,}\s]|$)""")


def boxed_answer(text: str) -> str | None:
    r"""What stands in the last complete `\boxed{…}` of *text*, braces inside it included; None where there is none."""
    for start in reversed([m.end() for m in _BOX.finditer(text)]):
        depth = 1
        for i in range(start, len(text)):
            if text[i] in "{}" and text[i - 1] != "\\":
                depth += 1 if text[i] == "{" else -1
                if not depth:
                    return text[start:i].strip()
    return None


def choice_answer(text: str) -> str | None:
    """The letter, in upper case, of the last `"answer": "C"` in *text*; None where there is none."""
    found = _CHOICE.findall(text)
    return found[-1].upper() if found else None
