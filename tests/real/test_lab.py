"""The lab's hosts must be as apart as real ones, die like real ones, and leave nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import monotonic

import pytest

from tests.passes import channel_at
from whimbrel.domain.errors import Invalid, NotFound, Unavailable
from whimbrel.lab import Lab, configs
from whimbrel.lab.logs import Wanted, entries

pytestmark = pytest.mark.real

DOMAIN = """<domain type='qemu'><name>idle</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os></domain>"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab.up(tmp_path_factory.mktemp("lab"), hosts=2, services=False)
    yield made
    made.down()


def said(lab: Lab, host: str, *command: str) -> str:
    return lab.host(host).exec(command).stdout.strip()


def machine_state(dir: Path) -> dict[str, object]:
    """What a lab may leave on a machine: namespaces, interfaces, mounts, and processes that name its directory."""
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text() + (entry / "environ").read_text()
            except OSError:
                continue
            if str(dir) in command:
                processes.append(command)
    links = json.loads(subprocess.check_output(["ip", "-json", "link"]))
    own = [link["ifname"] for link in links if link["ifname"].startswith("wl-")]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(dir) in line]
    return {"processes": processes, "links": own, "mounts": mounts}


def test_hosts_have_their_own_name_address_processes_and_libvirt(lab: Lab) -> None:
    assert [said(lab, host, "hostname") for host in lab.hosts] == ["h1", "h2"]
    assert said(lab, "h1", "ping", "-c1", "-W2", lab.host("h2").address)
    capabilities = [said(lab, host, "virsh", "capabilities") for host in lab.hosts]
    assert len({text[text.index("<uuid>") : text.index("</uuid>")] for text in capabilities}) == 2
    assert "<domain type='qemu'" in capabilities[0] and "<domain type='kvm'" not in capabilities[0]
    seen = said(lab, "h1", "ps", "-e", "-o", "comm=").split()
    assert seen.count("libvirtd") == 1 and "beam.smp" not in seen


def test_ssh_between_hosts_gives_no_shell(lab: Lab) -> None:
    options = ["-F", "none", "-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"]
    own = Path(configs.CHANNEL_DIR)
    for key in ("channel_key", "host_key"):
        ssh = ["ssh", *options, "-i", own / key, f"root@{lab.host('h2').address}", "id"]
        done = lab.host("h1").exec(ssh, check=False, input="")
        assert done.returncode == 255 and "Permission denied" in done.stderr
    before = channel_at(lab.host("h1"))
    command = [sys.executable, "-m", "whimbrel", "host", "enroll", "--config", f"{lab.dir}/hosts/h1/agent.toml"]
    assert "h1 is enrolled" in said(lab, "h1", *command)
    after = channel_at(lab.host("h1"))
    assert after.key != before.key and after.host_key != before.host_key
    assert said(lab, "h1", "stat", "-c", "%a", str(own / "channel_key"), str(own / "host_key")) == "600\n600"
    lab.kill("sshd", "h1")
    lab.start("sshd", "h1")


def test_a_crash_takes_everything_and_a_boot_keeps_disks_definitions_and_identity(lab: Lab) -> None:
    host = lab.host("h1")
    host.exec(["virsh", "define", "/dev/stdin"], input=DOMAIN)
    host.exec(["virsh", "start", "idle"])
    host.exec(["touch", "/run/boot-marker", "/var/lib/libvirt/instances/disk"])
    machine_id, before = said(lab, "h1", "cat", "/etc/machine-id"), set(lab.running().items())
    host.crash()
    assert host.pid is None and lab.running()["sshd@h1"] is None
    assert not machine_state(host.dir)["processes"]  # QEMU, too
    assert lab.host("h2").pid is not None
    with pytest.raises(Unavailable, match="lab boot h1"):
        host.exec(["true"])
    host.boot()
    assert said(lab, "h1", "virsh", "domstate", "idle") == "shut off"
    assert said(lab, "h1", "cat", "/etc/machine-id") == machine_id
    assert said(lab, "h1", "ls", "/var/lib/libvirt/instances") == "disk"
    assert host.exec(["test", "-e", "/run/boot-marker"], check=False).returncode == 1
    host.exec(["virsh", "undefine", "idle"])
    assert not before & {item for item in lab.running().items() if item[0].endswith("@h1")}


def test_a_killed_daemon_is_found_dead_and_started_again(lab: Lab) -> None:
    assert lab.kill("libvirtd", "h2") and lab.running()["libvirtd@h2"] is None
    assert not lab.kill("libvirtd", "h2")
    pid = lab.start("libvirtd", "h2")
    assert lab.start("libvirtd", "h2") == pid == lab.running()["libvirtd@h2"]
    lab.host("h2").wait_ready()
    with pytest.raises(Invalid, match="sshd@HOST"):
        lab.kill("sshd")
    with pytest.raises(NotFound, match="h1, h2"):
        lab.kill("sshd", "h9")


