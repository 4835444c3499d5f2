"""How a scenario ended, and whether it may end so."""

from __future__ import annotations

from tests.protocol.audit import audit
from tests.protocol.cluster import Cluster
from tests.protocol.faults import lift
from tests.protocol.scenarios import Scenario
from whimbrel.domain.migration import Kind
from whimbrel.domain.server import PowerAction
from whimbrel.migration import protocols
from whimbrel.store.tables import journal


def ending(cluster: Cluster) -> tuple[str, str]:
    """Return how the newest migration ended, and where the server is."""
    migration, server = cluster.migration(), cluster.server()
    outcome = "window" if migration.open and migration.window_open else str(migration.outcome)
    if server.deleted_at is not None:
        return outcome, "gone"
    if server.host is None:
        return outcome, "nowhere"
    stayed = migration.kind == Kind.POWER or outcome in ("reverted", "error", "cancelled")
    moved_on = not stayed and server.host == migration.target
    return outcome, "target" if moved_on else server.host


def ends_well(scenario: Scenario, cluster: Cluster, *, ill: bool = False, cancelled: bool = False) -> None:
    """Check how it ended, that nothing is left over, and that the guest runs if it should."""
    found, home = ending(cluster), cluster.hosts.get(str(cluster.server().host))
    allowed = (scenario.cancelled,) if cancelled else (scenario.well, *scenario.ill) if ill else (scenario.well,)
    assert found in allowed, f"{found} instead of {allowed}\n{cluster.story()}"
    went_on_without = any("guest_down" in {*row.facts, *row.undo_facts} for row in cluster.rows(journal))
    if ill and went_on_without and not cluster.migration().open:
        mended(cluster)
        return
    audit(cluster, at_rest=True)
    if home is None or found[1] == "gone":
        return
    if not home.running and (cluster.cut_while_it_ran == home.name or went_on_without):
        return  # it was let run and then its host lost its power; or it could not be started, and the window is open
    if found != scenario.well and scenario.table.name == "power":
        return  # a power action that failed: how it is now is shown, and that was checked
    assert home.running is scenario.runs, f"it should {'' if scenario.runs else 'not '}run\n{cluster.story()}"


def mended(cluster: Cluster) -> None:
    """What could not be done for so long that it was gone on without, a hard reboot does once it is possible again."""
    lift(cluster)
    cluster.start(Kind.POWER, protocols.POWER, action=PowerAction.REBOOT_HARD)
    cluster.run()
    audit(cluster, at_rest=True)
    assert cluster.hosts[cluster.server().host].running, cluster.story()
