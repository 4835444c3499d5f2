"""`whimbrel lab demo`: a real guest is moved there and back before your eyes, and its own records say what was lost."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from whimbrel.cli import login
from whimbrel.cli.cloud import Cloud
from whimbrel.cli.documents import Migration
from whimbrel.cli.errors import Exit
from whimbrel.cli.options import Staying
from whimbrel.cli.output import console, duration, epoch
from whimbrel.cli.show import draw
from whimbrel.cli.watch import stay
from whimbrel.cli.witness import Boot, Witness
from whimbrel.domain.errors import NotFound, Unavailable
from whimbrel.domain.migration import Outcome
from whimbrel.lab import Lab
from whimbrel.lab.processes import wait_until
from whimbrel.ops import clock

NAME = "demo"
IMAGE, FLAVOR, NETWORK = "whimbrel-guest", "small", "private"
FILL_MIB = 200
USER_DATA = f"writer.interval_ms=50\nfill_mib={FILL_MIB}\n"
BUILD_SECONDS = 120.0
BOOT_SECONDS = 90.0
MOVE_SECONDS = 300.0
RECORDS = 20
"""How many records a boot writes before the story goes on: one second's worth."""


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=".demo",
    show_default=True,
    help="Where the demonstration's lab lives; what an earlier one left there is removed first.",
)
def demo(directory: Path) -> None:
    """Make two hosts, move a real guest there and back, prove that no write was lost, and clean up.

    It takes a minute or two, and ends with exit code 0 only if every proof holds.
    """
    out = console()
    with _alone(directory), _ended_by_sigterm():
        try:
            proved = _perform(out, directory)
        finally:
            _clean_up(out, directory)
    click.get_current_context().exit(Exit.OK if proved else Exit.FAILED)


@dataclass(frozen=True)
class Leg:
    """One switch of the guest from a host to another, and what both consoles say of it."""

    title: str
    before: Boot
    """The boot whose records must be there."""
    left: Boot
    """The boot that ended with the switch; after a revert it is one whose records are given up."""
    after: Boot
    migration: Migration
    steps: tuple[str, str]
    """The step that begins the hosts' part of the downtime when it ends, and the one that ends it."""

    @property
    def proved(self) -> bool:
        """Whether nothing was lost."""
        return self.after.proves(self.before)

    @property
    def downtime(self) -> float:
        """Seconds from the last record before to the first after."""
        assert self.left.last is not None
        assert self.after.first is not None
        return self.after.first.at - self.left.last.at

    @property
    def hosts_part(self) -> float | None:
        """Seconds of the downtime in which the guest was off; what is left is its own shutdown and boot."""
        ended = {
            row.step: epoch(row.ended_at)
            for segment in self.migration.segments
            for attempt in segment.attempts
            for row in attempt.steps
        }
        began, over = (ended.get(step) for step in self.steps)
        return over - began if began is not None and over is not None else None


def _perform(out: Console, directory: Path) -> bool:
    began = clock.monotonic()
    out.print(Text("Two hosts without shared storage, one guest, no trust.\n", "bold"))
    with _act(out, "Two hosts, a message broker and the control plane are up"):
        lab = _fresh_lab(directory)
    with _cloud(lab) as cloud:
        with _act(out, f"A guest with {FILL_MIB} MiB of data is made, 20 durable records a second to come"):
            server = _boot(cloud)
        with Witness(lab, server) as witness:
            source, target = _hosts(lab, cloud, server)
            with _act(out, f"It boots on {source} and writes"):
                _expect_records(witness, source, 0)
                if witness.newest(source).ballast is None:
                    raise Unavailable("The guest has not taken its user data, so there is nothing of size to move.")
            legs = [_there(out, cloud, witness, (source, target))]
            legs += [_and_back(out, cloud, witness, (target, source))]
    _summary(out, legs, clock.monotonic() - began)
    return all(leg.proved for leg in legs)


# --- the story ------------------------------------------------------------------------------------


def _there(out: Console, cloud: Cloud, witness: Witness, way: tuple[str, str]) -> Leg:
    """Migrate, prove, confirm."""
    source, target = way
    _chapter(out, f"whimbrel migrate {NAME} --watch")
    before, boots = witness.newest(source), witness.boots(target)
    migration = _move(cloud)
    _expect_records(witness, target, boots)
    out.print(f"\nThe API says {_status(cloud)}. This is all that was done, and why (whimbrel show {NAME}):\n")
    draw(cloud.migration(migration.id))
    after = witness.newest(target)
    leg = Leg(f"{source} → {target}", before, before, after, migration, ("stop_guest", "start_guest"))
    _prove(out, leg, source, target)
    _chapter(out, f"whimbrel confirm {NAME} --watch")
    _close(cloud, "confirmResize", Outcome.CONFIRMED)
    return leg


def _and_back(out: Console, cloud: Cloud, witness: Witness, way: tuple[str, str]) -> Leg:
    """Migrate back, change our mind, revert, prove."""
    source, target = way
    _chapter(out, f"whimbrel migrate {NAME} --watch, and change our mind")
    before, boots = witness.newest(source), witness.boots(target)
    _move(cloud)
    _expect_records(witness, target, boots)
    boots = witness.boots(source)
    _chapter(out, f"whimbrel revert {NAME} --watch")
    migration = _close(cloud, "revertResize", Outcome.REVERTED)
    _expect_records(witness, source, boots)
    left, after = witness.newest(target), witness.newest(source)
    leg = Leg(f"reverted to {source}", before, left, after, migration, ("stop_target", "start_source"))
    _prove(out, leg, source, source)
    if left.last is not None and before.last is not None:
        given_up = left.last.number - before.last.number
        out.print(
            f"  The {given_up} records that it wrote on {target} meanwhile are given up: that is what a revert means."
        )
    return leg


