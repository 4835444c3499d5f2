"""A private RabbitMQ, started and stopped without a service manager, for the lab and the tests.

Everything it owns lies in one directory and on three ports of its own: `port` (AMQP), `port + 1` (Erlang's
distribution) and `port + 2` (epmd, Erlang's name server); the last two listen on loopback only. Its processes
are found again by pid and start time written to that directory, so that another process can stop or crash a
broker that it did not start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from threading import Event
from urllib.parse import quote

from whimbrel.domain.errors import Unavailable
from whimbrel.ops import clock

LAUNCHER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
STOP_DEADLINE = 20.0
POLL = 0.05

CONFIG = """\
listeners.tcp.default = {address}:{port}
default_user = {user}
default_pass = {password}
loopback_users = none
log.file = broker.log
log.file.level = info
log.console = false
disk_free_limit.absolute = 64MB
vm_memory_high_watermark.absolute = 512MB
"""


class Broker:
    """One RabbitMQ node that lives in `dir`; any process may make the object anew and control it."""

    def __init__(self, dir: Path, address: str, port: int, *, user: str, password: str) -> None:
        self.dir = dir.absolute()
        self.address = address
        self.port = port
        self.user = user
        self.password = password
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The AMQP URL that clients connect to, with its credentials."""
        return f"amqp://{quote(self.user, safe='')}:{quote(self.password, safe='')}@{self.address}:{self.port}/"

    @property
    def pid(self) -> int | None:
        """The process id of the running node, or None."""
        return self._find("rabbitmq")

    def start(self, deadline: float = 90) -> None:
        """Start the node unless it runs; return when it speaks AMQP, Unavailable after `deadline` seconds."""
        if not LAUNCHER.exists():
            raise Unavailable(f"{LAUNCHER} does not exist; install the package rabbitmq-server.")
        if self.pid is None:
            self._prepare()
            if self._find("epmd") is None:
                self._spawn("epmd", [_epmd_path(), "-port", str(self.port + 2), "-address", "127.0.0.1"])
            self._spawn("rabbitmq", [str(LAUNCHER)])
        if not self._wait(lambda: self.pid is None or self._speaks_amqp(), deadline) or self.pid is None:
            self.kill()
            raise Unavailable(
                f"RabbitMQ did not answer on {self.address}:{self.port} within {deadline:g} s; "
                f"its output is in {self.dir}/rabbitmq.out and {self.dir}/log."
            )

    def stop(self) -> None:
        """Shut the node down in good order, by force after 20 s; a node that does not run is no error."""
        self._end("rabbitmq", signal.SIGTERM)
        self.kill()

    def kill(self) -> None:
        """Kill the node at once, as a crash does: what was confirmed must be there after the next start."""
        for name in ("rabbitmq", "epmd"):
            self._end(name, signal.SIGKILL)
            (self.dir / f"{name}.pid").unlink(missing_ok=True)
        for child in self._children:
            child.wait(STOP_DEADLINE)
        self._children.clear()

    def _prepare(self) -> None:
        """Write the configuration; the file holds the password, so only its owner may read it."""
        for directory in (self.dir, self.dir / "home", self.dir / "log"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = self.dir / "rabbitmq.conf"
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(address=self.address, port=self.port, user=self.user, password=self.password))
        (self.dir / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        """Override everything that would otherwise come from the system's own RabbitMQ."""
        erlang = "+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": str(self.dir / "home"),
            # Makes the launcher's shell become the node, so that the pid that we hold is the node's own.
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_NODENAME": "whimbrel@localhost",
            "RABBITMQ_DIST_PORT": str(self.port + 1),
            "RABBITMQ_MNESIA_BASE": str(self.dir / "data"),
            "RABBITMQ_LOG_BASE": str(self.dir / "log"),
            "RABBITMQ_PID_FILE": str(self.dir / "node.pid"),
            "RABBITMQ_CONFIG_FILE": str(self.dir / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.dir / "absent.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.dir / "absent.env"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.dir / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": erlang,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.port + 2),
        }

    def _spawn(self, name: str, command: list[str]) -> None:
        """Start `command` in a session of its own, so that a Ctrl-C at the terminal does not reach it."""
        with (self.dir / f"{name}.out").open("ab") as output:
            child = subprocess.Popen(
                command,
                cwd=self.dir,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._children.append(child)
        (self.dir / f"{name}.pid").write_text(f"{child.pid} {_start_time(child.pid)}\n")

    def _find(self, name: str) -> int | None:
        """Return the pid in `<name>.pid` if that very process, not a later one of its number, lives."""
        try:
            pid, started = (self.dir / f"{name}.pid").read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if _start_time(int(pid)) == started else None

    def _end(self, name: str, number: signal.Signals) -> None:
        """Send the signal and wait until the process is gone, 20 s at most."""
        pid = self._find(name)
        if pid is not None:
            # It may have ended between the two lines, which is what the signal is for.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        self._wait(lambda: self._find(name) is None, STOP_DEADLINE)

    def _speaks_amqp(self) -> bool:
        try:
            with socket.create_connection((self.address, self.port), timeout=1) as connection:
                connection.sendall(AMQP_HEADER)
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def _wait(self, condition: Callable[[], bool], deadline: float) -> bool:
        end = clock.monotonic() + deadline
        pause = Event()
        while not condition():
            if clock.monotonic() > end:
                return False
            pause.wait(POLL)
        return True


def _epmd_path() -> str:
    path = shutil.which("epmd")
    if path is None:
        raise Unavailable("epmd does not exist; install the package erlang-base.")
    return path


def _start_time(pid: int) -> str | None:
    """Return when the process started, in the kernel's ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]
