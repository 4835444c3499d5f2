"""The operators' commands against a cloud that tells a story: what they ask, what they show, how they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import click.testing
import pytest

from tests.unit.stub_cloud import ALL_DONE, IN_WINDOW, SERVER, Stub, migration, serving, with_segment
from whimbrel.cli import watch
from whimbrel.cli.main import cli
from whimbrel.migration.protocols import PROTOCOLS

Run = Callable[..., click.testing.Result]

COPY = {"step": "copy_disks", "host": "h1", "server": SERVER, "migration": 17, "attempt": "17-1"}


@pytest.fixture
def cloud() -> Iterator[Stub]:
    with serving() as stub:
        yield stub


@pytest.fixture
def run(cloud: Stub, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(watch, "RETRY_AFTER", 0.01)
    for name in ("OS_CLOUD", "OS_CLIENT_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*arguments: str) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(cli, list(arguments), env={**cloud.environ(), "COLUMNS": "140"})
        assert not isinstance(result.exception, Exception), result.exception
        return result

    return invoke


def test_migrate_asks_with_the_microversion_that_knows_a_host(cloud: Stub, run: Run) -> None:
    result = run("migrate", "vm1", "--host", "h2")
    assert (result.exit_code, cloud.actions) == (0, [{"migrate": {"host": "h2"}}])
    assert "accepted: migration 17 of vm1" in result.output
    assert cloud.headers[0]["OpenStack-API-Version"] == "compute 2.56"


def test_migrate_without_a_host_leaves_the_choice_to_the_scheduler(cloud: Stub, run: Run) -> None:
    assert run("migrate", SERVER).exit_code == 0
    assert cloud.actions == [{"migrate": None}]


def test_resize_finds_the_flavor_by_its_name(cloud: Stub, run: Run) -> None:
    assert run("resize", "vm1", "medium").exit_code == 0
    assert cloud.actions == [{"resize": {"flavorRef": "f-2"}}]
    missing = run("resize", "vm1", "huge")
    assert missing.exit_code == 3
    assert "no flavor huge; there are small, medium" in missing.stderr


def test_watching_shows_each_step_and_the_bytes_and_ends_in_verify_resize(cloud: Stub, run: Run) -> None:
    copying = migration("done", "done", "done", "done", "done", "doing")
    progress = {**COPY, "done": 50 * 2**20, "total": 200 * 2**20, "rate": 100.0 * 2**20, "eta": 1.5}
    cloud.story = [migration("done", "doing"), copying, progress, IN_WINDOW]
    result = run("migrate", "vm1", "--watch")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    marked = [(words[1], words[4]) for words in map(str.split, lines) if words[2:3] in (["source"], ["target"])]
    assert marked[:3] == [("prepare", "doing"), ("prepare", "done"), ("open_channel", "done")]
    assert marked[-1] == ("start_guest", "done")
    assert any("25 %  50.0 MiB of 200.0 MiB, 100.0 MiB/s, 1.5 s left" in line for line in lines)
    assert not any("round" in line for line in lines)
    assert "whimbrel confirm vm1" in lines[-1]
    assert "whimbrel revert vm1" in lines[-1]


def test_watching_says_what_is_to_be_expected_while_the_guest_runs(cloud: Stub, run: Run) -> None:
    expected = {"phase": "memory", "round": 3, "dirty_rate": 2.0 * 2**20, "downtime": 0.4}
    progress = {**COPY, "done": 50 * 2**20, "total": 200 * 2**20, "rate": 100.0 * 2**20, "eta": 1.5, **expected}
    cloud.story = [migration("done", "done", "done", "done", "done", "doing"), progress, IN_WINDOW]
    output = run("migrate", "vm1", "--watch").output
    assert "50.0 MiB of 200.0 MiB, 100.0 MiB/s, 1.5 s left  (memory)" in output
    assert "(round 3: the guest writes 2.0 MiB/s, 0.4 s to send if it stopped now)" in output


def test_json_lines_are_one_document_for_each_change(cloud: Stub, run: Run) -> None:
    cloud.story = [migration("done", "doing"), migration("done", "done", "doing"), IN_WINDOW]
    result = run("migrate", "vm1", "--watch", "--json")
    states = [json.loads(line)["migration"] for line in result.stdout.splitlines()]
    assert [
        sum(row["mark"] is not None for row in state["segments"][0]["attempts"][0]["steps"]) for state in states
    ] == [
        2,
        3,
        len(ALL_DONE),
    ]
    assert states[-1]["status"] == "finished"


def test_wait_says_only_the_end(cloud: Stub, run: Run) -> None:
    cloud.story = [migration("done", "done", "doing"), IN_WINDOW]
    lines = run("migrate", "vm1", "--wait").output.splitlines()
    assert len(lines) == 3
    assert "vm1 is on h2" in lines[1]


def test_a_broken_stream_is_taken_up_again(cloud: Stub, run: Run) -> None:
    cloud.story = [migration("done", "doing"), "cut", migration("done", "done", "doing"), "cut", IN_WINDOW]
    assert run("watch", "17").exit_code == 0
    assert cloud.story == []


def test_an_expired_token_is_renewed(cloud: Stub, run: Run) -> None:
    cloud.expire = True
    assert run("show", "17").exit_code == 0
    assert len(cloud.logins) == 2


def test_no_host_tells_which_filter_refused_each(cloud: Stub, run: Run) -> None:
    refusals = [
        {"host": "h1", "filter": "NotSource", "reason": "It is the source."},
        {"host": "h2", "filter": "Room", "reason": "Memory: 4096 MiB needed, 128 MiB free."},
    ]
    ended = migration(status="error", outcome="error", targets=[], refusals=refusals)
    cloud.story = [ended | {"segments": [{"protocol": "cold", "version": 1, "attempts": []}]}]
    result = run("migrate", "vm1", "--watch")
    assert result.exit_code == 1
    assert "ended in error; vm1 is on h1 as it was. No host could take it:" in result.stderr
    assert "h2  Room: Memory: 4096 MiB needed, 128 MiB free." in result.stderr


def test_a_fence_names_the_host_and_the_remedy(cloud: Stub, run: Run) -> None:
    cloud.story = [migration("done", "done", "done", "lost", fence="h1", status="error")]
    result = run("watch", "vm1")
    assert result.exit_code == 5
    assert "Bring h1 back" in result.stderr


def test_confirm_and_revert_look_past_the_window_that_they_close(cloud: Stub, run: Run) -> None:
    cloud.now = IN_WINDOW | {"status": "confirming", "verdict": "confirm"}
    doing = with_segment(IN_WINDOW, "confirm", "doing", status="confirming", window_open=False)
    cloud.story = [doing, with_segment(IN_WINDOW, "confirm", "done", "done", outcome="confirmed", status="confirmed")]
    result = run("confirm", "vm1", "--watch")
    assert (result.exit_code, cloud.actions) == (0, [{"confirmResize": None}])
    assert "vm1 stays on h2; its copy on h1 is gone" in result.output


def test_a_revert_that_was_refused_is_a_failure_and_leaves_the_window_open(cloud: Stub, run: Run) -> None:
    refused = with_segment(IN_WINDOW, "revert", "undone", reason="Host h1 cannot be reached.")
    cloud.now = with_segment(IN_WINDOW, "revert", "doing", status="reverting", window_open=False)
    cloud.story = [refused]
    result = run("revert", "vm1", "--wait")
    assert (result.exit_code, cloud.actions) == (1, [{"revertResize": None}])
    assert "Host h1 cannot be reached." in result.output


def test_the_apis_refusal_is_one_sentence(cloud: Stub, run: Run) -> None:
    cloud.refuse["migrate"] = (409, "Server vm1 has an open migration (migration 16); wait until it ends.")
    result = run("migrate", "vm1")
    assert result.exit_code == 3
    assert result.stderr == "whimbrel: Server vm1 has an open migration (migration 16); wait until it ends.\n"


def test_names_that_mean_nothing_or_two_things_are_refused(cloud: Stub, run: Run) -> None:
    assert "no server vm2; `whimbrel servers` lists them" in run("migrate", "vm2").stderr
    cloud.servers.append({**cloud.servers[0], "id": SERVER.replace("1", "2")})
    twice = run("migrate", "vm1")
    assert twice.exit_code == 3
    assert "2 servers have the name vm1" in twice.stderr
    assert cloud.actions == []


def test_a_deadline_ends_the_watching_not_the_migration(cloud: Stub, run: Run) -> None:
    cloud.story = []
    result = run("watch", "17", "--timeout", "0.05")
    assert result.exit_code == 4
    assert "it goes on, see `whimbrel watch 17`" in result.stderr


def test_a_cloud_that_is_not_there_and_a_wrong_password(cloud: Stub, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = click.testing.CliRunner().invoke(cli, ["servers"], env={**cloud.environ(), "OS_PASSWORD": "no"})
    assert wrong.exit_code == 3
    assert "check the user and the password of the OS_* variables" in wrong.stderr
    nowhere = {**cloud.environ(), "OS_AUTH_URL": "http://127.0.0.1:9/identity"}
    away = click.testing.CliRunner().invoke(cli, ["servers"], env=nowhere)
    assert away.exit_code == 4
    assert "Cannot reach http://127.0.0.1:9/identity/v3/auth/tokens" in away.stderr


def test_show_has_the_table_with_marks_why_and_the_schedulers_words(cloud: Stub, run: Run) -> None:
    cloud.now = migration("done", "failed", reason="no room")
    cloud.now["segments"][0]["attempts"][0]["steps"][1]["reason"] = "The disk is full."
    shown = run("show", "vm1").output
    for text in ("prepare", "failed", "The disk is full.", "h2 (1.50)", "h1  NotSource: It is the source.", "req-1"):
        assert text in shown
    assert "Room is set aside" in shown
    assert json.loads(run("show", "17", "--json").output)["migration"]["id"] == 17


def test_whimbrels_own_endpoint_may_stand_in_the_catalog(cloud: Stub, run: Run) -> None:
    cloud.catalog = {"compute": "/compute/v2.1", "whimbrel": "/whimbrel/v1"}
    assert run("migrations").exit_code == 0
    cloud.catalog = {"image": "/image"}
    result = run("servers")
    assert result.exit_code == 2
    assert "no public compute endpoint" in result.stderr


def test_hosts_show_the_room_that_is_left_and_why_one_is_disabled(cloud: Stub, run: Run) -> None:
    room = {"vcpus": 8, "ram_mb": 4096, "disk_gb": 40}
    cloud.hosts = [
        {"name": "h1", "address": "10.0.0.1", "state": "up", "enabled": False, "disabled_reason": "new disks",
         "limit": room, "claimed": dict.fromkeys(room, 2), "guests": 2, "heard_at": "2026-01-01T00:00:00Z"}
    ]  # fmt: skip
    row = run("hosts").output.splitlines()[1]
    for text in ("up, disabled", "2 of 4096", "new disks"):
        assert text in row


@pytest.mark.parametrize(
    ("way", "code", "end"), [("warm", 0, "Nothing was begun."), ("none", 3, "It would not be done.")]
)
def test_a_plan_is_told_and_nothing_is_asked_for(cloud: Stub, run: Run, way: str, code: int, end: str) -> None:
    steps = [{"step": row.name, "where": row.where, "why": row.why} for row in PROTOCOLS["cold"].steps]
    cloud.plan |= {
        "way": way, "possible": way != "none", "allocated_bytes": 3 << 20, "protocol": "cold", "source": "h1",
        "reason": "disk-0 is raw." if way == "none" else None, "targets": [{"host": "h2", "weight": 1.5}],
        "refusals": [{"host": "h1", "filter": "NotSource", "reason": "It is the source."}], "steps": steps,
    }  # fmt: skip
    result = run("migrate", "vm1", "--move", "warm", "--plan")
    assert (result.exit_code, cloud.actions) == (code, [])
    assert cloud.plan["of"] == {"migrate": {"whimbrel:move": "warm"}}
    lines = result.output.splitlines()
    assert lines[0].startswith("vm1, 3.0 MiB on h1: ") and lines[-1] == end
    assert any("h1  NotSource: It is the source." in line for line in lines)
    assert (PROTOCOLS["cold"].steps[0].why[:30] in result.output) == (code == 0)
    assert ("disk-0 is raw." in result.output) == (code == 3)


def test_the_manner_of_a_move_goes_with_the_request(cloud: Stub, run: Run) -> None:
    assert run("migrate", "vm1", "--host", "h2", "--move", "cold").exit_code == 0
    assert run("resize", "vm1", "medium", "--move", "warm").exit_code == 0
    assert cloud.actions == [
        {"migrate": {"host": "h2", "whimbrel:move": "cold"}},
        {"resize": {"flavorRef": "f-2", "whimbrel:move": "warm"}},
    ]
    assert run("migrate", "vm1", "--live", "--move", "cold").exit_code == 2


def test_a_copy_is_hurried_and_bounded_by_name(cloud: Stub, run: Run) -> None:
    cloud.now = migration("done", "doing", number=17)
    assert run("hurry", "17").exit_code == 0
    assert run("limit", "17", "50M").exit_code == 0 and run("limit", "vm1", "none").exit_code == 0
    assert cloud.actions == [{"force_complete": None}, {"bytes_per_second": 50 << 20}, {"bytes_per_second": None}]
    wrong = run("limit", "17", "fast")
    assert wrong.exit_code == 2 and "fast is no rate" in wrong.output
