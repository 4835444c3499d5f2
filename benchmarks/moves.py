"""Real guests on real hosts: how long a move takes, how long the guest is down because of the hosts, what crosses."""

from __future__ import annotations

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cloud import Cloud
from benchmarks.measure import keep, pss_mib
from whimbrel.lab import Lab

NAME = "moves"
ROUNDS = 5
SIZES = ((200, 1, 2.22), (1024, 4, 4.63), (2048, 10, 12.86))
"""MiB of data, GiB of disk, and the peer's downtime in seconds."""


def run() -> None:
    """Measure qcow2 at three sizes with verdicts and a stopped server, then raw disks."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-bench-") as path:
        lab = Lab.up(Path(path) / "qcow2", hosts=2)
        try:
            cloud = Cloud(Path(lab.clouds_yaml))
            _stopped(cloud)
            for data, disk, nova in SIZES:
                _downtime(lab, cloud, (data, disk), f"downtime by hosts, qcow2, {data} MiB of data", (nova, nova))
            _agent_memory(lab)
        finally:
            lab.down()
        lab = Lab.up(Path(path) / "raw", hosts=2, settings={"agent": {"root_disk": "raw"}})
        try:
            cloud = Cloud(Path(lab.clouds_yaml))
            _downtime(lab, cloud, (1024, 4), "downtime by hosts, raw, 1 GiB of data in 4 GiB", (56.6, 6.0))
        finally:
            lab.down()


def _stopped(cloud: Cloud) -> None:
    server = cloud.create("stopped", cloud.flavor("small"))
    cloud.timed(server, {"os-stop": None}, "SHUTOFF")
    times = []
    for _ in range(ROUNDS + 1):
        times.append(cloud.timed(server, {"migrate": None}, "VERIFY_RESIZE"))
        cloud.timed(server, {"confirmResize": None}, "SHUTOFF")
    keep(NAME, "POST migrate to VERIFY_RESIZE, stopped, near-empty disk", "s", times[1:], 4.16, 1.2)
    cloud.delete(server)


def _downtime(lab: Lab, cloud: Cloud, size: tuple[int, int], what: str, marks: tuple[float, float]) -> None:
    data, disk = size
    flavor = cloud.flavor(f"disk{disk}", vcpus=1, ram=128, disk=disk)
    server = cloud.create(f"data{data}", flavor, user_data=f"writer.interval_ms=50\nfill_mib={data}\n")
    ready(lab, cloud, server, boots=1)
    downs, wires, confirms, reverts = list[float](), list[float](), list[float](), list[float]()
    for number in range(ROUNDS):
        source = lab.host(host_of(cloud, server))
        before = sent_bytes(source)
        cloud.timed(server, {"migrate": None}, "VERIFY_RESIZE")
        facts = {step["step"]: step.get("facts") or {} for step in steps(cloud, server)}
        downs.append(facts["start_guest"]["running_at"] - facts["stop_guest"]["stopped_at"])
        wires.append((sent_bytes(source) - before) / facts["copy_disks"]["allocated"])
        ready(lab, cloud, server, boots=2 + number)
        verdict = "confirmResize" if number % 2 else "revertResize"
        (confirms if number % 2 else reverts).append(cloud.timed(server, {verdict: None}, "ACTIVE"))
        if verdict == "revertResize":
            ready(lab, cloud, server, boots=2 + number)
    keep(NAME, what, "s", downs, *marks)
    keep(NAME, f"bytes on the wire over allocated, {data} MiB", "", wires, 1.0, 1.03)
    keep(NAME, f"confirm, {data} MiB of data", "s", confirms, 0.39, 0.3)
    keep(NAME, f"revert, {data} MiB of data", "s", reverts, 2.76, 1.5)
    cloud.delete(server)


def host_of(cloud: Cloud, server: str) -> str:
    return str(cloud.get(f"/servers/{server}")["server"]["OS-EXT-SRV-ATTR:host"])


def steps(cloud: Cloud, server: str) -> list[dict[str, Any]]:
    return [
        step
        for segment in cloud.story(server)["segments"]
        for attempt in segment["attempts"]
        for step in attempt["steps"]
    ]


def sent_bytes(host: Any) -> int:
    """Return the bytes that the host's own interface has sent, headers and encryption and all."""
    (link,) = json.loads(host.exec(["ip", "-statistics", "-json", "link", "show", "eth0"]).stdout)
    return int(link["stats64"]["tx"]["bytes"])


def ready(lab: Lab, cloud: Cloud, server: str, boots: int, data_mib: int = 0) -> None:
    """Wait until the guest, which has made or verified its data, writes again; hold it to its own verdict."""
    end = time.monotonic() + 300 + data_mib / 8
    while time.monotonic() < end:
        text = lab.console(host_of(cloud, server), server)
        tail = text[text.rfind("WRITER VERIFY") :]
        if "WRITER READY" in tail and re.search(r"WRITER seq=\d+", tail):
            verdict = re.search(r"torn=(\d+) bad=(\d+)", tail)
            assert verdict and verdict.groups() == ("0", "0"), tail[:300]
            return
        time.sleep(0.2)
    raise TimeoutError(f"guest {server} did not come up (boot {boots})")


def _agent_memory(lab: Lab) -> None:
    pids = [host.start("agent") for host in lab.hosts.values()]
    keep(NAME, "memory of one agent, libvirt (PSS)", "MiB", [pss_mib(pid) for pid in pids], 143, 80)
