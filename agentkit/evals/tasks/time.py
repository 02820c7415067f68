"""Tasks about dates and times: conversion, differences, weekdays. The clock is stopped, so that answers stay right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agentkit.errors import ToolError
from agentkit.evals.tasks.answers import Date, Duration, Name, NotFound, Number, Time
from agentkit.evals.tasks.task import Group, Task
from agentkit.tools import Tool, ToolOutput, tool

__all__ = ["GROUP", "stopped", "time_tools"]

NOW: Final = datetime(2026, 3, 18, 9, 30, tzinfo=UTC)
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())


def stopped(clock: Tool) -> Tool:
    """*clock*, which tells the time in a time zone, telling always the same."""

    async def tell(arguments: Mapping[str, Any]) -> ToolOutput:
        now = NOW.astimezone(_zone(str(arguments.get("timezone") or "UTC")))
        return ToolOutput(f"{now:%A, %Y-%m-%d %H:%M:%S %Z (UTC%z)}")

    return replace(clock, handler=tell, fn=None)


def time_tools() -> Sequence[Tool]:
    return (convert_time, time_between, add_to_date, weekday)


@tool(effects=())
def convert_time(time: str, from_timezone: str, to_timezone: str) -> str:
    """Convert a date and time from one time zone to another.

    Args:
        time: The date and time as "YYYY-MM-DD HH:MM".
        from_timezone: The IANA time zone in which that is, such as "Europe/Paris".
        to_timezone: The IANA time zone that is wanted.
    """
    there = _moment(time).replace(tzinfo=_zone(from_timezone)).astimezone(_zone(to_timezone))
    return f"{there:%A, %Y-%m-%d %H:%M %Z (UTC%z)}"


@tool(effects=())
def time_between(start: str, end: str) -> str:
    """Tell how much time is between two moments of the same time zone.

    Args:
        start: A date, or a date and time as "YYYY-MM-DD HH:MM".
        end: The other one.
    """
    minutes = round((_moment(end) - _moment(start)).total_seconds() / 60)
    days, rest = divmod(abs(minutes), 24 * 60)
    text = f"{days} days, {rest // 60} hours and {rest % 60} minutes"
    return f"minus {text} (end is before start)" if minutes < 0 else text


@tool(effects=())
def add_to_date(start: str, days: int = 0, hours: int = 0, minutes: int = 0) -> str:
    """Tell which date and time it is so much later (or earlier: negative numbers).

    Args:
        start: A date, or a date and time as "YYYY-MM-DD HH:MM".
        days: Days to add.
        hours: Hours to add.
        minutes: Minutes to add.
    """
    return f"{_moment(start) + timedelta(days=days, hours=hours, minutes=minutes):%A, %Y-%m-%d %H:%M}"


@tool(effects=())
def weekday(date: str) -> str:
    """Tell which day of the week a date is.

    Args:
        date: The date as "YYYY-MM-DD".
    """
    return f"{_moment(date):%A}"


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=None)
    except ValueError:
        raise ToolError(f"{text!r} is not a date and time; write it as 2026-12-31 23:59") from None


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(
            f"{name!r} is no IANA time zone; use a name such as 'Europe/Paris' or 'UTC'"
        ) from None


TRIP = """\
Trip to Osaka, May 2026

Flight out:   2026-05-02, leaves Vienna at 10:40
Hotel:        Kitahama Inn. The front desk takes calls until 2026-05-01 21:15, Osaka time (Asia/Tokyo).
Flight back:  2026-05-13, leaves Osaka at 12:05
Travellers:   Ruth, Ben
"""

MAINTENANCE = """\
Maintenance windows of the data centre

2026-03-19 04:00 to 06:00, Chicago time (America/Chicago): storage
2026-03-26 22:00 to 23:45, Chicago time (America/Chicago): network
"""

TASKS = (
    Task(
        "now",
        "What time is it in Tokyo right now? Give it as HH:MM on a 24-hour clock.",
        Time(18, 30),
        solution=(("clock", {"timezone": "Asia/Tokyo"}),),
    ),
    Task(
        "weekday",
        "On which day of the week does 5 August 2031 fall?",
        Name("Tuesday", DAYS),
        solution=(("weekday", {"date": "2031-08-05"}),),
    ),
    Task(
        "convert",
        "Our call with New York is on 2026-07-06 at 15:20, New York time. What time is that in Berlin?",
        Time(21, 20),
        solution=(
            (
                "convert_time",
                {
                    "time": "2026-07-06 15:20",
                    "from_timezone": "America/New_York",
                    "to_timezone": "Europe/Berlin",
                },
            ),
        ),
    ),
    Task(
        "days",
        "How many days are there from 11 February 2026 to 30 September 2026?",
        Number(231),
        solution=(("time_between", {"start": "2026-02-11", "end": "2026-09-30"}),),
    ),
    Task(
        "deadline",
        "I have 90 days from today to file the report. Which date is the last day? Give it as YYYY-MM-DD.",
        Date(date(2026, 6, 16)),
        solution=(("clock", {}), ("add_to_date", {"start": "2026-03-18", "days": 90})),
    ),
    Task(
        "flight",
        "A flight leaves Lisbon on 2026-05-02 at 11:20 local time and lands in São Paulo the same day at 16:55 "
        "local time. How long is it in the air, in hours and minutes?",
        Duration(9, 35),
        solution=(
            (
                "convert_time",
                {
                    "time": "2026-05-02 11:20",
                    "from_timezone": "Europe/Lisbon",
                    "to_timezone": "America/Sao_Paulo",
                },
            ),
            ("time_between", {"start": "2026-05-02 07:20", "end": "2026-05-02 16:55"}),
        ),
    ),
    Task(
        "hotel",
        "trip.txt says until when the hotel's front desk takes calls. Until what time is that for me, in Vienna?",
        Time(14, 15),
        solution=(
            ("read_file", {"path": "trip.txt"}),
            (
                "convert_time",
                {
                    "time": "2026-05-01 21:15",
                    "from_timezone": "Asia/Tokyo",
                    "to_timezone": "Europe/Vienna",
                },
            ),
        ),
    ),
    Task(
        "maintenance",
        "How long is it from now until the storage maintenance in maintenance.txt begins? "
        "Answer in hours and minutes.",
        Duration(23, 30),
        solution=(
            ("read_file", {"path": "maintenance.txt"}),
            ("clock", {"timezone": "America/Chicago"}),
            ("time_between", {"start": "2026-03-18 04:30", "end": "2026-03-19 04:00"}),
        ),
    ),
    Task(
        "missing",
        "According to trip.txt, at what time does the flight back land in Vienna?",
        NotFound(r"\b(lands?|landing|arriv\w+)\b[^.]{0,60}?\b(?!12:05)\d\d?:\d\d"),
        solution=(("read_file", {"path": "trip.txt"}),),
    ),
    Task("direct", "How many days does February have in a leap year?", Number(29)),
)

GROUP = Group(
    "time",
    ("clock", "time", "read_file", "calculator"),
    TASKS,
    files={"trip.txt": TRIP, "maintenance.txt": MAINTENANCE},
)
