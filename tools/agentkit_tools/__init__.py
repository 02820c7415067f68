"""Built-in tools: each name, and where it lives. Nothing is imported until asked for."""

from typing import Final

TOOLS: Final = {
    "code_interpreter": "agentkit_tools.code_interpreter:code_interpreter",
    "clock": "agentkit_tools.clock:clock",
    "calculator": "agentkit_tools.calculator:calculator",
    "read_file": "agentkit_tools.files:read_file",
}
