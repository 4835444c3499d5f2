"""A private PostgreSQL, started and stopped without a service manager, for the lab and the tests.

Everything it owns lies in one directory, and it listens on one loopback port. PostgreSQL does not run as root, so root
starts it as the user whom Debian's package has made; every directory above must then let that user pass. Its
server process is found again by pid and start time, so that another process can stop one that it did not start.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from whimbrel.domain.errors import Unavailable
from whimbrel.lab.processes import PATH, Processes, wait_until

PROGRAMS = Path("/usr/lib/postgresql/15/bin")
SYSTEM_USER = "postgres"
NAME = "postgres"
STOP_DEADLINE = 20.0
TOOL_DEADLINE = 60.0

CONFIG = """\
listen_addresses = '{address}'
port = {port}
unix_socket_directories = ''
max_connections = 200
shared_buffers = 32MB
fsync = {durable}
full_page_writes = {durable}
"""


class Database:
    """One PostgreSQL server that lives in `dir`; any process may make the object anew and control it.

    `durable=False` gives up what a power cut would take (a killed server loses nothing), for tests that hurry.
    """

    def __init__(self, dir: Path, address: str, port: int, *, user: str, password: str, durable: bool = True) -> None:
        self.dir = dir.absolute()
        self.address = address
        self.port = port
        self.user = user
        self.password = password
        self._durable = durable
        self._processes = Processes(self.dir)
        self._data = self.dir / "data"

    @property
    def pid(self) -> int | None:
        """The process id of the running server, or None."""
        return self._processes.find(NAME)

    def url(self, name: str) -> str:
        """Return SQLAlchemy's URL of one database of this server, with its credentials."""
        who = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"postgresql+psycopg://{who}@{self.address}:{self.port}/{name}"

    def start(self, deadline: float = 60) -> None:
        """Start the server unless it runs; return when it answers, Unavailable after `deadline` seconds."""
        if not (PROGRAMS / "postgres").exists():
            raise Unavailable(f"{PROGRAMS}/postgres does not exist; install the package postgresql-15.")
        if self.pid is None:
            self._prepare()
            command: list[str | Path] = [*_as_user(), PROGRAMS / "postgres", "-D", self._data]
            self._processes.start(NAME, command, log=self.dir / "postgres.out")
        if not wait_until(lambda: self.pid is None or self._answers(), deadline) or self.pid is None:
            self.kill()
            raise Unavailable(
                f"PostgreSQL did not answer on {self.address}:{self.port} within {deadline:g} s; "
                f"its output is in {self.dir}/postgres.out."
            )

    def create(self, name: str, template: str = "template0") -> str:
        """Make a database of this name, a copy of `template`, and return its URL."""
        self.tool("createdb", "--template", template, name)
        return self.url(name)

    def tool(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's client programs on this server; return its output, Unavailable if it fails."""
        where = ["-h", self.address, "-p", str(self.port), "-U", self.user, "--no-password"]
        return self._call([str(PROGRAMS / program), *where, *arguments])

    def stop(self) -> None:
        """Shut the server down in good order, by force after 20 s; one that does not run is no error."""
        self._end(signal.SIGINT)
        self.kill()

    def kill(self) -> None:
        """End the server at once, as a crash does: what was committed must be there after the next start."""
        self._end(signal.SIGQUIT)
        self._processes.kill(NAME)

    def _prepare(self) -> None:
        """Make the cluster at the first start; the passwords' file is gone again afterwards."""
        if (self._data / "PG_VERSION").exists():
            return
        self.dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        shutil.rmtree(self._data, ignore_errors=True)  # what an earlier try left
        self._data.mkdir(mode=0o700)
        secret = self.dir / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if os.geteuid() == 0:
            user = pwd.getpwnam(SYSTEM_USER)
            for path in (self._data, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        options = ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        who = ["--username", self.user, "--pwfile", str(secret)]
        quick = [] if self._durable else ["--no-sync"]
        self._call([*_as_user(), str(PROGRAMS / "initdb"), "-D", str(self._data), *options, *who, *quick])
        secret.unlink()
        durable = "on" if self._durable else "off"
        with (self._data / "postgresql.conf").open("a", encoding="ascii") as file:
            file.write(CONFIG.format(address=self.address, port=self.port, durable=durable))

    def _answers(self) -> bool:
        command = [str(PROGRAMS / "pg_isready"), "-q", "-h", self.address, "-p", str(self.port), "-t", "1"]
        return subprocess.run(command, timeout=TOOL_DEADLINE, check=False).returncode == 0

    def _end(self, number: signal.Signals) -> None:
        """Send the signal and wait until the server is gone, 20 s at most."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(pid, number)
            wait_until(lambda: self.pid is None, STOP_DEADLINE)

    def _call(self, command: list[str]) -> str:
        environment = {"PATH": PATH, "LANG": "C.UTF-8", "PGPASSWORD": self.password}
        done = subprocess.run(
            command, cwd="/", env=environment, capture_output=True, text=True, timeout=TOOL_DEADLINE, check=False
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Unavailable(f"{' '.join(command[:6])} ... failed: {said}")
        return done.stdout


def _as_user() -> list[str]:
    """Return what runs a command as PostgreSQL's own user, where that is not who we are; the pid stays the same."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={SYSTEM_USER}", f"--regid={SYSTEM_USER}", "--init-groups", "--"]
