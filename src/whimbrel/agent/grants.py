"""The Grants port, kept in the ledger: this host's durable word on who may run here.

What must hold: a grant counts at its own epoch, in the boot that it was given in, and until the next seal. A newer
epoch, seen in any order, takes it away: so a step that is late can no longer let a guest run.
"""

from __future__ import annotations

from whimbrel.agent.ledger import Ledger, ServerRecord, read_server
from whimbrel.domain.errors import StepError


class LedgerGrants:
    """Grants, releases and seals; each call returns after the ledger is on the disk."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def grant(self, server: str, epoch: int) -> None:
        """Record that this boot of this host may run the server at this epoch; lifts a seal."""
        with self._ledger.transaction() as sql:
            seen = read_server(sql, server)
            if seen is not None and epoch < seen.epoch:
                raise _revoked(server, epoch, seen.epoch)
            sql.execute(
                "INSERT INTO servers (server, epoch, number, grant_epoch, grant_boot) VALUES (?1, ?2, 0, ?2, ?3) "
                "ON CONFLICT (server) DO UPDATE SET epoch = ?2, grant_epoch = ?2, grant_boot = ?3, sealed = NULL",
                (server, epoch, self._ledger.boot),
            )

    def release(self, server: str, epoch: int) -> None:
        """Record that the guest is let run; StepError if the grant was revoked or sealed meanwhile, or never given."""
        with self._ledger.transaction() as sql:
            seen = read_server(sql, server)
            if seen is not None and epoch < seen.epoch:
                raise _revoked(server, epoch, seen.epoch)
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

    def holds_grant(self, server: str) -> bool:
        """Return whether this boot of this host may run the server now."""
        seen = self._ledger.server(server)
        return seen is not None and self._holds(seen)

    def _holds(self, seen: ServerRecord) -> bool:
        return seen.sealed is None and seen.grant_epoch is not None and seen.grant_boot == self._ledger.boot


def _revoked(server: str, epoch: int, newer: int) -> StepError:
    return StepError(f"Epoch {epoch} of server {server} was revoked: this host has seen epoch {newer}.", revoked=True)
