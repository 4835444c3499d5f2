"""The copy itself, beside the commands that people use by hand: speed, processor time, bytes, memory, and a cut.

Everything runs in one lab of two hosts in namespaces, in turns, over the same link. Whimbrel's figures are those of
whole moves: its time ends when the target has read all of it back from its disk, the others' when the last byte is
written. Processor time is that of the whole machine less what it uses when nothing is copied.
"""

from __future__ import annotations

import os
import shlex
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.cloud import Cloud
from benchmarks.measure import family, keep
from benchmarks.moves import host_of, ready, sent_bytes, steps
from whimbrel.lab import Lab
from whimbrel.lab.configs import INSTANCES_DIR

NAME = "copying"
MIB, GIB = 1 << 20, 1 << 30
PORT = 2222
FAST = "aes128-gcm@openssh.com"
HERE, THERE = f"{INSTANCES_DIR}/bench-data", f"{INSTANCES_DIR}/bench-copy"
AT_REST = "Whimbrel, at rest"
REST = "the rest: kernel, control plane"
SELDOM = 0.5
"""Seconds between two looks at a copy that is measured: each costs the processors that it is short of."""
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Found:
    """What was measured of one way to copy: MiB per second and processor seconds per GiB, run by run."""

    speeds: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    shares: dict[str, list[float]] = field(default_factory=dict)
    """The processor seconds per GiB of Whimbrel's own by the process that took them."""


@dataclass(frozen=True)
class Wire:
    """One kind of data over one wire: seconds of the plain copy, of the engine's own, and its bytes over the data's."""

    data: str
    speed: str
    plain: float
    chosen: float
    share: float


@dataclass(frozen=True)
class Reference:
    """A command that copies the file, as it is run on the source; None for a tool that is not installed."""

    name: str
    command: str
    needs: str


def measure(lab: Lab, cloud: Cloud, gib: int, rounds: int) -> dict[str, Found]:
    """Copy `gib` GiB of random data in every way, in turns; return what was found by way."""
    place = _bystand(lab, gib)
    found: dict[str, Found] = {}
    ways: dict[str, Callable[[], float]] = {}
    for one in _references(place):
        if shutil.which(one.needs):
            ways[one.name] = lambda one=one: _by_hand(lab, one)
        else:
            print(f"{one.name}: {one.needs} is not installed, so it is left out", flush=True)
    server = _stopped_server(lab, cloud, gib)
    ways[AT_REST] = lambda: _at_rest(cloud, server)
    baseline = _idle_cost()
    for _ in range(rounds):
        for name, way in ways.items():
            one = found.setdefault(name, Found())
            _settle(lab)
            before, began = _busy(), time.monotonic()
            with _by_process(lab, host_of(cloud, server)) as spent:
                seconds = way()
            cost = _busy() - before - baseline * (time.monotonic() - began)
            if name == AT_REST:
                cloud.timed(server, {"confirmResize": None}, "SHUTOFF")
                for part, value in {**spent, REST: cost - sum(spent.values())}.items():
                    one.shares.setdefault(part, []).append(value / gib)
            one.speeds.append(gib * 1024 / seconds)
            one.costs.append(cost / gib)
    cloud.timed(server, {"os-start": None}, "ACTIVE")
    ready(lab, cloud, server, 1)
    running = found["Whimbrel, of a running guest"] = Found()
    for number in range(rounds):
        cloud.action(server, {"migrate": None})
        cloud.wait(server, "VERIFY_RESIZE", poll=SELDOM)
        first = _facts(cloud, server)["precopy"]["rounds"][0]
        running.speeds.append(first["bytes"] / MIB / first["seconds"])
        ready(lab, cloud, server, 2 + number)
        cloud.timed(server, {"confirmResize": None}, "ACTIVE")
    cloud.delete(server)
    for path in (lab.host("h1").dir / "instances/bench-data", lab.host("h2").dir / "instances/bench-copy"):
        path.unlink(missing_ok=True)
    for name, one in found.items():
        keep(NAME, f"{name}, {gib} GiB of random data", "MiB/s", one.speeds, None, None)
        if one.costs:
            keep(NAME, f"{name}, processor time per GiB", "s", one.costs, None, None)
        for part, values in one.shares.items():
            keep(NAME, f"{name}, of it {part}", "s", values, None, None)
    return found


