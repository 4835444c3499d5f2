"""Several controllers on PostgreSQL and RabbitMQ, killed at random while servers move: nothing is lost or doubled.

Two conductors, two schedulers, three apis and four agents with fake hypervisors, each a process. One of each control
role at a time is killed (SIGKILL, by pid) and started again, over and over; clients go from one api to the next.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx2
import yaml
from sqlalchemy import select

from tests.fakecloud import FakeCloud
from whimbrel.lab.processes import wait_until
from whimbrel.ops import clock
from whimbrel.store import claims
from whimbrel.store.engine import Store
from whimbrel.store.tables import claims as claims_table
from whimbrel.store.tables import debts, migrations, outbox, servers

SEED = 20261
HOSTS = 4
SERVERS = 10
MOVES, MOST_MOVES = 5, 100
"""Of each server, at least and at most."""
REPLICAS = {"conductor": 2, "scheduler": 2, "api": 3}
DEADLINE = 120.0
"""Seconds for one wait of a client; most take less than two."""
AWAY = (httpx2.TransportError,)


class Client:
    """An administrator who asks another api when one does not answer."""

    def __init__(self, cloud: FakeCloud) -> None:
        self._urls = list(cloud.urls.values())
        self._turn = count()
        self._http = httpx2.Client(timeout=20, trust_env=False)
        auth = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]["admin"]["auth"]
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        scope = {"project": {"name": auth["project_name"], "domain": domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        answer = self.ask("POST", "/identity/v3/auth/tokens", {"auth": {"identity": identity, "scope": scope}})
        self._http.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]

    def ask(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """Ask one api after the other until one answers; what was done twice by that is told by its answer."""
        end = clock.monotonic() + DEADLINE
        while True:
            url = self._urls[next(self._turn) % len(self._urls)]
            try:
                answer = self._http.request(method, url + path, json=body)
                if answer.status_code != 503:
                    return answer
            except AWAY:
                pass
            assert clock.monotonic() < end, f"nobody answers {method} {path}"
            Event().wait(0.1)

    def server(self, server: str) -> dict[str, Any]:
        """Return what is shown of a server."""
        answer = self.ask("GET", f"/compute/v2.1/servers/{server}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["server"])

    def wait(self, server: str, *states: str) -> str:
        """Wait until a server rests in one of these states, and return which."""
        shown: dict[str, Any] = {}

        def rests() -> bool:
            shown.update(self.server(server))
            Event().wait(0.15)
            return shown["status"] in states and shown["OS-EXT-STS:task_state"] is None

        assert wait_until(rests, DEADLINE), f"{server} is {shown['status']}, not {states}: {shown.get('fault')}"
        return str(shown["status"])

    def create(self, name: str) -> str:
        """Create a server; a create that got no answer would be a second server, so it is asked once only."""
        image = self.ask("GET", "/image/v2/images").json()["images"][0]["id"]
        flavor = self.ask("GET", "/compute/v2.1/flavors").json()["flavors"][0]["id"]
        body = {"server": {"name": name, "imageRef": image, "flavorRef": flavor, "networks": "none"}}
        answer = self._http.post(
            self._urls[0] + "/compute/v2.1/servers", json=body, headers={"OpenStack-API-Version": "compute 2.37"}
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["server"]["id"])

    def act(self, server: str, body: dict[str, Any]) -> None:
        """Ask for an action; "it is being done already" is the answer to asking again."""
        answer = self.ask("POST", f"/compute/v2.1/servers/{server}/action", body)
        assert answer.status_code in (202, 204, 409, 400), answer.text


class Killer(Thread):
    """Kills one process of each control role in turn, which one is drawn, and starts it again."""

    def __init__(self, cloud: FakeCloud, chance: random.Random) -> None:
        super().__init__()
        self._cloud, self._chance = cloud, chance
        self.enough = Event()
        self.killed: Counter[str] = Counter()

    def run(self) -> None:
        while not self.enough.is_set():
            for role in REPLICAS:
                names = [name for name in self._cloud.control_roles if name.startswith(role)]
                name = self._chance.choice(names)
                self.enough.wait(self._chance.uniform(0.2, 1.5))
                self._cloud.kill(name)
                self.killed[role] += 1
                Event().wait(self._chance.uniform(0.1, 1.0))
                self._cloud.start(name)
                self._wait_ready(name)

    def often_enough(self) -> bool:
        """Return whether each role was killed more than once."""
        return min(self.killed[role] for role in REPLICAS) >= 2

    def _wait_ready(self, name: str) -> None:
        """Wait until a process that was started again takes part, so that there is always one of its role."""
        if name in self._cloud.urls:
            self.wait_until(lambda: _answers(self._cloud.urls[name]))
        else:
            log = self._cloud.dir / f"{name}.log"
            begun = log.stat().st_size
            self.wait_until(lambda: b" ready" in log.read_bytes()[begun:])

    def wait_until(self, condition: Callable[[], bool]) -> None:
        assert wait_until(lambda: self.enough.wait(0.1) or condition(), DEADLINE), "it does not come back"


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url + "/identity/v3", timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


def move(client: Client, server: str, chance: random.Random, killer: Killer) -> list[str]:
    """Move a server to and fro until each role was killed often enough; return the verdicts given."""
    verdicts: list[str] = []
    while len(verdicts) < MOVES or not killer.often_enough():
        assert len(verdicts) < MOST_MOVES, killer.killed
        verdicts.append(chance.choice(["confirmResize", "revertResize"]))
        client.act(server, {"migrate": None})
        client.wait(server, "VERIFY_RESIZE")
        client.act(server, {verdicts[-1]: None})
        client.wait(server, "ACTIVE")
    return verdicts


def test_controllers_are_killed_while_fifty_servers_move() -> None:
    chance = random.Random(SEED)
    settings = "ask_after = 1.0\nshutdown_grace = 5"
    with FakeCloud(HOSTS, database="postgresql", replicas=REPLICAS, conductor=settings) as cloud:
        client = Client(cloud)
        made = [client.create(f"s{number}") for number in range(SERVERS)]
        for server in made:
            client.wait(server, "ACTIVE")
        killer = Killer(cloud, chance)
        killer.start()
        try:
            with ThreadPoolExecutor(SERVERS) as pool:
                moves = [pool.submit(move, client, each, random.Random(f"{SEED} {each}"), killer) for each in made]
                plans = {server: moving.result() for server, moving in zip(made, moves, strict=True)}
        finally:
            killer.enough.set()
            killer.join()
        store = Store(cloud.database_url)
        try:
            audit(cloud, store, plans)
        finally:
            store.close()


def audit(cloud: FakeCloud, store: Store, plans: dict[str, list[str]]) -> None:
    """Compare the database with what was asked for and with what lies on the hosts."""

    def rows(table: Any) -> list[Any]:
        return list(store.read_now(lambda tx: tx.execute(select(table).order_by(*table.primary_key)).all()))

    assert wait_until(lambda: not rows(outbox), 30), rows(outbox)
    for server, plan in plans.items():
        moves = [row for row in rows(migrations) if row.server_id == server and row.kind == "migration"]
        ended = [{"confirmed": "confirmResize", "reverted": "revertResize"}.get(row.outcome) for row in moves]
        assert ended == plan, [(row.id, row.outcome, row.reason) for row in moves]
    assert not [row for row in rows(migrations) if row.open]
    assert not [row for row in rows(debts) if row.paid_at is None], rows(debts)
    placed = {row.id: row.host for row in rows(servers)}
    assert {(row.server_id, row.host) for row in rows(claims_table)} == set(placed.items())
    assert len(rows(claims_table)) == len(plans) == sum(Counter(placed.values()).values())
    used = store.read_now(claims.claimed)
    assert sum(room.vcpus for room in used.values()) == len(plans)
    assert on_hosts(cloud.dir) == placed, "each server's files and its guest are at its host, and nowhere else"


def on_hosts(folder: Path) -> dict[str, str]:
    """Return the host of each server, as its files say; check that nothing else is there and that no write is lost."""
    found: dict[str, str] = {}
    for host in sorted(folder.glob("h[0-9]*")):
        running = {
            server
            for record in (host / "instances").glob("fake-guests.json")
            for server, guest in json.loads(record.read_text()).items()
            if isinstance(guest, dict) and guest.get("state") == "running"
        }
        homes = {
            path.name: path for path in (host / "instances").iterdir() if path.is_dir() and path.name[0] not in "_."
        }
        assert set(homes) == running, f"{host.name} has {sorted(homes)}, and runs {sorted(running)}"
        for server, home in homes.items():
            assert server not in found, f"{server} is on {found[server]} and on {host.name}"
            found[server] = host.name
            verified = re.findall(
                r"VERIFY total=(\d+) intact=(\d+) torn=0 bad=0 last=(\d+)", (home / "console.log").read_text()
            )
            assert verified and all(len(set(figures)) == 1 for figures in verified), verified
    return found
