"""The official conformance suite against our client and against our server.

Needs the npm package @modelcontextprotocol/conformance, and a Node that is new enough for it (npm's `node` has one):
AGENTKIT_CONFORMANCE is the directory that both were installed into.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
HERE = Path(__file__).parent
REVISIONS = ("2025-11-25", "2026-07-28")
SCORED = {  # scenarios that a revision requires
    ("client", "2025-11-25"): 18,
    ("client", "2026-07-28"): 32,
    ("server", "2025-11-25"): 30,
    ("server", "2026-07-28"): 37,
}

TASKS = "tasks are an extension that the SDK does not have"
SIGNING = "an extension of OAuth that the SDK's client does not have"
SCHEMA = "a tool's schema is handed on as models take it, without what means nothing to them"
CLIENT = {
    "auth/dpop": SIGNING,
    "auth/dpop-nonce": SIGNING,
    "auth/enterprise-managed-authorization": SIGNING,
    "auth/wif-jwt-bearer": SIGNING,
    "json-schema-2020-12-preservation": SCHEMA,
}
# None of these is required: they are extensions, or came after the revision, and the suite runs them as well.
EXPECTED_FAILURES: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("client", "2025-11-25"): CLIENT,
    ("client", "2026-07-28"): CLIENT,
    ("server", "2025-11-25"): {},
    ("server", "2026-07-28"): {
        "tasks-lifecycle": TASKS,
        "tasks-capability-negotiation": TASKS,
        "tasks-wire-fields": TASKS,
        "tasks-request-state-removal": TASKS,
        "tasks-mrtr-input": TASKS,
        "tasks-request-headers": TASKS,
        "tasks-dispatch-and-envelope": TASKS,
        "tasks-required-task-error": TASKS,
        "tasks-mrtr-composition": TASKS,
    },
}


@pytest.fixture(scope="module")
def suite() -> list[str]:
    """The command that runs the suite."""
    folder = os.environ.get("AGENTKIT_CONFORMANCE")
    if not folder:
        pytest.skip(
            "AGENTKIT_CONFORMANCE is not set; it is a directory with the npm packages node and"
            " @modelcontextprotocol/conformance in it"
        )
    modules = Path(folder) / "node_modules"
    node, script = modules / ".bin" / "node", modules / "@modelcontextprotocol/conformance/dist/index.js"
    assert script.exists() and node.exists(), f"the suite is not in {folder}"
    return [str(node), str(script)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of our server with what the suite wants to find in one."""
    command = [sys.executable, str(HERE / "everything_server.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("role", ["client", "server"])
def test_what_a_revision_requires_is_passed_and_what_fails_is_known(
    role: str, revision: str, suite: list[str], server: str, tmp_path: Path
) -> None:
    us = ["--command", f"{sys.executable} {HERE / 'client.py'}"] if role == "client" else ["--url", server]
    scored, others = scenarios(suite, role, revision)
    assert len(scored) == SCORED[role, revision]

    def passes(scenario: str) -> bool:
        options = ["--scenario", scenario, "--spec-version", revision, "--force", "--timeout", "120000"]
        command = [*suite, role, *us, *options, "-o", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode:  # pytest shows it where the test fails
            print(f"=== {scenario}", done.stdout, done.stderr, sep="\n")
        return done.returncode == 0

    # the suite itself would start all at once, which is more than some machines can do in its time limits
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = dict(zip(scored + others, pool.map(passes, scored + others), strict=True))
    failed = {scenario for scenario, passed in verdicts.items() if not passed}
    expected = EXPECTED_FAILURES[role, revision].keys()
    assert not failed & set(scored), "these are required, and fail"
    assert not failed - expected, "these fail that did not before"
    assert not expected - failed, "these pass now: strike them from the table of expected failures"


def scenarios(suite: list[str], role: str, revision: str) -> tuple[list[str], list[str]]:
    """The scenarios that a revision requires of a role, and those that are run as well."""
    command = [*suite, "list", "--requirements", revision]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    required, _, others = listed.partition("Run and reported")
    of_servers, _, of_clients = required.partition("Client scenarios")
    mine = of_clients if role == "client" else of_servers
    unscored = re.findall(rf"^ +- (\S+) \[{role}\]", others, re.MULTILINE)
    return re.findall(r"^ +- (\S+)", mine, re.MULTILINE), unscored
