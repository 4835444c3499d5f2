"""The host side under real libvirt, QEMU and OpenSSH: one server is built, moved, resized, taken back and removed.

No controller: the test orders single steps, as the conductor would, and looks at what the hosts then hold.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest

from tests.passes import with_pass
from whimbrel.domain.migration import Verb, Where
from whimbrel.domain.server import Disk, DiskRole, Guest, Image, Nic, PowerAction
from whimbrel.lab import Lab
from whimbrel.lab.guest import image as guest_image
from whimbrel.lab.network import GUEST_BRIDGE
from whimbrel.lab.processes import ENVIRONMENT, enter, wait_until
from whimbrel.migration.messages import Order, Place, Work
from whimbrel.migration.protocols import PROTOCOLS, HostStep
from whimbrel.ops import clock

pytestmark = pytest.mark.real

UUID = "0c5a6d1e-7b1c-4f67-9a55-1f9d2a4b8c10"
NIC = Nic("fa:16:3e:11:22:33", "10.99.0.7", 24, "private", "10.99.0.1", 1400)


class Refused(Exception):
    """A step's error, as it came from the host."""


class Bench:
    """Two hosts with a step driver on each, and the image store."""

    def __init__(self, lab: Lab, image: Image) -> None:
        self.lab, self.image = lab, image
        self.drivers: dict[str, subprocess.Popen[bytes]] = {}
        self.results: dict[str, Any] = {}
        self.number = 0

    def path(self, host: str) -> Path:
        """Where the servers of a host are, seen from outside."""
        return self.lab.host(host).dir / "instances"

    def driver(self, host: str) -> subprocess.Popen[bytes]:
        """Return the driver of a host, started if need be."""
        running = self.drivers.get(host)
        if running is None or running.poll() is not None:
            one = self.lab.host(host)
            command = [sys.executable, str(Path(__file__).with_name("host_driver.py")), f"{one.dir}/agent.toml"]
            log = (self.lab.dir / "logs" / f"driver@{host}.log").open("ab")
            running = subprocess.Popen(
                [*enter(one.up()), "env", "--chdir=/", *command],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=ENVIRONMENT,
            )  # fmt: skip
            self.drivers[host] = running
        return running

    def stop(self) -> None:
        for driver in self.drivers.values():
            driver.kill()
            driver.communicate()

    def say(self, host: str, step: str, work: Work, attempt: str, protocol: str, verb: str, **how: float) -> None:
        """Send an order without waiting for its answer."""
        self.number += verb != "probe"  # a probe asks about the order before it
        order = Order(
            host, work.guest.uuid, 1, 0, attempt, protocol, PROTOCOLS[protocol].version, step, Verb.DO, self.number,
            self.number, 60.0, work, self.results,
        )  # fmt: skip
        driver = self.driver(host)
        assert driver.stdin
        order = with_pass(self.lab, order)
        driver.stdin.write(msgspec.json.encode({"order": order, "verb": verb, **how}) + b"\n")
        driver.stdin.flush()

    def hear(self, host: str) -> Any:
        """Wait for the answer; raise Refused with the reason."""
        driver = self.driver(host)
        assert driver.stdout
        answer = json.loads(driver.stdout.readline())
        if "error" in answer:
            raise Refused(f"{answer['error']}: {answer['reason']}")
        return answer["facts"]

    def do(self, host: str, step: str, work: Work, attempt: str, protocol: str = "cold", verb: str = "do") -> Any:
        self.say(host, step, work, attempt, protocol, verb)
        facts = self.hear(host)
        if verb == "do":
            self.results[step] = facts
        return facts


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    lab = Lab.up(tmp_path_factory.mktemp("lab"), hosts=2, services=False)
    built = guest_image()
    handler = partial(SimpleHTTPRequestHandler, directory=str(built.parent))
    store = ThreadingHTTPServer((lab.network.address, 0), handler)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    content = built.read_bytes()
    info = json.loads(subprocess.check_output(["qemu-img", "info", "-f", "qcow2", "--output=json", built]))
    image = Image(
        "image-1", hashlib.sha256(content).hexdigest(), "qcow2", len(content), -(-info["virtual-size"] // 2**20),
        f"http://{lab.network.address}:{store.server_port}/{built.name}?ticket=secret",
    )  # fmt: skip
    bench = Bench(lab, image)
    yield bench
    bench.stop()
    store.shutdown()
    lab.down()


def make_guest(image: Image, **changes: Any) -> Guest:
    disks = (
        Disk(0, DiskRole.ROOT, "qcow2", 1024, image.sha256),
        Disk(1, DiskRole.EPHEMERAL, "qcow2", 1024),
        Disk(2, DiskRole.SWAP, "raw", 64),
    )
    return replace(Guest(UUID, "Witness 1", 1, 128, disks, (NIC,), metadata={"a": "b"}), **changes)


def make_work(bench: Bench, source: str | None, target: str | None, **changes: Any) -> Work:
    def place(host: str | None) -> Place | None:
        return None if host is None else Place(host, bench.lab.host(host).address)

    guest = make_guest(bench.image)
    return replace(Work(guest, guest, bench.image, place(source), place(target), True, 20), **changes)


def until_record(bench: Bench, host: str, *, boot: int, seconds: float = 90) -> str:
    """Wait until the guest has written a record in this boot; return its console on this host."""
    deadline = clock.monotonic() + seconds
    console = bench.path(host) / UUID / "console.log"
    while clock.monotonic() < deadline:
        said = console.read_text(errors="replace") if console.exists() else ""
        if "WRITER seq=" in said.rpartition(f" boot={boot}\n")[2] and f" boot={boot}\n" in said:
            return said
        Event().wait(0.1)
    raise AssertionError(f"no record of boot {boot} was on the console of {host}: {said[-600:]}")


def verified(console: str) -> dict[str, int]:
    """Return the guest's own count of its records at its last boot."""
    line = console[console.rindex("WRITER VERIFY") :].splitlines()[0]
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line)}


