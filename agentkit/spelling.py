"""Names as a model writes them → the known name that each can only mean. Pure functions; a doubt is a no."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "closest",
    "contrary",
    "folded",
    "folds_alike",
    "meant",
    "misspelt",
    "only_empty_words",
    "same_but_for_number",
    "same_name",
    "same_words",
    "says_more",
]  # fmt: skip

_EMPTY_WORDS = frozenset(("name", "value", "text", "string", "str"))  # at the end of a name
_OPPOSITES = [
    set(pair.split())
    for pair in (
        "start end", "begin end", "min max", "minimum maximum", "from to", "source target", "source destination",
        "src dst", "src dest", "before after", "include exclude", "old new", "first last", "lat lon", "lat lng",
        "latitude longitude", "width height", "id name", "in out", "input output", "left right", "top bottom", "x y",
    )
]  # fmt: skip
_ORDERED = frozenset(("to", "from", "into", "2", "by", "of", "before", "after", "than", "minus", "over"))


def closest(name: str, known: Mapping[str, object] | Sequence[str]) -> str | None:
    """The known name that *name* was probably meant to be: to ask, not to act on."""
    from difflib import get_close_matches

    bare = {_bare(k): k for k in known}
    match = get_close_matches(_bare(name), bare, n=1, cutoff=0.6)
    return bare[match[0]] if match else None


def same_name(name: str, known: Mapping[str, object]) -> str | None:
    """The known name that differs from *name* only in case and punctuation, if there is just one."""
    matches = [k for k in known if _bare(k) == _bare(name)]
    return matches[0] if len(matches) == 1 else None


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def meant(name: str, known: Collection[str], *, beginning: bool = False) -> str | None:
    """The known name that *name* can only mean: but for case, separators, a plural, the order of its words, or a typo.

    `beginning`: or of which it is the beginning. None where two are equally near.
    """
    rules = [folds_alike, same_but_for_number, same_words, *([_begins] if beginning else []), misspelt]
    for rule in rules:
        if found := [k for k in known if rule(name, k)]:
            return found[0] if len(found) == 1 else None
    return None


def folded(name: str) -> str:
    """Without case, and without separators if there is a letter: "-1" is not "1"."""
    name = name.strip().lower()
    return re.sub(r"[\s_-]+", "", name) if _has_letters(name) else name


def _has_letters(text: str) -> bool:
    return any(c.isalpha() for c in text)


def _words(name: str) -> list[str]:
    """The words of `user_id`, `userId` and `User ID`."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+", name)]


def _signs(name: str) -> tuple[str, str]:
    """What a typo does not change: "c++" is not "c#", "v1" is not "v2", and "-1" not "1"."""
    signs = re.sub(r"[\w\s-]", "", name) if _has_letters(name) else name
    return signs, "".join(c for c in name if c.isdigit())


def _singulars(word: str) -> set[str]:
    ways = {word}
    for end, instead in (("s", ""), ("es", ""), ("ies", "y")):
        if word.endswith(end) and not word.endswith("ss") and len(word) - len(end) + len(instead) >= 3:
            ways.add(word.removesuffix(end) + instead)
    return ways


def folds_alike(a: str, b: str) -> bool:
    return folded(a) == folded(b)


def same_but_for_number(a: str, b: str) -> bool:
    return _signs(a) == _signs(b) and bool(_singulars(folded(a)) & _singulars(folded(b)))


def same_words(a: str, b: str) -> bool:
    """In any order, unless that matters: `usd_to_eur` is not `eur_to_usd`."""
    ours = sorted(_words(a))
    return len(ours) > 1 and ours == sorted(_words(b)) and _signs(a) == _signs(b) and not _ORDERED & {*ours}


def _begins(a: str, b: str) -> bool:
    """Three letters or an initial: "no" is not the beginning of "north"."""
    start = folded(a)
    return len(start) != 2 and _has_letters(start) and folded(b).startswith(start)


def misspelt(a: str, b: str) -> bool:
    """Word by word the same but for a letter or two; never the first one: "inactive" is not "active"."""
    ours, theirs = _words(a), _words(b)
    if len(ours) != len(theirs) or not ours or _signs(a) != _signs(b):
        return False
    from difflib import SequenceMatcher

    def near(x: str, y: str) -> bool:
        if x == y:
            return True
        if x[0] != y[0] or max(len(x), len(y)) < 4:
            return False
        return SequenceMatcher(None, x, y, autojunk=False).ratio() > 0.8

    return max(len(a), len(b)) < 200 and all(map(near, ours, theirs))


def says_more(a: str, b: str) -> bool:
    """`city_name` and `city`: one has all words of the other."""
    ours, theirs = set(_words(a)), set(_words(b))
    return bool(ours and theirs) and (ours <= theirs or theirs <= ours)


def only_empty_words(a: str, b: str) -> bool:
    short, long = sorted((_words(a), _words(b)), key=len)
    return long[: len(short)] == short and set(long[len(short) :]) <= _EMPTY_WORDS


def contrary(a: str, b: str) -> bool:
    differ = set(_words(a)) ^ set(_words(b))
    return any(pair <= differ for pair in _OPPOSITES)
