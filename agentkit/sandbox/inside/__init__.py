"""What runs inside the sandbox. Standard library only, no import of agentkit: it is loaded by path there."""
