"""Whimbrel's own API: a migration as its table, and live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from tests.unit.cloud import Cloud
from tests.unit.compute_cloud import active, furnish, open_window, progress, servers_url
from whimbrel.api import progress as live
from whimbrel.api.call import Call
from whimbrel.api.handlers import journal
from whimbrel.domain.migration import Mark
from whimbrel.migration import protocols
from whimbrel.migration.messages import Changed, Outlook, Progress
from whimbrel.store.moves import Story

pytestmark = pytest.mark.anyio
BASE = "/whimbrel/v1/migrations"


async def moving(cloud: Cloud) -> tuple[str, int]:
    """Have alice's server on its way from h1 to h2."""
    furnish(cloud)
    server_id = await active(cloud)
    answer = await cloud.http.post(
        servers_url(f"/{server_id}/action"), json={"migrate": None}, headers=cloud.token("admin")
    )
    assert answer.status_code == 202
    refused = [{"host": "h1", "filter": "source", "reason": "h1 is the source"}]
    steps = [("claim", Mark.DONE), ("prepare", Mark.DOING)]
    more: dict[str, Any] = {
        "target": "h2",
        "tried": ["h2"],
        "targets": [{"host": "h2", "weight": 2.5}],
        "refusals": refused,
    }
    return server_id, progress(cloud, server_id, *steps, **more)


async def test_a_migration_is_shown_as_its_whole_table(cloud: Cloud) -> None:
    server_id, number = await moving(cloud)
    document = (await cloud.http.get(f"{BASE}/{number}", headers=cloud.token("admin"))).json()["migration"]
    attempt = document["segments"][0]["attempts"][0]
    assert [step["step"] for step in attempt["steps"]] == [step.name for step in protocols.COLD.steps]
    assert [step["mark"] for step in attempt["steps"][:3]] == ["done", "doing", None]
    assert all(step["why"] for step in attempt["steps"])
    assert (document["source"], document["target"], attempt["target"]) == ("h1", "h2", "h2")
    assert (document["status"], document["server_name"], document["targets"][0]["weight"]) == (
        "pre-migrating",
        "vm",
        2.5,
    )
    by_uuid = await cloud.http.get(f"{BASE}/{document['uuid']}", headers=cloud.token("admin"))
    assert by_uuid.json()["migration"]["id"] == number
    listed = await cloud.http.get(f"{BASE}?server={server_id}&open=true", headers=cloud.token("alice"))
    assert [each["id"] for each in listed.json()["migrations"]] == [number]


async def test_users_see_their_own_migrations_without_the_names_of_hosts(cloud: Cloud) -> None:
    _, number = await moving(cloud)
    answer = await cloud.http.get(f"{BASE}/{number}", headers=cloud.token("alice"))
    assert answer.status_code == 200
    assert answer.json()["migration"]["refusals"] == [
        {"host": None, "filter": "source", "reason": "(a host) is the source"}
    ]
    assert '"h1"' not in answer.text and '"h2"' not in answer.text
    for wanted in (str(number), "99999", "9" * 30, "²", "nope"):
        assert (await cloud.http.get(f"{BASE}/{wanted}", headers=cloud.token("bob"))).status_code == 404
    assert (await cloud.http.get(BASE, headers=cloud.token("bob"))).json() == {"migrations": []}


async def test_a_watcher_is_told_of_changes_and_progress_until_the_window_opens(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    server_id, number = await moving(cloud)
    bus = cloud.services.bus
    await bus.start()
    await cloud.services.hub.listen(bus)
    monkeypatch.setattr(journal, "PING_SECONDS", 0.2)

    show, shown = journal._shown, list[int]()

    def note(call: Call, story: Story) -> dict[str, Any]:
        shown.append(story.row.revision)
        return show(call, story)

    monkeypatch.setattr(journal, "_shown", note)

    async def until(happened: Callable[[], object]) -> None:
        while not happened():  # noqa: ASYNC110 - a reader in the server sets no event here
            await anyio.sleep(0.01)

    async def play() -> None:
        await until(lambda: shown)
        await bus.emit("progress", Progress("h9", server_id, number, f"{number}-1", "copy_disks", 99, 100, 10.0, 5.0))
        outlook = Outlook(2, 4.0, 0.5)
        told = Progress("h1", server_id, number, f"{number}-1", "copy_disks", 50, 100, 10.0, 5.0, outlook=outlook)
        await bus.emit("progress", told)
        await until(lambda: cloud.services.hub.newest(number, ("h1", None)))
        progress(cloud, server_id, ("prepare", Mark.DONE), revision=5)
        await bus.emit("changed", Changed(number, server_id, 5))
        await until(lambda: 5 in shown)
        open_window(cloud, server_id)
        progress(cloud, server_id, revision=6)  # nobody says so: the ping finds it

    async with anyio.create_task_group() as group:
        group.start_soon(play)
        with anyio.fail_after(10):
            async with cloud.http.stream("GET", f"{BASE}/{number}/events", headers=cloud.token("admin")) as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                text = (await answer.aread()).decode()
    seen = [block.split("\n")[0].removeprefix("event: ") for block in text.strip().split("\n\n")]
    assert [name for name in seen if name != ": ping"] == ["migration", "progress", "migration", "migration"]
    assert ": ping" in seen
    assert '"done":50' in text and '"left":50,' in text
    assert '"round":2,"dirty_rate":4.0,"downtime":0.5' in text
    await bus.close()


async def test_the_hub_is_bounded_and_sends_everybody_home(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = live.ProgressHub()
    monkeypatch.setattr(live, "MAX_MIGRATIONS", 3)
    with hub.watch(1) as queue:
        for number in range(10):
            await hub._hear(Progress("h", "s", number, "1-1", "copy_disks", number, 10, 1.0, None))
        for number in range(live.QUEUE_LENGTH + 5):
            await hub._hear(Changed(1, "s", number))
        assert queue.qsize() == live.QUEUE_LENGTH
        assert [hub.newest(number, ("h", None)) is not None for number in (6, 7, 9)] == [False, True, True]
        hub.close()
        last = [queue.get_nowait() for _ in range(queue.qsize())][-1]
        assert last is None and not hub.room()
