"""`openstack`, unmodified, without the three seconds that it takes to start.

A program: it imports the client and lets it find its plug-ins, then reads a request a line and answers with an exit
code a line. Each command is a fork, so a process of its own that calls the client's own entry point; nothing is left
of the one before.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from typing import Any

from openstackclient import shell

SECONDS = 60
"""How long one command may take."""


def warm_up() -> None:
    """Load what every command needs, as `openstack help` does, before any cloud is named."""
    with contextlib.redirect_stdout(io.StringIO()):
        shell.main(["help", "server", "list"])


def run(request: dict[str, Any]) -> int:
    """Run one command in a fork and return its exit code."""
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os.environ.update(request["environment"])
        for stream, path in ((0, os.devnull), (1, request["out"]), (2, request["error"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), stream)
        code = shell.main(request["words"])
        sys.stdout.flush()
        os._exit(code)  # taking the copy of the interpreter apart would be most of the work
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    warm_up()
    for line in sys.stdin:
        print(run(json.loads(line)), flush=True)
