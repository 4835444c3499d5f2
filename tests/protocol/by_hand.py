"""A cluster whose hosts are imitated whole, ledgers and all: for tests that put databases back.

The hosts of `cluster.py` have the real ledgers; here a test may set what a host remembers. Messages are delivered when
the test says so, and `audit` is called at every boundary.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from whimbrel.agent.ledger import is_same
from whimbrel.conductor import hosts as host_books
from whimbrel.conductor import reports, restore, timers
from whimbrel.conductor.drive import Driver, Effects
from whimbrel.domain.claim import Resources
from whimbrel.domain.errors import CannotTell, StepError
from whimbrel.domain.migration import Answer, Kind, Verb, Verdict, Witness
from whimbrel.domain.server import Flavor, PowerState
from whimbrel.migration import protocols
from whimbrel.migration.messages import Ask, Facts, Order, Phase, Steering, StepReport, Targets, Wake
from whimbrel.migration.ports import Control, World
from whimbrel.migration.presence import GuestReport, Heartbeat, Welcome
from whimbrel.ops import clock, settings
from whimbrel.store import claims, evacuations, fencing, migrations
from whimbrel.store.actions import Asked
from whimbrel.store.engine import Store
from whimbrel.store.tables import claims as claims_table
from whimbrel.store.tables import debts, journal, metadata, servers
from whimbrel.store.tables import hosts as hosts_table
from whimbrel.store.tables import migrations as migrations_table

SERVER = "11111111-2222-4333-8444-555555555555"
SMALL = {"number": 1, **msgspec.to_builtins(Flavor("small", "small", 1, 128, 1))}
LARGE = {"number": 2, **msgspec.to_builtins(Flavor("large", "large", 2, 256, 2))}
IDENTITY = {"request_id": "req-1", "user_id": "u", "project_id": "p"}


class Crash(BaseException):
    """The host lost power here."""


@dataclass
class Host:
    """One host's durable and volatile state, and the ports over it."""

    name: str
    crash_at: Callable[[str], None]
    durable: dict[str, Any] = field(
        default_factory=lambda: {"epoch": 0, "number": 0, "orders": {}, "sealed": False, "released": 0, "grant": None}
    )
    live: dict[str, Any] | None = None
    incoming: dict[str, dict[str, Any]] = field(default_factory=dict)
    sealed: dict[str, dict[str, Any]] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    running: str | None = None
    boot: int = 1
    up: bool = True
    admitted: bool = True
    fail_at: str | None = None
    fail_times: int = 99
    silent_hypervisor: bool = False
    peers: dict[str, Host] = field(default_factory=dict)

    def world(self) -> World:
        """The ports."""
        return World(self, self, self, self, Promises(self), self)  # type: ignore[arg-type]

    def touch(self, what: str) -> None:
        """A boundary: the test may crash the host here."""
        self.crash_at(f"{self.name}.{what}")

    # guests
    def state(self, server: str) -> PowerState | None:
        if self.silent_hypervisor:
            raise CannotTell("libvirtd is away")
        if server not in self.domains:
            return None
        return {None: PowerState.STOPPED, "paused": PowerState.PAUSED, "running": PowerState.RUNNING}[self.running]

    def known(self) -> dict[str, PowerState]:
        return {server: self.state(server) or PowerState.UNKNOWN for server in self.domains}

    def compose(self, order: Order) -> tuple[str, list[str]]:
        return order.results.get("stop_guest", {}).get("definition", "xml"), []

    def define(self, server: str, definition: str) -> None:
        self.touch("define")
        self.domains[server] = definition

    def undefine(self, server: str, *, for_good: bool = False) -> None:
        assert self.running is None, "undefine of a running guest"
        self.touch("undefine")
        self.domains.pop(server, None)

    def definition(self, server: str) -> str | None:
        return self.domains.get(server)

    def create_paused(self, server: str) -> None:
        self.touch("create_paused")
        if self.fail_at == "create_paused" and self.fail_times > 0:
            self.fail_times -= 1
            raise StepError("no memory for the guest")
        assert self.live is not None and server in self.domains
        self.running = "paused"

    def resume(self, server: str) -> None:
        self.touch("resume")
        self.running = "running"
        assert self.live is not None
        self.touch("resumed")

    def shut_down(self, server: str, grace: float, control: Control) -> bool:
        self.touch("shut_down")
        self.running = None
        return False

    def destroy(self, server: str) -> None:
        self.touch("destroy")
        self.running = None

    # directories
    def adopt(self, server: str, attempt: str) -> None:
        self.touch("adopt")
        if attempt in self.incoming:
            self.live = self.incoming.pop(attempt)
        assert self.live is not None

    def disown(self, server: str, attempt: str) -> None:
        if self.live is not None and self.live["attempt"] == attempt:
            self.touch("disown")
            self.incoming[attempt], self.live = self.live, None

    def is_live(self, server: str, attempt: str | None = None) -> bool:
        return self.live is not None and (attempt is None or self.live["attempt"] == attempt)

    def seal(self, server: str, attempt: str) -> None:
        if attempt not in self.sealed:
            self.touch("rename")
            assert self.live is not None and self.running is None
            self.sealed[attempt], self.live = self.live, None

    def unseal(self, server: str, attempt: str) -> None:
        if attempt in self.sealed:
            self.touch("rename_back")
            self.live = self.sealed.pop(attempt)

    def bring_back(self, server: str) -> None:
        if self.live is None and len(self.sealed) == 1:
            self.touch("bring_back")
            self.live = self.sealed.popitem()[1]

    def is_sealed(self, server: str, attempt: str) -> bool:
        return attempt in self.sealed

    def save_definition(self, server: str, definition: str) -> None:
        assert self.live is not None
        self.live["xml"] = definition

    def saved_definition(self, server: str, attempt: str) -> str | None:
        where = self.sealed.get(attempt) or self.live
        return where.get("xml") if where else None

    def discard(self, server: str, attempt: str) -> int:
        self.touch("discard")
        self.incoming.pop(attempt, None)
        if self.live is not None and self.live["attempt"] == attempt:
            assert self.running is None, "discard of a running guest"
            self.live = None
        return 0

    def remove_sealed(self, server: str, attempt: str) -> int:
        self.touch("remove_sealed")
        self.sealed.pop(attempt, None)
        return 0

    def remove_all(self, server: str) -> int:
        self.touch("remove_all")
        self.live, self.incoming, self.sealed = None, {}, {}
        return 0

    # disks and channel
    def _maybe_fail(self, step: str) -> None:
        self.touch(step)
        if self.fail_at == step and self.fail_times > 0:
            self.fail_times -= 1
            raise StepError(f"{step} does not work")

    def prepare(self, order: Order, control: Control) -> Facts:
        self._maybe_fail("prepare")
        data = 1 if order.from_image else 0
        self.incoming[order.attempt] = {"attempt": order.attempt, "writes": data}
        return {}

    def is_prepared(self, order: Order) -> bool:
        return order.attempt in self.incoming

    def open(self, order: Order, control: Control) -> Facts:
        self._maybe_fail("open_channel")
        return {}

    def close(self, order: Order) -> None:
        pass

    def is_open(self, order: Order) -> bool:
        return False

    def reserve_slot(self, order: Order, control: Control) -> None:
        pass

    def take_slot(self, order: Order, control: Control) -> None:
        pass

    def precopy(self, order: Order, control: Control) -> Facts:
        self.touch("precopy")
        return {}

    def close_log(self, order: Order, control: Control) -> None:
        pass

    def end_precopy(self, order: Order, control: Control) -> None:
        self.touch("end_precopy")

    def push(self, order: Order, control: Control) -> Facts:
        assert order.work.target is not None
        peer = self.peers[order.work.target.host]
        if not peer.up:
            raise StepError(f"{peer.name} is away")
        self._maybe_fail("copy_disks")
        peer.incoming[order.attempt]["writes"] = self.sealed[order.attempt]["writes"]
        self.touch("copied")
        return {"disks": {"disk-0": {"digest": self.sealed[order.attempt]["writes"]}}}

    def pushed(self, order: Order) -> Facts | None:
        return None

    def verify(self, order: Order, control: Control) -> Facts:
        self._maybe_fail("verify_disks")
        assert order.results["copy_disks"]["disks"]["disk-0"]["digest"] == self.incoming[order.attempt]["writes"]
        return {}

    def resize(self, order: Order, control: Control) -> Facts:
        self._maybe_fail("resize_disks")
        return {}


