"""The faults that were tried on the peer, tried in the same way here: what becomes of the guest, and who has to mend.

The peer's rows were measured with 2 GiB of data in a 10 GiB qcow2 disk on such a machine. Here it is half as much,
because the guest itself reads all of it at each boot; the settings are the lab's own, with a patience of a minute.
"""

from __future__ import annotations

import csv
import os
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from benchmarks.fault_table import PEER_ROWS, write_table
from tests.cloud import Cloud, Server, wait_for
from tests.fault.auditor import Auditor, Rest, verdict
from tests.fault.test_channel import another_host_key, no_authority
from whimbrel.lab import Lab
from whimbrel.lab.configs import INSTANCES_DIR
from whimbrel.lab.processes import members, start_time
from whimbrel.ops import clock

NAME = "faults"
DATA_MIB, DISK_GIB = 1024, 10
SETTLE = 300.0
LOOK = 0.1


@dataclass
class Stage:
    """One server with much data, on a lab of two hosts; where it is now is its source."""

    cloud: Cloud
    server: Server
    source: str = "h1"
    target: str = "h2"
    struck_at: float = 0.0

    def migrate(self) -> None:
        """Move the server; where the fault is there before the move, it strikes now."""
        self.struck_at = clock.now()
        self.server.migrate()

    def mid_copy(self) -> None:
        """Move the server, and return when a quarter of its data is at the target."""
        self.migrate()
        wait_for("bytes at the target", lambda: self.arrived() > DATA_MIB << 18, SETTLE)
        self.struck_at = clock.now()

    def arrived(self) -> int:
        """Return how many bytes of the disk the target has."""
        paths = self.cloud.instances(self.target).glob(f"{self.server.id}.incoming-*/disk-0")
        return sum(path.stat().st_blocks * 512 for path in paths)

    def killed(self, role: str, host: str | None, away: float) -> None:
        """Kill a role, and start it again after so many seconds."""
        self.struck_at = clock.now()
        self.cloud.lab.kill(role, host)
        Event().wait(away)
        self.cloud.lab.start(role, host)


def source_agent(stage: Stage, undo: ExitStack) -> None:
    """(i) source agent killed in mid-copy, restarted 20 s later."""
    stage.mid_copy()
    stage.killed("agent", stage.source, 20)


def target_agent_pulling(stage: Stage, undo: ExitStack) -> None:
    """(ii) target agent killed while it pulls the base image, restarted 12 s later."""
    lab = stage.cloud.lab
    stage.cloud.forget_images(stage.target)
    lab.limit(stage.target, "16mbit")
    undo.callback(lab.limit, stage.target, None)
    stage.migrate()
    stage.server.at_step("prepare", "doing")
    Event().wait(2)
    lab.limit(stage.target, None)
    stage.killed("agent", stage.target, 12)


def target_agent_verifying(stage: Stage, undo: ExitStack) -> None:
    """(ii, later) target agent killed while it verifies the copy, the guest being off, restarted 12 s later."""
    stage.migrate()
    wait_for("the verification", lambda: stage.server.steps()["verify_disks"]["mark"] == "doing", SETTLE)
    stage.killed("agent", stage.target, 12)


def unknown_host_key(stage: Stage, undo: ExitStack) -> None:
    """(iii-a) the target's host key is unknown."""
    undo.enter_context(another_host_key(stage.cloud, stage.target))
    stage.migrate()


def refused_key(stage: Stage, undo: ExitStack) -> None:
    """(iii-b) the target's sshd does not accept the source's key."""
    undo.enter_context(no_authority(stage.cloud, stage.target))
    stage.migrate()


def small_target(stage: Stage, undo: ExitStack) -> None:
    """(iv) the target has 600 MiB free."""
    target = stage.cloud.lab.host(stage.target)
    target.limit_disk(600)
    undo.callback(target.limit_disk, None)
    stage.migrate()


def target_fills_up(stage: Stage, undo: ExitStack) -> None:
    """(iv, later) the target's disk fills up in mid-copy."""
    target = stage.cloud.lab.host(stage.target)
    target.limit_disk(DATA_MIB + 256)
    undo.callback(target.limit_disk, None)
    stage.mid_copy()
    target.exec(["dd", "if=/dev/zero", f"of={INSTANCES_DIR}/_base/filler", "bs=1M"], check=False)
    undo.callback((stage.cloud.instances(stage.target) / "_base/filler").unlink)


def broker(stage: Stage, undo: ExitStack) -> None:
    """(v) RabbitMQ stopped in mid-copy, back after 13 s."""
    stage.mid_copy()
    stage.killed("rabbitmq", None, 13)


def deleted(stage: Stage, undo: ExitStack) -> None:
    """(extra) DELETE in mid-copy."""
    stage.mid_copy()
    stage.cloud.delete(f"/servers/{stage.server.id}")


