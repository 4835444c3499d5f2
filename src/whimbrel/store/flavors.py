"""Flavors: rows, snapshots for servers, and which projects may use a private one."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, select, update
from sqlalchemy.exc import IntegrityError

from whimbrel.domain.errors import Conflict, NotFound
from whimbrel.domain.server import Flavor
from whimbrel.ops import clock
from whimbrel.store.tables import flavor_access, flavors

_NAMES = tuple(Flavor.__dataclass_fields__)


def flavor_of(row: Row[Any]) -> Flavor:
    """Make a row a Flavor."""
    return Flavor(**{name: getattr(row, name) for name in _NAMES})


def snapshot(row: Row[Any]) -> dict[str, Any]:
    """Return what a server keeps of its flavor, so that deleting the flavor takes nothing from the server."""
    return {**msgspec.to_builtins(flavor_of(row)), "number": row.number}


def everything(tx: Connection, *, public: bool | None, project_id: str | None) -> list[Row[Any]]:
    """Return flavors in the order of their numbers: public ones, private ones, or (None) both.

    With a project: the private ones only as far as the project may use them.
    """
    query = select(flavors).order_by(flavors.c.number)
    mine = flavors.c.id.in_(select(flavor_access.c.flavor_id).where(flavor_access.c.project_id == project_id))
    if public is True:
        query = query.where(flavors.c.public | mine if project_id is not None else flavors.c.public)
    elif public is False:
        query = query.where(~flavors.c.public)
        if project_id is not None:
            query = query.where(mine)
    elif project_id is not None:
        query = query.where(flavors.c.public | mine)
    return list(tx.execute(query))


def find(tx: Connection, flavor_id: str, project_id: str | None = None) -> Row[Any]:
    """Return a flavor; NotFound when there is none that the project (None: anybody) may use."""
    for row in tx.execute(select(flavors).where(flavors.c.id == flavor_id)):
        if row.public or project_id is None or project_id in access(tx, flavor_id):
            return row
    raise NotFound(f"Flavor {flavor_id} could not be found.")


def insert(tx: Connection, flavor: Flavor) -> Row[Any]:
    """Write a new flavor; Conflict when its id or its name is taken."""
    taken = tx.execute(select(flavors.c.id).where(flavors.c.name == flavor.name)).first()
    if taken is not None:
        raise Conflict(f"Flavor with name {flavor.name} already exists.")
    try:
        tx.execute(flavors.insert().values(**msgspec.to_builtins(flavor), created_at=clock.now()))
    except IntegrityError as error:
        raise Conflict(f"Flavor with ID {flavor.id} already exists.") from error
    return find(tx, flavor.id)


def change(tx: Connection, flavor_id: str, **values: Any) -> Row[Any]:
    """Write columns of a flavor; NotFound when there is none."""
    find(tx, flavor_id)
    tx.execute(update(flavors).where(flavors.c.id == flavor_id).values(**values))
    return find(tx, flavor_id)


def remove(tx: Connection, flavor_id: str) -> None:
    """Delete a flavor; servers keep their snapshots. NotFound when there is none."""
    if tx.execute(delete(flavors).where(flavors.c.id == flavor_id)).rowcount != 1:
        raise NotFound(f"Flavor {flavor_id} could not be found.")


def access(tx: Connection, flavor_id: str) -> list[str]:
    """Return the projects that may use a private flavor."""
    query = select(flavor_access.c.project_id).where(flavor_access.c.flavor_id == flavor_id)
    return list(tx.execute(query.order_by(flavor_access.c.project_id)).scalars())


def grant(tx: Connection, flavor_id: str, project_id: str) -> None:
    """Let a project use a flavor; Conflict when it may already."""
    if project_id in access(tx, flavor_id):
        raise Conflict(f"Flavor access already exists for flavor {flavor_id} and project {project_id} combination.")
    tx.execute(flavor_access.insert().values(flavor_id=flavor_id, project_id=project_id))


def revoke(tx: Connection, flavor_id: str, project_id: str) -> None:
    """Take a flavor away from a project; NotFound when it had none."""
    gone = tx.execute(
        delete(flavor_access).where(flavor_access.c.flavor_id == flavor_id, flavor_access.c.project_id == project_id)
    )
    if gone.rowcount != 1:
        raise NotFound(f"Flavor access not found for {flavor_id} / {project_id} combination.")
