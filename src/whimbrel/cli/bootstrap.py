"""The command that makes the first users, projects and network, so that somebody can log in at all.

It may be run again: what is there stays, what is missing is added, and a user's password becomes the file's.
"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
from sqlalchemy import Connection

from whimbrel.domain.errors import SettingsError
from whimbrel.identity import passwords
from whimbrel.identity.policy import ROLES
from whimbrel.ops import settings
from whimbrel.store import identity, networks, schema
from whimbrel.store.engine import Store


class NewUser(msgspec.Struct, forbid_unknown_fields=True):
    """A user, and the roles that it holds in one project."""

    name: str
    password: str
    project: str
    roles: list[str]


class NewNetwork(msgspec.Struct, forbid_unknown_fields=True):
    """The network that servers are put on; every project may use it."""

    name: str
    cidr: str
    mtu: int = 1500


class Beginning(msgspec.Struct, forbid_unknown_fields=True):
    """The file: what there is to be at the beginning."""

    projects: list[str]
    users: list[NewUser]
    network: NewNetwork | None = None


@click.command()
@click.option(
    "--config",
    required=True,
    envvar="WHIMBREL_CONFIG",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The settings file (TOML).",
)
@click.option("--file", "file", required=True, type=click.Path(path_type=Path), help="What to make (JSON).")
def bootstrap(config: Path, file: Path) -> None:
    """Make the first projects, users, roles and network; what is there already stays.

    \b
    {"projects": ["admin", "demo"],
     "users": [{"name": "admin", "password": "...", "project": "admin", "roles": ["admin"]}],
     "network": {"name": "private", "cidr": "10.99.0.0/24", "mtu": 1500}}
    """
    conf = settings.load(config)
    if conf.database is None:
        raise SettingsError(f"{config} names no database; add a [database] table with its `url`.")
    wanted = read(file)
    store = Store(conf.database.url)
    try:
        schema.check(store)
        for line in begin(store, wanted):
            click.echo(line)
    finally:
        store.close()


def read(file: Path) -> Beginning:
    """Read and check the file; SettingsError names what is wrong with it."""
    try:
        wanted = msgspec.json.decode(file.read_bytes(), type=Beginning)
    except OSError as error:
        raise SettingsError(f"Cannot read {file}: {error.strerror}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingsError(f"{file}: {error}.") from error
    for user in wanted.users:
        unknown = sorted(set(user.roles).difference(ROLES))
        if unknown or user.project not in wanted.projects:
            what = f"role {unknown[0]}" if unknown else f"project {user.project}"
            raise SettingsError(f"{file}: user {user.name} is given the {what}, which is not there.")
    return wanted


def begin(store: Store, wanted: Beginning) -> list[str]:
    """Make what is missing, and return a sentence for each thing that was made."""
    hashes = {user.name: _hash(store, user) for user in wanted.users}

    def run(tx: Connection) -> list[str]:
        told = []
        for name in wanted.projects:
            if identity.find_project(tx, name=name) is None:
                identity.create_project(tx, name)
                told.append(f"Project {name} was made.")
        for user in wanted.users:
            told += _make_user(tx, user, hashes[user.name])
        if wanted.network is not None and wanted.projects:
            told += _make_network(tx, wanted.network, wanted.projects[0])
        return told

    return store.write_now(run)


def _hash(store: Store, user: NewUser) -> str | None:
    """Return the password's hash; None when the user has this password already."""
    row = store.read_now(lambda tx: identity.find_user(tx, name=user.name))
    if row is not None and passwords.matches_now(user.password, row.password):
        return None
    return passwords.hash_now(user.password)


def _make_user(tx: Connection, user: NewUser, password_hash: str | None) -> list[str]:
    told = []
    row = identity.find_user(tx, name=user.name)
    if row is None:
        assert password_hash is not None
        row = identity.create_user(tx, user.name, password_hash)
        told.append(f"User {user.name} was made.")
    elif password_hash not in (None, row.password):
        identity.update_user(tx, row.id, {"password": password_hash})
        told.append(f"User {user.name} has a new password.")
    project = identity.find_project(tx, name=user.project)
    assert project is not None
    for role in sorted(set(user.roles) - identity.roles_of(tx, row.id, project.id)):
        identity.grant(tx, row.id, project.id, role)
        told.append(f"User {user.name} holds the role {role} in project {user.project}.")
    return told


def _make_network(tx: Connection, wanted: NewNetwork, project: str) -> list[str]:
    if any(row.name == wanted.name for row in networks.list_networks(tx, None, every=True)):
        return []
    owner = identity.find_project(tx, name=project)
    assert owner is not None
    networks.create_network(tx, wanted.name, wanted.cidr, owner.id, mtu=wanted.mtu)
    return [f"Network {wanted.name} ({wanted.cidr}) was made."]
