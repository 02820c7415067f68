"""What an answer must say: each kind knows the right one, and tells what is wrong with another. Nothing here does I/O."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import date
from typing import Protocol

__all__ = ["Answer", "Date", "Duration", "Name", "Names", "NotFound", "Number", "Says", "Time"]

# A number by itself: no part of a name, a date or a version; thousands may be set apart, a unit may follow
_NUMBER = re.compile(
    r"(?<![\w.,:/-])[-−]?(?:\d{1,3}(?:[,'\u00a0\u202f]\d{3})+|\d+)(?:\.\d+)?"
    r"(?=(?:s|h|m|km|kg|min)?(?!\w|[.,:/-]\d))"
)
_LISTED = re.compile(r"^[ \t]*\d+[.)][ \t]+(?=\S)", re.MULTILINE)  # the number of a list's item
_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_MOST_NUMBERS = 12  # different ones in an answer: who says more says the right one by chance
_MOST_OTHERS = 2  # names that may be said after the right one
_NEGATION = re.compile(
    r"\b(no|not|none|nothing|cannot|unable|missing|unknown|unavailable|without|never|neither)\b|n't\b"
)


class Answer(Protocol):
    @property
    def right(self) -> str:
        """One of the right answers."""
        ...

    def fault(self, text: str) -> str:
        """What is wrong with *text*, in a few words; "" if nothing is."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """A number, as digits. `within` is how far off it may be."""

    value: float
    within: float = 1e-6

    @property
    def right(self) -> str:
        return f"{self.value:,.10g}"

    def fault(self, text: str) -> str:
        found = _NUMBER.findall(_plain(_LISTED.sub("", text)))
        numbers = {float(re.sub(r"[^\d.-]", "", n.replace("−", "-"))) for n in found}
        if len(numbers) > _MOST_NUMBERS:
            return f"says {len(numbers)} different numbers"
        if any(abs(n - self.value) <= self.within for n in numbers):
            return ""
        return f"does not say {self.right}"


@dataclass(frozen=True, slots=True)
class Name:
    """One name out of several: of those that are said, the right one comes first."""

    right: str
    others: tuple[str, ...] = ()

    def fault(self, text: str) -> str:
        at = _where(self.right, text)
        if at < 0:
            return f"does not say {self.right}"
        named = sorted((where, n) for n in self.others if n != self.right and (where := _where(n, text)) >= 0)
        wrong = bool(named) and (named[0][0] < at or len(named) > _MOST_OTHERS)
        return f"says {named[0][1]}, too" if wrong else ""


@dataclass(frozen=True, slots=True)
class Names:
    """All of these names, in any order, and none of the others."""

    all: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def right(self) -> str:
        return " and ".join(self.all)

    def fault(self, text: str) -> str:
        for name in self.all:
            if _where(name, text) < 0:
                return f"does not say {name}"
        wrong = [n for n in self.others if n not in self.all and _where(n, text) >= 0]
        return f"says {wrong[0]}, too" if wrong else ""


@dataclass(frozen=True, slots=True)
class Says:
    """One of these wordings."""

    wordings: tuple[str, ...]

    @property
    def right(self) -> str:
        return self.wordings[0]

    def fault(self, text: str) -> str:
        return "" if any(_where(w, text) >= 0 for w in self.wordings) else f"does not say {self.right}"


@dataclass(frozen=True, slots=True)
class Date:
    """A day, in any of the usual forms, with its year."""

    day: date

    @property
    def right(self) -> str:
        return self.day.isoformat()

    def fault(self, text: str) -> str:
        d, month = self.day, rf"{_MONTHS[self.day.month - 1]}[a-z]*\.?"
        day, number = rf"0?{d.day}(?:st|nd|rd|th)?", rf"0?{d.month}"
        forms = (
            rf"{d.year}[-/.]{number}[-/.]0?{d.day}",
            rf"{day} (?:of )?{month},? {d.year}",
            rf"{month} {day},? {d.year}",
            rf"0?{d.day}[-/.]{number}[-/.]{d.year}",
            rf"{number}/0?{d.day}/{d.year}",
        )
        found = re.search(rf"(?<!\w)(?:{'|'.join(forms)})(?!\w)", _plain(text))
        return "" if found else f"does not say {self.right}"


@dataclass(frozen=True, slots=True)
class Time:
    """A time of the day, on a clock of 24 hours or of 12."""

    hour: int
    minute: int

    @property
    def right(self) -> str:
        return f"{self.hour:02}:{self.minute:02}"

    def fault(self, text: str) -> str:
        half = "a" if self.hour < 12 else "p"
        minute = rf"[:.]{self.minute:02}(?::\d\d)?"
        short = "" if self.minute else "|"
        forms = (
            rf"0?{self.hour}[:.h]{self.minute:02}(?::\d\d)?(?! ?[ap]\.?m\b)",
            rf"0?{self.hour % 12 or 12}(?:{minute}{short}) ?{half}\.?m\b",
        )
        found = re.search(rf"(?<![\w:.])(?:{'|'.join(forms)})(?![\w:]|\.\d)", _plain(text))
        return "" if found else f"does not say {self.right}"


@dataclass(frozen=True, slots=True)
class Duration:
    """Hours and minutes."""

    hours: int
    minutes: int

    @property
    def right(self) -> str:
        return f"{self.hours} hours and {self.minutes} minutes"

    def fault(self, text: str) -> str:
        total = 60 * self.hours + self.minutes
        minutes = rf"{self.minutes} ?m(?:in|inutes?)?\b\.?"
        forms = (
            rf"{self.hours} ?h(?:ours?|rs?)?\.?,?(?: and)? ?{minutes if self.minutes else ''}",
            rf"0?{self.hours}[:h]{self.minutes:02}(?!\w)",
            rf"{total} ?m(?:in|inutes?)\b",
            rf"{round(total / 60, 2):g} ?h(?:ours?|rs?)\b",
        )
        found = re.search(rf"(?<![\w:.,])(?:{'|'.join(forms)})", _plain(text))
        return "" if found else f"does not say {self.right}"


@dataclass(frozen=True, slots=True)
class NotFound:
    """That it is not there. `invented` is a pattern of what would be made up."""

    invented: str
    right: str = "That is not there."

    def fault(self, text: str) -> str:
        if found := re.search(self.invented, _plain(text)):
            return f"makes up {found[0]!r}"
        return "" if _NEGATION.search(_plain(text)) else "does not say that it is not there"


def _plain(text: str) -> str:
    """In lower case, without accents, emphasis and thoughts, with one space between words."""
    text = re.sub(r"<think>.*?</think>", " ", text, flags=re.DOTALL)
    letters = unicodedata.normalize("NFKD", text.replace("\u202f", "'").replace("\u00a0", " "))
    text = "".join(c for c in letters if not unicodedata.combining(c))
    return " ".join(re.sub(r"[*`]", "", text).replace("’", "'").casefold().split())


def _where(words: str, text: str) -> int:
    """Where *words* stand in *text* by themselves; -1 if nowhere."""
    found = re.search(rf"(?<!\w){re.escape(_plain(words))}(?!\w)", _plain(text))
    return found.start() if found else -1
