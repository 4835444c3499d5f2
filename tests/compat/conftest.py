"""One cloud without hypervisors for all tests here; each test makes its own servers and leaves none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.compat.clients import Clients, Server, Wire, wait_for
from tests.fakecloud import FakeCloud
from whimbrel.lab.seed import IMAGE_NAME

_numbers = count(1)

MakeServer = Callable[..., Server]


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


@pytest.fixture
def make_server(clients: Clients) -> Iterator[MakeServer]:
    """Make servers of the project demo; afterwards all of them are gone."""
    made: list[Server] = []

    def make(host: str = "", persona: str = "demo", **more: object) -> Server:
        name = f"server-{next(_numbers)}"
        body = {
            "name": name,
            "imageRef": image_id(clients),
            "flavorRef": flavor_id(clients, "small"),
            "networks": "none",
            **more,
        }
        if host:
            persona, body["availability_zone"] = "admin", f"nova:{host}"
        answer = clients.wire(persona)("POST", "/servers", {"server": body})
        assert answer.status_code == 202, answer.text
        made.append(Server(clients, answer.json()["server"]["id"], name))
        made[-1].wait("ACTIVE")
        return made[-1]

    yield make
    admin = clients.wire()
    for server in made:
        admin("DELETE", f"/servers/{server.id}")
    for server in made:
        wait_for(f"{server.name} to go", lambda path=f"/servers/{server.id}": admin("GET", path).status_code == 404)


def image_id(clients: Clients) -> str:
    """Return the id of the cloud's image."""
    return str(clients.sdk().image.find_image(IMAGE_NAME).id)


def flavor_id(clients: Clients, name: str) -> str:
    """Return the id of a flavor."""
    return str(clients.sdk().compute.find_flavor(name).id)
