"""Model output in, events and messages out. Nothing here does I/O or knows who is calling."""

from agentkit.parsing.answer import find_json
from agentkit.parsing.guided import GuidedParser, guided_schema
from agentkit.parsing.repetition import Repetition
from agentkit.parsing.turn import TurnParser, parse_turn

__all__ = ["GuidedParser", "Repetition", "TurnParser", "find_json", "guided_schema", "parse_turn"]
