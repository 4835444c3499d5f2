"""The two guests that move while they run: a server of Whimbrel's, and its like, which only virsh moves."""

from __future__ import annotations

import json
import shutil
import time
import xml.etree.ElementTree as ET
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from benchmarks.cloud import SELDOM, Cloud
from benchmarks.moves import host_of, ready, steps
from benchmarks.records import Records
from whimbrel.lab import Lab
from whimbrel.lab.configs import INSTANCES_DIR

USER_DATA = "writer.interval_ms=10\n"
BOOT = 120.0
LONGEST = 180
"""Seconds after which virsh is ended."""

BESIDE = "reference"
PLACE = "/var/lib/libvirt/bench"
"""Where the guest of virsh has its files on a host: not where the agents look."""
SEEN_AT = "var-lib-libvirt/bench"
"""The same from outside, in the host's directory."""
MIGRATE = ("--live", "--persistent", "--undefinesource", "--copy-storage-all")


@dataclass(frozen=True)
class Moved:
    """What a move says of itself: its seconds, those in which the guest was held, and why it failed, if it did."""

    seconds: float
    held: float | None = None
    complaint: str = ""


class Guest(ABC):
    """A guest that can be moved, and what is seen of it."""

    def __init__(self, name: str, records: Records) -> None:
        self.name = name
        self.records = records
        self.since = 0.0
        """What comes from here on belongs to the next move; monotonic."""

    @abstractmethod
    def move(self) -> Moved:
        """Move it to the other host."""

    @abstractmethod
    def switch_on(self) -> None:
        """Switch it off, as a power cut does, and on."""

    @abstractmethod
    def halt(self) -> None:
        """Let it do nothing until `go_on`, so that it takes no processor from another one."""

    @abstractmethod
    def go_on(self) -> None:
        """Let it write again, and wait until it does."""

    def revive(self) -> None:
        """Let it write again after a move that it did not survive."""
        self.switch_on()
        self.wait_to_write()
        self.since = time.monotonic()

    def wait_to_write(self) -> None:
        """Wait for its next records."""
        if not self.records.wait_after(time.monotonic(), 10, BOOT):
            raise TimeoutError(f"{self.name}'s guest writes no record")


class Ours(Guest):
    """A server of the cloud."""

    def __init__(self, lab: Lab, cloud: Cloud, stack: ExitStack) -> None:
        self._lab, self._cloud = lab, cloud
        self._server = cloud.create("wanderer", cloud.flavor("small"), user_data=USER_DATA)
        stack.callback(cloud.delete, self._server)
        consoles = [host.dir / "instances" / self._server / "console.log" for host in lab.hosts.values()]
        super().__init__("Whimbrel", stack.enter_context(Records(consoles)))
        self.wait_to_write()
        self.since = time.monotonic()

    def move(self) -> Moved:
        """Move it by the API; all times are the journal's."""
        self._cloud.action(self._server, {"os-migrateLive": {"host": None, "block_migration": "auto"}})
        self._cloud.wait(self._server, "ACTIVE", poll=SELDOM)
        rows = steps(self._cloud, self._server)
        first, last = datetime.fromisoformat(rows[0]["started_at"]), datetime.fromisoformat(rows[-1]["ended_at"])
        seconds, outcome = (last - first).total_seconds(), self._cloud.story(self._server)["outcome"]
        if outcome != "completed":
            return Moved(seconds, complaint=f"the migration is {outcome}")
        facts = {row["step"]: row["facts"] for row in rows}
        return Moved(seconds, facts["resume_guest"]["running_at"] - facts["move_memory"]["stopped_at"])

    def switch_on(self) -> None:
        """Reboot it hard."""
        self._cloud.timed(self._server, {"reboot": {"type": "HARD"}}, "ACTIVE")

    def halt(self) -> None:
        """Suspend it behind Whimbrel's back, which only notes that."""
        self._tell("suspend")

    def go_on(self) -> None:
        """Resume it, until Whimbrel has noted that too."""
        self._tell("resume")
        self._cloud.wait(self._server, "ACTIVE", poll=SELDOM)
        self.wait_to_write()

    def _tell(self, word: str) -> None:
        self._lab.host(host_of(self._cloud, self._server)).exec(["virsh", word, self._server])


