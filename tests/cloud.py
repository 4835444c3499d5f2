"""A lab's cloud as its users and its hosts see it: the driver of the tests on real guests.

Requests go through the public API. What became of them is looked at on the hosts themselves, from outside: the
consoles that the guests wrote, the hypervisor's list, the processes, the files, the taps. The database is only read.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import yaml
from sqlalchemy import select

from tests.consoles import FAULT, Boot, boots_of, read
from whimbrel.lab import Lab, guest
from whimbrel.lab.configs import INSTANCES_DIR
from whimbrel.lab.processes import members
from whimbrel.lab.seed import IMAGE_NAME
from whimbrel.ops import clock, ids, settings
from whimbrel.store.engine import Store
from whimbrel.store.tables import claims, debts, hosts, journal, migrations

DEADLINE = 90.0
"""Seconds for whatever must come; generous, because the machine that runs the tests may be busy."""

LOOK = 0.05
VERSION = {"OpenStack-API-Version": "compute 2.95"}

Json = dict[str, Any]


def wait_for(what: str, look: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """Return the first true answer of `look`; fail with `what` did not come."""
    end, pause = clock.monotonic() + deadline, Event()
    while not (found := look()):
        assert clock.monotonic() < end, f"waited {deadline:g} s for {what}"
        pause.wait(LOOK)
    return found


@dataclass(eq=False)
class Server:
    """One server with a guest that verifies itself."""

    cloud: Cloud
    id: str
    promised: int = 0
    """The number of the newest record that the guest has called durable, of those that the server still owes."""

    # --- what a user does -----------------------------------------------------------------------

    def show(self) -> Json:
        """Return the server as the API shows it to its administrator."""
        shown: Json = self.cloud.get(f"/servers/{self.id}")["server"]
        return shown

    def act(self, action: str, body: Any = None, version: str = "2.95") -> None:
        """Ask for an action."""
        self.cloud.post(f"/servers/{self.id}/action", {action: body}, version)

    def stop_first(self) -> None:
        """Let its moves be cold ones: the guest is stopped before anything is copied."""
        self.cloud.post(f"/servers/{self.id}/metadata", {"metadata": {"whimbrel:move": "cold"}})

    def migrate(self, host: str | None = None) -> None:
        """Ask for a cold migration, to this host or to any."""
        self.act("migrate", {"host": host} if host else None)

    def migrate_live(self, host: str | None = None) -> None:
        """Ask for a live migration, to this host or to any."""
        self.act("os-migrateLive", {"host": host, "block_migration": "auto"})

    def resize(self, flavor: str) -> None:
        """Ask for a resize to the flavor of this name."""
        self.act("resize", {"flavorRef": self.cloud.flavor(flavor)})

    def confirm(self) -> None:
        """Give up the source's copy, and wait until that is done."""
        self.act("confirmResize")
        self.wait("ACTIVE", "SHUTOFF")

    def revert(self) -> None:
        """Give up the target's copy, and wait until that is done."""
        self.ask_to_revert()
        self.wait("ACTIVE", "SHUTOFF")

    def ask_to_revert(self) -> None:
        """Give up the target's copy and with it, by the user's own will, what was written there."""
        sealed = next(copy for copy in self.copies() if ".sealed-" in copy.parent.name)
        self.promised = max(boot.last for boot in boots_of(read(sealed)))
        self.act("revertResize")

    def delete(self) -> None:
        """Delete the server and wait until it is gone."""
        self.cloud.delete(f"/servers/{self.id}")
        wait_for(f"server {self.id} to go", lambda: self.cloud.is_gone(f"/servers/{self.id}"))

    def wait(self, *states: str, deadline: float = DEADLINE) -> Json:
        """Wait until the server rests in one of these states; return it as it is shown then."""

        def rests() -> Json | None:
            shown = self.show()
            return shown if shown["status"] in states and shown["OS-EXT-STS:task_state"] is None else None

        try:
            found: Json = wait_for(f"server {self.id} to be {' or '.join(states)}", rests, deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {self.show()['status']}\n{self.told()}") from None
        return found

    # --- what is written down ----------------------------------------------------------------------

    def migration(self) -> Json:
        """Return Whimbrel's own document of the newest migration that moves the server."""
        rows: list[Json] = self.cloud.get("/v1/migrations", root="whimbrel", server=self.id)["migrations"]
        return next(row for row in rows if row["kind"] in ("migration", "resize", "evacuation", "live-migration"))

    def steps(self) -> dict[str, Json]:
        """Return the rows of the newest segment's last attempt by name."""
        return {row["step"]: row for row in self.migration()["segments"][-1]["attempts"][-1]["steps"]}

    def fact(self, step: str, name: str) -> Any:
        """Return what the journal noted at a step of the last move."""
        return self.cloud.noted(self.migration()["id"], step).get(name)

    def at_step(self, step: str, *marks: str) -> None:
        """Wait until the step of the last move has one of these marks."""
        wait_for(f"step {step} of server {self.id}", lambda: self.steps().get(step, {}).get("mark") in marks)

    def wait_for_reason(self, step: str, words: str) -> None:
        """Wait until a step of the last move says these words while it waits."""
        wait_for(f"{words!r} at step {step}", lambda: words in (self.steps()[step]["reason"] or ""))

    def reason(self) -> str:
        """Return why the last move ended as it did; the same words must stand in the server's instance action."""
        reason = str(self.migration()["reason"])
        actions = self.cloud.get(f"/servers/{self.id}/os-instance-actions")["instanceActions"]
        newest = next(row for row in actions if row["action"] in ("migrate", "resize"))
        shown = self.cloud.get(f"/servers/{self.id}/os-instance-actions/{newest['request_id']}")["instanceAction"]
        assert shown["message"] == "Error", shown
        assert any(reason in str(event["details"]) for event in shown["events"]), (reason, shown)
        return reason

    def told(self) -> str:
        """Return the whole story for a test that failed."""
        lines = []
        for row in self.cloud.get("/v1/migrations", root="whimbrel", server=self.id)["migrations"]:
            lines.append(f"{row['id']} {row['kind']} {row['source']}->{row['target']} {row['outcome']} {row['reason']}")
            for segment in row["segments"]:
                for attempt in segment["attempts"]:
                    marked = [step for step in attempt["steps"] if step["mark"]]
                    keys = ("step", "host", "mark", "tries", "undo_tries", "seconds", "reason")
                    lines += ["  " + " ".join(str(step.get(key)) for key in keys) for step in marked]
        return "\n".join(lines)

    # --- what the guest says -----------------------------------------------------------------------

    def copies(self) -> list[Path]:
        """Return every console of the server that any host keeps, under whatever name its directory has now."""
        return [
            console
            for host in self.cloud.lab.hosts
            for console in self.cloud.instances(host).glob(f"{self.id}*/console.log")
        ]

    def console(self, host: str) -> str:
        """Return the console that is live on a host."""
        return read(self.cloud.instances(host) / self.id / "console.log")

    def boots(self, host: str) -> list[Boot]:
        """Return the boots on the console that is live on a host."""
        return boots_of(self.console(host))

    def remember(self) -> None:
        """Note the newest record that any copy calls durable, before a copy is given up."""
        self.promised = max([self.promised, *(boot.last for copy in self.copies() for boot in boots_of(read(copy)))])

    def wait_to_write(self, host: str, boots: int = 1) -> Boot:
        """Wait until the guest has verified its disk on this host and writes again; return its newest boot."""

        def writing() -> Boot | None:
            found = self.boots(host)
            return found[-1] if len(found) >= boots and found[-1].last else None

        try:
            boot: Boot = wait_for(f"server {self.id} to write on {host}", writing)
        except AssertionError as error:
            consoles = "\n".join(f"{path}:\n{read(path)[-1500:]}" for path in self.copies())
            raise AssertionError(f"{error}\n{self.told()}\n{consoles}") from None
        return boot

    def assert_nothing_lost(self, host: str) -> None:
        """The guest runs on this host only, and its newest boot found every record that any copy calls durable."""
        self.wait_to_write(host)
        assert self.cloud.runners(self.id) == [host]
        live = self.cloud.instances(host) / self.id / "console.log"
        boot = boots_of(read(live))[-1]
        for copy in self.copies():
            boots = boots_of(read(copy))
            before = boots[:-1] if copy.samefile(live) else boots
            self.promised = max([self.promised, *(boot.last for boot in before)])
        found = boot.found
        assert found["intact"] == found["total"] == found["last"], boot.text[:500]
        assert found["torn"] == found["bad"] == 0, boot.text[:500]
        assert found["last"] >= self.promised, f"record {self.promised} was durable, {found['last']} is the last"
        assert boot.first == found["last"] + 1
        assert not FAULT.search(boot.text), boot.text[:500]
        assert self.promised or found["boot"] == 1, "there was nothing to lose"


@dataclass
class Cloud:
    """The administrator's view of a lab."""

    lab: Lab
    servers: list[Server] = field(default_factory=list)

    def __post_init__(self) -> None:
        known = ssl.create_default_context(cafile=self._login()["cacert"])
        self.http = httpx2.Client(base_url=self.lab.api_url, timeout=30, trust_env=False, verify=known)
        conf = settings.load(self.lab.dir / "controller.toml")
        assert conf.database is not None
        self._store = Store(conf.database.url)
        self.log_in()

    def close(self) -> None:
        """Let go of the API and of the database."""
        self.http.close()
        self._store.close()

    # --- the API -----------------------------------------------------------------------------------

    def log_in(self) -> None:
        """Get a token."""
        auth = self._login()["auth"]
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        body = {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": auth["project_name"], "domain": domain}},
        }
        answer = self.http.post("/identity/v3/auth/tokens", json={"auth": body}).raise_for_status()
        self.http.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]

    def _login(self) -> Json:
        login: Json = yaml.safe_load(self.lab.clouds_yaml.read_text())["clouds"]["admin"]
        return login

    def get(self, path: str, *, root: str = "compute/v2.1", **query: Any) -> Any:
        """GET a path of the compute API, or of another one."""
        return self.http.get(f"/{root}{path}", params=query, headers=VERSION).raise_for_status().json()

    def post(self, path: str, body: Json, version: str = "2.95") -> Any:
        """POST to a path of the compute API."""
        headers = {"OpenStack-API-Version": f"compute {version}"}
        answer = self.http.post(f"/compute/v2.1{path}", json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def plan(self, server: Server, action: Json) -> Json:
        """Return what an action would do."""
        answer = self.http.post(f"/whimbrel/v1/servers/{server.id}/plan", json=action, headers=VERSION)
        assert answer.is_success, answer.text
        plan: Json = answer.json()["plan"]
        return plan

    def limit(self, migration: int, rate: int | None) -> None:
        """Let a migration's copy be no faster than this, in bytes per second."""
        answer = self.http.put(f"/whimbrel/v1/migrations/{migration}/limit", json={"bytes_per_second": rate})
        assert answer.is_success, answer.text

    def progress(self, migration: int) -> Json:
        """Return how far a migration's copy is, as it says itself; nothing while it says nothing."""
        told: Json | None = self.get(f"/v1/migrations/{migration}", root="whimbrel")["migration"]["progress"]
        return told or {}

    def delete(self, path: str) -> None:
        """DELETE a path of the compute API."""
        self.http.delete(f"/compute/v2.1{path}", headers=VERSION).raise_for_status()

    def is_gone(self, path: str) -> bool:
        """Return whether a path of the compute API answers 404."""
        return self.http.get(f"/compute/v2.1{path}", headers=VERSION).status_code == 404

    def flavor(self, name: str, **size: int) -> str:
        """Return the id of the flavor of this name, made with this size if it is not there."""
        for row in self.get("/flavors")["flavors"]:
            if row["name"] == name:
                return str(row["id"])
        return str(self.post("/flavors", {"flavor": {"name": name, **size}})["flavor"]["id"])

    def upload(self, name: str, content: bytes, **properties: str) -> str:
        """Upload another image and return its id."""
        body = {"name": name, "disk_format": "qcow2", "container_format": "bare", "min_disk": 1, **properties}
        image: Json = self.http.post("/image/v2/images", json=body).raise_for_status().json()
        kind = {"Content-Type": "application/octet-stream"}
        self.http.put(f"/image/v2/images/{image['id']}/file", content=content, headers=kind).raise_for_status()
        return str(image["id"])

    def create(self, user_data: str = "", *, host: str = "h1", flavor: str = "small", image: str = "") -> Server:
        """Create a server on this host and wait until its guest writes."""
        server = self.begin(user_data, host=host, flavor=flavor, image=image)
        server.wait("ACTIVE")
        server.wait_to_write(host)
        return server

    def begin(self, user_data: str = "", *, host: str = "h1", flavor: str = "small", image: str = "") -> Server:
        """Ask for a server on this host."""
        network = self.get("/networks", root="network/v2.0")["networks"][0]
        images = self.get("/images", root="image/v2", name=IMAGE_NAME)["images"]
        body: Json = {
            "name": f"guest-{len(self.servers) + 1}",
            "imageRef": image or images[0]["id"],
            "flavorRef": self.flavor(flavor),
            "host": host,
            "networks": [{"uuid": network["id"]}],
            "user_data": base64.b64encode(f"{user_data}\nwriter.interval_ms=50\n".encode()).decode(),
        }
        server = Server(self, self.post("/servers", {"server": body})["server"]["id"])
        self.servers.append(server)
        return server

    def another_image(self) -> str:
        """Upload the guest's image as one of other content, and return its id."""
        return self.upload("another", guest.image().read_bytes() + ids.new_secret().encode())

    def delete_image(self, image: str) -> None:
        """Delete an image from the store."""
        self.http.delete(f"/image/v2/images/{image}").raise_for_status()

    @contextlib.contextmanager
    def disabled(self, host: str) -> Iterator[None]:
        """Keep the scheduler away from a host for a while."""
        path = f"/compute/v2.1/os-services/{self._service(host)}"
        self.http.put(path, json={"status": "disabled"}, headers=VERSION).raise_for_status()
        try:
            yield
        finally:
            self.http.put(path, json={"status": "enabled"}, headers=VERSION).raise_for_status()

    # --- the database, read only -------------------------------------------------------------------

    def noted(self, migration: int, step: str) -> Json:
        """Return the facts of a step in the journal, newest segment and attempt first."""
        query = (
            select(journal.c.facts)
            .where(journal.c.migration_id == migration, journal.c.step == step)
            .order_by(journal.c.segment.desc(), journal.c.attempt.desc())
            .limit(1)
        )
        facts: Json = self._store.read_now(lambda tx: tx.execute(query).scalar_one())
        return facts

    def heard_at(self, host: str) -> float:
        """Return when a host's agent was heard last, in epoch seconds."""
        query = select(hosts.c.heard_at).where(hosts.c.name == host)
        heard: float = self._store.read_now(lambda tx: tx.execute(query).scalar_one())
        return heard

    def books(self) -> tuple[list[tuple[str, str, int, int, int]], int, int]:
        """Return the claims (server, host, vcpus, MiB, GiB), and how many debts and migrations are open."""

        def read(tx: Any) -> Any:
            rows = tx.execute(select(claims).order_by(claims.c.server_id)).all()
            unpaid = tx.execute(select(debts.c.id).where(debts.c.paid_at.is_(None))).all()
            unfinished = tx.execute(select(migrations.c.id).where(migrations.c.open)).all()
            taken = [(row.server_id, row.host, row.vcpus, row.ram_mb, row.disk_gb) for row in rows]
            return taken, len(unpaid), len(unfinished)

        found: tuple[list[tuple[str, str, int, int, int]], int, int] = self._store.read_now(read)
        return found

    # --- the hosts ---------------------------------------------------------------------------------

    def other(self, host: str) -> str:
        """Return the host that is not this one."""
        return next(name for name in self.lab.hosts if name != host)

    def instances(self, host: str) -> Path:
        """Return where a host keeps its servers, through its own eyes while it is up."""
        one = self.lab.host(host)
        return Path(f"/proc/{one.pid}/root{INSTANCES_DIR}") if one.pid else one.dir / "instances"

    def tpms(self, host: str) -> Path:
        """Return where a host's libvirt keeps what the TPMs of its guests remember."""
        return self.lab.host(host).dir / "var-lib-libvirt" / "swtpm"

    def processes(self, host: str) -> list[str]:
        """Return the command lines of all processes on a host."""
        found = []
        for pid, _ in members(self.lab.host(host).pid or 0):
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip())
        return found

    def ssh_clients(self, host: str) -> list[str]:
        """Return the command lines of a host's SSH clients."""
        return [line for line in self.processes(host) if line.startswith("ssh ")]

    def runners(self, server: str) -> list[str]:
        """Return the hosts on which a process holds the server's disks."""
        lines = {host: self.processes(host) for host in self.lab.hosts}
        return [host for host in lines if any("qemu-system" in line and server in line for line in lines[host])]

    def assert_tidy(self, places: Mapping[Server, str], *, stopped: tuple[Server, ...] = ()) -> None:
        """Each server is on its host, whole and once, runs unless it is stopped, and nothing else is anywhere."""
        for host in self.lab.hosts:
            here = {server.id for server, place in places.items() if place == host}
            running = here - {server.id for server in stopped}
            # What ends by itself gets a moment: after a cut a receiver hears late that its source is gone.
            pause, end = Event(), clock.monotonic() + 30
            while (left := self._leftovers(host, here, running)) and clock.monotonic() < end:
                pause.wait(LOOK)
            assert not left, f"on {host}: {left}"
        # A debt is paid when its host has said so, which is after the last file has gone.
        wait_for("the debts to be paid", lambda: not self.books()[1])
        taken, _, unfinished = self.books()
        assert not unfinished
        sizes = {server: server.show()["flavor"] for server in places}
        assert taken == sorted(
            (server.id, host, sizes[server]["vcpus"], sizes[server]["ram"], _gigabytes(sizes[server]))
            for server, host in places.items()
        )

    def _leftovers(self, host: str, here: set[str], running: set[str]) -> list[str]:
        """Return where a host differs from holding these servers and running these; its cache may hold base images."""
        one, root = self.lab.host(host), self.instances(host)
        names = {path.name for path in root.iterdir()} - {"_base"}
        found = [f"file {name}" for name in names ^ here]
        found += [f"file {path}" for path in root.glob("_base/*") if path.suffix not in ("", ".lock")]
        domains = set(one.exec(["virsh", "list", "--all", "--uuid"]).stdout.split())
        found += [f"domain {name}" for name in domains ^ here]
        lines = self.processes(host)
        guests = {match[1] for line in lines if (match := re.search(r"^\S*qemu-system.* -uuid (\S+)", line))}
        found += [f"guest {name}" for name in guests ^ running]
        tpms = {match[1] for line in lines if (match := re.search(r"^\S*swtpm socket .*/([0-9a-f-]{36})/tpm2", line))}
        found += [f"TPM {name}" for name in tpms - running]
        found += [f"state of TPM {path.name}" for path in self.tpms(host).glob("*") if path.name not in here]
        found += [
            f"process {line}" for line in lines if re.search(r"disks\.receive|^ssh |^qemu-img|^genisoimage", line)
        ]
        taps = re.findall(r"^vnet\d+", one.exec(["ip", "-brief", "link"]).stdout, re.M)
        return found + ([f"taps {taps}"] if len(taps) != len(running) else [])

    def forget_images(self, host: str) -> None:
        """Empty a host's cache of base images."""
        for path in (self.instances(host) / "_base").iterdir():
            path.unlink()

    # --- settings and mending ------------------------------------------------------------------------

    @contextlib.contextmanager
    def settings(self, role: str, host: str | None = None, **values: object) -> Iterator[None]:
        """Let a role run with other settings for a while."""
        path = self.lab.dir / ("controller.toml" if host is None else f"hosts/{host}/agent.toml")
        before = path.read_text()
        # Each role's own table is the last one of its file, and JSON's values are TOML's.
        kept = [line for line in before.splitlines() if line.partition(" = ")[0] not in values]
        path.write_text("\n".join([*kept, *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]))
        self._restart(role, host)
        try:
            yield
        finally:
            path.write_text(before)
            self._restart(role, host)

    def _restart(self, role: str, host: str | None) -> None:
        self.lab.kill(role, host)
        since = clock.now()
        self.lab.start(role, host)
        if host is not None:
            wait_for(f"the agent of {host}", lambda: self.heard_at(host) > since)

    def heal(self) -> None:
        """Bring everything back that a test took away, and delete its servers; then nothing may be left."""
        lab = self.lab
        for role in ("rabbitmq", *lab.control_roles):
            lab.start(role)
        for name, host in lab.hosts.items():
            lab.link(name, up=True)
            lab.limit(name, None)
            host.boot()
            for role in ("sshd", "libvirtd", "agent"):
                host.start(role)
        wait_for("the API", self.answers)
        for server in self.servers:
            if not self.is_gone(f"/servers/{server.id}"):
                server.delete()
        self.servers.clear()
        wait_for("the agents", lambda: self.up() == set(lab.hosts))
        self.assert_tidy({})

    def force_down(self, host: str, *, down: bool) -> None:
        """Declare a host down, as an administrator who has seen it does, or take that back."""
        path = f"/compute/v2.1/os-services/{self._service(host)}"
        self.http.put(path, json={"forced_down": down}, headers=VERSION).raise_for_status()

    def _service(self, host: str) -> str:
        rows = self.get("/os-services", host=host)["services"]
        return str(next(row["id"] for row in rows))

    def up(self) -> set[str]:
        """Return the hosts whose agents are heard."""
        services = self.get("/os-services")["services"]
        return {row["host"] for row in services if row["binary"] == "nova-compute" and row["state"] == "up"}

    def answers(self) -> bool:
        """Return whether the API is there."""
        try:
            return self.http.get("/healthz").is_success
        except httpx2.TransportError:
            return False


def _gigabytes(flavor: Json) -> int:
    return int(flavor["disk"]) + int(flavor["ephemeral"]) + -(-int(flavor["swap"]) // 1024)
