"""Each kind of finding from a cloud with one thing changed: what is told, what may be mended, and what is no drift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.audit.scene import (
    DELETED,
    NOW,
    ROOM,
    RUNNING,
    SERVER,
    STOPPED,
    STRANGER,
    Scene,
    home,
    incoming,
    live,
    migration,
    sealed,
)
from whimbrel.audit.books import ClaimEntry, DebtEntry, HostEntry
from whimbrel.audit.findings import Kind, Mend
from whimbrel.domain.claim import NOTHING, Resources
from whimbrel.domain.server import PowerState
from whimbrel.migration.presence import SeenServer


@dataclass(frozen=True)
class Case:
    """One change, and what must be found: the kind, where, how it would be mended, and words of the remedy."""

    name: str
    change: Callable[[Scene], object]
    kind: Kind
    host: str | None
    mend: Mend | None = None
    remedy: str = ""


def at(host: str, *rows: SeenServer) -> Callable[[Scene], object]:
    return lambda scene: scene.seen[host].extend(rows)


def instead(host: str, *rows: SeenServer) -> Callable[[Scene], object]:
    return lambda scene: scene.seen.update({host: list(rows)})


def put(**values: Any) -> Callable[[Scene], object]:
    return lambda scene: [setattr(scene, name, value) for name, value in values.items()]


def both(*changes: Callable[[Scene], object]) -> Callable[[Scene], object]:
    return lambda scene: [change(scene) for change in changes]


def claimed(host: str, server: str = SERVER, **more: Any) -> Callable[[Scene], object]:
    claim = replace(ClaimEntry(2, host, server, "7-1", ROOM, False), **more)
    return lambda scene: scene.claims.append(claim)


def stray(power: PowerState | None, *directories: Any, **more: Any) -> SeenServer:
    return replace(SeenServer(SERVER, power, directories, epoch=1, number=4), **more)


WINDOW = migration(open=True, window_open=True, outcome=None, source="h2", target="h1", window_since=NOW - 8 * 86400)
CONFIRMED_HERE = migration(source="h2", target="h1")

CASES = (
    Case("a host that is silent", put(silent={"h2": "down"}), Kind.NOT_LOOKED_AT, "h2", remedy="Bring h2 back"),
    Case("a hypervisor that is away", put(rest={"h2": {"fault": "libvirtd is away"}}), Kind.NOT_LOOKED_AT, "h2"),
    Case("it runs on both", at("h2", stray(RUNNING)), Kind.TWO_RUNNERS, "h2", Mend.STOP_STRAY, "--repair"),
    Case(
        "both have a grant",
        at("h2", stray(RUNNING, epoch=1, grant_epoch=1, granted=True)),
        Kind.TWO_RUNNERS,
        "h2",
        remedy="virsh destroy",
    ),
    Case("it runs without a grant", instead("h1", home(granted=False)), Kind.RUNS_WITHOUT_GRANT, "h1", None, "reboot"),
    Case(
        "it runs elsewhere, while it is stopped at home",
        both(
            instead("h1", home(power=STOPPED)),
            at("h2", stray(RUNNING)),
            lambda scene: setattr(scene, "server", replace(scene.server, power=STOPPED)),
        ),
        Kind.RUNS_WITHOUT_GRANT,
        "h2",
        Mend.STOP_STRAY,
    ),
    Case(
        "a deleted server runs",
        at("h2", SeenServer(DELETED, RUNNING, ())),
        Kind.RUNS_WITHOUT_GRANT,
        "h2",
        Mend.REMOVE_DELETED,
    ),
    Case(
        "a process without a domain",
        instead("h1", home(power=PowerState.UNKNOWN)),
        Kind.PROCESS_WITHOUT_DOMAIN,
        "h1",
        None,
        "Restart libvirtd",
    ),
    Case(
        "its files are elsewhere",
        both(instead("h1"), at("h2", stray(RUNNING, live()))),
        Kind.WRONG_HOST,
        "h2",
        None,
        "reboot --hard",
    ),
    Case(
        "its files are nowhere",
        instead("h1", home(directories=(), power=STOPPED)),
        Kind.MISSING_FILES,
        "h1",
        None,
        "backup",
    ),
    Case("its directory has no manifest", instead("h1", home(directories=(live(None),))), Kind.MISSING_FILES, "h1"),
    Case("its guest is not defined", instead("h1", home(power=None)), Kind.MISSING_DOMAIN, "h1", None, "reboot --hard"),
    Case(
        "the way back is gone",
        both(put(open=WINDOW), claimed("h2", attempt="3-1")),
        Kind.MISSING_UNDO_COPY,
        "h2",
        None,
        "whimbrel confirm",
    ),
    Case("it should run", instead("h1", home(power=STOPPED)), Kind.STOPPED_GUEST, "h1", None, f"server start {SERVER}"),
    Case(
        "it should be stopped",
        lambda s: setattr(s, "server", replace(s.server, power=STOPPED)),
        Kind.RUNNING_GUEST,
        "h1",
        None,
        "server stop",
    ),
    Case("a second copy", at("h2", stray(None, live("1-1"))), Kind.TWO_COPIES, "h2", None, "rm -r /srv/"),
    Case("a guest left defined", at("h2", stray(STOPPED)), Kind.ORPHAN_DOMAIN, "h2", Mend.STOP_STRAY),
    Case(
        "a deleted one left defined",
        at("h2", SeenServer(DELETED, STOPPED, ())),
        Kind.ORPHAN_DOMAIN,
        "h2",
        Mend.REMOVE_DELETED,
    ),
    Case(
        "a deleted one's files",
        at("h2", SeenServer(DELETED, None, (live(),))),
        Kind.ORPHAN_FILE,
        "h2",
        Mend.REMOVE_DELETED,
    ),
    Case(
        "an incoming that is over",
        both(put(closed=[migration(outcome="error")]), at("h2", stray(None, incoming("7-1")))),
        Kind.ORPHAN_FILE,
        "h2",
        Mend.DISCARD_INCOMING,
    ),
    Case("an incoming of nobody", at("h2", stray(None, incoming("7-1"))), Kind.ORPHAN_FILE, "h2", None, "rm -r /srv/"),
    Case(
        "a sealed that was confirmed",
        both(put(closed=[CONFIRMED_HERE]), at("h2", stray(None, sealed("7-1")))),
        Kind.ORPHAN_FILE,
        "h2",
        Mend.RETIRE_SEALED,
    ),
    Case(
        "a sealed that was reverted",
        both(put(closed=[replace(CONFIRMED_HERE, outcome="reverted")]), at("h2", stray(None, sealed("7-1")))),
        Kind.ORPHAN_FILE,
        "h2",
    ),
    Case("files that the books never knew", at("h2", SeenServer(STRANGER, None, (live(),))), Kind.ORPHAN_FILE, "h2"),
    Case(
        "half removed", put(rest={"h2": {"leftovers": (".trash-x",)}}), Kind.LEFTOVER, "h2", None, "Restart the agent"
    ),
    Case("a process of a step", put(rest={"h2": {"children": ("pid 9: channel",)}}), Kind.LEFTOVER_PROCESS, "h2"),
    Case("a claim elsewhere", claimed("h2"), Kind.UNBALANCED_CLAIM, "h2", Mend.GIVE_CLAIM_BACK),
    Case(
        "a claim elsewhere, with files",
        both(claimed("h2"), at("h2", stray(None, live()))),
        Kind.UNBALANCED_CLAIM,
        "h2",
        None,
        "remove them first",
    ),
    Case("a claim on a silent host", both(claimed("h2"), put(silent={"h2": "down"})), Kind.UNBALANCED_CLAIM, "h2"),
    Case("a second claim at home", claimed("h1"), Kind.UNBALANCED_CLAIM, "h1", Mend.GIVE_CLAIM_BACK),
    Case("a deleted one's claim", claimed("h2", DELETED), Kind.UNBALANCED_CLAIM, "h2", Mend.GIVE_CLAIM_BACK),
    Case("nobody's claim", claimed("h2", STRANGER), Kind.UNBALANCED_CLAIM, "h2", Mend.GIVE_CLAIM_BACK),
    Case("an owed claim without its debt", claimed("h2", owed=True), Kind.UNBALANCED_CLAIM, "h2", Mend.GIVE_CLAIM_BACK),
    Case("no claim at home", put(claims=[]), Kind.UNBALANCED_CLAIM, "h1", Mend.SET_CLAIM),
    Case(
        "a claim of another size",
        put(claims=[ClaimEntry(1, "h1", SERVER, "1-1", Resources(3, 3, 3), False)]),
        Kind.UNBALANCED_CLAIM,
        "h1",
        Mend.SET_CLAIM,
    ),
    Case(
        "a debt of a host that is up",
        put(debts=[DebtEntry(3, "h2", DELETED, "remove_guest", NOW - 60)]),
        Kind.UNPAID_DEBT,
        "h2",
        None,
        "log",
    ),
    Case(
        "a fence",
        put(open=migration(open=True, fence="h1", outcome=None)),
        Kind.NEEDS_FENCE,
        "h1",
        None,
        "whimbrel show 7",
    ),
    Case(
        "a new ledger",
        instead("h1", home(power=STOPPED, grant_epoch=None, granted=False)),
        Kind.LEDGER_LOST,
        "h1",
        None,
        "--enable h1",
    ),
    Case("a newer host", instead("h1", home(epoch=2, number=6)), Kind.BOOKS_BEHIND, "h1", None, "restored"),
    Case(
        "an old window",
        both(put(open=WINDOW), claimed("h2", attempt="3-1"), at("h2", stray(None, sealed("7-1")))),
        Kind.OLD_WINDOW,
        "h2",
    ),
    Case("too much claimed", put(hosts={"h1": HostEntry("h1", NOW, True, NOTHING)}), Kind.OVERCOMMITTED, "h1"),
    Case("dead letters", put(dead_letters=2), Kind.DEAD_LETTERS, None, None, "purge_queue dead-letters"),
    Case("somebody's own guest", at("h2", SeenServer(STRANGER, RUNNING, ())), Kind.FOREIGN_DOMAIN, "h2"),
    Case("somebody's own file", put(rest={"h2": {"strange": ("notes.txt",)}}), Kind.STRANGE_FILE, "h2"),
)


def test_a_cloud_in_order_has_no_findings() -> None:
    assert Scene().findings() == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_drift_is_found_with_its_remedy(case: Case) -> None:
    scene = Scene()
    case.change(scene)
    found = [finding for finding in scene.findings() if finding.kind is case.kind and finding.host == case.host]
    assert found, scene.findings()
    assert case.remedy in found[0].remedy, found[0].remedy
    assert (found[0].repair.mend if found[0].repair else None) is case.mend, found[0]
    assert found[0].detail and found[0].remedy.endswith(".")
    assert (found[0].repair is not None) == ("--repair" in found[0].remedy and "first" not in found[0].remedy) or (
        "can be looked at" in found[0].remedy
    )


def test_every_kind_has_a_case_and_a_sentence() -> None:
    assert {case.kind for case in CASES} == set(Kind)
    assert all(kind.means.endswith(".") for kind in Kind)


@pytest.mark.parametrize("case", [case for case in CASES if case.mend is not None], ids=lambda case: case.name)
def test_what_a_migration_has_in_hand_is_never_drift_nor_repaired(case: Case) -> None:
    scene = Scene()
    case.change(scene)
    busy = migration(9, open=True, outcome=None)
    scene.open = busy
    of_others = {DELETED, STRANGER}
    assert [finding for finding in scene.findings() if finding.server not in of_others] == []
    scene.open, scene.before = None, {"open": {SERVER: busy}}  # it ended while the hosts were looked at
    assert [finding for finding in scene.findings() if finding.server not in of_others] == []


@pytest.mark.parametrize("case", [case for case in CASES if case.mend is not None], ids=lambda case: case.name)
def test_what_was_ordered_about_meanwhile_is_not_judged(case: Case) -> None:
    scene = Scene()
    case.change(scene)
    books = scene.books()
    scene.before = {"servers": {SERVER: replace(scene.server, number=scene.server.number - 1)}}
    assert [finding for finding in scene.findings() if finding.server == SERVER] == []
    scene.before = {"servers": {**books.servers, DELETED: replace(books.servers[DELETED], deleted=False)}}
    assert [finding for finding in scene.findings() if finding.server == DELETED] == []


def test_what_a_debt_covers_is_the_debts() -> None:
    scene = Scene(debts=[DebtEntry(3, "h2", DELETED, "remove_guest", NOW - 1)])
    scene.seen["h2"] = [SeenServer(DELETED, STOPPED, (live(),))]
    scene.claims.append(ClaimEntry(2, "h2", DELETED, "7-1", ROOM, True))
    assert scene.findings() == []


def test_an_undo_window_accounts_for_both_copies_and_both_claims() -> None:
    scene = Scene(open=replace(WINDOW, window_since=NOW - 60))
    scene.claims = [ClaimEntry(1, "h1", SERVER, "7-1", ROOM, False), ClaimEntry(2, "h2", SERVER, "1-1", ROOM, False)]
    scene.seen["h2"] = [stray(None, sealed("7-1"))]
    assert scene.findings() == []


def test_a_resize_on_its_own_host_accounts_for_both_copies_and_both_claims() -> None:
    scene = Scene(open=replace(WINDOW, source="h1", window_since=NOW - 60))
    scene.claims = [ClaimEntry(1, "h1", SERVER, "1-1", Resources(1, 64, 1), False)]
    scene.claims.append(ClaimEntry(2, "h1", SERVER, "7-1", ROOM, False))
    scene.seen["h1"] = [home(directories=(live("7-1"), sealed("7-1")))]
    assert scene.findings() == []


@pytest.mark.parametrize(
    "at_home",
    [
        home(directories=()),
        home(directories=(live(None),)),
        home(grant_epoch=None, granted=False),
        home(epoch=2),
        home(number=6),
    ],
    ids=["no files", "no manifest", "no grant", "newer epoch", "newer order"],
)
@pytest.mark.parametrize(
    "elsewhere",
    [stray(RUNNING), stray(STOPPED), stray(None, incoming("8-1")), stray(None, sealed("7-1"))],
    ids=["runs", "defined", "incoming", "sealed"],
)
def test_nothing_is_removed_or_stopped_unless_the_home_proves_that_it_has_the_server(
    at_home: SeenServer, elsewhere: SeenServer
) -> None:
    scene = Scene(closed=[CONFIRMED_HERE, migration(8, outcome="error")])
    scene.seen = {"h1": [at_home], "h2": [elsewhere]}
    assert any(finding.host == "h2" for finding in scene.findings())
    assert not any(finding.repair for finding in scene.findings() if finding.server == SERVER)
    scene.seen, scene.silent = {"h1": [home()], "h2": [elsewhere]}, {"h1": "down"}
    assert not any(finding.repair for finding in scene.findings() if finding.server == SERVER)
    scene.silent = {}
    assert any(finding.repair for finding in scene.findings() if finding.server == SERVER)


@pytest.mark.parametrize(("outcome", "attempts", "safe"), [
    ("error", 1, True), ("cancelled", 1, True), ("reverted", 1, True), ("confirmed", 1, False), ("completed", 1, False),
    ("confirmed", 2, True),
])  # fmt: skip
def test_an_incoming_goes_only_if_its_attempt_can_never_be_live_again(outcome: str, attempts: int, safe: bool) -> None:
    made_by = migration(outcome=outcome, attempt=f"7-{attempts}", attempts=attempts, source="h2")
    scene = Scene(closed=[made_by])
    scene.seen["h2"] = [stray(None, incoming("7-1"))]
    (found,) = scene.findings()
    assert (found.repair is not None) == safe


def test_nobody_is_told_to_remove_what_may_be_the_only_copy() -> None:
    scene = Scene(closed=[replace(CONFIRMED_HERE, outcome="reverted")])
    scene.seen["h1"] = [home(power=None, directories=(sealed("7-1"),))]
    (found,) = scene.findings()
    assert found.kind is Kind.MISSING_FILES and f"openstack server start {SERVER}" in found.remedy
    scene.seen["h1"], scene.seen["h2"] = [], [stray(None, sealed("7-1"), incoming("8-1"))]
    remedies = [found.remedy for found in scene.findings() if found.host == "h2"]
    assert len(remedies) == 2 and all("leave" in remedy and "rm -r" not in remedy for remedy in remedies)
    scene.silent = {"h1": "down"}
    assert not any("rm -r" in found.remedy for found in scene.findings())


def test_a_host_that_knows_newer_orders_is_not_repaired() -> None:
    scene = Scene(closed=[CONFIRMED_HERE])
    scene.seen["h2"] = [stray(RUNNING, sealed("7-1"), number=6), SeenServer(DELETED, RUNNING, (live(),), epoch=4)]
    assert {finding.kind for finding in scene.findings()} == {Kind.BOOKS_BEHIND}
    assert not any(finding.repair for finding in scene.findings())


def test_what_a_guest_does_is_judged_only_by_books_that_have_heard_of_it() -> None:
    scene = Scene(heard_after=NOW)
    scene.seen["h1"] = [home(power=STOPPED)]
    assert scene.findings() == []
    scene.heard_after = NOW - 1
    assert [finding.kind for finding in scene.findings()] == [Kind.STOPPED_GUEST]