class ByVirsh(Guest):
    """A guest that was made from a server of the cloud, under another name, with its disk as one flat file."""

    def __init__(self, lab: Lab, cloud: Cloud, stack: ExitStack) -> None:
        self._lab = lab
        self._source, self._target = "h1", "h2"
        self._places = {name: host.dir / SEEN_AT for name, host in lab.hosts.items()}
        for place in self._places.values():
            place.mkdir()
        stack.callback(self._remove)
        self._size = self._take_model(cloud)
        super().__init__(
            "virsh", stack.enter_context(Records(place / "console.log" for place in self._places.values()))
        )
        self.revive()

    def move(self) -> Moved:
        """Move it as virsh's manual says for hosts that share no storage, into a file that was made before."""
        target = self._lab.host(self._target)
        target.exec(["qemu-img", "create", "-q", "-f", "qcow2", f"{PLACE}/disk-0", str(self._size)])
        to = [f"qemu:///system?socket={target.dir}/run/libvirt/libvirt-sock", "--migrateuri", f"tcp://{target.address}"]
        began = time.monotonic()
        complaint = self._virsh(self._source, "migrate", *MIGRATE, BESIDE, *to)
        seconds = time.monotonic() - began
        if BESIDE in self._names(self._target):
            self._source, self._target = self._target, self._source
        (self._places[self._target] / "disk-0").unlink()
        return Moved(seconds, complaint=complaint)

    def switch_on(self) -> None:
        """Destroy it and start it where it is."""
        self._virsh(self._source, "destroy", BESIDE)
        self._must(self._source, "start", BESIDE)

    def halt(self) -> None:
        """Suspend it."""
        self._must(self._source, "suspend", BESIDE)

    def go_on(self) -> None:
        """Resume it."""
        self._must(self._source, "resume", BESIDE)
        self.wait_to_write()

    def revive(self) -> None:
        """Begin anew with the disk that it was made with."""
        for name in self._places:
            self._virsh(name, "destroy", BESIDE)
            self._virsh(name, "undefine", BESIDE)
        place = self._places[self._source]
        shutil.copyfile(self._lab.dir / "bench-model", place / "disk-0")
        self._must(self._source, "define", f"{PLACE}/definition.xml")
        self._must(self._source, "start", BESIDE)
        self.wait_to_write()
        self.since = time.monotonic()

    def _take_model(self, cloud: Cloud) -> int:
        """Take definition and disks of a server that has booted once; return the bytes of its disk."""
        server = cloud.create("model", cloud.flavor("small"), user_data=USER_DATA)
        ready(self._lab, cloud, server, 1)
        cloud.timed(server, {"os-stop": None}, "SHUTOFF")
        host = self._lab.host(host_of(cloud, server))
        home = f"{INSTANCES_DIR}/{server}"
        flat = self._lab.dir / "bench-model"
        host.exec(["qemu-img", "convert", "-O", "qcow2", f"{home}/disk-0", flat])
        definition = _like(host.exec(["virsh", "dumpxml", "--inactive", server]).stdout, home)
        for place in self._places.values():
            shutil.copyfile(host.dir / "instances" / server / "config.iso", place / "config.iso")
            (place / "definition.xml").write_text(definition, encoding="utf-8")
        cloud.delete(server)
        return int(json.loads(host.exec(["qemu-img", "info", "--output=json", flat]).stdout)["virtual-size"])

    def _names(self, host: str) -> list[str]:
        return self._lab.host(host).exec(["virsh", "list", "--name"]).stdout.split()

    def _must(self, host: str, *words: str) -> None:
        if complaint := self._virsh(host, *words):
            raise RuntimeError(f"virsh {' '.join(words)} on {host}: {complaint}")

    def _virsh(self, host: str, *words: str) -> str:
        """Run virsh on a host; return why it failed, or nothing."""
        command = ["timeout", str(LONGEST), "virsh", "--quiet", *words]
        done = self._lab.host(host).exec(command, check=False, timeout=LONGEST + 20)
        return f"{done.returncode}, {done.stderr.strip()}" if done.returncode else ""

    def _remove(self) -> None:
        for name, place in self._places.items():
            self._virsh(name, "destroy", BESIDE)
            self._virsh(name, "undefine", BESIDE)
            shutil.rmtree(place)
        (self._lab.dir / "bench-model").unlink(missing_ok=True)


def _like(definition: str, home: str) -> str:
    """Return the definition under another name, with files of its own; its disk stands on nothing."""
    domain = ET.fromstring(definition.replace(home, PLACE))
    for tag, text in (("name", BESIDE), ("uuid", str(uuid4()))):
        element = domain.find(tag)
        assert element is not None
        element.text = text
    disk = domain.find("devices/disk[@device='disk']")
    assert disk is not None
    below = disk.find("backingStore")
    if below is not None:
        disk.remove(below)
    for mac in domain.findall("devices/interface/mac"):
        mac.set("address", "52:54:00:00:00:01")
    return ET.tostring(domain, encoding="unicode")
