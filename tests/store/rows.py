"""Rows to begin with, and threads that begin at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import msgspec
from sqlalchemy import Connection

from whimbrel.conductor import hosts as host_books
from whimbrel.domain.server import Flavor
from whimbrel.migration import protocols
from whimbrel.migration.presence import GuestReport, Heartbeat
from whimbrel.ops import settings
from whimbrel.store.engine import Store
from whimbrel.store.tables import servers

SERVER = "11111111-2222-4333-8444-555555555555"
FLAVOR = {"number": 1, **msgspec.to_builtins(Flavor("small", "small", 1, 128, 1))}
WHO = {"request_id": "req-1", "user_id": "u", "project_id": "p"}


def heartbeat(name: str, *guests: GuestReport, vcpus: int = 4) -> Heartbeat:
    """Return what a host of this name says."""
    return Heartbeat(
        host=name, address="10.0.0.1", boot="1", ledger=name,
        protocols={name: table.version for name, table in protocols.PROTOCOLS.items()},
        vcpus=vcpus, ram_mb=4096, disk_gb=40, reserved_vcpus=0, reserved_ram_mb=0, reserved_disk_gb=0,
        cpu_ratio=1.0, ram_ratio=1.0, disk_ratio=1.0, architecture="x86_64", hypervisor="fake",
        hypervisor_version=1, root_disk="qcow2", free_disk_gb=40, uptime="", guests=guests,
    )  # fmt: skip


def enrol(store: Store, *names: str) -> None:
    """Let these hosts be heard."""
    for name in names:
        store.write_now(host_books.hear, heartbeat(name), settings.Conductor())


def add_server(store: Store, host: str = "h1", *, server: str = SERVER) -> None:
    """Write down a server that runs on this host, at epoch 1, after order 1."""

    def insert(tx: Connection) -> None:
        tx.execute(
            servers.insert().values(
                id=server, name="vm", project_id="p", user_id="u", reservation_id="r", flavor=FLAVOR, image=None,
                host=host, root_disk="qcow2", epoch=1, order_number=1, power_state="running", created_at=0.0,
                updated_at=0.0, launched_at=0.0,
            )
        )  # fmt: skip

    store.write_now(insert)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Make the calls in threads that start together; return each one's result, or the error that it raised."""
    barrier = Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait(10)
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with a pause before its commit, so that transactions that begin together overlap."""

    def run(tx: Connection, *args: Any, **kwargs: Any) -> Any:
        result = function(tx, *args, **kwargs)
        Event().wait(0.03)
        return result

    return run
