"""The date and time."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from agentkit import ToolError, tool


@tool(effects=())
def clock(timezone: str = "UTC") -> str:
    """Tell the current date and time.

    Args:
        timezone: An IANA time zone name such as "Asia/Shanghai" or "Europe/Paris".
    """
    try:
        now = datetime.now(ZoneInfo(timezone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ToolError(
            f"{timezone!r} is no IANA time zone; use a name such as 'Europe/Paris' or 'UTC'"
        ) from None
    return f"{now:%A, %Y-%m-%d %H:%M:%S %Z (UTC%z)}"
