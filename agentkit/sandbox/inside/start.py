"""The first thing that runs inside: give up every right that is to be given up, then serve."""

from __future__ import annotations

import os
import resource
import sys

from . import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def start(plan: Mapping[str, Any]) -> None:
    """Confine this process as *plan* says and answer requests on fd 0. Never returns."""
    del sys.path[0]  # where we came from
    if plan["host"]:
        from . import supervise

        supervise.fork_worker(plan["host"], plan["covered"], plan["cover_required"], plan["scratch"])
    parent = os.getppid()
    control = os.dup(0)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for which, limit in plan["rlimits"]:
        hard = resource.getrlimit(which)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(which, (value, value))
    if plan["uid"] is not None:
        from . import confine

        confine.become(plan["uid"])
        if plan["host"]:
            supervise.stay_with(parent)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)  # an interrupt goes to the group, as Ctrl-C does
    os.chdir(plan["workspace"])
    os.umask(0o022)
    if plan["landlock"]:
        from . import confine

        confine.drop_capabilities()
        confine.apply_landlock(*plan["landlock"])
        pid = os.getpid() if plan["own_signals"] else None
        confine.apply_filter(
            confine.filter_program(namespaces=False, shared_uid=plan["shared_uid"], own_pid=pid)
        )
    sys.path[:] = ["", *sys.path, *plan["paths"]]
    sys.argv[:] = [""]
    worker.send_fact(control, b"R", b"\0\0\0\0", "")
    modules = worker.set_up(worker.read_frame(control)[1].removeprefix(worker.SETUP))
    if modules and not plan["own_signals"]:
        from . import preload
    for name in [name for name in sys.modules if name.split(".")[0] == "inside"]:
        del sys.modules[name]  # the code may have modules of these names
    if modules and not plan["own_signals"]:
        alone = not plan["host"] and os.getppid() == 1
        preload.serve(control, plan["workspace"], modules, alone=alone)
    worker.serve(control, plan["workspace"])
