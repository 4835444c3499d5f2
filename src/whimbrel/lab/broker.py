"""A private RabbitMQ, started and stopped without a service manager, for the lab and the tests.

Everything it owns lies in one directory and on three ports of its own: `port` (AMQP), `port + 1` (Erlang's
distribution) and `port + 2` (epmd, Erlang's name server); the last two listen on loopback only. Its processes
are found again by pid and start time written to that directory, so that another process can stop or crash a
broker that it did not start.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from threading import Event
from urllib.parse import quote

from whimbrel.bus import queues
from whimbrel.domain.errors import Unavailable
from whimbrel.lab.certificates import Tls
from whimbrel.lab.state import write_private
from whimbrel.ops import clock

LAUNCHER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
STOP_DEADLINE = 20.0
POLL = 0.05

# Users and what each may do come with the definitions; every start sets them anew.
CONFIG = """\
load_definitions = {dir}/definitions.json
loopback_users = none
log.file = broker.log
log.file.level = info
log.console = false
disk_free_limit.absolute = 64MB
vm_memory_high_watermark.absolute = 512MB
"""
PLAIN = "listeners.tcp.default = {address}:{port}\n"
TLS_ONLY = """\
listeners.tcp = none
listeners.ssl.default = {address}:{port}
ssl_options.cacertfile = {tls.authority}
ssl_options.certfile = {tls.certificate}
ssl_options.keyfile = {tls.key}
ssl_options.verify = verify_none
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
"""


class Broker:
    """One RabbitMQ node that lives in `dir`; any process may make the object anew and control it.

    `user` may do everything; `hosts` are passwords of hosts, whose agents may do what an agent must. With `tls`
    nothing but TLS is spoken.
    """

    def __init__(
        self,
        dir: Path,
        address: str,
        port: int,
        *,
        user: str,
        password: str,
        hosts: Mapping[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.dir = dir.absolute()
        self.address = address
        self.port = port
        self.user = user
        self.password = password
        self.hosts = dict(hosts or {})
        self.tls = tls
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        """The AMQP URL that controllers connect to, with its credentials."""
        return self._url(self.user, self.password)

    def url_of(self, host: str) -> str:
        """Return the AMQP URL that the agent of a host connects to, with its own credentials."""
        return self._url(queues.agent(host), self.hosts[host])

    def _url(self, user: str, password: str) -> str:
        scheme = "amqp" if self.tls is None else "amqps"
        return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{self.address}:{self.port}/"

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
        """Write the configuration, and the users with hashes of their passwords."""
        for directory in (self.dir, self.dir / "home", self.dir / "log"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        listener = PLAIN if self.tls is None else TLS_ONLY
        config = CONFIG.format(dir=self.dir) + listener.format(address=self.address, port=self.port, tls=self.tls)
        write_private(self.dir / "rabbitmq.conf", config)
        write_private(self.dir / "definitions.json", json.dumps(self._definitions(), indent=1))
        (self.dir / "enabled_plugins").write_text("[].\n")

    def _definitions(self) -> dict[str, object]:
        """Return the virtual host, the users and their permissions as RabbitMQ imports them."""
        everything = queues.Permissions(".*", ".*", ".*")
        users = {self.user: (self.password, everything)}
        users |= {queues.agent(host): (password, queues.permissions(host)) for host, password in self.hosts.items()}
        return {
            "vhosts": [{"name": "/"}],
            "users": [
                {
                    "name": name,
                    "password_hash": _hashed(password),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "",
                }
                for name, (password, _) in users.items()
            ],
            "permissions": [{"user": name, "vhost": "/", **asdict(may)} for name, (_, may) in users.items()],
        }

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
                if self.tls is None:
                    return _greets(connection)
                known = ssl.create_default_context(cafile=self.tls.authority)
                with known.wrap_socket(connection, server_hostname=self.address) as secret:
                    return _greets(secret)
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


def _greets(connection: socket.socket) -> bool:
    connection.sendall(AMQP_HEADER)
    return connection.recv(1) == b"\x01"


def _hashed(password: str) -> str:
    """Return RabbitMQ's salted hash of a password."""
    salt = os.urandom(4)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


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
