"""The Grants port, kept in the ledger: this host's durable word on who may run here.

What must hold: a grant counts at its own epoch, in the boot that it was given in, and until the next seal. A newer
epoch or order number, seen in any order, takes it away, and so does a lease that has run out: a step that is late can
no longer let a guest run.
"""

from __future__ import annotations

from collections.abc import Callable

from whimbrel.agent.ledger import Ledger, ServerRecord, read_server
from whimbrel.domain.errors import StepError
from whimbrel.migration.messages import Order


class LedgerGrants:
    """Grants, releases and seals; each call returns after the ledger is on the disk.

    `may_run` says whether this host may run guests at all now; it is asked inside of a transaction and must not write.
    """

    def __init__(self, ledger: Ledger, may_run: Callable[[], bool]) -> None:
        self._ledger = ledger
        self._may_run = may_run

    def grant(self, order: Order) -> None:
        """Record that this boot of this host may run the server at this order's epoch; lifts a seal."""
        with self._ledger.transaction() as sql:
            self._refuse_late(order, read_server(sql, order.server))
            sql.execute(
                "INSERT INTO servers (server, epoch, number, grant_epoch, grant_boot) VALUES (?1, ?2, ?3, ?2, ?4) "
                "ON CONFLICT (server) DO UPDATE SET epoch = ?2, grant_epoch = ?2, grant_boot = ?4, sealed = NULL",
                (order.server, order.epoch, order.number, self._ledger.boot),
            )

    def release(self, order: Order) -> None:
        """Record that the guest is let run; StepError if the grant was revoked or sealed meanwhile, or never given."""
        server, epoch = order.server, order.epoch
        with self._ledger.transaction() as sql:
            seen = read_server(sql, server)
            self._refuse_late(order, seen)
            if seen is None or not self._holds(seen) or seen.grant_epoch != epoch:
                raise StepError(f"This host holds no grant to run server {server} at epoch {epoch}.")
            sql.execute(
                "UPDATE servers SET released_epoch = max(coalesce(released_epoch, 0), ?) WHERE server = ?",
                (epoch, server),
            )

    def was_released(self, server: str, epoch: int) -> bool:
        """Return whether the guest was ever let run here at this epoch or a later one."""
        seen = self._ledger.server(server)
        return seen is not None and seen.released_epoch is not None and seen.released_epoch >= epoch

    def granted_since(self, server: str, epoch: int) -> bool:
        """Return whether this host was ever allowed to run the server at this epoch or a later one."""
        seen = self._ledger.server(server)
        return seen is not None and seen.grant_epoch is not None and seen.grant_epoch >= epoch

    def seal(self, server: str, attempt: str) -> None:
        """Promise not to run the server again without a newer grant."""
        with self._ledger.transaction() as sql:
            sql.execute(
                "INSERT INTO servers (server, epoch, number, sealed) VALUES (?1, 0, 0, ?2) "
                "ON CONFLICT (server) DO UPDATE SET sealed = ?2",
                (server, attempt),
            )

    def is_sealed(self, server: str) -> bool:
        """Return whether that promise stands."""
        seen = self._ledger.server(server)
        return seen is not None and seen.sealed is not None

    def _holds(self, seen: ServerRecord) -> bool:
        return seen.sealed is None and seen.grant_epoch is not None and seen.grant_boot == self._ledger.boot

    def _refuse_late(self, order: Order, seen: ServerRecord | None) -> None:
        """Raise StepError for a step that took so long that what it was told no longer counts."""
        if seen is not None and order.epoch < seen.epoch:
            reason = f"Epoch {order.epoch} of server {order.server} was revoked: this host has seen epoch {seen.epoch}."
            raise StepError(reason, revoked=True)
        if seen is not None and order.number < seen.number:
            reason = f"Order {order.number} of server {order.server} was overtaken by order {seen.number}."
            raise StepError(reason, revoked=True)
        if not self._may_run():
            raise StepError("This host's lease has run out; it may run no guest until it has a new one.", revoked=True)