def names(bench: Bench, host: str) -> list[str]:
    return sorted(path.name for path in bench.path(host).iterdir() if path.name != "_base")


def test_a_server_is_built_moved_resized_taken_back_and_removed(bench: Bench) -> None:
    build = make_work(bench, None, "h1")
    for step in ("prepare", "define_guest", "start_guest"):
        bench.do("h1", step, build, "1-1", "build")
    said = until_record(bench, "h1", boot=1)
    assert f"ip={NIC.address} mtu={NIC.mtu} mac={NIC.mac}" in said

    move = make_work(bench, "h1", "h2")
    forward(bench, move, "2-1", "cold")
    assert bench.results["stop_guest"]["forced"] is False
    assert bench.results["define_guest"] == {"rewrites": []}
    last = int(
        re.findall(r"WRITER DOWN last=(\d+)", (bench.path("h1") / f"{UUID}.sealed-2-1/console.log").read_text())[-1]
    )
    counts = verified(until_record(bench, "h2", boot=2))
    assert counts["total"] == counts["last"] == last and counts["bad"] == counts["torn"] == 0
    definitions = [bench.results["stop_guest"]["definition"], libvirt_definition(bench, "h2")]
    assert definitions[0] == definitions[1]
    bench.do("h1", "retire_source", move, "2-1", "confirm")
    assert names(bench, "h1") == []

    larger = make_guest(bench.image, vcpus=2, ram_mb=160)
    larger = replace(larger, disks=(replace(larger.disks[0], size_mb=2048), *larger.disks[1:]))
    resize = make_work(bench, "h2", "h1", guest=larger)
    forward(bench, resize, "3-1", "resize")
    assert bench.results["define_guest"]["rewrites"] == ["vcpus 1 -> 2", "memory 128 MiB -> 160 MiB"]
    assert bench.results["resize_disks"] == {"grown_to_mb": {"disk-0": 2048}}
    counts = verified(until_record(bench, "h1", boot=3))
    assert counts["bad"] == counts["torn"] == 0 and counts["total"] == counts["last"]

    bench.do("h2", "check_source", resize, "3-1", "revert")
    bench.do("h1", "stop_target", resize, "3-1", "revert")
    bench.do("h2", "start_source", resize, "3-1", "revert")
    bench.do("h1", "discard_target", resize, "3-1", "revert")
    assert verified(until_record(bench, "h2", boot=3))["bad"] == 0
    assert libvirt_definition(bench, "h2") == definitions[0]
    assert names(bench, "h1") == [] and names(bench, "h2") == [UUID]

    reboot = make_work(bench, None, "h2", action=PowerAction.REBOOT_HARD)
    bench.do("h2", "set_power", reboot, "4-1", "power")
    assert verified(until_record(bench, "h2", boot=4))["bad"] == 0
    bench.do("h2", "remove_guest", make_work(bench, None, "h2"), "5-1", "delete")
    assert names(bench, "h2") == [] and virsh(bench, "h2", "list", "--all", "--name") == ""