def _move(cloud: Cloud) -> Migration:
    server = cloud.server(NAME)
    cloud.act(server["id"], {"migrate": None})
    return _stayed(cloud, server["id"], None)


def _close(cloud: Cloud, action: str, wanted: Outcome) -> Migration:
    server = cloud.server(NAME)
    cloud.act(server["id"], {action: None})
    return _stayed(cloud, server["id"], wanted)


def _stayed(cloud: Cloud, server: str, wanted: Outcome | None) -> Migration:
    migration = cloud.newest_migration(server)
    assert migration is not None
    code = stay(cloud, migration, Staying(True, False, MOVE_SECONDS), as_json=False, wanted=wanted)
    if code is not Exit.OK:
        raise Unavailable(f"Migration {migration.id} did not do what was asked for; its story is above.")
    return cloud.migration(migration.id)


# --- the stage ------------------------------------------------------------------------------------


def _fresh_lab(directory: Path) -> Lab:
    _remove(directory)
    return Lab.up(directory, hosts=2)


def _cloud(lab: Lab) -> Cloud:
    return Cloud(replace(login.find("admin", {"OS_CLIENT_CONFIG_FILE": str(lab.clouds_yaml)}), direct=True))


def _boot(cloud: Cloud) -> str:
    """Create the server and wait until it is ACTIVE; return its id."""
    images = cloud.get("image", "/v2/images", name=IMAGE)["images"]
    networks = cloud.get("network", "/v2.0/networks", name=NETWORK)["networks"]
    wanted = {
        "name": NAME,
        "imageRef": images[0]["id"],
        "flavorRef": cloud.flavor(FLAVOR)["id"],
        "networks": [{"uuid": networks[0]["id"]}],
        "user_data": base64.b64encode(USER_DATA.encode()).decode(),
    }
    server: str = cloud.post("compute", "/servers", {"server": wanted})["server"]["id"]
    found: dict[str, Any] = {}

    def built() -> bool:
        found.update(cloud.server(server))
        return bool(found["status"] != "BUILD")

    if not wait_until(built, BUILD_SECONDS) or found["status"] != "ACTIVE":
        said = found.get("fault", {}).get("message", f"it is {found['status']} after {BUILD_SECONDS:.0f} s")
        raise Unavailable(f"The guest could not be made: {said}")
    return server


def _hosts(lab: Lab, cloud: Cloud, server: str) -> tuple[str, str]:
    source = cloud.server(server)["OS-EXT-SRV-ATTR:host"]
    return source, next(name for name in lab.hosts if name != source)


def _expect_records(witness: Witness, host: str, boots: int) -> None:
    if not witness.wait_for_boot(host, boots, RECORDS, BOOT_SECONDS):
        raise Unavailable(f"The guest wrote nothing on {host} within {BOOT_SECONDS:.0f} s; see its console.log there.")


def _status(cloud: Cloud) -> str:
    server = cloud.server(NAME)
    return f"{server['status']} on {server['OS-EXT-SRV-ATTR:host']}"


def _remove(directory: Path) -> None:
    with contextlib.suppress(NotFound):
        Lab.open(directory).down()


def _clean_up(out: Console, directory: Path) -> None:
    """Take the lab down whatever has happened; a second Ctrl-C does not leave half of it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _act(out, f"Everything is removed; the logs stay in {directory / 'logs'}"):
            _remove(directory)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One demonstration in a directory; the kernel ends the claim of one that was killed."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Unavailable(f"Another demonstration runs in {directory}; wait for it, or choose another --dir.") from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A polite kill is a Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# --- what is said ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _act(out: Console, what: str) -> Iterator[None]:
    began = clock.monotonic()
    with out.status(Text(what)):
        yield
    out.print(Text.assemble(("✓ ", "green"), what, (f"  {duration(clock.monotonic() - began)}", "dim")))


def _chapter(out: Console, command: str) -> None:
    out.print(Text.assemble("\n", ("$ ", "dim"), (command, "bold")))


def _prove(out: Console, leg: Leg, left: str, here: str) -> None:
    before, found = leg.before.last, leg.after.found
    assert before is not None
    sign = ("✓ ", "green") if leg.proved else ("✗ ", "bold red")
    ballast = f" and {leg.after.ballast['mib']} MiB of data" if leg.after.ballast else ""
    said = (
        f"The last record that the guest called durable on {left} was {before.number}. On {here} it has read back "
        f"{found['intact']} of {found['total']} records{ballast}: {found['torn']} torn, {found['bad']} bad, "
        f"the last is {found['last']}."
    )
    out.print(Text.assemble("\n", sign, said))


def _summary(out: Console, legs: list[Leg], seconds: float) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    table.add_column("")
    for leg in legs:
        table.add_column(leg.title, justify="right")
    rows = {
        "durable records before": [str(leg.before.last.number if leg.before.last else 0) for leg in legs],
        "records read back whole": [str(leg.after.found["intact"]) for leg in legs],
        "torn, bad": [f"{leg.after.found['torn']}, {leg.after.found['bad']}" for leg in legs],
        "guest wrote nothing for": [duration(leg.downtime) for leg in legs],
        "  the hosts' part of it": [duration(part) if (part := leg.hosts_part) else "" for leg in legs],
        "nothing lost": ["yes" if leg.proved else "NO" for leg in legs],
    }
    for label, cells in rows.items():
        table.add_row(label, *cells)
    out.print()
    out.print(table)
    verdict = "Every proof holds" if all(leg.proved for leg in legs) else "A PROOF FAILED"
    out.print(Text("The rest is the guest's own shutdown and boot, which is slow where it is emulated.", "dim"))
    out.print(Text(f"\n{verdict}. It took {duration(seconds)}.\n", "bold"))