def test_a_guest_killed_alone_dies_and_its_neighbour_lives(lab: Lab) -> None:
    host = lab.host("h2")
    for name in ("one", "two"):
        host.exec(["virsh", "create", "/dev/stdin"], input=DOMAIN.replace("idle", name))
    uuid = said(lab, "h2", "virsh", "domuuid", "one")
    assert lab.kill("qemu", "h2", server=uuid)
    end, pause = monotonic() + 10, Event()
    while "one" in (names := said(lab, "h2", "virsh", "list", "--name").split()):
        assert monotonic() < end
        pause.wait(0.05)
    assert names == ["two"]
    assert lab.kill("qemu", "h2") and not lab.kill("qemu", "h2")


def test_a_pulled_cable_cuts_both_networks_and_a_limit_slows_the_link(lab: Lab) -> None:
    def reaches(address: str) -> bool:
        return lab.host("h1").exec(["ping", "-c1", "-W1", address], check=False).returncode == 0

    peer = lab.host("h2").address
    lab.link("h2", up=False)
    assert not reaches(peer)
    lab.link("h2", up=True)
    assert reaches(peer)
    lab.limit("h2", "20mbit")
    assert "rate 20Mbit" in said(lab, "h2", "tc", "qdisc", "show", "dev", "eth0")
    lab.limit("h2", None)
    lab.limit("h2", None)
    assert "tbf" not in said(lab, "h2", "tc", "qdisc", "show", "dev", "eth0")


def test_a_disk_can_be_made_small_and_whole_again(lab: Lab) -> None:
    host = lab.host("h2")
    fill = ["dd", "if=/dev/zero", "of=/var/lib/libvirt/instances/big", "bs=1M", "count=40"]
    host.limit_disk(32)
    assert "No space left" in host.exec(fill, check=False).stderr
    host.limit_disk(None)
    host.exec(fill)
    host.exec(["rm", "/var/lib/libvirt/instances/big"])


def test_guests_on_different_hosts_share_one_network(lab: Lab) -> None:
    lab.host("h1").exec(["ip", "addr", "add", "10.99.0.201/24", "dev", "br-guests"])
    lab.host("h2").exec(["ip", "addr", "add", "10.99.0.202/24", "dev", "br-guests"])
    assert said(lab, "h1", "ping", "-c1", "-W2", "-I", "10.99.0.201", "10.99.0.202")
    assert lab.on_switch(["ping", "-c1", "-W2", "10.99.0.202"]).returncode == 0


def test_a_second_lab_lives_beside_the_first_and_leaves_nothing(lab: Lab, tmp_path: Path) -> None:
    before = machine_state(tmp_path)
    second = Lab.up(tmp_path, hosts=1, name="second", services=False)
    try:
        assert second.network.address != lab.network.address
        assert Lab.up(tmp_path, services=False).host("h1").pid == second.host("h1").pid  # it is up already
        assert second.host("h1").exec(["ping", "-c1", "-W1", lab.host("h1").address], check=False).returncode
    finally:
        second.down()
    assert machine_state(tmp_path) == before
    assert not second.network.namespaces()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["lock", "logs"]
    with pytest.raises(NotFound):
        Lab.open(tmp_path)


@pytest.mark.parametrize("after_seconds", [0.4, 2.5])
def test_what_a_killed_up_left_is_removed_by_down(lab: Lab, tmp_path: Path, after_seconds: float) -> None:
    before = machine_state(tmp_path)
    code = f"from whimbrel.lab import Lab; Lab.up({str(tmp_path)!r}, hosts=2, services=False)"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    end, pause = monotonic() + 30, Event()
    while not (tmp_path / "lab.json").exists() and monotonic() < end:
        pause.wait(0.01)
    pause.wait(after_seconds)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    left = Lab.open(tmp_path)
    left.down()
    assert machine_state(tmp_path) == before
    assert not left.network.namespaces()


def test_logs_of_all_processes_are_told_in_the_order_of_time(tmp_path: Path) -> None:
    def line(second: int, event: str, **fields: object) -> str:
        return json.dumps({"timestamp": f"2026-01-01T00:00:{second:02}Z", "event": event, **fields}) + "\n"

    (tmp_path / "controller.log").write_text(
        line(1, "accepted", role="api", request_id="req-1") + line(4, "finished", migration=7, request_id="req-1")
    )
    (tmp_path / "agent@h1.log").write_text(
        line(2, "copied", role="agent", host="h1", migration=7) + "Traceback\n" + line(5, "idle")
    )
    shown = [entry.render() for entry in entries(tmp_path, Wanted())]
    assert [text.split()[2] for text in shown] == ["accepted", "copied", "Traceback", "finished", "idle"]
    assert shown[1] == "00:00:02.000 agent@h1       copied migration=7"
    assert [e.text for e in entries(tmp_path, Wanted(migration="7"))] == ["copied", "finished"]
    assert [e.text for e in entries(tmp_path, Wanted(role="agent", request="req-1"))] == []
