"""Built-in tools: each name, and where it lives. Nothing is imported until asked for."""

from typing import Final

TOOLS: Final = {
    "ask_user": "agentkit_tools.ask_user:ask_user",
    "calculator": "agentkit_tools.calculator:calculator",
    "clock": "agentkit_tools.clock:clock",
    "code_interpreter": "agentkit_tools.code_interpreter:code_interpreter",
    "files": "agentkit_tools.files:files",
    "memory": "agentkit_tools.memory:memory",
    "read_document": "agentkit_tools.documents:read_document",
    "read_file": "agentkit_tools.files:read_file",
    "retrieve": "agentkit_tools.retrieve:retrieve",
    "shell": "agentkit_tools.shell:shell",
    "web_fetch": "agentkit_tools.web_fetch:web_fetch",
    "web_search": "agentkit_tools.web_search:web_search",
}
