"""A Python for code that nobody vouches for: isolated by bubblewrap or Landlock, with state and limits."""

from agentkit.sandbox.box import Backend, Sandbox
from agentkit.sandbox.detect import Detection, Probe, detect
from agentkit.sandbox.execution import Execution, ExecutionError, Limits, OnOutput, Status
from agentkit.sandbox.share import relayed_output, shared_sandbox

__all__ = [
    "Backend",
    "Detection",
    "Execution",
    "ExecutionError",
    "Limits",
    "OnOutput",
    "Probe",
    "Sandbox",
    "Status",
    "detect",
    "relayed_output",
    "shared_sandbox",
]
