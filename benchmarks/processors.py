"""What a copy costs the processors: the whole machine's time, and Whimbrel's by the process that took it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.measure import family
from whimbrel.lab import Lab

REST = "the rest: kernel, control plane"
TICK = os.sysconf("SC_CLK_TCK")
LOOK = 0.2
"""Seconds between two looks."""


@dataclass(frozen=True)
class Look:
    """What had been spent at a moment (seconds since the epoch), by everything and by what each process does."""

    at: float
    busy: float
    spent: dict[tuple[str, int], float]


class Watch:
    """Looks again and again at what a copy from one host to the other costs."""

    def __init__(self, lab: Lab, source: str) -> None:
        self._lab, self._source = lab, source
        self._target = "h2" if source == "h1" else "h1"
        self._looks: list[Look] = []
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._look()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._watcher.join()
        self._look()

    def cost(self, idle: float, begin: float = 0.0, end: float = float("inf")) -> dict[str, float]:
        """Return the processor seconds between two moments by what they were spent on, and the `REST`.

        `idle` is what the machine spends in each second in which nothing is copied; it is not in the sum.
        """
        first, last = (
            min(self._looks, key=lambda one: abs(one.at - moment)) for moment in (begin, min(end, time.time()))
        )
        parts: dict[str, float] = {}
        for (what, pid), seconds in last.spent.items():
            parts[what] = parts.get(what, 0.0) + seconds - first.spent.get((what, pid), 0.0)
        whole = last.busy - first.busy - idle * (last.at - first.at)
        return {**parts, REST: whole - sum(parts.values())}

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            self._look()

    def _look(self) -> None:
        """Look once more; a process that has ended since has spent what it had when it was last seen."""
        before = self._looks[-1].spent if self._looks else {}
        spent = before | dict(_processes(self._lab, self._source, self._target))
        self._looks.append(Look(time.time(), _busy(), spent))


def idle_cost(seconds: float = 5.0) -> float:
    """Return the processor seconds that the machine spends in a second as it is now.

    They are printed: where they are most of what there is, others work here, and no difference to them means anything.
    """
    before = _busy()
    time.sleep(seconds)
    spent = (_busy() - before) / seconds
    print(f"{spent:.2f} of {os.cpu_count()} processors are busy before the copy", flush=True)
    return spent


def _busy() -> float:
    """Return the seconds that this machine's processors have worked since its start."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICK


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