@dataclass
class Promises:
    """The ledger's grants."""

    host: Host

    def grant(self, order: Order) -> None:
        self.host.touch("grant")
        if order.epoch < self.host.durable["epoch"]:
            raise StepError("revoked")
        self.host.durable |= {"grant": (order.epoch, self.host.boot), "sealed": False}

    def release(self, order: Order) -> None:
        if self.host.durable["sealed"] or self.host.durable["grant"] != (order.epoch, self.host.boot):
            raise StepError("no grant")
        self.host.touch("release")
        self.host.durable["released"] = max(self.host.durable["released"], order.epoch)
        self.host.touch("released")

    def was_released(self, server: str, epoch: int) -> bool:
        return bool(self.host.durable["released"] >= epoch)

    def granted_since(self, server: str, epoch: int) -> bool:
        grant = self.host.durable["grant"]
        return grant is not None and grant[0] >= epoch

    def seal(self, server: str, attempt: str) -> None:
        self.host.touch("promise")
        self.host.durable["sealed"] = True

    def is_sealed(self, server: str) -> bool:
        return bool(self.host.durable["sealed"])


class Free:
    """A Control that never ends a step."""

    def check(self) -> None: ...
    def wait(self, seconds: float) -> None: ...
    def left(self) -> float:
        return 60.0

    def restart_limit(self) -> None: ...
    def steering(self) -> Steering:
        return Steering()

    def report(self, done: int, total: int, phase: Phase = Phase.DISKS) -> None: ...