def empty_disk(lab: Lab, cloud: Cloud) -> float:
    """Move a disk of 20 GiB that holds 256 MiB; return the bytes on the wire over those that it occupies."""
    server = _stopped_server(lab, cloud, 20, data_mib=256)
    before = sent_bytes(lab.host(host_of(cloud, server)))
    source = host_of(cloud, server)
    cloud.timed(server, {"migrate": None}, "VERIFY_RESIZE")
    ratio = (sent_bytes(lab.host(source)) - before) / _facts(cloud, server)["copy_disks"]["allocated"]
    keep(NAME, "bytes on the wire over allocated, 256 MiB in 20 GiB", "", [ratio], 1.0, 1.03)
    cloud.delete(server)
    return ratio


def resumed(lab: Lab, cloud: Cloud, gib: int, rounds: int) -> float:
    """Kill the source's agent in the middle of a copy; return what crossed after that over the whole."""
    server = _stopped_server(lab, cloud, gib)
    shares = []
    for _ in range(rounds):
        source = host_of(cloud, server)
        cloud.action(server, {"migrate": None})
        _wait_for(lambda source=source: _arrived(lab, server, source) > gib * GIB // 2)
        lab.kill("agent", source)
        lab.start("agent", source)
        cloud.wait(server, "VERIFY_RESIZE")
        facts = _facts(cloud, server)["copy_disks"]
        shares.append(facts["bytes"] / facts["allocated"])
        cloud.timed(server, {"confirmResize": None}, "SHUTOFF")
    keep(NAME, f"bytes after a cut at half over the whole, {gib} GiB", "", shares, 1.0, 0.6)
    cloud.delete(server)
    return statistics.median(shares)


def compressed(lab: Lab, cloud: Cloud, mib: int, rounds: int) -> list[Wire]:
    """Copy data over wires of several speeds: from h1 as the engine decides, from h2, whose agent is set so, plain."""
    settings = lab.host("h2").dir / "agent.toml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("[agent]\n", "[agent]\ncompress = false\n"))
    lab.kill("agent", "h2")
    lab.start("agent", "h2")
    found = []
    for kind, content in (("random", os.urandom), ("records", _records)):
        server = _stopped_server(lab, cloud, mib // 1024 + 2, data_mib=mib, content=content)
        for wire in ("1gbit", "100mbit", None):
            lab.limit("h2", wire)
            seconds: dict[str, list[float]] = {"h1": [], "h2": []}
            shares: dict[str, list[float]] = {"h1": [], "h2": []}
            for _ in range(2 * rounds):
                source = host_of(cloud, server)
                cloud.action(server, {"migrate": None})
                cloud.wait(server, "VERIFY_RESIZE", poll=SELDOM)
                facts = _facts(cloud, server)["copy_disks"]
                took = {step["step"]: step["seconds"] for step in steps(cloud, server)}
                cloud.timed(server, {"confirmResize": None}, "SHUTOFF")
                seconds[source].append(took["copy_disks"] + took["verify_disks"])
                shares[source].append(facts["bytes"] / facts["allocated"])
            what = f"{mib} MiB of {kind} over {wire or 'the bare link'}"
            keep(NAME, f"copy, compressed where it pays, {what}", "s", seconds["h1"], None, None)
            keep(NAME, f"copy, never compressed, {what}", "s", seconds["h2"], None, None)
            plain, chosen, share = map(statistics.median, (seconds["h2"], seconds["h1"], shares["h1"]))
            found.append(Wire(kind, wire or "bare", plain, chosen, share))
        cloud.delete(server)
    return found


def memory(lab: Lab, cloud: Cloud, sizes: tuple[tuple[int, int], ...]) -> dict[int, float]:
    """Return by GiB of disk the most memory, in MiB, that agent, ssh or receiver held in a copy of so many MiB."""
    found = {}
    for gib, data in sizes:
        server = _stopped_server(lab, cloud, gib, data_mib=data)
        source, peak, over = host_of(cloud, server), [0.0], threading.Event()
        pids = [lab.host(name).find("agent") for name in ("h1", "h2")]
        for pid in pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is that of this copy (proc(5))
        watcher = threading.Thread(target=_watch_receivers, args=(lab, source, peak, over))
        watcher.start()
        cloud.timed(server, {"migrate": None}, "VERIFY_RESIZE")
        over.set()
        watcher.join()
        found[gib] = max(peak[0], *(_peak(pid) for pid in pids if pid))
        keep(NAME, f"memory of an agent or receiver, disk of {gib} GiB with {data} MiB", "MiB", [found[gib]], None, 150)
        cloud.delete(server)
    return found


# --- the commands by hand -----------------------------------------------------------------------------


def _bystand(lab: Lab, gib: int) -> Path:
    """Make the file, and an sshd of its own at h2 that a new key opens; return the directory of the key."""
    place = lab.dir / "bench"
    place.mkdir()
    place.chmod(0o711)
    with (lab.host("h1").dir / "instances/bench-data").open("wb") as file:
        for _ in range(gib * 4):
            file.write(os.urandom(256 * MIB))
    for name in ("host_key", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    (place / "authorized").write_text((place / "key.pub").read_text())
    (place / "sshd_config").write_text(
        f"Port {PORT}\nHostKey {place}/host_key\nAuthorizedKeysFile {place}/authorized\nStrictModes no\nPidFile none\n"
        "UsePAM no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    host = lab.host("h2")
    command = ["/usr/sbin/sshd", "-D", "-e", "-f", f"{place}/sshd_config"]
    host.processes.start("bench-sshd@h2", command, log=place / "sshd.log", inside=host.up())
    target = host.address
    (place / "ssh_config").write_text(
        f"Host target\n HostName {target}\n Port {PORT}\n User root\n IdentityFile {place}/key\n BatchMode yes\n"
        " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
    )
    return place


def _references(place: Path) -> list[Reference]:
    ssh = f"ssh -F {place}/ssh_config"
    nbd = f"qemu-nbd --fork --persistent -f raw -k {INSTANCES_DIR}/bench.sock --pid-file {INSTANCES_DIR}/bench.pid"
    size = f"$(stat -c %s {HERE})"
    over_nbd = (
        f"{ssh} target 'truncate -s '{size}' {THERE}; {nbd} {THERE}' && "
        f"{ssh} -c {FAST} -f -N -M -S {place}/control -L {place}/there.sock:{INSTANCES_DIR}/bench.sock target && "
        f"nbdcopy {HERE} 'nbd+unix:///?socket={place}/there.sock'; status=$?; "
        f"{ssh} -S {place}/control -O exit target 2>/dev/null; rm -f {place}/there.sock; "
        f"{ssh} target 'kill $(cat {INSTANCES_DIR}/bench.pid)'; exit $status"
    )
    return [
        Reference("scp", f"scp -q -F {place}/ssh_config {HERE} target:{THERE}", "scp"),
        Reference("scp, aes128-gcm", f"scp -q -c {FAST} -F {place}/ssh_config {HERE} target:{THERE}", "scp"),
        Reference(
            "the same, synced, compared",
            f"scp -q -c {FAST} -F {place}/ssh_config {HERE} target:{THERE} && here=$(sha256sum < {HERE}) && "
            f'there=$({ssh} target \'sync {THERE} && sha256sum < {THERE}\') && test "$here" = "$there"',
            "scp",
        ),
        Reference("rsync -S", f"rsync -S -e '{ssh}' {HERE} target:{THERE}", "rsync"),
        Reference("ssh pipe, aes128-gcm", f"{ssh} -c {FAST} target 'cat > {THERE}' < {HERE}", "ssh"),
        Reference("nbdcopy over ssh -L", over_nbd, "nbdcopy"),
    ]


def _settle(lab: Lab) -> None:
    """Leave nothing to be written of the copy before, so that nobody pays for what another left to the kernel."""
    (lab.host("h2").dir / "instances/bench-copy").unlink(missing_ok=True)
    os.sync()


def _by_hand(lab: Lab, one: Reference) -> float:
    began = time.monotonic()
    done = lab.host("h1").exec(["bash", "-c", one.command], check=False, timeout=600)
    seconds = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(f"{shlex.quote(one.command)} failed: {done.stderr[-500:]}")
    return seconds


# --- whole moves ----------------------------------------------------------------------------------------


def _stopped_server(
    lab: Lab, cloud: Cloud, gib: int, data_mib: int | None = None, content: Callable[[int], bytes] = os.urandom
) -> str:
    """Return a stopped server whose disk holds data, random if nothing is said, behind what its guest uses."""
    disk = gib + 2 if data_mib is None else gib
    flavor = cloud.flavor(f"copy{disk}", vcpus=1, ram=128, disk=disk)
    server = cloud.create(f"copy{disk}", flavor, user_data="writer.interval_ms=50\n")
    ready(lab, cloud, server, 1)
    cloud.timed(server, {"os-stop": None}, "SHUTOFF")
    host = lab.host(host_of(cloud, server))
    path = host.dir / "instances" / server / "disk-0"
    chunk = lab.dir / "chunk"
    size = min(256, data_mib or 256)
    chunk.write_bytes(content(size * MIB))
    for number in range((data_mib or gib * 1024) // size):
        where = (1024 + number * size) * MIB
        subprocess.run(
            ["qemu-io", "-f", "qcow2", "-c", f"write -q -s {chunk} {where} {size}M", path],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    chunk.unlink()
    return server


def _records(size: int) -> bytes:
    """Return lines as a log has them: a third of them is chance."""
    lines = (
        f"2026-01-01T00:{n % 60:02}:00Z host{n % 40} unit {os.urandom(8).hex()} took {n % 977} ms\n" for n in count()
    )
    content = bytearray()
    for line in lines:
        content += line.encode()
        if len(content) >= size:
            return bytes(content[:size])
    raise AssertionError("the lines have no end")


def _at_rest(cloud: Cloud, server: str) -> float:
    cloud.action(server, {"migrate": None})
    cloud.wait(server, "VERIFY_RESIZE", poll=SELDOM)
    seconds = {step["step"]: step["seconds"] for step in steps(cloud, server)}
    return float(seconds["copy_disks"] + seconds["verify_disks"])


def _facts(cloud: Cloud, server: str) -> dict[str, Any]:
    return {step["step"]: step.get("facts") or {} for step in steps(cloud, server)}


def _arrived(lab: Lab, server: str, source: str) -> int:
    root = lab.host("h2" if source == "h1" else "h1").dir / "instances"
    return sum(path.stat().st_blocks * 512 for path in root.glob(f"{server}.incoming-*/disk-0"))


# --- looking ----------------------------------------------------------------------------------------------


def _busy() -> float:
    """Return the seconds that this machine's processors have worked since its start."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICK


@contextmanager
def _by_process(lab: Lab, source: str) -> Iterator[dict[str, float]]:
    """Fill in, at the end, the processor seconds that a copy's processes took meanwhile."""
    target = "h2" if source == "h1" else "h1"
    first = dict(_processes(lab, source, target))
    last, over, spent = dict(first), threading.Event(), dict[str, float]()

    def watch() -> None:
        while not over.wait(0.2):
            last.update(_processes(lab, source, target))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield spent
    finally:
        over.set()
        watcher.join()
    last.update(_processes(lab, source, target))
    for key, seconds in last.items():
        spent[key[0]] = spent.get(key[0], 0.0) + seconds - first.get(key, 0.0)


def _processes(lab: Lab, source: str, target: str) -> Iterator[tuple[tuple[str, int], float]]:
    """Give what each process of a copy does and its pid, with the processor seconds that it has had so far."""
    agent, other, daemon = lab.host(source).find("agent"), lab.host(target).find("agent"), lab.host(target).find("sshd")
    if agent is None or other is None or daemon is None:
        raise RuntimeError(f"an agent or sshd of {source} or {target} does not run")
    doing = dict.fromkeys(family(agent), "ssh: encrypts")
    doing |= dict.fromkeys(family(daemon), "receiver: writes, reads back")
    doing |= {agent: "source's agent: reads, digests", other: "target's agent"}
    for pid, what in doing.items():
        with suppress(OSError):  # it has ended since
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            ticks = rest.split()[11:13]
            yield ("sshd: decrypts" if name == "sshd" else what, pid), sum(map(int, ticks)) / TICK


def _idle_cost(seconds: float = 5.0) -> float:
    before = _busy()
    time.sleep(seconds)
    return (_busy() - before) / seconds


def _peak(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _watch_receivers(lab: Lab, source: str, peak: list[float], over: threading.Event) -> None:
    """Note the most memory of any process below the sshd of the target."""
    target = lab.host("h2" if source == "h1" else "h1")
    while not over.wait(0.2):
        daemon = target.find("sshd")
        for pid in family(daemon) if daemon else ():
            try:
                peak[0] = max(peak[0], _peak(pid))
            except OSError:  # it has ended since
                continue


def _wait_for(condition: Callable[[], bool], deadline: float = 300.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the copy did not come to its half")
        time.sleep(0.02)