def forward(bench: Bench, work: Work, attempt: str, protocol: str) -> None:
    """Do a move's steps in order, as the conductor would."""
    assert work.source and work.target
    bench.results = {}
    for step in PROTOCOLS[protocol].steps:
        if isinstance(step, HostStep):
            host = work.source.host if step.where is Where.SOURCE else work.target.host
            bench.do(host, step.name, work, attempt, protocol)


def virsh(bench: Bench, host: str, *command: str) -> str:
    return bench.lab.host(host).exec(["virsh", *command]).stdout.strip()


def libvirt_definition(bench: Bench, host: str) -> str:
    return virsh(bench, host, "dumpxml", "--inactive", "--security-info", f"whimbrel-{UUID}") + "\n"


def restart_libvirtd(bench: Bench, host: str) -> None:
    bench.lab.start("libvirtd", host)
    assert wait_until(lambda: bench.lab.host(host).exec(["virsh", "uri"], check=False).returncode == 0, 30)


def test_a_hypervisor_that_does_not_answer_is_never_taken_for_a_stopped_guest(bench: Bench) -> None:
    work = make_work(bench, None, "h1")
    for step in ("prepare", "define_guest", "start_guest"):
        bench.do("h1", step, work, "6-1", "build")
    bench.lab.kill("libvirtd", "h1")
    with pytest.raises(Refused, match="CannotTell: libvirtd could not tell the state"):
        bench.do("h1", "start_guest", work, "6-1", "build", "probe")
    restart_libvirtd(bench, "h1")
    answer, _ = bench.do("h1", "start_guest", work, "6-1", "build", "probe")
    assert answer == "done"
    # A daemon that forgot its guest, whose process still holds the disks.
    bench.lab.kill("libvirtd", "h1")
    for kept in ("run/libvirt/qemu", "etc-libvirt/qemu"):
        for path in (bench.lab.host("h1").dir / kept).glob("whimbrel-*"):
            path.unlink()
    restart_libvirtd(bench, "h1")
    with pytest.raises(Refused, match=r"QEMU process \d+ holds its disks"):
        bench.do("h1", "start_guest", work, "6-1", "build", "probe")
    assert bench.lab.kill("qemu", "h1")
    bench.do("h1", "remove_guest", work, "7-1", "delete")


def test_a_host_that_could_not_run_the_guest_says_so_before_anything_is_made(bench: Bench) -> None:
    work = make_work(bench, None, "h2")
    bench.lab.host("h2").exec(["ip", "link", "set", GUEST_BRIDGE, "name", "elsewhere"])
    try:
        with pytest.raises(Refused, match=f"Host h2 has no bridge {GUEST_BRIDGE}"):
            bench.do("h2", "prepare", work, "8-1", "build")
    finally:
        bench.lab.host("h2").exec(["ip", "link", "set", "elsewhere", "name", GUEST_BRIDGE])
    assert names(bench, "h2") == []
