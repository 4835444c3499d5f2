"""Faults that last: each befalls a host or a service for a while, and is mended by itself when its time is over."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from tests.sim.cloud import Host

if TYPE_CHECKING:
    from tests.sim.run import Run


async def _partition(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
    run.story.tell(host.name, f"is cut from the broker for {seconds:.0f} s")
    host.linked.clear()
    await asyncio.sleep(seconds)
    host.linked.set()
    run.story.tell(host.name, "reaches the broker again")


async def _power_cut(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
    run.story.tell(host.name, f"LOSES POWER for {seconds:.0f} s")
    host.power_off()
    await asyncio.sleep(seconds)
    host.power_on()


async def _agent_killed(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
    if host.agent is not None:
        run.story.tell(host.agent.name, f"killed, away for {seconds:.0f} s")
        host.agent.kill()
    await asyncio.sleep(seconds)
    host.start_agent()


async def _conductor_killed(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
    await _service_killed(run, "conductor", seconds)


async def _scheduler_killed(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
    await _service_killed(run, "scheduler", seconds)


async def _service_killed(run: Run, name: str, seconds: float) -> None:
    run.story.tell(name, f"killed, away for {seconds:.0f} s")
    run.cloud.services[name].kill()
    await asyncio.sleep(seconds)
    run.cloud.start_controller()


async def _clock_jump(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
    by = rng.choice((-1, 1)) * rng.choice((1.0, 30.0, 300.0, 4000.0)) * rng.random()
    if rng.random() < 0.5:
        host.skew += by
        processes, name = [host.agent], host.name
    else:
        run.cloud.skew += by
        processes, name = list(run.cloud.services.values()), "controller"
    for process in processes:
        if process is not None:
            process.skew += by
    run.story.tell(name, f"clock jumps by {by:.0f} s")


def _while(attribute: str, words: str) -> Any:
    async def fault(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
        run.story.tell(host.name, f"{words} for {seconds:.0f} s")
        setattr(host, attribute, True)
        await asyncio.sleep(seconds)
        setattr(host, attribute, False)

    return fault


async def _database_away(run: Run, host: Host, seconds: float, rng: random.Random) -> None:
    run.story.tell("database", f"away for {seconds:.0f} s")
    run.cloud.mishaps.database_away = True
    await asyncio.sleep(seconds)
    run.cloud.mishaps.database_away = False


TROUBLES: dict[str, Any] = {
    "partition": _partition,
    "power cut": _power_cut,
    "agent killed": _agent_killed,
    "conductor killed": _conductor_killed,
    "scheduler killed": _scheduler_killed,
    "clock jump": _clock_jump,
    "full disk": _while("full_disk", "disk is full"),
    "slow disk": _while("slow_disk", "disk is slow"),
    "bad disk": _while("bad_disk", "disk has errors"),
    "silent hypervisor": _while("silent_hypervisor", "hypervisor is silent"),
    "start fails": _while("start_fails", "guests do not start"),
    "database away": _database_away,
}
