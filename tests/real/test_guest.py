"""The test guest is a witness only if it is honest: each promise of its console is checked here against plain QEMU."""

from __future__ import annotations

import json
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import monotonic

import pytest

from whimbrel.lab import guest

pytestmark = pytest.mark.real

MAC = "fa:16:3e:00:00:07"
NETWORK = {
    "links": [{"id": "tap0", "type": "bridge", "mtu": 1400, "ethernet_mac_address": MAC}],
    "networks": [
        {"id": "v6", "type": "ipv6", "link": "tap0", "ip_address": "fd00::7"},
        {
            "id": "v4",
            "type": "ipv4",
            "link": "tap0",
            "ip_address": "10.99.0.7",
            "netmask": "255.255.255.0",
            "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.99.0.1"}],
        },
    ],
    "services": [],
}


class Machine:
    """One QEMU process without libvirt: a root disk over the image, a serial file and a monitor."""

    def __init__(self, directory: Path, image: Path) -> None:
        self.directory = directory
        self.console = directory / "console.log"
        self.disk = directory / "disk-0"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", self.disk, "256M"], check=True
        )
        self.extra: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def config_drive(self, user_data: str) -> None:
        tree = self.directory / "drive"
        latest = tree / "openstack" / "latest"
        latest.mkdir(parents=True)
        (latest / "meta_data.json").write_text(json.dumps({"uuid": "u", "hostname": "witness"}))
        (latest / "network_data.json").write_text(json.dumps(NETWORK))
        (latest / "user_data").write_text(user_data)
        iso = self.directory / "config.iso"
        subprocess.run(["genisoimage", "-quiet", "-J", "-r", "-V", "config-2", "-o", iso, tree], check=True)
        self.extra += ["-cdrom", str(iso)]

    def start(self) -> None:
        self.console.unlink(missing_ok=True)
        command = ["qemu-system-x86_64", "-accel", "tcg", "-machine", "pc-i440fx-7.2", "-cpu", "qemu64"]
        command += ["-m", "128", "-display", "none", "-serial", f"file:{self.console}", "-device", "pvpanic"]
        command += ["-drive", f"file={self.disk},if=virtio,format=qcow2,cache=none", "-no-reboot"]
        command += ["-qmp", f"unix:{self.directory}/monitor,server,nowait", *self.extra]
        if "-netdev" not in self.extra:
            command += ["-nic", "none"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def wait(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Return the first match on the console, or fail with what stands there."""
        end, pause = monotonic() + timeout, Event()
        while not (found := re.search(pattern, self.text(), re.M)):
            assert monotonic() < end, f"{pattern!r} did not come:\n{self.text()[-2000:]}"
            pause.wait(0.02)
        return found

    def text(self) -> str:
        """Return the whole lines of the console; the serial port writes character by character."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return text[: text.rfind("\n") + 1]

    def power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{self.directory}/monitor")
            answers = connection.makefile()
            answers.readline()
            for command in ("qmp_capabilities", "system_powerdown"):
                connection.sendall(json.dumps({"execute": command}).encode())
                while "return" not in json.loads(answers.readline()):
                    pass

    def off(self, timeout: float = 10) -> None:
        assert self.process is not None
        self.process.wait(timeout)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture(scope="module")
def image() -> Path:
    return guest.image()


@pytest.fixture
def machine(tmp_path: Path, image: Path) -> Iterator[Machine]:
    made = Machine(tmp_path, image)
    yield made
    made.kill()


def verdict(machine: Machine) -> dict[str, int]:
    line = machine.wait(r"^WRITER VERIFY (.+)$")[1]
    assert re.fullmatch(r"total=\d+ intact=\d+ torn=\d+ bad=\d+ last=\d+ boot=\d+", line)
    return {key: int(value) for key, value in (pair.split("=") for pair in line.split())}


def last_number(machine: Machine) -> int:
    return int(re.findall(r"^WRITER seq=(\d+) mono_ms=\d+$", machine.text(), re.M)[-1])


def test_it_finds_every_record_again_after_a_clean_stop_and_after_a_power_cut(machine: Machine) -> None:
    machine.start()
    assert verdict(machine) == {"total": 0, "intact": 0, "torn": 0, "bad": 0, "last": 0, "boot": 1}
    machine.wait(r"^WRITER READY$")
    machine.wait(r"^WRITER seq=20 ")
    pressed = monotonic()
    machine.power_button()
    down = int(machine.wait(r"^WRITER DOWN last=(\d+)$")[1])
    machine.off()
    assert monotonic() - pressed < 3  # 0.3 s on an idle machine

    machine.start()
    found = verdict(machine)
    assert found["last"] == found["total"] == found["intact"] == down and found["boot"] == 2
    machine.wait(rf"^WRITER seq={down + 20} ")
    machine.kill()
    printed = last_number(machine)

    machine.start()
    found = verdict(machine)
    assert found["bad"] == 0 and found["boot"] == 3
    assert printed <= found["last"] <= printed + 1  # a record may be durable and not yet printed


def test_it_reports_a_record_that_was_changed_behind_its_back(machine: Machine) -> None:
    machine.start()
    machine.wait(r"^WRITER seq=50 ")
    machine.power_button()
    machine.off()
    raw = machine.directory / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", machine.disk, raw], check=True)
    content = raw.read_bytes()
    where = content.index(b"TIRW", 25 << 20) + 3 * 128  # the fourth record
    assert content[where : where + 4] == b"TIRW"
    raw.write_bytes(content[: where + 70] + b"\xff\x00" + content[where + 72 :])
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, machine.disk], check=True)
    machine.start()
    found = verdict(machine)
    assert found["bad"] == 1 and found["intact"] == found["total"] - 1


