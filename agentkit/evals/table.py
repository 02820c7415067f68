"""From rows to figures: what share was passed, how sure that is, what it cost, who is better. Text and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist, fmean, median
from typing import Any

__all__ = ["Line", "Paired", "Score", "as_json", "compare", "mcnemar", "report", "summary", "wilson"]

Row = Mapping[str, Any]
_Z = NormalDist().inv_cdf(0.975)
_NOT_ANSWERED = ("budget", "timeout", "error")


@dataclass(frozen=True, slots=True)
class Score:
    passed: int
    total: int

    @property
    def rate(self) -> float:
        return self.passed / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 %."""
        return wilson(self.passed, self.total)


@dataclass(frozen=True, slots=True)
class Line:
    """One system: what it passed, in each category and overall, and what a case took it."""

    system: str
    categories: Mapping[str, Score]
    overall: Score
    mean: float  # of the categories' rates, each counting the same
    requests: float  # a mean, as are the tokens
    prompt_tokens: float
    completion_tokens: float
    model_seconds: float  # a median, as is the overhead: one slow moment of the machine says nothing
    overhead_seconds: float
    ended: Mapping[str, int]  # how many ended how


@dataclass(frozen=True, slots=True)
class Paired:
    """Two systems on the cases that both have done."""

    a: str
    b: str
    cases: int
    wins: int  # passed by a only
    losses: int  # passed by b only
    p: float  # exact McNemar, two-sided


def wilson(passed: int, total: int) -> tuple[float, float]:
    """The interval of 95 % around passed/total: which true rates go with it."""
    if not total:
        return 0.0, 1.0
    rate = passed / total
    middle = rate + _Z**2 / (2 * total)
    width = _Z * sqrt(rate * (1 - rate) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    low, high = (middle - width) / scale, (middle + width) / scale
    return (0.0 if passed == 0 else low), (1.0 if passed == total else high)  # which rounding would miss


def mcnemar(wins: int, losses: int) -> float:
    """How likely a difference of that size, or a greater one, is where there is none: exact and two-sided."""
    n = wins + losses
    ways = tail = 1  # in which none, and in which at most so many, of n go the rarer way
    for k in range(min(wins, losses)):
        ways = ways * (n - k) // (k + 1)
        tail += ways
    return min(1.0, float(2 * tail / 2**n))


def summary(rows: Sequence[Row]) -> list[Line]:
    """A line for each system, in the order in which they first come."""
    return [_line(system, own) for system, own in _by(rows, "system").items()]


def _by(rows: Sequence[Row], key: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def _score(rows: Sequence[Row]) -> Score:
    return Score(sum(bool(row["passed"]) for row in rows), len(rows))


def _line(system: str, rows: Sequence[Row]) -> Line:
    categories = {name: _score(own) for name, own in _by(rows, "category").items()}

    def each(of: Callable[[list[float]], float], key: str) -> float:
        return of([row[key] for row in rows])

    return Line(
        system,
        categories,
        _score(rows),
        fmean(s.rate for s in categories.values()),
        each(fmean, "requests"),
        each(fmean, "prompt_tokens"),
        each(fmean, "completion_tokens"),
        each(median, "model_seconds"),
        each(median, "overhead_seconds"),
        dict(Counter(row["ended"] for row in rows)),
    )


def compare(rows: Sequence[Row], a: str, b: str) -> Paired:
    """*a* beside *b*, on the cases that both have done."""
    passed = {
        system: {(r["suite"], r["id"]): bool(r["passed"]) for r in rows if r["system"] == system}
        for system in (a, b)
    }
    both = passed[a].keys() & passed[b].keys()
    wins = sum(passed[a][k] and not passed[b][k] for k in both)
    losses = sum(passed[b][k] and not passed[a][k] for k in both)
    return Paired(a, b, len(both), wins, losses, mcnemar(wins, losses))


def report(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Three tables: what the systems passed, what it took them, and the first of them beside each other one."""
    lines = summary(rows)
    if not lines:
        return "Nothing has been measured yet."
    parts = [_passed(lines), _cost(lines)]
    if len(lines) > 1:
        parts.append(_paired([compare(rows, lines[0].system, line.system) for line in lines[1:]]))
    draw = _as_markdown if markdown else _as_text
    return "\n\n".join(draw(part) for part in parts)


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """What `report` tells, as JSON."""
    lines = summary(rows)
    return {
        "systems": [
            {
                **asdict(line),
                "categories": {name: _figures(score) for name, score in line.categories.items()},
                "overall": _figures(line.overall),
            }
            for line in lines
        ],
        "compared": [asdict(compare(rows, lines[0].system, line.system)) for line in lines[1:]],
    }


def _figures(score: Score) -> dict[str, Any]:
    return {**asdict(score), "rate": score.rate, "interval": score.interval}


@dataclass(frozen=True, slots=True)
class _Grid:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _cell(score: Score | None) -> str:
    if score is None:
        return "–"
    low, high = score.interval
    return f"{score.passed}/{score.total} {_percent(score.rate)} [{_percent(low)}–{_percent(high)}]"


def _passed(lines: Sequence[Line]) -> _Grid:
    names = list(dict.fromkeys(name for line in lines for name in line.categories))
    columns = [[line.system, *(_cell(line.categories.get(name)) for name in names)] for line in lines]
    if len(names) > 1:
        for column, line in zip(columns, lines, strict=True):
            column += [_cell(line.overall), _percent(line.mean)]
        names += ["all", "mean of categories"]
    table = [["passed", *names], *columns]
    if len(lines) <= len(names):  # the longer side goes down
        table = [list(row) for row in zip(*table, strict=True)]
    return _Grid(table[0], table[1:], "Passed/total, per cent, and Wilson's 95 % interval.")


def _cost(lines: Sequence[Line]) -> _Grid:
    head = ["a case", "requests", "prompt tokens", "completion tokens", "model s", "overhead s", "unanswered"]
    rows = [
        [
            line.system,
            f"{line.requests:.2f}",
            f"{line.prompt_tokens:.0f}",
            f"{line.completion_tokens:.0f}",
            f"{line.model_seconds:.2f}",
            f"{line.overhead_seconds:.3f}",
            ", ".join(f"{n} {how}" for how in _NOT_ANSWERED if (n := line.ended.get(how))) or "–",
        ]
        for line in lines
    ]
    return _Grid(
        head, rows, "Requests and tokens are means, seconds are medians; unanswered: how many cases."
    )


def _paired(pairs: Sequence[Paired]) -> _Grid:
    a = pairs[0].a
    head = [f"{a} beside", "cases", f"only {a}", "only the other", "p"]
    rows = [[p.b, str(p.cases), str(p.wins), str(p.losses), f"{p.p:.2g}"] for p in pairs]
    return _Grid(head, rows, "Cases passed by one of the two only; p is McNemar's, exact and two-sided.")


def _as_text(grid: _Grid) -> str:
    table = [grid.head, *grid.rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(grid.head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join((lines[0], "  ".join("─" * w for w in widths), *lines[1:], grid.note))


def _as_markdown(grid: _Grid) -> str:
    table = [grid.head, ["---"] * len(grid.head), *grid.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join((*lines, "", grid.note))
