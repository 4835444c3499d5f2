"""Guests without a hypervisor: the same rules, states in a file, and a guest that is a witness of its own disk.

A guest runs only in the boot of the host that it was started in, as a process would; the agent may come and go. At
its start it reads its disk back and says on its console what it found; it numbers its writes, so a lost or a
doubled one is seen. The lines are those of the lab's real test guest.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

from whimbrel.agent.directories import HostDirectories, write_durably
from whimbrel.domain.errors import StepError
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control
from whimbrel.ops import clock
from whimbrel.ops.settings import Agent

ALIVE = (PowerState.RUNNING, PowerState.PAUSED)
IGNORES_POWER_BUTTON = "acpi=ignore"
"""In a server's user data: the guest does not heed the power button."""


class FakeGuests:
    """The Guests port over `fake-guests.json` in the instances directory."""

    def __init__(self, settings: Agent, boot: str) -> None:
        self._host = settings.host
        self._directories = HostDirectories(settings.instances_dir)
        self._file = Path(settings.instances_dir) / "fake-guests.json"
        self._boot = boot
        self._lock = Lock()
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back, from any thread, after each change of a guest's state."""
        self._listeners.append(callback)

    def state(self, server: str) -> PowerState | None:
        """Return the guest's state, None when it is not defined here."""
        with self._lock:
            record = self._load().get(server)
        return None if record is None else self._state_of(record)

    def known(self) -> dict[str, PowerState]:
        """Return every guest on this host by its UUID."""
        with self._lock:
            return {server: self._state_of(record) for server, record in self._load().items()}

    def compose(self, order: Order) -> tuple[str, list[str]]:
        """Return the definition for this host, and the rewrites that made it differ from the one it came with."""
        guest = order.work.guest
        definition: dict[str, Any] = {
            "uuid": guest.uuid,
            "name": guest.name,
            "host": self._host,
            "vcpus": guest.vcpus,
            "ram_mb": guest.ram_mb,
            "disks": [disk.name for disk in guest.disks],
            "macs": [nic.mac for nic in guest.nics],
            "user_data": guest.user_data,
        }
        if order.from_image or order.protocol == "power":
            return json.dumps(definition), []
        carried = order.carried_definition
        if carried is None:
            raise StepError(f"No definition of server {order.server} came from its source.")
        came_with = json.loads(carried)
        rewrites = [
            f"{key}: {came_with.get(key)} became {value}"
            for key, value in definition.items()
            if came_with.get(key) != value
        ]
        return json.dumps(definition), rewrites

    def define(self, server: str, definition: str) -> None:
        """Make the guest known, stopped; the same definition again is accepted."""
        with self._lock:
            records = self._load()
            record = records.setdefault(server, {"state": PowerState.STOPPED, "boot": self._boot})
            record["definition"] = definition
            self._save(records)

    def undefine(self, server: str, *, for_good: bool = False) -> None:
        """Forget a stopped guest; one that is not known is accepted."""
        with self._lock:
            records = self._load()
            if server in records and self._state_of(records[server]) in ALIVE:
                raise StepError(f"Server {server} runs on {self._host}; stop it before it is forgotten.")
            if records.pop(server, None) is not None:
                self._save(records)

    def definition(self, server: str) -> str | None:
        """Return the guest's definition, None when it is not defined here."""
        with self._lock:
            record = self._load().get(server)
        return None if record is None else str(record["definition"])

    def create_paused(self, server: str) -> None:
        """Make the guest's process without letting it run; StepError if it has one, or a disk is missing."""
        with self._lock:
            records = self._load()
            record = self._known(records, server)
            if self._state_of(record) in ALIVE:
                raise StepError(f"Server {server} has a process on {self._host} already.")
            for name in json.loads(record["definition"])["disks"]:
                if not (self._directories.live(server) / name).is_file():
                    raise StepError(f"{name} of server {server} is missing on {self._host}.")
            self._become(records, server, PowerState.PAUSED)
        self._tell()

    def resume(self, server: str) -> None:
        """Let a paused guest run; it reads its disk and makes a first write. One that runs is accepted."""
        with self._lock:
            records = self._load()
            state = self._state_of(self._known(records, server))
            if state is PowerState.RUNNING:
                return
            if state is not PowerState.PAUSED:
                raise StepError(f"Server {server} has no process on {self._host} that could be let run.")
            self._become(records, server, PowerState.RUNNING)
            witness = Witness(self._directories.live(server))
            witness.boot()
            witness.write()
        self._tell()

    def hold(self, server: str) -> None:
        """Let a running guest go no further; its process stays."""
        with self._lock:
            records = self._load()
            if self._state_of(self._known(records, server)) is PowerState.RUNNING:
                self._become(records, server, PowerState.PAUSED)
        self._tell()

    def write(self, server: str) -> int:
        """Let the guest make one more durable write; return its number. StepError if it does not run."""
        with self._lock:
            if self._state_of(self._known(self._load(), server)) is not PowerState.RUNNING:
                raise StepError(f"Server {server} does not run on {self._host}, so it writes nothing.")
            return Witness(self._directories.live(server)).write()

    def shut_down(self, server: str, grace: float, control: Control) -> bool:
        """Ask the guest to stop, and stop it by force after `grace` seconds; return whether force was needed."""
        with self._lock:
            records = self._load()
            record = records.get(server)
            if record is None or self._state_of(record) not in ALIVE:
                return False
            user_data = base64.b64decode(json.loads(record["definition"]).get("user_data") or "")
            heeds = IGNORES_POWER_BUTTON.encode() not in user_data
            paused = self._state_of(record) is PowerState.PAUSED  # it cannot heed, so it is not waited for
            forced = paused or not heeds
            if not forced:
                witness = Witness(self._directories.live(server))
                witness.write()
                witness.down()
                self._become(records, server, PowerState.STOPPED)
        if forced:
            control.wait(0 if paused else grace)
            self.destroy(server)
        self._tell()
        return forced

    def destroy(self, server: str) -> None:
        """Stop the guest at once; one that is stopped or unknown is accepted."""
        with self._lock:
            records = self._load()
            if server not in records or self._state_of(records[server]) not in ALIVE:
                return
            self._become(records, server, PowerState.STOPPED)
        self._tell()

    def _known(self, records: dict[str, Any], server: str) -> dict[str, Any]:
        if server not in records:
            raise StepError(f"Server {server} is not defined on {self._host}.")
        record: dict[str, Any] = records[server]
        return record

    def _state_of(self, record: dict[str, Any]) -> PowerState:
        """A process of an earlier boot is gone."""
        return PowerState(record["state"]) if record["boot"] == self._boot else PowerState.STOPPED

    def _become(self, records: dict[str, Any], server: str, state: PowerState) -> None:
        records[server] |= {"state": state, "boot": self._boot}
        self._save(records)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _load(self) -> dict[str, Any]:
        try:
            records: dict[str, Any] = json.loads(self._file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return records

    def _save(self, records: dict[str, Any]) -> None:
        write_durably(self._file, json.dumps(records, indent=1))


class FakeMemory:
    """The Memory port: nothing needs to cross, because what a fake guest knows is on its disk."""

    def __init__(self, guests: FakeGuests) -> None:
        self._guests = guests

    def describe(self, order: Order) -> Facts:
        """Return the definition of the running guest; StepError if it does not run."""
        if self._guests.state(order.server) is not PowerState.RUNNING:
            raise StepError(
                f"Server {order.server} does not run on {order.host}, so its memory cannot move. Migrate it cold."
            )
        return {"definition": self._guests.definition(order.server), "processor": ""}

    def check(self, order: Order) -> None:
        """Every fake processor is like every other."""

    def expect(self, order: Order, control: Control) -> None:
        """Make the guest's process at the target; it is not let run."""
        if self._guests.state(order.server) not in ALIVE:
            self._guests.create_paused(order.server)

    def forget(self, order: Order) -> None:
        """End the process; one that is not expected is accepted."""
        self._guests.destroy(order.server)

    def begin(self, order: Order, control: Control) -> float | None:
        """Refuse a guest that does not run."""
        if self._guests.state(order.server) is not PowerState.RUNNING:
            raise StepError(f"Server {order.server} does not run on {order.host} any more, so its memory cannot move.")
        return self.hold(order) if order.holds_first else None

    def is_held(self, order: Order, control: Control) -> bool:
        """Hold the guest."""
        self._guests.hold(order.server)
        return True

    def hold(self, order: Order) -> float:
        """Hold the guest now."""
        self._guests.hold(order.server)
        return clock.now()

    def complete(self, order: Order, control: Control) -> Facts:
        """Nothing is left to be sent."""
        return {"memory_bytes": 0}

    def is_gone(self, order: Order) -> bool:
        """Return whether the process is still held."""
        return self._guests.state(order.server) is PowerState.PAUSED

    def give_up(self, order: Order) -> None:
        """Nothing is under way."""

    def await_arrival(self, order: Order, control: Control) -> None:
        """It has come."""


class Witness:
    """What the guest itself does: numbered lines on its root disk, and words on its console."""

    def __init__(self, live: Path) -> None:
        self._disk = live / "disk-0"
        self._console = live / "console.log"

    def boot(self) -> None:
        """Read every write back and say whether each is there once and in its place."""
        lines = self._lines()
        numbers = [int(line.split()[1]) for line in lines if line.startswith("write ")]
        intact = sum(number == place for place, number in enumerate(numbers, start=1))
        boots = 1 + sum(line == "boot" for line in lines)
        self._append(self._disk, "boot")
        self._say(
            f"VERIFY total={len(numbers)} intact={intact} torn=0 bad={len(numbers) - intact} "
            f"last={max(numbers, default=0)} boot={boots}"
        )
        self._say("READY")

    def write(self) -> int:
        """Make the next write and return its number."""
        number = self._last() + 1
        self._append(self._disk, f"write {number}")
        self._say(f"seq={number} mono_ms=0")
        return number

    def down(self) -> None:
        """Say good-bye."""
        self._say(f"DOWN last={self._last()}")

    def _last(self) -> int:
        return max((int(line.split()[1]) for line in self._lines() if line.startswith("write ")), default=0)

    def _lines(self) -> list[str]:
        return self._disk.read_text(encoding="utf-8").splitlines()

    def _say(self, words: str) -> None:
        self._append(self._console, f"WRITER {words}")

    def _append(self, path: Path, line: str) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
