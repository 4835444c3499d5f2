"""For each protocol: how to come to where it begins, how it is begun, and how it may end.

A new protocol gets every generic test by one row more; `test_every_protocol_is_in_the_table_of_scenarios` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.protocol.cluster import AWAY, LARGE, SMALL, Cluster
from whimbrel.domain.errors import Invalid
from whimbrel.domain.migration import Kind, Verdict
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.migration.protocols import Protocol

Deed = Callable[[Cluster], None]
MANY, ONE = ("h1", "h2", "h3"), ("h1",)


@dataclass(frozen=True)
class Scenario:
    """One way through one protocol.

    `well`: how it ends when nothing fails for good, whatever crashes or is lost: (outcome, where), with `window` for
    an undo window that is open. `ill`: how it may end as well when a step fails. `runs`: whether the guest runs then.
    `fragile`: a crash may turn it back, because a guest's memory does not outlive its process.
    A `variant` of another scenario is gone through in samples, but for `make proof`.
    """

    name: str
    table: Protocol
    begin: Deed
    well: tuple[str, str]
    ill: tuple[tuple[str, str], ...] = ()
    reach: Deed = lambda cluster: None
    hosts: tuple[str, ...] = MANY
    built: bool = True
    runs: bool = True
    variant: bool = False
    fragile: bool = False

    @property
    def cancelled(self) -> tuple[str, str]:
        """How it ends when it is cancelled in time: a revert leaves its window open again."""
        return WINDOW if WINDOW in self.ill else ("cancelled", self.ill[0][1])

    def cluster(self) -> Cluster:
        """Return a cluster where the protocol is about to begin."""
        cluster = Cluster(self.hosts, built=self.built)
        self.reach(cluster)
        if not cluster.returns:
            cluster.run()
        cluster.trace.clear()
        cluster.sent.clear()
        return cluster

    def run(self, cluster: Cluster) -> Cluster:
        """Begin, and go on until nothing is under way."""
        self.begin(cluster)
        cluster.run()
        return cluster


def moved(cluster: Cluster) -> None:
    """A cold migration that waits for its verdict."""
    cluster.start()


def resized(cluster: Cluster) -> None:
    """A resize that waits for its verdict."""
    cluster.start(Kind.RESIZE, protocols.RESIZE, new_flavor=LARGE)


def off(cluster: Cluster) -> None:
    """The user has switched the server off."""
    power(PowerAction.STOP)(cluster)


def moved_while_off(cluster: Cluster) -> None:
    """A cold migration, of a server that was off, that waits for its verdict."""
    off(cluster)
    cluster.run()
    moved(cluster)


def power(action: PowerAction) -> Deed:
    """Return a user's power action."""
    return lambda cluster: cluster.start(Kind.POWER, protocols.POWER, action=action)


def reverted(name: str, reach: Deed, **more: Any) -> Scenario:
    """Return a scenario of a revert: it takes the server back, or leaves its window open."""
    return Scenario(name, P.REVERT, revert, ("reverted", "h1"), (WINDOW,), reach=reach, **more)


def build(cluster: Cluster) -> None:
    """A server is made."""
    cluster.start(Kind.BUILD, protocols.BUILD, new_flavor=SMALL)


def live(cluster: Cluster) -> None:
    """A server moves while it runs."""
    cluster.start(Kind.LIVE, protocols.LIVE)


def suspended(cluster: Cluster) -> None:
    """A server that is held while its memory moves, and then waits for its verdict."""
    cluster.start(Kind.MIGRATION, protocols.SUSPENDED)


def confirm(cluster: Cluster) -> None:
    """The user says yes."""
    cluster.verdict(Verdict.CONFIRM)


def revert(cluster: Cluster) -> None:
    """The user says no."""
    cluster.verdict(Verdict.REVERT)


def dark(cluster: Cluster) -> None:
    """The server's host has lost its power and stays away for ten minutes; that it is off is proved after a minute."""
    cluster.cut(cluster.hosts["h1"], away=600)
    cluster.cut_while_it_ran = None
    cluster.tick(70)
    cluster.prove("h1")


