"""A small cloud behind its HTTP API: a database of its own, two projects, four users, one network."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from tests.databases import fresh
from whimbrel.api.app import Services, build_app
from whimbrel.bus.codec import registry
from whimbrel.bus.local import LocalBroker, LocalBus
from whimbrel.cli import bootstrap
from whimbrel.identity import passwords
from whimbrel.identity.caller import Caller
from whimbrel.identity.tokens import Tokens
from whimbrel.migration.messages import MESSAGES
from whimbrel.ops.settings import Api, Settings
from whimbrel.store import identity
from whimbrel.store.outbox import Relay

URL = "http://cloud.test:8774"
PASSWORD = "correct horse"
USERS = {
    "admin": ("admin", ["admin"]),
    "alice": ("demo", ["member"]),
    "rita": ("demo", ["reader"]),
    "bob": ("other", ["member", "manager"]),
}


@dataclass
class Cloud:
    """The API as a client sees it, and what is behind it."""

    services: Services
    http: httpx2.AsyncClient

    def caller(self, name: str) -> Caller:
        """Return a user with its roles, as a token would say."""

        def find(tx: Any) -> Caller:
            user = identity.find_user(tx, name=name)
            project = identity.find_project(tx, name=USERS[name][0])
            assert user and project
            roles = identity.roles_of(tx, user.id, project.id)
            return Caller(user.id, name, project.id, project.name, roles)

        return self.services.store.read_now(find)

    def token(self, name: str) -> dict[str, str]:
        """Return the header of a user who has logged in."""
        return {"X-Auth-Token": self.services.tokens.issue(self.caller(name), ("password",))[0]}

    async def login(self, name: str, password: str = PASSWORD, **scope: Any) -> httpx2.Response:
        """Log in by name and password."""
        user = {"name": name, "domain": {"id": "default"}, "password": password}
        auth = {"identity": {"methods": ["password"], "password": {"user": user}}, **scope}
        return await self.http.post("/identity/v3/auth/tokens", json={"auth": auth})


@functools.cache
def hashed_password() -> str:
    """Return the hash of every user's password, made once, because that is meant to be slow."""
    return passwords.hash_now(PASSWORD)


@asynccontextmanager
async def open_cloud(folder: Path, engine: str = "sqlite") -> AsyncIterator[Cloud]:
    """Make the cloud in a folder, on this database engine, and take it down."""
    store = fresh(engine, folder)
    hashed = hashed_password()

    def people(tx: Any) -> None:
        for name, (project, roles) in USERS.items():
            home = identity.find_project(tx, name=project) or identity.create_project(tx, project)
            user = identity.create_user(tx, name, hashed)
            for role in roles:
                identity.grant(tx, user.id, home.id, role)

    store.write_now(people)
    network = bootstrap.NewNetwork("private", "10.99.0.0/29")
    bootstrap.begin(store, bootstrap.Beginning(["admin"], [], network))
    bus = LocalBus(LocalBroker(), registry(*MESSAGES))
    settings = Settings(api=Api(public_url=URL, image_dir=str(folder / "images")))
    tokens = Tokens(folder / "token.keys", 3600)
    services = Services(settings, store, bus, Relay(store, bus.cast), tokens)
    transport = httpx2.ASGITransport(app=build_app(services))
    try:
        async with httpx2.AsyncClient(transport=transport, base_url=URL) as http:
            yield Cloud(services, http)
    finally:
        store.close()
