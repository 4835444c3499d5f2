"""One cloud without hypervisors for all tests here; each test makes its own servers and leaves none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.compat.clients import Clients, Server, Wire, wait_for
from tests.fakecloud import FakeCloud

_numbers = count(1)


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    """Start a cloud of three hosts."""
    with FakeCloud(hosts=3) as cloud:
        found = Clients(cloud, tmp_path_factory.mktemp("clients"))
        yield found
        found.close()


@pytest.fixture
def wire(clients: Clients) -> Wire:
    """The administrator's plain HTTP."""
    return clients.wire()


class MakeServer:
    """Makes running servers: of the project demo, or of the project admin on a host that only it may name."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._made: list[Server] = []

    def __call__(self, host: str | None = None, **more: object) -> Server:
        """Make one and wait until it runs."""
        name = f"server-{next(_numbers)}"
        base = {"name": name, "imageRef": self._clients.image_id, "flavorRef": self._clients.flavor_id("small")}
        body = base | {"networks": "none"} | ({"host": host} if host else {}) | more
        answer = self._clients.wire("admin" if host else "demo")("POST", "/servers", {"server": body})
        assert answer.status_code == 202, answer.text
        server = self.adopt(answer.json()["server"]["id"], name)
        server.wait("ACTIVE")
        return server

    def adopt(self, server_id: str, name: str) -> Server:
        """Look after a server that a client made."""
        self._made.append(Server(self._clients, server_id, name))
        return self._made[-1]

    def delete_all(self) -> None:
        """Delete what is still there, and wait until it is gone."""
        wire = self._clients.wire()
        paths = [f"/servers/{server.id}" for server in self._made]
        for path in paths:
            wire("DELETE", path)
        wait_for("all servers to go", lambda: all(wire("GET", path).status_code == 404 for path in paths))


@pytest.fixture
def make_server(clients: Clients) -> Iterator[MakeServer]:
    """Make servers; afterwards none is left."""
    maker = MakeServer(clients)
    yield maker
    maker.delete_all()
