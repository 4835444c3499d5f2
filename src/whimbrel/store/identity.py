"""Projects, users and who holds which role where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from whimbrel.domain.errors import Conflict, NotFound
from whimbrel.ops import ids
from whimbrel.store.tables import assignments, images, projects, servers, users

MAX_LISTED = 10_000


def create_project(tx: Connection, name: str, description: str = "", *, enabled: bool = True) -> Row[Any]:
    """Add a project; Conflict when its name is taken."""
    return _create(tx, projects, name=name, description=description, enabled=enabled)


def create_user(tx: Connection, name: str, password_hash: str, *, enabled: bool = True) -> Row[Any]:
    """Add a user with a hashed password; Conflict when the name is taken."""
    return _create(tx, users, name=name, password=password_hash, enabled=enabled)


def project(tx: Connection, project_id: str) -> Row[Any]:
    """Return the project; NotFound names it."""
    return _one(tx, projects, project_id)


def user(tx: Connection, user_id: str) -> Row[Any]:
    """Return the user; NotFound names it."""
    return _one(tx, users, user_id)


def find_project(tx: Connection, *, id: str | None = None, name: str | None = None) -> Row[Any] | None:
    """Return the project of this id, or else of this name; None when there is none."""
    return _find(tx, projects, id, name)


def find_user(tx: Connection, *, id: str | None = None, name: str | None = None) -> Row[Any] | None:
    """Return the user of this id, or else of this name; None when there is none."""
    return _find(tx, users, id, name)


def list_projects(tx: Connection, name: str | None = None) -> Sequence[Row[Any]]:
    """Return the projects by name, of this name only if one is given."""
    return _list(tx, projects, name)


def list_users(tx: Connection, name: str | None = None) -> Sequence[Row[Any]]:
    """Return the users by name, of this name only if one is given."""
    return _list(tx, users, name)


def update_project(tx: Connection, project_id: str, values: Mapping[str, Any]) -> Row[Any]:
    """Change the project's name, description or `enabled`; NotFound, or Conflict when the name is taken."""
    return _update(tx, projects, project_id, values)


def update_user(tx: Connection, user_id: str, values: Mapping[str, Any]) -> Row[Any]:
    """Change the user's name, hashed password or `enabled`; NotFound, or Conflict when the name is taken."""
    return _update(tx, users, user_id, values)


def delete_project(tx: Connection, project_id: str) -> None:
    """Remove the project and the roles held in it; Conflict while it has servers or images."""
    row = _one(tx, projects, project_id)
    owned = {
        "servers": select(servers.c.id).where(servers.c.project_id == project_id, servers.c.deleted_at.is_(None)),
        "images": select(images.c.id).where(images.c.project_id == project_id),
    }
    for what, query in owned.items():
        if tx.execute(query.limit(1)).first() is not None:
            raise Conflict(f"Project {row.name} still has {what}; delete them first.")
    tx.execute(delete(assignments).where(assignments.c.project_id == project_id))
    tx.execute(delete(projects).where(projects.c.id == project_id))


def delete_user(tx: Connection, user_id: str) -> None:
    """Remove the user and every role held; what the user's projects own stays."""
    _one(tx, users, user_id)
    tx.execute(delete(assignments).where(assignments.c.user_id == user_id))
    tx.execute(delete(users).where(users.c.id == user_id))


def grant(tx: Connection, user_id: str, project_id: str, role: str) -> None:
    """Give the user the role in the project; granting it again changes nothing."""
    _one(tx, users, user_id)
    _one(tx, projects, project_id)
    if role not in roles_of(tx, user_id, project_id):
        tx.execute(insert(assignments).values(user_id=user_id, project_id=project_id, role=role))


def revoke(tx: Connection, user_id: str, project_id: str, role: str) -> None:
    """Take the role away; NotFound when the user does not hold it there."""
    gone = tx.execute(
        delete(assignments).where(
            assignments.c.user_id == user_id, assignments.c.project_id == project_id, assignments.c.role == role
        )
    )
    if gone.rowcount == 0:
        raise NotFound(f"User {user_id} does not hold the role {role} in project {project_id}.")


def roles_of(tx: Connection, user_id: str, project_id: str) -> frozenset[str]:
    """Return the roles that the user was given in the project (without those that they imply)."""
    where = assignments.c.user_id == user_id, assignments.c.project_id == project_id
    return frozenset(tx.scalars(select(assignments.c.role).where(*where)))


def projects_of(tx: Connection, user_id: str) -> Sequence[Row[Any]]:
    """Return the enabled projects in which the user holds a role."""
    mine = select(assignments.c.project_id).where(assignments.c.user_id == user_id)
    where = projects.c.id.in_(mine), projects.c.enabled
    return tx.execute(select(projects).where(*where).order_by(projects.c.name).limit(MAX_LISTED)).all()


def list_assignments(
    tx: Connection, *, user_id: str | None = None, project_id: str | None = None, role: str | None = None
) -> Sequence[Row[Any]]:
    """Return who holds which role where, with names; each argument narrows the list."""
    query = (
        select(assignments, users.c.name.label("user_name"), projects.c.name.label("project_name"))
        .join(users, users.c.id == assignments.c.user_id)
        .join(projects, projects.c.id == assignments.c.project_id)
        .order_by(users.c.name, projects.c.name, assignments.c.role)
        .limit(MAX_LISTED)
    )
    wanted = ((assignments.c.user_id, user_id), (assignments.c.project_id, project_id), (assignments.c.role, role))
    return tx.execute(query.where(*(column == value for column, value in wanted if value is not None))).all()


def _one(tx: Connection, table: Table, id: str) -> Row[Any]:
    row = tx.execute(select(table).where(table.c.id == id)).first()
    if row is None:
        raise NotFound(f"Could not find {_noun(table)}: {id}.")
    return row


def _find(tx: Connection, table: Table, id: str | None, name: str | None) -> Row[Any] | None:
    where = table.c.id == id if id is not None else table.c.name == name
    return tx.execute(select(table).where(where)).first()


def _list(tx: Connection, table: Table, name: str | None) -> Sequence[Row[Any]]:
    query = select(table).order_by(table.c.name).limit(MAX_LISTED)
    return tx.execute(query if name is None else query.where(table.c.name == name)).all()


def _create(tx: Connection, table: Table, **values: Any) -> Row[Any]:
    try:
        return tx.execute(insert(table).values(id=ids.new_hex(), **values).returning(table)).one()
    except IntegrityError as error:
        raise _taken(table, values["name"]) from error


def _update(tx: Connection, table: Table, id: str, values: Mapping[str, Any]) -> Row[Any]:
    if values:
        try:
            tx.execute(update(table).where(table.c.id == id).values(**values))
        except IntegrityError as error:
            raise _taken(table, str(values.get("name"))) from error
    return _one(tx, table, id)


def _taken(table: Table, name: str) -> Conflict:
    return Conflict(f"A {_noun(table)} named {name} exists already; choose another name.")


def _noun(table: Table) -> str:
    return str(table.name).removesuffix("s")
