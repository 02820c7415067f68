"""Measure how well agents do: suites of cases, run on any model, resumed where they were left, as a table."""

from agentkit.evals.suite import Call, Case, Outcome, Suite, Verdict, World

__all__ = ["Call", "Case", "Outcome", "Suite", "Verdict", "World"]
