"""Starts processes that outlive their starter, and finds exactly them again by pid and start time.

Each process writes its own record, `<name>.pid` with "pid start-time", before it becomes what it shall be: a starter
that is killed in the middle leaves nothing unknown behind. A process on a host of the lab records the pid of its own
namespace; the kernel tells which one that is here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Event

from whimbrel.domain.errors import Unavailable
from whimbrel.ops import clock

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
START_DEADLINE = 10.0
END_DEADLINE = 10.0
POLL = 0.01

# The shell's name has no blank, so its start time is the 22nd word; both survive the exec.
_RECORD_AND_BECOME = """\
record=$1; shift; cd /
echo "$$ $(cut -d' ' -f22 /proc/$$/stat)" >"$record.new" && mv "$record.new" "$record" && exec "$@"
"""


class Processes:
    """The processes recorded in one directory; `log` files are appended to."""

    def __init__(self, dir: Path) -> None:
        self.dir = dir

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        inside: int | None = None,
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> int:
        """Start `command`, in the namespaces of process `inside` if given, and return its pid as seen here."""
        record = self._record(name)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        # setsid forks: the process becomes a child of the host's init (or of this machine's), not of ours.
        wrapped = [*enter(inside), "setsid", "--fork", "sh", "-c", _RECORD_AND_BECOME, "sh", record, *command]
        with log.open("ab") as output:
            done = subprocess.run(
                wrapped,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(environment),
                timeout=START_DEADLINE,
                check=False,
            )
        if done.returncode or not wait_until(record.exists, START_DEADLINE):
            raise Unavailable(f"{name} could not be started; see {log}.")
        pid = self.find(name, inside=inside)
        if pid is None:
            raise Unavailable(f"{name} ended as soon as it was started; see {log}.")
        return pid

    def find(self, name: str, *, inside: int | None = None) -> int | None:
        """Return the pid of the recorded process if that very process is alive."""
        try:
            pid, started = self._record(name).read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        if inside is None:
            return int(pid) if start_time(int(pid)) == started else None
        for outer, inner in members(inside):
            if inner == int(pid) and start_time(outer) == started:
                return outer
        return None

    def kill(self, name: str, *, inside: int | None = None) -> bool:
        """Kill the process at once and wait until it is gone; return whether there was one."""
        pid = self.find(name, inside=inside)
        if pid is not None:
            kill(pid)
        self._record(name).unlink(missing_ok=True)
        return pid is not None

    def _record(self, name: str) -> Path:
        return self.dir / f"{name}.pid"


def enter(pid: int | None) -> list[str]:
    """Return the command that enters all namespaces of process `pid`; nothing for None."""
    if pid is None:
        return []
    return ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]


def members(init: int) -> list[tuple[int, int]]:
    """Return (pid here, pid there) of all processes in the PID namespace of `init`."""
    found = []
    try:
        namespace = Path(f"/proc/{init}/ns/pid").readlink()
    except OSError:
        return []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # A process may end while we look at it.
        with contextlib.suppress(OSError, StopIteration):
            if (entry / "ns/pid").readlink() != namespace:
                continue
            lines = (entry / "status").read_text().splitlines()
            inner = next(line for line in lines if line.startswith("NSpid:")).split()[-1]
            found.append((int(entry.name), int(inner)))
    return found


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process of one thread."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def start_time(pid: int) -> str | None:
    """Return when the process started, in the kernel's ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def kill(pid: int) -> None:
    """Send SIGKILL and wait until the process is gone, 10 s at most; raise Unavailable if it is not."""
    started = start_time(pid)
    if started is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if not wait_until(lambda: start_time(pid) != started, END_DEADLINE):
        raise Unavailable(f"Process {pid} does not end; look at /proc/{pid}/stack for what it waits for.")


def wait_until(condition: Callable[[], bool], deadline: float) -> bool:
    """Wait until the condition holds, `deadline` seconds at most; return whether it does."""
    end = clock.monotonic() + deadline
    pause = Event()
    while not condition():
        if clock.monotonic() > end:
            return False
        pause.wait(POLL)
    return True
