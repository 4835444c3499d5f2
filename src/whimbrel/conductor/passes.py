"""Lets one host reach another for the length of one order: whose order opens a channel, and what it may open.

A host asks for nothing. Its order carries a pass for minutes, and whenever the conductor asks what became of an order
that is out, which it does every few seconds, the question carries a newer one. So a copy may take hours and be cut as
often as it likes, and yet a pass that is stolen, with the key that it is for, is soon worth nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import Connection, select

from whimbrel.domain.migration import Verb
from whimbrel.identity.authority import RECEIVE, Leave, SshAuthority
from whimbrel.migration.messages import Order, Pass, Place
from whimbrel.migration.protocols import PROTOCOLS
from whimbrel.store.tables import hosts

_log = structlog.get_logger()


class Passes:
    """Gives passes; made once per process."""

    def __init__(self, authority: SshAuthority) -> None:
        self._authority = authority

    def give(self, tx: Connection, order: Order) -> Order:
        """Return the order with a pass, if it opens a channel and both hosts are enrolled and not forced down."""
        way = _way(order)
        if way is None:
            return order
        query = select(hosts.c.name, hosts.c.address, hosts.c.channel).where(
            hosts.c.name.in_([place.host for place in way[:2]]), hosts.c.forced_down.is_(False)
        )
        return self.sign(order, {row.name: (row.address, row.channel) for row in tx.execute(query)})

    def sign(self, order: Order, known: Mapping[str, tuple[str, dict[str, Any] | None]]) -> Order:
        """As `give` does, by what is known of the two hosts: address and channel."""
        way = _way(order)
        if way is None:
            return order
        here, there, command = way
        address, near = known.get(here.host, ("", None))
        _, far = known.get(there.host, ("", None))
        if not near or not far:
            return order
        name = f"migration {order.migration}, attempt {order.attempt}, {order.step}"
        leave = Leave(near["key"], address, there.host, command, name, order.number)
        try:
            certificate, until = self._authority.sign(leave)
        except ValueError as error:  # of what the host said of itself, so only its own moves suffer
            _log.warning("no pass for a channel", on=here.host, reason=str(error))
            return order
        return replace(order, channel=Pass(certificate, until, far["host_key"], far["port"]))

    def renew(self, tx: Connection, orders: list[Order]) -> list[Order]:
        """Return the orders, each with a pass of now; it fits also keys that a host has changed meanwhile."""
        return [self.give(tx, order) for order in orders]


def _way(order: Order) -> tuple[Place, Place, str] | None:
    """Return who reaches whom, and what runs there; None when the order opens no channel."""
    source, target = order.work.source, order.work.target
    if order.verb is not Verb.DO or source is None or target is None or source.host == target.host:
        return None
    table = PROTOCOLS.get(order.protocol)  # an order in the journal may be of a release that knew others
    if table is None or all(step.name != "open_channel" for step in table.steps):
        return None
    if order.host == source.host:
        return source, target, f"{RECEIVE} {order.server} {order.attempt}"
    if order.host == target.host and order.step == "prepare" and order.work.image is not None:
        return target, source, f"{RECEIVE} base {order.work.image.sha256}"
    return None
