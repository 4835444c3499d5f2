"""The copy itself, beside the commands that people use by hand: speed, processor time, bytes, memory, and a cut.

Everything runs in one lab of two hosts in namespaces, in turns, over the same link. Whimbrel's figures are those of
whole moves: its time ends when the target has read all of it back from its disk, the others' when the last byte is
written. Processor time is that of the whole machine less what it uses when nothing is copied.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks import by_hand
from benchmarks.cloud import SELDOM, Cloud
from benchmarks.measure import family, keep
from benchmarks.moves import host_of, ready, sent_bytes, steps
from benchmarks.processors import Watch, idle_cost
from whimbrel.lab import Lab

NAME = "copying"
MIB, GIB = 1 << 20, 1 << 30
AT_REST, RUNNING = "Whimbrel, at rest", "Whimbrel, of a running guest"


@dataclass
class Found:
    """What was measured of one way to copy: MiB per second and processor seconds per GiB, run by run."""

    speeds: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    shares: dict[str, list[float]] = field(default_factory=dict)
    """The processor seconds per GiB of Whimbrel's own by the process that took them."""

    def note(self, gib: float, seconds: float, cost: dict[str, float], *, shares: bool) -> None:
        """Note one run that copied so much: what it cost, and if wanted the shares of it."""
        self.speeds.append(gib * 1024 / seconds)
        self.costs.append(sum(cost.values()) / gib)
        for part, value in cost.items() if shares else ():
            self.shares.setdefault(part, []).append(value / gib)


@dataclass(frozen=True)
class Wire:
    """One kind of data over one wire: seconds of the plain copy, of the engine's own, and its bytes over the data's."""

    data: str
    speed: str
    plain: float
    chosen: float
    share: float


def measure(lab: Lab, cloud: Cloud, gib: int, rounds: int) -> dict[str, Found]:
    """Copy `gib` GiB of random data in every way, in turns; return what was found by way."""
    place = by_hand.bystand(lab, gib)
    found: dict[str, Found] = {}
    ways: dict[str, Callable[[], float]] = {}
    for reference in by_hand.references(place):
        if shutil.which(reference.needs):
            ways[reference.name] = partial(by_hand.copied, lab, reference)
        else:
            print(f"{reference.name}: {reference.needs} is not installed, so it is left out", flush=True)
    server = _stopped_server(lab, cloud, gib)
    ways[AT_REST] = partial(_at_rest, cloud, server)
    baseline = idle_cost()
    for _ in range(rounds):
        for name, way in ways.items():
            one = found.setdefault(name, Found())
            by_hand.settle(lab, _disk(lab, cloud, server) if name == AT_REST else by_hand.source(lab))
            with Watch(lab, host_of(cloud, server)) as watch:
                seconds = way()
            one.note(gib, seconds, watch.cost(baseline), shares=name == AT_REST)
            if name == AT_REST:
                cloud.timed(server, {"confirmResize": None}, "SHUTOFF")
    found[RUNNING] = _running(lab, cloud, server, rounds)
    cloud.delete(server)
    by_hand.remove(lab)
    for name, one in found.items():
        keep(NAME, f"{name}, {gib} GiB of random data", "MiB/s", one.speeds, None, None)
        keep(NAME, f"{name}, processor time per GiB", "s", one.costs, None, None)
        for part, values in one.shares.items():
            keep(NAME, f"{name}, of it {part}", "s", values, None, None)
    return found


def _disk(lab: Lab, cloud: Cloud, server: str) -> Path:
    return Path(lab.host(host_of(cloud, server)).dir, "instances", server, "disk-0")


def _running(lab: Lab, cloud: Cloud, server: str, rounds: int) -> Found:
    """Move the server while it runs; what is noted is the first round, which copies all that the disk holds.

    What its emulated guest costs is not in it: that is measured before each move, while the guest writes as ever.
    """
    found = Found()
    cloud.timed(server, {"os-start": None}, "ACTIVE")
    ready(lab, cloud, server, 1)
    for number in range(rounds):
        by_hand.settle(lab, _disk(lab, cloud, server))
        baseline = idle_cost()
        with Watch(lab, host_of(cloud, server)) as watch:
            cloud.action(server, {"migrate": None})
            cloud.wait(server, "VERIFY_RESIZE", poll=SELDOM)
        row = next(step for step in steps(cloud, server) if step["step"] == "precopy")
        first, *others = row["facts"]["rounds"]
        end = datetime.fromisoformat(row["ended_at"]).timestamp() - sum(one["seconds"] for one in others)
        cost = watch.cost(baseline, end - first["seconds"], end)
        found.note(first["bytes"] / GIB, first["seconds"], cost, shares=True)
        ready(lab, cloud, server, 2 + number)
        cloud.timed(server, {"confirmResize": None}, "ACTIVE")
    return found


def empty_disk(lab: Lab, cloud: Cloud) -> float:
    """Move a disk of 20 GiB that holds 256 MiB; return the bytes on the wire over those that it occupies."""
    server = _stopped_server(lab, cloud, 20, data_mib=256)
    before = sent_bytes(lab.host(host_of(cloud, server)))
    source = host_of(cloud, server)
    cloud.timed(server, {"migrate": None}, "VERIFY_RESIZE")
    allocated = int(_facts(cloud, server)["copy_disks"]["allocated"])
    ratio = (sent_bytes(lab.host(source)) - before) / allocated
    keep(NAME, "bytes on the wire over allocated, 256 MiB in 20 GiB", "", [ratio], 1.0, 1.03)
    cloud.delete(server)
    return ratio


def resumed(lab: Lab, cloud: Cloud, gib: int, rounds: int) -> float:
    """Kill the source's agent in the middle of a copy; return what crossed after that over the whole."""
    server = _stopped_server(lab, cloud, gib)
    shares = list[float]()
    for _ in range(rounds):
        source = host_of(cloud, server)
        cloud.action(server, {"migrate": None})
        _wait_for(partial(_has_arrived, lab, server, source, gib * GIB // 2))
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


def _has_arrived(lab: Lab, server: str, source: str, least: int) -> bool:
    root = lab.host("h2" if source == "h1" else "h1").dir / "instances"
    return sum(path.stat().st_blocks * 512 for path in root.glob(f"{server}.incoming-*/disk-0")) > least


# --- looking ----------------------------------------------------------------------------------------------


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