def test_the_config_drive_gives_it_its_address_and_its_load(machine: Machine) -> None:
    machine.config_drive("writer.interval_ms=20\nfill_mib=32\nsecond_disk=1\ndirty_kib=256\n")
    second = machine.directory / "disk-1"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", second, "16M"], check=True)
    dump = machine.directory / "frames"
    machine.extra += ["-drive", f"file={second},if=virtio,format=raw,cache=none"]
    machine.extra += ["-netdev", "user,id=n", "-device", f"virtio-net-pci,netdev=n,mac={MAC}"]
    machine.extra += ["-object", f"filter-dump,id=d,netdev=n,file={dump}"]
    machine.start()
    machine.wait(r"^WRITER READY$")
    first = machine.text()
    assert f"WRITER NET ip=10.99.0.7 mtu=1400 mac={MAC}\n" in first
    assert "WRITER FILL mib=32 bad=0\n" in first and "WRITER DISK2 total=0 bad=0\n" in first
    machine.wait(r"^WRITER seq=60 ")
    machine.power_button()
    machine.off()
    announcement = bytes.fromhex("ffffffffffff" + MAC.replace(":", "") + "0806")
    assert announcement in dump.read_bytes()
    assert "FAIL" not in machine.text()

    machine.start()
    machine.wait(r"^WRITER READY$")
    text = machine.text()
    total = verdict(machine)["total"]
    assert total >= 60 and "WRITER FILL mib=32 bad=0\n" in text
    assert f"WRITER DISK2 total={total} bad=0\n" in text
    dirty = re.search(r"^WRITER DIRTY pages=(\d+) bad=0$", text, re.M)
    assert dirty and int(dirty[1]) > 0


def test_no_write_is_under_way_when_the_power_goes(machine: Machine) -> None:
    machine.config_drive("writer.interval_ms=0\nsecond_disk=1\n")
    second = machine.directory / "disk-1"
    subprocess.run(["qemu-img", "create", "-q", "-f", "raw", second, "16M"], check=True)
    # So slow that a record spends its time on the second disk, with the first still before it.
    machine.extra += ["-drive", f"file={second},if=virtio,format=raw,cache=none,throttling.iops-write=3"]
    machine.start()
    machine.wait(r"^WRITER seq=4 ")
    machine.power_button()
    machine.off()
    begun = second.read_bytes().count(struct.pack("<I", 0x57524954))
    assert int(machine.wait(r"^WRITER DOWN last=(\d+)$")[1]) == last_number(machine) == begun > 4
    assert "errno" not in machine.text() and "I/O error" not in machine.text()
    assert "WRITER" not in machine.text().partition("WRITER DOWN")[2]


def test_it_can_be_told_to_ignore_the_power_button(machine: Machine) -> None:
    machine.config_drive("acpi=ignore\n")
    machine.start()
    machine.wait(r"^WRITER seq=1 ")
    machine.power_button()
    machine.wait(r"^WRITER seq=20 ")
    assert "WRITER DOWN" not in machine.text()
    assert machine.process is not None and machine.process.poll() is None


def test_a_panic_is_seen_on_the_console_and_told_to_the_hypervisor(machine: Machine) -> None:
    machine.config_drive("crash_at=10\n")
    machine.start()
    machine.wait(r"Kernel panic - not syncing")
    machine.off(20)  # QEMU ends on the panic device's word; a guest that rebooted would end it, too, but verify again
    assert last_number(machine) == 10 and machine.text().count("WRITER VERIFY") == 1
    machine.start()
    machine.wait(r"^WRITER seq=20 ")
    assert verdict(machine)["last"] == 10
