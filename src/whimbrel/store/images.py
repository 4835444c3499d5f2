"""Images: rows that say what an image is, each pointing at a content in the image store by its sha256.

Several images may share one content. That a content is never removed under an image that has just come to share it
follows from doing both, publishing and removing, inside a writing transaction that holds the lock of the contents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, Text, and_, cast, delete, func, insert, or_, select, update

from whimbrel.domain.errors import Conflict, Forbidden, Invalid, NotFound
from whimbrel.ops import clock, ids
from whimbrel.store import image_files
from whimbrel.store.tables import images

Sort = tuple[tuple[str, bool], ...]
"""Columns to order by, each with whether it is descending."""

SORT_KEYS: Mapping[str, ColumnElement[Any]] = {
    "name": func.coalesce(images.c.name, ""),
    "status": images.c.status,
    "visibility": images.c.visibility,
    "size": func.coalesce(images.c.size_bytes, 0),
    "disk_format": func.coalesce(images.c.disk_format, ""),
    "container_format": func.coalesce(images.c.container_format, ""),
    "owner": images.c.project_id,
    "created_at": images.c.created_at,
    "updated_at": images.c.updated_at,
    "id": images.c.id,
}

_CONTENTS_LOCK = 0x77686D62


@dataclass(frozen=True)
class Search:
    """Which images are wanted. `project_id` is the one that asks (None sees all), `columns` the values allowed."""

    project_id: str | None
    visibility: str | None = None
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    tags: Sequence[str] = ()
    size_min: int | None = None
    size_max: int | None = None
    sort: Sort = (("created_at", True),)


def create(tx: Connection, values: Mapping[str, Any]) -> Row[Any]:
    """Add a queued image without content; Conflict when the id that was asked for is taken."""
    image_id = values.get("id") or ids.new_uuid()
    if tx.execute(select(images.c.id).where(images.c.id == image_id)).first() is not None:
        raise Conflict(f"Image ID {image_id} already exists; choose another or leave it out.")
    now = clock.now()
    row = {**values, "id": image_id, "status": "queued", "created_at": now, "updated_at": now}
    return tx.execute(insert(images).values(**row).returning(images)).one()


def find_image(tx: Connection, image_id: str, project_id: str | None, *, every: bool = False) -> Row[Any]:
    """Return the image of this id, if the project may see it (`every`: whoever asks); NotFound otherwise."""
    row = tx.execute(select(images).where(images.c.id == image_id)).first()
    if row is None or not (every or row.project_id == project_id or row.visibility in ("public", "community")):
        raise NotFound(f"No image found with ID {image_id}.")
    return row


def own_image(tx: Connection, image_id: str, project_id: str | None, *, every: bool = False) -> Row[Any]:
    """Return the image if the project may change it (`every`: whoever asks); NotFound or Forbidden otherwise."""
    row = find_image(tx, image_id, project_id, every=every)
    if not every and row.project_id != project_id:
        raise Forbidden(f"Image {image_id} belongs to another project; only that one may change it.")
    return row


def search(tx: Connection, wanted: Search, after: str | None, limit: int) -> Sequence[Row[Any]]:
    """Return at most `limit` images that come after the image `after`; Invalid when there is no such image."""
    keys = [(SORT_KEYS[name], down) for name, down in wanted.sort]
    keys.append((images.c.id, keys[0][1]))
    query = select(images).where(*_conditions(wanted))
    if after is not None:
        place = tx.execute(select(*(key for key, _ in keys)).where(images.c.id == after)).first()
        if place is None:
            raise Invalid(f"The marker {after} is no image; use the id of the last one that was listed.")
        query = query.where(_beyond(keys, place))
    return tx.execute(query.order_by(*(key.desc() if down else key.asc() for key, down in keys)).limit(limit)).all()


def change(tx: Connection, image_id: str, values: Mapping[str, Any]) -> Row[Any]:
    """Write columns of an image's row and its time of change."""
    query = update(images).where(images.c.id == image_id).values(**values, updated_at=clock.now())
    return tx.execute(query.returning(images)).one()


def activate(tx: Connection, image_id: str, content: Mapping[str, Any], publish: Callable[[], None]) -> None:
    """Publish the content and say that the queued image has it; Conflict when the image is not queued any more."""
    _lock_contents(tx)
    gone_on = tx.execute(
        update(images)
        .where(images.c.id == image_id, images.c.status == "queued")
        .values(**content, status="active", updated_at=clock.now())
    )
    if gone_on.rowcount != 1:
        raise Conflict(f"Image {image_id} was deleted, or got its data from another upload, meanwhile.")
    publish()


def remove(tx: Connection, image_id: str) -> None:
    """Remove the image's row; Forbidden when it is protected. Its content goes by `collect`."""
    row = tx.execute(select(images.c.protected).where(images.c.id == image_id)).one()
    if row.protected:
        raise Forbidden(f"Image {image_id} is protected and cannot be deleted; unprotect it first.")
    tx.execute(delete(images).where(images.c.id == image_id))


def collect(tx: Connection, folder: Path, sha256: str) -> bool:
    """Remove this content if no image has it any more; return whether it went."""
    _lock_contents(tx)
    used = tx.scalars(select(images.c.id).where(images.c.sha256 == sha256).limit(1)).first()
    if used is None:
        image_files.remove(folder, sha256)
    return used is None


def _conditions(wanted: Search) -> list[ColumnElement[bool]]:
    c = images.c
    conditions: list[ColumnElement[bool]] = [c[name].in_(list(values)) for name, values in wanted.columns.items()]
    conditions += [c.properties[name].as_string() == value for name, value in wanted.properties.items()]
    conditions += [cast(c.tags, Text).contains(_json(tag), autoescape=True) for tag in wanted.tags]
    if wanted.size_min is not None:
        conditions.append(c.size_bytes >= wanted.size_min)
    if wanted.size_max is not None:
        conditions.append(c.size_bytes <= wanted.size_max)
    if wanted.visibility not in (None, "all"):
        conditions.append(c.visibility == wanted.visibility)
    if wanted.project_id is not None:
        open_to_all = ("public", "community") if wanted.visibility in ("community", "all") else ("public",)
        conditions.append(or_(c.project_id == wanted.project_id, c.visibility.in_(open_to_all)))
    return conditions


def _beyond(keys: Sequence[tuple[ColumnElement[Any], bool]], place: Row[Any]) -> ColumnElement[bool]:
    """Return the condition that a row stands behind `place`: later in the first key, or equal there and so on."""
    ways = []
    for depth, (key, down) in enumerate(keys):
        equal = [other == place[number] for number, (other, _) in enumerate(keys[:depth])]
        ways.append(and_(*equal, key < place[depth] if down else key > place[depth]))
    return or_(*ways)


def _lock_contents(tx: Connection) -> None:
    """On PostgreSQL, wait for whoever publishes or removes contents; SQLite has one writer anyway."""
    if tx.dialect.name == "postgresql":
        tx.execute(select(func.pg_advisory_xact_lock(_CONTENTS_LOCK)))


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()