def silent(cluster: Cluster) -> None:
    """The server's host has lost its power and comes back after two minutes and a half; nobody has a proof."""
    cluster.cut(cluster.hosts["h1"], away=AWAY)
    cluster.cut_while_it_ran = None
    cluster.tick(70)


def then(*wishes: Deed) -> Deed:
    """One after the other, each when nothing is under way any more; what cannot be asked for any more is not."""

    def if_possible(wish: Deed, cluster: Cluster) -> None:
        with suppress(Invalid):
            wish(cluster)

    def begin(cluster: Cluster) -> None:
        cluster.later.extend(partial(if_possible, wish) for wish in wishes)

    return begin


P = protocols
STAYED = ("error", "h1")
WINDOW = ("window", "target")
CONFIRMED = ("confirmed", "target")
POWERED = ("completed", "h1")

SCENARIOS = (
    Scenario("cold", P.COLD, moved, WINDOW, (STAYED,)),
    Scenario("cold of a server that is off", P.COLD, moved, WINDOW, (STAYED,), reach=off, runs=False, variant=True),
    Scenario("resize", P.RESIZE, resized, WINDOW, (STAYED,), variant=True),
    Scenario("resize on one host", P.RESIZE, resized, WINDOW, (STAYED,), hosts=ONE, variant=True),
    Scenario("confirm", P.CONFIRM, confirm, CONFIRMED, reach=moved),
    Scenario("confirm on one host", P.CONFIRM, confirm, CONFIRMED, reach=resized, hosts=ONE, variant=True),
    reverted("revert", moved),
    reverted("revert of a resize", resized, variant=True),
    reverted("revert on one host", resized, hosts=ONE, variant=True),
    reverted("revert of a server that is off", moved_while_off, runs=False, variant=True),
    Scenario("build", P.BUILD, build, ("completed", "target"), (("error", "nowhere"),), built=False),
    Scenario("suspended", P.SUSPENDED, suspended, WINDOW, (STAYED,), fragile=True),
    Scenario("confirm of one that was suspended", P.CONFIRM, confirm, CONFIRMED, reach=suspended, variant=True),
    reverted("revert of one that was suspended", suspended, variant=True),
    Scenario("live", P.LIVE, live, ("completed", "target"), (STAYED,), fragile=True),
    Scenario("evacuate on a proof", P.EVACUATE, Cluster.evacuate, ("completed", "target"), (STAYED,), reach=dark),
    Scenario(
        "evacuate a host that returns", P.EVACUATE, Cluster.evacuate, ("completed", "target"), (STAYED,), reach=silent,
        variant=True,
    ),
    Scenario("delete", P.DELETE, Cluster.delete, ("completed", "gone"), runs=False),
    Scenario("delete in the undo window", P.DELETE, Cluster.delete, ("confirmed", "gone"), reach=moved, runs=False),
    Scenario("start", P.POWER, power(PowerAction.START), POWERED, (STAYED,), reach=off),
    Scenario("stop", P.POWER, power(PowerAction.STOP), POWERED, (STAYED,), runs=False),
    Scenario("reboot", P.POWER, power(PowerAction.REBOOT_SOFT), POWERED, (STAYED,), variant=True),
    Scenario("hard reboot", P.POWER, power(PowerAction.REBOOT_HARD), POWERED, (STAYED,), variant=True),
)  # fmt: skip


STORIES = (
    Scenario("cold, then confirm", P.COLD, then(moved, confirm), ("confirmed", "target"), (STAYED,)),
    Scenario("cold, then revert", P.COLD, then(moved, revert), ("reverted", "h1"), (STAYED, WINDOW)),
    Scenario(
        "suspended, then confirm",
        P.SUSPENDED,
        then(suspended, confirm),
        ("confirmed", "target"),
        (STAYED,),
        variant=True,
        fragile=True,
    ),
    Scenario(
        "suspended, then revert",
        P.SUSPENDED,
        then(suspended, revert),
        ("reverted", "h1"),
        (STAYED, WINDOW),
        variant=True,
        fragile=True,
    ),
)
"""Whole stories, for pairs of faults of which one strikes in the move and the other one in what closes it."""
