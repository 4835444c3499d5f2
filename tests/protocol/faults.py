"""What may strike at a boundary, each as a function that a cluster calls there."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable

from tests.protocol.cluster import AWAY, AgentKilled, Cluster, ConductorKilled, PowerCut
from whimbrel.domain.errors import CannotTell, StepError

Strike = Callable[[Cluster, str], None]

CONDUCTORS = "conductor."
ASKING = "?"


class Fault(enum.Enum):
    """The kinds."""

    POWER_CUT = "the host loses its power and boots at once"
    OTHERS_CUT = "every other host loses its power and boots at once"
    AWAY = "the host loses its power and stays away for longer than it is waited for"
    AGENT = "the host's agent dies and starts again; the guest runs on"
    CONDUCTOR = "the conductor dies after its transaction, before anything was sent"
    FAILS = "the call fails once"
    FAILS_LONG = "the call fails each time, on every host, for five minutes"
    SILENT = "the hypervisor does not answer once"
    SILENT_LONG = "no hypervisor answers for two minutes"


CRASHES = (Fault.POWER_CUT, Fault.OTHERS_CUT, Fault.AWAY, Fault.AGENT, Fault.CONDUCTOR)
"""Nothing but time is lost: what was asked for is done in the end."""

FAILURES = (Fault.FAILS, Fault.SILENT, Fault.SILENT_LONG)
"""Something does not work, for once or for a while: it may end otherwise than was asked for, but in order."""

LASTING = {Fault.FAILS_LONG: 300.0, Fault.SILENT_LONG: 120.0}
"""Seconds for which a fault strikes again at the boundaries of its name."""

AROUND = ("accept", "accepted", "finish", "finished", "looking")
"""Boundaries of the agent itself, which no step's call can fail at."""


def applies(fault: Fault, what: str) -> bool:
    """Return whether this kind of fault can strike at this boundary."""
    of_conductor, asks = what.startswith(CONDUCTORS), ASKING in what
    inside = not of_conductor and what.partition(".")[2] not in AROUND
    match fault:
        case Fault.CONDUCTOR:
            return of_conductor and not asks
        case Fault.SILENT | Fault.SILENT_LONG:
            return asks and not of_conductor
        case Fault.FAILS | Fault.FAILS_LONG:
            return inside
        case _:
            return not of_conductor and not asks


def strike(fault: Fault, cluster: Cluster, what: str) -> None:
    """Let it happen here."""
    name = what.partition(".")[0]
    match fault:
        case Fault.POWER_CUT:
            raise PowerCut
        case Fault.OTHERS_CUT:
            for host in cluster.hosts.values():
                if host.name != name:
                    cluster.cut(host)
        case Fault.AWAY:
            raise PowerCut(AWAY)
        case Fault.AGENT:
            raise AgentKilled
        case Fault.CONDUCTOR:
            raise ConductorKilled
        case Fault.FAILS | Fault.FAILS_LONG:
            raise StepError(f"{what} does not work")
        case Fault.SILENT | Fault.SILENT_LONG:
            raise CannotTell("the hypervisor does not answer")


def at(cluster: Cluster, plan: Iterable[tuple[int, Fault]]) -> None:
    """Let each of these faults strike at the boundary of its number, counted from now."""
    left = dict(plan)
    seen = 0
    lasting: list[tuple[Fault, str, float]] = []

    def fault(what: str) -> None:
        nonlocal seen
        number, seen = seen, seen + 1
        for kind, where, until in lasting:
            if cluster.time < until and what.endswith(where):
                strike(kind, cluster, what)
        kind = left.pop(number, None)
        if kind is None:
            return
        if kind in LASTING:
            lasting.append((kind, what[what.index(".") :], cluster.time + LASTING[kind]))
        strike(kind, cluster, what)

    cluster.fault = fault


def fail(cluster: Cluster, *names: str) -> None:
    """Let these calls fail from now on: `h2.prepare`, or `.prepare` on every host."""

    def fault(what: str) -> None:
        if what.endswith(names):
            raise StepError(f"{what} does not work")

    cluster.fault = fault


def cut_at(cluster: Cluster, name: str, *, away: float = 0.0, host: str | None = None) -> None:
    """Cut the power at the first boundary of this name, of the host itself or of another one."""

    def fault(what: str) -> None:
        if what == name:
            lift(cluster)
            if host is None:
                raise PowerCut(away)
            cluster.cut(cluster.hosts[host], away=away)

    cluster.fault = fault


def lift(cluster: Cluster) -> None:
    """No fault strikes any more."""
    cluster.fault = lambda what: None
