"""An agent driven by hand: the real ledger, the real steps and probes, one message at a time.

It does what `whimbrel.agent.executor` does around them, without its threads: an order is written down before it is
begun, its end before it is reported, and what a dead agent had begun is looked at by the next one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.protocol.host import SERVER, Broken, Host
from whimbrel.agent.admission import Admission
from whimbrel.agent.executor import ENDS, look, perform
from whimbrel.agent.ledger import Ledger, ServerRecord, Standing
from whimbrel.domain.migration import Answer
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import Facts, Order, Phase, Steering, StepReport
from whimbrel.migration.presence import GuestReport, Heartbeat
from whimbrel.migration.protocols import PROTOCOLS
from whimbrel.ops import settings

LEDGER_TABLES = ("servers", "orders", "outbox")
Rows = dict[str, list[tuple[Any, ...]]]


def rows(sql: sqlite3.Connection, tables: Iterable[str]) -> Rows:
    """Return what these tables hold."""
    return {table: [tuple(row) for row in sql.execute(f"SELECT * FROM {table}")] for table in tables}


def put_rows(sql: sqlite3.Connection, kept: Rows) -> None:
    """Let the tables hold that and nothing else."""
    for table in reversed(kept):
        sql.execute(f"DELETE FROM {table}")
    for table, content in kept.items():
        if content:
            marks = ",".join("?" * len(content[0]))
            sql.executemany(f"INSERT INTO {table} VALUES ({marks})", content)


class Control:
    """A Control that never ends a step."""

    def check(self) -> None:
        """Never."""

    def wait(self, seconds: float) -> None:
        """No time passes inside of a step."""

    def left(self) -> float:
        """There is always time."""
        return 60.0

    def restart_limit(self) -> None:
        """There is none."""

    def steering(self) -> Steering:
        """Nobody says anything."""
        return Steering()

    def report(self, done: int, total: int, phase: Phase = Phase.DISKS) -> None:
        """Nobody looks."""


class Agent:
    """One host's agent: `obey` and `ask` take messages, `send` gets the reports."""

    def __init__(self, host: Host, directory: Path, send: Callable[[StepReport], None]) -> None:
        self.host = host
        self.alive = True
        self.twice = False
        self._last: ServerRecord | None = None
        self.obeyed: list[Order] = []
        self._directory = directory
        self._settings = settings.Agent(host.name, "10.0.0.1", str(directory), str(directory), run_dir=str(directory))
        self._send = send
        self._open()

    def _open(self) -> None:
        self.ledger = Ledger(self._directory, f"boot-{self.host.boot}")
        self.admission = Admission(self._settings, self.ledger)
        self._world = self.host.world(self.ledger, self.admission.may_run)
        self._sent = 0

    def close(self) -> None:
        """Let go of the files."""
        self.ledger.close()

    def kill(self) -> None:
        """The process is gone, whatever it was doing."""
        self._last = self.ledger.server(SERVER)
        self.alive = False
        self.ledger.close()

    def start(self) -> None:
        """A new process: it sends what was not sent, and looks at what was begun."""
        self._open()
        self.alive = True
        self._relay()
        for order in self.ledger.unfinished():
            self._look(order)

    def record(self) -> ServerRecord | None:
        """Return what the ledger knows of the server, also while the agent is dead."""
        return self.ledger.server(SERVER) if self.alive else self._last

    def save(self) -> tuple[Any, ...]:
        """Return the state of the agent, its ledger and its host, between two messages."""
        alive = self.alive
        if not alive:
            self._open()
        with self.ledger.transaction() as sql:
            kept = rows(sql, LEDGER_TABLES)
        if not alive:
            self.ledger.close()
        leave = (self.admission.id, self.admission.admitted)
        return alive, self._last, self._sent, list(self.obeyed), leave, kept, self.host.save()

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to a saved state."""
        alive, self._last, sent, obeyed, leave, kept, host = state
        self.host.restore(host)
        if not self.alive:
            self._open()
        self.ledger.boot = f"boot-{self.host.boot}"
        with self.ledger.transaction():
            pass  # forgets which reports were sent in another course of things
        with self.ledger.transaction() as sql:
            put_rows(sql, kept)
        self._sent, self.obeyed, self.alive = sent, list(obeyed), alive
        self.admission.id, self.admission.admitted = leave
        if not alive:
            self.ledger.close()

    def obey(self, order: Order) -> None:
        """Take an order as inbox and executor do."""
        if not self.admission.may_obey():
            return
        self.host.touch("accept")
        heard = self.ledger.accept(order)
        self.host.touch("accepted")
        if heard.standing is Standing.NEW:
            self._check_newer(order)
            self._do(order)
        elif heard.standing is Standing.STALE:
            self._tell(order, Answer.STALE, {"epoch": heard.epoch, "number": heard.number})
        elif heard.report is not None:
            self._send(heard.report)

    def ask(self, order: Order) -> None:
        """Say what became of an order, as the executor does."""
        heard = self.ledger.find(order)
        match heard.standing:
            case Standing.NEW:
                self._tell(order, Answer.NOT_DONE, {"unheard": True})
            case Standing.STALE:
                self._tell(order, Answer.STALE, {"epoch": heard.epoch, "number": heard.number})
            case Standing.SAME if heard.report is not None:
                self._send(heard.report)
            case Standing.SAME if order.number == self._newest().number:
                self._look(order)

    def beat(self) -> Heartbeat:
        """Compose a heartbeat."""
        return Heartbeat(
            host=self.host.name, address="10.0.0.1", boot=self.ledger.boot, ledger=self.ledger.id,
            protocols={table.name: table.version for table in PROTOCOLS.values()},
            vcpus=8, ram_mb=1024, disk_gb=20, reserved_vcpus=0, reserved_ram_mb=0, reserved_disk_gb=0,
            cpu_ratio=1.0, ram_ratio=1.0, disk_ratio=1.0, architecture="x86_64", hypervisor="fake",
            hypervisor_version=1, root_disk="qcow2", free_disk_gb=20, uptime="", guests=self._guests(),
            admission=self.admission.id, admitted=self.admission.admitted,
        )  # fmt: skip

    def _guests(self) -> tuple[GuestReport, ...]:
        seen = self.ledger.server(SERVER)
        if seen is None or not self._has(seen):
            return ()
        state = PowerState.UNKNOWN if seen.at_work else self.host.process or PowerState.STOPPED
        interrupted = seen.was_interrupted(self.ledger.boot)
        granted = seen.grant_epoch or 0 if seen.sealed is None else 0
        return (GuestReport(SERVER, state, seen.epoch, seen.number, interrupted, granted),)

    def _has(self, seen: ServerRecord) -> bool:
        if seen.sealed is None:
            return seen.grant_epoch is not None or self.host.live is not None
        return self.host.live is not None or seen.sealed in self.host.sealed

    def _do(self, order: Order) -> None:
        outcome = perform(self._world, order, Control())
        if self.twice and outcome[0] in ENDS:
            outcome = perform(self._world, order, Control())
        self._end(order, outcome)

    def _look(self, order: Order) -> None:
        self.host.touch("looking")
        self._end(order, look(self._world, order, Control()))

    def _end(self, order: Order, outcome: tuple[Answer, Facts, str]) -> None:
        answer, facts, reason = outcome
        if reason.startswith("internal error"):
            raise Broken(f"{self.host.name}: {order.step}: {reason}")
        report = _report(order, answer, facts, reason)
        if answer not in ENDS:
            self._send(report)
            return
        self.host.touch("finish")
        self.ledger.finish(order, report)
        self.host.touch("finished")
        self._relay()

    def _relay(self) -> None:
        for row in self.ledger.outbox(after=self._sent, limit=100):
            self._send(row.report)
            self._sent = row.id
            self.ledger.sent(row)

    def _tell(self, order: Order, answer: Answer, facts: Facts) -> None:
        self._send(_report(order, answer, facts))

    def _newest(self) -> ServerRecord:
        record = self.ledger.server(SERVER)
        assert record is not None
        return record

    def _check_newer(self, order: Order) -> None:
        """Nothing older is obeyed, whatever the ledger says."""
        if self.obeyed:
            last = self.obeyed[-1]
            if order.number <= last.number or order.epoch < last.epoch:
                raise Broken(f"{self.host.name} obeys {order.step} {order.number}/{order.epoch} after {last.number}")
        self.obeyed.append(order)


def _report(order: Order, answer: Answer, facts: Facts | None = None, reason: str = "") -> StepReport:
    return StepReport(
        host=order.host, server=order.server, migration=order.migration, segment=order.segment, attempt=order.attempt,
        step=order.step, verb=order.verb, number=order.number, answer=answer, facts=facts or {}, reason=reason,
    )  # fmt: skip
