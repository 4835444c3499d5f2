"""A cloud of three hosts of which one has been taken over: its agent is gone, and an intruder has all that it had."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from tests.compat.clients import Wire, wait_for
from tests.fakecloud import FakeCloud
from whimbrel.agent.guests.fake import FakeGuests
from whimbrel.agent.ledger import boot_marker
from whimbrel.bus import queues
from whimbrel.bus.codec import registry
from whimbrel.bus.signing import Signer
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import MESSAGES
from whimbrel.ops import settings

SOON = 30.0
CODEC = registry(*MESSAGES)
Json = dict[str, Any]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Scene:
    """The cloud, a server on h1 that is attacked, and one on h3, which the intruder had before."""

    cloud: FakeCloud
    wire: Wire
    victim: str = ""
    own: str = ""

    # --- what users see and do --------------------------------------------------------------------

    def create(self, host: str) -> str:
        """Make a server on this host and wait until it runs."""
        image = self.wire("GET", f"{self.wire.root}/image/v2/images").json()["images"][0]["id"]
        flavors = {row["name"]: row["id"] for row in self.wire("GET", "/flavors").json()["flavors"]}
        body = {"name": f"on-{host}", "imageRef": image, "flavorRef": flavors["small"], "networks": "none"}
        made = self.wire("POST", "/servers", {"server": {**body, "host": host}}).raise_for_status()
        server = str(made.json()["server"]["id"])
        self.wait(server, "ACTIVE")
        return server

    def act(self, server: str, action: str, body: Any = None) -> Any:
        """Do an action."""
        answer = self.wire("POST", f"/servers/{server}/action", {action: body}).raise_for_status()
        return answer.json() if answer.content else None

    def wait(self, server: str, status: str) -> None:
        """Wait until a server rests in this state."""

        def rests() -> bool:
            shown = self.wire("GET", f"/servers/{server}").json()["server"]
            return (shown["status"], shown["OS-EXT-STS:task_state"]) == (status, None)

        wait_for(f"{server} to be {status}", rests)

    # --- what is written down ---------------------------------------------------------------------

    def rows(self, query: str, *values: object) -> list[Json]:
        """Read the controller's database."""
        return _read(self.cloud.dir / "whimbrel.db", query, values)

    def server(self) -> Json:
        """Return what the database says of the victim, and of whether it moves."""
        query = "SELECT host, epoch, order_number, power_state FROM servers WHERE id = ?"
        return self.rows(query, self.victim)[0]

    def ledger(self, host: str, query: str, *values: object) -> list[Json]:
        """Read a host's ledger."""
        return _read(self.cloud.dir / "state" / host / "ledger.db", query, values)

    def promises(self, host: str) -> list[Json]:
        """Return all that a host's ledger holds."""
        orders = self.ledger(host, "SELECT server, number, report FROM orders ORDER BY server, number")
        return orders + self.ledger(host, "SELECT * FROM servers ORDER BY server")

    def state(self, host: str, server: str) -> PowerState | None:
        """Return what the hypervisor of a host itself says of a server."""
        agent = settings.load(self.cloud.dir / host / "agent.toml").agent
        assert agent is not None
        return FakeGuests(agent, boot_marker(agent.run_dir)).state(server)

    def said(self, words: str) -> bool:
        """Return whether the controller has logged these words."""
        return words in (self.cloud.dir / "controller.log").read_text()

    @property
    def signer(self) -> Signer:
        """The controller's own key, for what must be true to the byte."""
        return Signer.load(self.cloud.dir / "order.key")

    @contextmanager
    def frozen(self, host: str) -> Iterator[None]:
        """Stop a host's agent in its tracks for a while: what it should have done is open."""
        pid = self.cloud.pids[f"agent{host.removeprefix('h')}"]
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


class Intruder:
    """A client of the broker's own protocol, logged in as whom the URL says."""

    def __init__(self, url: str, user: str) -> None:
        self.url, self.user = url, user

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[AbstractChannel]:
        """Open a connection and a channel of its own, because a refusal ends the channel."""
        async with await aio_pika.connect(self.url) as connection:
            yield await connection.channel(publisher_confirms=True, on_return_raises=True)

    async def publish(self, exchange: str, key: str, data: bytes, **properties: Any) -> None:
        """Publish and wait for the broker's word; what it refuses raises."""
        async with self.channel() as channel:
            to = await channel.get_exchange(exchange, ensure=False)
            await to.publish(aio_pika.Message(data, **{"user_id": self.user, **properties}), key)

    async def say(self, key: str, message: object, **properties: Any) -> None:
        """Send a message the way that reports go."""
        await self.publish(queues.REPORTS_EXCHANGE, key, CODEC.encode(message, {}), **properties)

    async def take(self, queue: str) -> AbstractIncomingMessage:
        """Take the next message from a queue."""
        async with self.channel() as channel, asyncio.timeout(SOON):
            source = await channel.get_queue(queue, ensure=False)
            while True:
                found = await source.get(fail=False, no_ack=True)
                if found is not None:
                    return found
                await asyncio.sleep(0.05)


@pytest.fixture(scope="session")
def scene() -> Iterator[Scene]:
    """Three hosts, two servers; then h3's agent is killed, and its credentials are the intruder's."""
    with FakeCloud(hosts=3) as cloud:
        made = Scene(cloud, Wire(cloud))
        made.victim, made.own = made.create("h1"), made.create("h3")
        os.kill(cloud.pids["agent3"], signal.SIGKILL)
        yield made
        made.wire.http.close()


@pytest.fixture
def intruder(scene: Scene) -> Intruder:
    """Who has h3's settings file, and so its broker user; it holds no secret of anybody else."""
    path, broker = scene.cloud.dir / "h3" / "agent.toml", scene.cloud.broker
    found = settings.load(path)
    assert found.broker is not None
    for secret in (broker.password, broker.hosts["h1"], broker.hosts["h2"]):
        assert secret not in path.read_text()
    return Intruder(found.broker.url, "agent.h3")


@pytest.fixture
def broker_owner(scene: Scene) -> Intruder:
    """Who has even the controllers' broker user, and so may write to every queue; but not their key."""
    return Intruder(scene.cloud.broker.url, scene.cloud.broker.user)


async def until(what: str, look: Callable[[], bool]) -> None:
    """Wait for what the processes of the cloud do."""
    await asyncio.to_thread(wait_for, what, look)


def _read(path: Path, query: str, values: tuple[object, ...]) -> list[Json]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(query, values)]
    finally:
        connection.close()