@cache
def _store() -> Store:
    """One database for all clusters of this process, because compiling the statements anew costs the most."""
    path = Path(tempfile.mkdtemp(prefix="whimbrel-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    store = Store(f"sqlite:///{path}/whimbrel.db")
    store.write_now(lambda tx: metadata.create_all(tx))
    return store


def _empty_store() -> Store:
    def clear(tx: Connection) -> None:
        for table in reversed(metadata.sorted_tables):
            tx.execute(table.delete())

    _store().write_now(clear)
    return _store()


class Cluster:
    """Hosts, one server on the first of them, the conductor's database, and the messages in flight."""

    def __init__(self, names: tuple[str, ...] = ("h1", "h2", "h3"), **conf: Any) -> None:
        self.time = 1_000_000.0
        clock.now = lambda: self.time
        self.store = _empty_store()
        self.conf = settings.Conductor(**conf)
        self.driver = Driver(self.conf, lambda image: "")
        self.queue: deque[object] = deque()
        self.crash_at: Callable[[str], None] = lambda what: None
        self.trace: list[str] = []
        self.hosts = {name: Host(name, self._touch) for name in names}
        for host in self.hosts.values():
            host.peers = self.hosts
            self.beat(host)
        self.writes = 7
        self._place_server(names[0])

    def _touch(self, what: str) -> None:
        self.trace.append(what)
        self.crash_at(what)

    def _place_server(self, name: str) -> None:
        """Make the server as a build would have left it: running, with three writes on its disk."""
        host = self.hosts[name]
        host.live = {"attempt": "0-1", "writes": self.writes, "xml": "xml"}
        host.domains[SERVER] = "xml"
        host.running = "running"
        host.durable |= {"epoch": 1, "number": 1, "grant": (1, host.boot), "released": 1}

        def rows(tx: Connection) -> None:
            tx.execute(
                servers.insert().values(
                    id=SERVER, name="vm", project_id="p", user_id="u", reservation_id="r", flavor=SMALL, image=None,
                    host=name, root_disk="qcow2", epoch=1, order_number=1, power_state="running", created_at=0.0,
                    updated_at=0.0, launched_at=0.0,
                )
            )  # fmt: skip
            claims.take(tx, name, SERVER, "0-1", Resources(1, 128, 1))

        self.store.write_now(rows)

    # --- messages --------------------------------------------------------------------------------

    def beat(self, host: Host) -> None:
        """One heartbeat, delivered at once."""
        state = PowerState.RUNNING if host.running == "running" else PowerState.STOPPED
        ledger = host.durable
        interrupted = ledger["sealed"] or (ledger["grant"] is not None and ledger["grant"][1] != host.boot)
        granted = ledger["grant"][0] if ledger["grant"] and not ledger["sealed"] else 0
        line = GuestReport(SERVER, state, ledger["epoch"], ledger["number"], interrupted, granted)
        guests = (line,) if host.live or (ledger["sealed"] and host.sealed) else ()
        message = Heartbeat(
            host=host.name, address="10.0.0.1", boot=str(host.boot), ledger=host.name,
            protocols={name: table.version for name, table in protocols.PROTOCOLS.items()},
            vcpus=8, ram_mb=1024, disk_gb=20, reserved_vcpus=0, reserved_ram_mb=0, reserved_disk_gb=0,
            cpu_ratio=1.0, ram_ratio=1.0, disk_ratio=1.0, architecture="x86_64", hypervisor="fake",
            hypervisor_version=1, root_disk="qcow2", free_disk_gb=20, uptime="", guests=guests,
            admission=str(host.boot), admitted=host.admitted,
        )  # fmt: skip
        self._take(self.store.write_now(host_books.hear, message, self.conf))

    def _take(self, effects: Effects) -> None:
        self.queue.extend(message for _, _, message in effects.outbox)
        self.queue.extend(message for _, message in effects.passing)
        for migration_id, question in effects.select:
            names = [n for n in self.hosts if n not in question.exclude and n != question.source]
            if question.forced_host:
                names = [question.forced_host]
            answer = Targets(tuple(names), tuple(0.0 for _ in names), ())
            self._take(self.store.write_now(timers.keep_targets, self.driver, migration_id, answer))

    def start(self, kind: Kind = Kind.MIGRATION, table: protocols.Protocol = protocols.COLD, **more: Any) -> int:
        """Begin a migration as the API does."""
        begun = self.store.write_now(migrations.begin, SERVER, kind, table, **IDENTITY, **more)
        self.queue.append(Wake(begun.migration_id))
        return begun.migration_id

    def verdict(self, verdict: Verdict) -> None:
        """Confirm or revert as the API does."""
        begun = self.store.write_now(migrations.give_verdict, SERVER, verdict, request_id="req-2")
        self.queue.append(Wake(begun.migration_id))

    def cancel(self, migration: int) -> None:
        """Cancel as the API does."""
        begun = self.store.write_now(migrations.request_cancel, migration)
        self.queue.extend(message for _, _, message in begun.outbox)

    def evacuate(self, target: str | None = None, *, leave_stopped: bool = False) -> int:
        """Evacuate as the API does."""
        asked = Asked("req-3", "u", "p")
        begun = self.store.write_now(evacuations.begin, SERVER, asked, "p", target=target, leave_stopped=leave_stopped)
        self.queue.append(Wake(begun.migration_id))
        return begun.migration_id

    def prove(self, name: str, witness: Witness = Witness.ADMINISTRATOR) -> None:
        """Prove that the boot of a host, as it was last heard of, is over."""
        row = next(row for row in self.rows(hosts_table) if row.name == name)
        silent = self.time - 20
        wakes = self.store.write_now(fencing.give, name, witness, "seen", boot=row.boot, silent_since=silent)
        self.queue.extend(message for _, _, message in wakes)

    def delete(self) -> None:
        """Delete as the API does."""
        begun = self.store.write_now(migrations.request_delete, SERVER, **IDENTITY)
        self.queue.append(Wake(begun.migration_id))

    def step(self) -> None:
        """Deliver the oldest message."""
        self.time += 0.01
        message = self.queue.popleft()
        match message:
            case Wake(migration):
                self._take(self.store.write_now(self.driver.advance, migration))
            case StepReport():
                self.take(message)
            case Order():
                self._obey(self.hosts[message.host], message)
            case Ask(order):
                self._asked(self.hosts[order.host], order)
            case Welcome():
                self._welcome(self.hosts[message.host], message)
        self.audit()

    def take(self, report: StepReport) -> None:
        """Give the conductor a report."""
        self._take(self.store.write_now(reports.take, self.driver, report))

    def run(self, steps: int = 400) -> None:
        """Deliver until nothing is left; with nothing in flight, let time pass so that orders are asked about."""
        for _ in range(steps):
            if self.queue:
                self.step()
            elif not self.tick():
                return
        raise AssertionError("the migration does not come to rest")

    def tick(self, *, later: float = 6.0) -> bool:
        """Let time pass, with heartbeats of the hosts that are up; return whether anything is in flight then."""
        self.time += later
        for host in self.hosts.values():
            if host.up:
                self.beat(host)
        due = self.store.read_now(timers.look, self.conf)
        for key in due.silent:
            self._take(self.store.write_now(timers.call_silent, self.driver, key))
        for server in due.windows:
            self._take(self.store.write_now(timers.close_window, server))
        for migration_id in due.asleep:
            self._take(self.store.write_now(self.driver.advance, migration_id))
        self._take(self.store.write_now(timers.collect_debts, self.conf))
        self._take(self.store.write_now(restore.settle, self.conf))
        self.store.write_now(timers.note_asked, [key for key, _ in due.asks])
        self.queue.extend(ask for _, ask in due.asks if self.hosts[ask.order.host].up)
        return bool(self.queue)

    def deliver(self) -> None:
        """Deliver what is in flight, and let no time pass."""
        while self.queue:
            self.step()

    # --- a host's agent --------------------------------------------------------------------------

    def _welcome(self, host: Host, message: Welcome) -> None:
        if host.up and message.admission == str(host.boot):
            epoch, number = message.servers.get(SERVER, (0, 0))
            host.durable["epoch"] = max(host.durable["epoch"], epoch)
            host.durable["number"] = max(host.durable["number"], number)
            host.admitted = True

    def _obey(self, host: Host, order: Order) -> None:
        if not (host.up and host.admitted):
            return
        ledger = host.durable
        known = _taken(host, order)
        if known is not None:
            if known[1] is not None:
                self.queue.append(known[1])
            return
        if order.epoch < ledger["epoch"] or order.number <= ledger["number"]:
            seen = {"epoch": ledger["epoch"], "number": ledger["number"]}
            self.queue.append(_report(order, Answer.STALE, seen))
            return
        try:
            self._touch(f"{host.name}.accept")
            ledger |= {"epoch": order.epoch, "number": order.number}
            ledger["orders"][order.number] = [order, None]
            report = self._do(host, order)
            self._touch(f"{host.name}.finish")
            if report.answer is not Answer.UNKNOWN:
                ledger["orders"][order.number][1] = report
            self._touch(f"{host.name}.report")
            self.queue.append(report)
        except Crash:
            self.power_cut(host)

    def _do(self, host: Host, order: Order) -> StepReport:
        step = protocols.protocol(order.protocol, order.version).step(order.step)
        assert isinstance(step, protocols.HostStep)
        action = step.do if order.verb is Verb.DO else step.undo
        assert action is not None
        try:
            return _report(order, Answer.DONE, action(host.world(), order, Free()))
        except CannotTell as error:
            return _report(order, Answer.UNKNOWN, {}, str(error))
        except StepError as error:
            return _report(order, Answer.FAILED, dict(error.facts), str(error))

    def _asked(self, host: Host, order: Order) -> None:
        if not host.up:
            return
        known = _taken(host, order)
        if known is None:
            stale = order.number <= host.durable["number"] or order.epoch < host.durable["epoch"]
            facts = {"epoch": host.durable["epoch"], "number": host.durable["number"]} if stale else {"unheard": True}
            self.queue.append(_report(order, Answer.STALE if stale else Answer.NOT_DONE, facts))
        elif known[1] is not None:
            self.queue.append(known[1])
        else:
            self.queue.append(self._look(host, order, known))

    def _look(self, host: Host, order: Order, known: list[Any]) -> StepReport:
        step = protocols.protocol(order.protocol, order.version).step(order.step)
        assert isinstance(step, protocols.HostStep)
        if order.verb is Verb.UNDO:
            report = _report(order, Answer.NOT_DONE)
        else:
            try:
                answer, facts = step.probe(host.world(), order, Free())
                report = _report(order, answer, facts)
            except CannotTell as error:
                return _report(order, Answer.UNKNOWN, {}, str(error))
        known[1] = report
        return report

    def power_cut(self, host: Host, *, stay_down: bool = False) -> None:
        """Everything volatile is gone; what is on the disk stays. Without `stay_down` it boots at once."""
        host.running = None
        host.up = host.admitted = False
        if not stay_down:
            self.boot(host)

    def boot(self, host: Host) -> None:
        """The host comes back in a new boot, and tells the conductor."""
        host.boot += 1
        host.up = True
        self.beat(host)

    # --- what must always hold -------------------------------------------------------------------

    def audit(self) -> None:
        """Check S1, S2, S4 and S5 as they stand at this boundary."""
        runners = [host.name for host in self.hosts.values() if host.running == "running"]
        assert len(runners) <= 1, f"split brain: {runners}\n{self.story()}"
        with_grant = [h for h in self.hosts.values() if h.running == "running"]
        for host in with_grant:
            assert host.durable["grant"] is not None and host.durable["grant"][1] == host.boot, self.story()
        server = self.server()
        newest = self.migration_or_none()
        deleting = newest is not None and "delete" in (newest.kind, newest.verdict)
        if server.deleted_at is None and not deleting:
            copies = [
                place
                for host in self.hosts.values()
                for place in (host.live, *host.sealed.values())
                if place is not None and place["writes"] == self.writes
            ]
            assert copies, f"no whole copy is left\n{self.story()}"
        for name, used in self.store.read_now(claims.claimed).items():
            assert used.ram_mb <= 1024 and used.vcpus <= 8, f"{name} is overcommitted"

    def settled(self, home: str, *, running: bool = True) -> None:
        """Check that the server is whole at `home`, that nobody else has anything of it, and that claims balance."""
        for host in self.hosts.values():
            if host.up:
                self.beat(host)
        self.audit()
        host = self.hosts[home]
        assert host.live is not None and host.live["writes"] == self.writes, self.story()
        assert (host.running == "running") is running, self.story()
        assert self.server().host == home, self.story()
        assert self.server().power_state == ("running" if running else "stopped"), self.story()
        for other in self.hosts.values():
            assert not other.incoming, f"leftover at {other.name}\n{self.story()}"
            if other is not host:
                assert other.live is None and not other.sealed and not other.domains, self.story()
        assert not host.sealed, self.story()
        rows = self.rows(claims_table)
        assert [row.host for row in rows] == [home], f"{rows}\n{self.story()}"

    def server(self) -> Any:
        """The server's row."""
        return self.store.read_now(lambda tx: tx.execute(select(servers)).one())

    def migration(self) -> Any:
        """The newest migration's row."""
        row = self.migration_or_none()
        assert row is not None
        return row

    def move(self) -> Any:
        """The newest migration that moves the server; one that starts it again after a power cut is none."""
        moving = migrations_table.c.kind.in_((Kind.MIGRATION, Kind.RESIZE))
        query = select(migrations_table).where(moving).order_by(migrations_table.c.id.desc()).limit(1)
        return self.store.read_now(lambda tx: tx.execute(query).one())

    def migration_or_none(self) -> Any:
        """The newest migration's row, None before the first."""
        query = select(migrations_table).order_by(migrations_table.c.id.desc()).limit(1)
        return self.store.read_now(lambda tx: tx.execute(query).one_or_none())

    def rows(self, table: Any) -> list[Any]:
        """All rows of a table."""
        return self.store.read_now(lambda tx: tx.execute(select(table)).all())

    def marks(self) -> dict[str, str]:
        """The journal of the newest migration: step to mark, later segments and attempts over earlier ones."""
        query = select(journal).order_by(journal.c.segment, journal.c.attempt)
        return {row.step: row.mark for row in self.store.read_now(lambda tx: tx.execute(query).all())}

    def story(self) -> str:
        """What happened, for a failing test's message."""
        rows = "\n".join(
            f"  {r.segment}.{r.attempt} {r.step:14} {r.mark:12} on={r.host} no={r.number} {r.reason}"
            for r in self.rows(journal)
        )
        m = self.migration()
        owed = [f"{d.host}:{d.step}:{d.verb}:{'paid' if d.paid_at else 'due'}" for d in self.rows(debts)]
        return (
            f"open={m.open} outcome={m.outcome} fence={m.fence} reason={m.reason}\n{rows}\ndebts={owed}\n{self.trace}"
        )


def _taken(host: Host, order: Order) -> list[Any] | None:
    """Return this very order and its report as the host's ledger has them; another one of that number is none."""
    known: list[Any] | None = host.durable["orders"].get(order.number)
    return known if known is not None and is_same(known[0], order) else None


def _report(order: Order, answer: Answer, facts: Facts | None = None, reason: str = "") -> StepReport:
    return StepReport(
        host=order.host, server=order.server, migration=order.migration, segment=order.segment, attempt=order.attempt,
        step=order.step, verb=order.verb, number=order.number, answer=answer, facts=facts or {}, reason=reason,
    )  # fmt: skip