SCENARIOS: tuple[Callable[[Stage, ExitStack], None], ...] = (
    source_agent,
    target_agent_pulling,
    target_agent_verifying,
    unknown_host_key,
    refused_key,
    small_target,
    target_fills_up,
    broker,
    deleted,
)


def run() -> None:
    """Try them all on one server, and write the table."""
    with tempfile.TemporaryDirectory(prefix="whimbrel-bench-") as dir:
        lab = Lab.up(Path(dir), hosts=2, split=True)
        try:
            cloud = Cloud(lab)
            cloud.flavor("big", vcpus=1, ram=128, disk=DISK_GIB)
            server = cloud.begin(f"fill_mib={DATA_MIB}", flavor="big")
            server.wait("ACTIVE")
            wait_for("the guest to fill its disk", lambda: server.boots("h1") and server.boots("h1")[-1].last, SETTLE)
            stage = Stage(cloud, server)
            with PEER_ROWS.open("w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["fault", "state", "runs_on", "leftovers", "ran_again_s", "down_s", "reason", "commit"])
                for scenario in SCENARIOS:
                    table.writerow(_try(stage, scenario))
                    file.flush()
        finally:
            lab.down()
    write_table()


def _try(stage: Stage, scenario: Callable[[Stage, ExitStack], None]) -> list[str]:
    """Try one, wait until it came to rest, and tell what is left; then bring the server to rest for the next."""
    server, cloud = stage.server, stage.cloud
    stage.source = str(server.show()["OS-EXT-SRV-ATTR:host"])
    stage.target = cloud.other(stage.source)
    with ExitStack() as undo:
        scenario(stage, undo)
        rest = None
        if wait_for("the end", lambda: _at_rest(stage), SETTLE) != "gone":
            shown = server.show()
            host = str(shown["OS-EXT-SRV-ATTR:host"])
            back = cloud.other(host) if shown["status"] == "VERIFY_RESIZE" else None
            rest = Rest(server, host, shown["OS-EXT-STS:power_state"] == 1, back)
        undo.close()
        found = _settled(stage, [] if rest is None else [rest])
    if rest is None:
        row = ["deleted", "-", "; ".join(found) or "none", "", "", ""]
    else:
        wait_for(
            "the guest to write", lambda: server.boots(rest.host)[-1:] and server.boots(rest.host)[-1].last, SETTLE
        )
        found += [words] if (words := verdict(rest)) else []
        running = ", ".join(cloud.runners(server.id)) or "nowhere"
        state = server.show()["status"]
        row = [state, running, "; ".join(found) or "none", *_times(stage), str(server.migration()["reason"] or "")]
        if rest.sealed_at is not None:
            server.confirm()
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    row = [str(scenario.__doc__).rstrip("."), *row, done.stdout.strip()]
    print(" | ".join(row), flush=True)
    return row


def _times(stage: Stage) -> tuple[str, str]:
    """Return the seconds from the fault until the guest ran again, and from its stop until then; "0" if it ran on."""
    began = max((_began(pid) for host in stage.cloud.lab.hosts for pid in _guests(stage, host)), default=0.0)
    if "stopped_at" not in (facts := _facts(stage, "stop_guest")):
        return "0", "0"
    stopped = float(facts["stopped_at"])
    return f"{max(0.0, began - stage.struck_at):.1f}", f"{began - stopped:.1f}"


def _facts(stage: Stage, step: str) -> dict[str, Any]:
    """Return what the last move noted at a step; nothing if it never came to it."""
    if stage.server.steps().get(step, {}).get("mark") is None:
        return {}
    return stage.cloud.noted(stage.server.migration()["id"], step)


def _guests(stage: Stage, host: str) -> list[int]:
    """Return the processes on a host that hold the server's disks."""
    found = []
    for pid, _ in members(stage.cloud.lab.host(host).pid or 0):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            found += [pid] if "qemu-system" in words.split("\0")[0] and stage.server.id in words else []
    return found


def _began(pid: int) -> float:
    """Return when a process began, in epoch seconds."""
    up = float(Path("/proc/uptime").read_text().split()[0])
    return clock.now() - up + int(start_time(pid) or 0) / os.sysconf("SC_CLK_TCK")


def _at_rest(stage: Stage) -> str | None:
    if stage.cloud.is_gone(f"/servers/{stage.server.id}"):
        return "gone"
    shown = stage.server.show()
    rests = shown["status"] in ("ACTIVE", "SHUTOFF", "VERIFY_RESIZE") and shown["OS-EXT-STS:task_state"] is None
    return "rests" if rests and stage.cloud.runners(stage.server.id) else None


def _settled(stage: Stage, rests: list[Rest]) -> list[str]:
    """Return what the auditor still finds after a while; what ends by itself gets that while."""
    auditor, end, pause = Auditor(stage.cloud), clock.monotonic() + 60, Event()
    while (found := auditor.findings(rests)) and clock.monotonic() < end:
        pause.wait(LOOK)
    return found
