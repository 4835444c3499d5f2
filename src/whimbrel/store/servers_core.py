"""What the conductor needs of a server's row: its domain objects, its numbers, its power state."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
import structlog
from sqlalchemy import Connection, Row, Update, bindparam, case, or_, select, update

from whimbrel.domain.server import Flavor, Guest, Image, PowerState, disks_for
from whimbrel.domain.tpm import tpm_of
from whimbrel.ops import clock
from whimbrel.store import networks
from whimbrel.store.tables import servers

_log = structlog.get_logger()


def flavor_of(snapshot: dict[str, Any]) -> Flavor:
    """Make a stored snapshot a Flavor; what else the snapshot holds is the API's."""
    return msgspec.convert({name: snapshot[name] for name in Flavor.__dataclass_fields__ if name in snapshot}, Flavor)


def image_of(snapshot: dict[str, Any] | None, ticket_url: str = "") -> Image | None:
    """Make a stored snapshot an Image with a ticket to fetch it by; None for a server without one."""
    if snapshot is None:
        return None
    fields = {name: snapshot[name] for name in Image.__dataclass_fields__ if name in snapshot}
    return msgspec.convert({**fields, "ticket_url": ticket_url}, Image)


_BY_ID = select(servers).where(servers.c.id == bindparam("server_id"))


def load(tx: Connection, server_id: str) -> Row[Any]:
    """Return the server's row, deleted or not."""
    return tx.execute(_BY_ID, {"server_id": server_id}).one()


def guest_of(tx: Connection, row: Row[Any], flavor: dict[str, Any], root_disk: str) -> Guest:
    """Describe the server, at this flavor, as a host needs to know it."""
    size = flavor_of(flavor)
    return Guest(
        uuid=row.id,
        name=row.name,
        vcpus=size.vcpus,
        ram_mb=size.ram_mb,
        disks=disks_for(size, image_of(row.image), root_disk),
        nics=networks.nics_of(tx, row.id),
        user_data=row.user_data,
        metadata=row.metadata,
        uefi=is_uefi(row),
        tpm=tpm_of(row.image_properties, size.extra_specs),
    )


def is_uefi(row: Row[Any]) -> bool:
    """Return whether the image that the server was made from asks for UEFI."""
    return str(row.image_properties.get("hw_firmware_type", "")).lower() == "uefi"


_NEXT_NUMBER = (
    update(servers)
    .where(servers.c.id == bindparam("server_id"))
    .values(
        order_number=servers.c.order_number + 1,
        epoch=servers.c.epoch + bindparam("higher"),
        host_number=case(
            (servers.c.host == bindparam("to_host"), servers.c.order_number + 1), else_=servers.c.host_number
        ),
    )
    .returning(servers)
)


def next_number(tx: Connection, server_id: str, to_host: str, *, raise_epoch: bool) -> Row[Any]:
    """Draw the server's next order number for an order to this host, and a new epoch if asked; return its row."""
    return tx.execute(_NEXT_NUMBER, {"server_id": server_id, "higher": int(raise_epoch), "to_host": to_host}).one()


LEAD_MAX = 1_000_000
"""How far a host may be ahead of a restored database; more is no number that was ever drawn."""
NUMBERS_MAX = 1_000_000_000
"""No server lives long enough to get so many orders. A host that says so lies, and would use the column's room up."""


def adopt_numbers(tx: Connection, server_id: str, epoch: int, number: int) -> bool:
    """Raise the server's numbers to what a host has seen, after a restore of this database; return whether it did."""
    s = servers.c
    row = tx.execute(select(s.epoch, s.order_number).where(s.id == server_id)).one()
    if epoch > row.epoch + LEAD_MAX or number > row.order_number + LEAD_MAX or max(epoch, number) > NUMBERS_MAX:
        _log.error("a host claims numbers that no server can have", server=server_id, epoch=epoch, number=number)
        return False
    raised = tx.execute(
        update(servers)
        .where(s.id == server_id, or_(s.epoch < epoch, s.order_number < number))
        .values(
            epoch=case((s.epoch < epoch, epoch), else_=s.epoch),
            order_number=case((s.order_number < number, number), else_=s.order_number),
        )
    )
    return raised.rowcount == 1


def observe_power(tx: Connection, server_id: str, state: PowerState, *, after: int) -> None:
    """Write a power state that a host saw after order `after`, unless a newer order has gone there since."""
    s = servers.c
    seen = update(servers).where(s.id == server_id, s.host_number == after)
    tx.execute(seen.values(power_state=state, updated_at=clock.now()))


@cache
def _setting(names: tuple[str, ...]) -> Update:
    """Return the statement that writes these columns of one server; there are few such sets of columns."""
    return update(servers).where(servers.c.id == bindparam("of_server")).values({n: bindparam(n) for n in names})


def set_values(tx: Connection, server_id: str, **values: Any) -> None:
    """Write columns of the server's row and its time of change."""
    written = {**values, "updated_at": clock.now()}
    tx.execute(_setting(tuple(written)), {"of_server": server_id, **written})
