"""An answer as a validated object instead of text."""

import sys

from pydantic import BaseModel

from agentkit import Agent


class City(BaseModel):
    name: str
    country: str


agent = Agent(model=sys.argv[1] if len(sys.argv) > 1 else "demo", output_type=City)
result = agent.run_sync("Which city is the Eiffel Tower in?")
print(result.output)
