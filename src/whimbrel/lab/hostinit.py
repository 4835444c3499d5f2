"""PID 1 of a host of the lab: gives the host its own files, then only reaps. Started with the path of its plan.

The plan is JSON: `hostname`, `binds` (pairs of a path and where it shall appear), `hide` (devices that the host shall
not have, each with an empty file to put there) and `ready` (a file to make when all is done). It imports nothing of
Whimbrel, to start fast and to run wherever the standard library does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


def prepare(plan: dict[str, object]) -> None:
    """Make the host's own view of the machine."""
    socket.sethostname(str(plan["hostname"]))
    # Else this host would keep the network namespaces of other labs alive after they were deleted.
    subprocess.run(["umount", "--recursive", "--lazy", "/run/netns"], stderr=subprocess.DEVNULL, check=False)
    for source, place in plan["binds"]:  # type: ignore[attr-defined]
        if not Path(place).exists():  # the logs of TPMs: libvirt makes the directory when the first guest has one
            Path(place).mkdir(parents=True)
        mount("--bind", source, place)
    for empty, device in plan["hide"]:  # type: ignore[attr-defined]
        # A plain file that cannot be written: with /dev/null instead, libvirt throws its capability cache away on
        # each call and takes five seconds for it.
        mount("--bind", empty, device)
        mount("-o", "remount,bind,ro", device)
    Path(str(plan["ready"])).touch()


def mount(*arguments: str) -> None:
    """Call mount(8); a failure ends the host."""
    subprocess.run(["mount", *arguments], check=True)


def reap_forever() -> None:
    """Collect the exit codes of all that ends here, the orphans too."""
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


if __name__ == "__main__":
    prepare(json.loads(Path(sys.argv[1]).read_text()))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    reap_forever()
