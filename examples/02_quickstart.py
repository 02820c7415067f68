"""The Qwen3 model card's quickstart: MCP servers and the code interpreter, a question, the answer.

Runs on the packaged demo model; name "qwen3-4b" (or a server, "Qwen3-4B@http://localhost:8000/v1") for the real one.
"""

import sys

from agentkit import Agent

bot = Agent(
    model=sys.argv[1] if len(sys.argv) > 1 else "demo",
    tools=[
        {
            "mcpServers": {
                "time": {"command": "uvx", "args": ["mcp-server-time", "--local-timezone=Asia/Shanghai"]}
            }
        },
        "code_interpreter",
    ],
)
result = bot.run_sync([{"role": "user", "content": "What time is it in Shanghai?"}])
print(result.output)
