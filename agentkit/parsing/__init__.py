"""Model output in, events and messages out. Nothing here does I/O or knows who is calling."""

from agentkit.parsing.answer import find_json
from agentkit.parsing.turn import TurnParser, parse_turn

__all__ = ["TurnParser", "find_json", "parse_turn"]
