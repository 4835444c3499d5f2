"""What a silent host owes comes to it when it answers again: for each server one order at a time."""

from __future__ import annotations

from tests.store.rows import SERVER, add_server, enrol
from tests.unit.orders import order
from whimbrel.domain.migration import Verb
from whimbrel.ops import clock
from whimbrel.store import debts
from whimbrel.store.engine import Store

OTHER = "22222222-2222-4333-8444-555555555555"


def test_a_host_gets_what_it_owes_for_a_server_one_by_one_and_what_fails_gives_way(store: Store) -> None:
    enrol(store, "h1", "h2")
    for server in (SERVER, OTHER):
        add_server(store, server=server)
    owed = [("h1", SERVER, "expect_guest"), ("h1", SERVER, "define_guest"), ("h1", SERVER, "prepare")]
    for host, server, step in [*owed, ("h2", SERVER, "prepare"), ("h1", OTHER, "prepare")]:
        store.write_now(debts.owe, order(step, 0, host=host, server=server), step, Verb.UNDO)
    now, numbers = clock.now(), {}

    def sent(after: float) -> list[tuple[str, str, str]]:
        """Return what a conductor sends so many seconds later."""
        orders = store.write_now(debts.due, now + after, now - 1)
        numbers.update({(each.host, each.server, each.step): each.number for each in orders})
        return [(each.host, each.server, each.step) for each in orders]

    def pay(host: str, server: str, step: str) -> bool:
        return store.write_now(debts.pay, host, server, numbers[host, server, step])

    assert sent(0) == [owed[0], ("h2", SERVER, "prepare"), ("h1", OTHER, "prepare")]
    assert sent(1) == [] and pay(*owed[0])
    assert sent(2) == [owed[1]]
    assert sent(32) == [], "its answer may still come"
    assert sent(63) == [owed[2], ("h2", SERVER, "prepare"), ("h1", OTHER, "prepare")]
    assert pay(*owed[2])
    assert sent(64) == [owed[1]], "the one that failed comes again"
    assert pay(*owed[1])
    assert sent(65) == []
