"""Passes: who is given one, what it says, and that a copy which takes hours has a good one whenever it needs it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.store.rows import heartbeat
from tests.unit.orders import WORK, order
from tests.unit.test_conductor import Refusing
from whimbrel.agent.control import StepControl
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.service import Inbox, TakesPasses
from whimbrel.conductor import hosts as host_books
from whimbrel.conductor import timers
from whimbrel.conductor.passes import Passes
from whimbrel.conductor.service import Conductor
from whimbrel.conductor.timers import Due
from whimbrel.domain.errors import SettingsError, StepError
from whimbrel.domain.migration import Verb
from whimbrel.domain.server import Image
from whimbrel.identity import authority
from whimbrel.identity.authority import SshAuthority
from whimbrel.identity.enrolment import Enrolment, enroll, public_half
from whimbrel.migration.messages import Ask, Order, Pass
from whimbrel.migration.presence import Channel
from whimbrel.ops import clock, settings
from whimbrel.store import hosts_view
from whimbrel.store.engine import Store
from whimbrel.store.tables import metadata

SHA256 = "a" * 64
IMAGE = Image("image-1", SHA256, "qcow2", 1, 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A database that has heard h1 and h2, both enrolled."""
    made = Store(f"sqlite:///{tmp_path}/whimbrel.db")
    made.write_now(metadata.create_all)
    for number, name in enumerate(("h1", "h2"), start=1):
        hear(made, name, number, tmp_path)
    yield made
    made.close()


def hear(store: Store, name: str, number: int, tmp_path: Path, *, enrolled: bool = True) -> None:
    place = tmp_path / name
    enroll(place, Enrolment(name, f"10.0.0.{number}", 8022, [key(tmp_path)], ["receive"], place))
    channel = Channel(8022, public_half(place, "host_key"), public_half(place, "channel_key"))
    beat = replace(heartbeat(name), address=f"10.0.0.{number}", channel=channel if enrolled else None)
    store.write_now(host_books.hear, beat, settings.Conductor())


def key(tmp_path: Path) -> str:
    return SshAuthority.load(tmp_path / "authority").public_key


def shown(tmp_path: Path, given: Order) -> str:
    """Return what OpenSSH reads in the certificate."""
    assert given.channel is not None
    (tmp_path / "certificate").write_text(given.channel.certificate)
    return subprocess.check_output(["ssh-keygen", "-L", "-f", tmp_path / "certificate"], text=True)


def fingerprint(path: Path) -> str:
    return subprocess.check_output(["ssh-keygen", "-lf", path], text=True).split()[1]


def test_a_pass_names_one_host_one_address_one_command_and_allows_nothing_else(store: Store, tmp_path: Path) -> None:
    passes = Passes(SshAuthority.load(tmp_path / "authority"))
    given = store.read_now(passes.give, order("open_channel", 5))
    text = shown(tmp_path, given)
    assert f"force-command whimbrel-receive {given.server} 7-1\n" in text
    assert "source-address 10.0.0.1/32\n" in text and "Principals: \n                h2\n" in text
    assert "Extensions: (none)" in text and 'Key ID: "migration 7, attempt 7-1, open_channel"' in text
    assert given.channel and given.channel.host_key == public_half(tmp_path / "h2", "host_key")
    assert 0 < given.channel.until - clock.now() <= authority.LIFETIME

    fetch = store.read_now(passes.give, order("prepare", 4, host="h2", work=replace(WORK, image=IMAGE)))
    text = shown(tmp_path, fetch)
    assert f"force-command whimbrel-receive base {SHA256}\n" in text
    assert "source-address 10.0.0.2/32\n" in text and "Principals: \n                h1\n" in text


def test_who_opens_no_channel_is_given_no_pass(store: Store, tmp_path: Path) -> None:
    passes = Passes(SshAuthority.load(tmp_path / "authority"))
    same = replace(WORK, target=WORK.source)
    for each in (
        order("open_channel", 5, verb=Verb.UNDO),
        order("open_channel", 5, work=same),
        order("prepare", 4, host="h2"),
        order("start_guest", 9, host="h2", work=replace(WORK, image=IMAGE)),
        order("stop_target", 9, host="h1", protocol="revert"),
        order("prepare", 4, host="h2", protocol="build", work=replace(WORK, source=None, image=IMAGE)),
        order("copy_disks", 5, protocol="of-another-release"),
    ):
        assert store.read_now(passes.give, each).channel is None
    store.write_now(lambda tx: hosts_view.change(tx, 1, forced_down=True))
    assert store.read_now(passes.give, order("open_channel", 5)).channel is None
    store.write_now(lambda tx: hosts_view.change(tx, 1, forced_down=False))
    assert store.read_now(passes.give, order("open_channel", 5)).channel is not None
    hear(store, "h2", 2, tmp_path, enrolled=False)
    assert store.read_now(passes.give, order("open_channel", 5)).channel is None


@pytest.mark.anyio
async def test_each_question_after_an_order_brings_a_pass_that_fits_the_keys_of_now(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(SshAuthority.load(tmp_path / "authority"))
    stale = replace(order("copy_disks", 6, host="h2"), work=replace(WORK, source=WORK.target, target=WORK.source))
    stale = replace(stale, channel=Pass("of yesterday", 1.0, "", 1))
    monkeypatch.setattr(timers, "look", lambda tx, conf, **_: Due(asks=[((7, 0, 1, "copy_disks"), Ask(stale))]))
    bus = Refusing()
    hear(store, "h2", 2, tmp_path)  # enrolled anew meanwhile
    await Conductor(settings.Settings(), store, bus, str, passes)._tick()
    (ask,) = bus.casts
    assert isinstance(ask, Ask) and ask.order.channel is not None and ask.order.number == stale.number
    assert fingerprint(tmp_path / "h2" / "channel_key.pub") in shown(tmp_path, ask.order)


def test_a_channel_waits_for_a_pass_that_is_good_now_and_says_why_none_came(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whimbrel.agent.disks.channel.PASS_PATIENCE", 0.3)
    agent = settings.Agent("h1", "10.0.0.1", str(tmp_path), run_dir=str(tmp_path / "run"))
    channels = SshChannels(agent, None)  # type: ignore[arg-type]
    bare = order("open_channel", 5)
    source, target = WORK.source, WORK.target
    assert source and target
    with pytest.raises(StepError, match="not enrolled"), channels._way_to(target, source, bare, StepControl(5)):
        pass
    old = replace(bare, channel=Pass("old", clock.now() - 1, "k", 22))
    with pytest.raises(StepError, match="has run out"), channels._way_to(target, source, old, StepControl(5)):
        pass
    fresh = replace(bare, channel=Pass("fresh", clock.now() + 60, "ssh-ed25519 K", 77))
    channels.keep_pass(fresh)
    channels.keep_pass(old)  # a message may come late
    with channels._way_to(target, source, old, StepControl(5)) as argv:
        files = {option.partition("=")[0]: option.partition("=")[2] for option in argv if "=" in option}
        assert Path(files["CertificateFile"]).read_text() == "fresh\n" and "77" in argv
        assert Path(files["UserKnownHostsFile"]).read_text() == "h2 ssh-ed25519 K\n"
        assert argv[-1] == "h2", "what is to run there is the pass's to say"
    assert not list((tmp_path / "run").iterdir())


class Busy:
    """An executor at work, to which nothing is new."""

    closing = False

    async def ask(self, order: Order) -> None:
        pass


@pytest.mark.anyio
async def test_an_agent_keeps_the_pass_that_a_question_brings(tmp_path: Path) -> None:
    agent = settings.Agent("h1", "10.0.0.1", str(tmp_path), run_dir=str(tmp_path / "run"))
    channels = SshChannels(agent, None)  # type: ignore[arg-type]
    assert isinstance(channels, TakesPasses)
    inbox = Inbox(agent, Busy(), None, None, None, SimpleNamespace(channels=channels, disks=None))  # type: ignore[arg-type]
    held = replace(order("copy_disks", 6), channel=Pass("old", clock.now() - 1, "k", 22))
    await inbox.take(Ask(replace(held, channel=Pass("fresh", clock.now() + 60, "k", 22))))
    source, target = WORK.source, WORK.target
    assert source and target
    assert channels._pass(held, target, source, StepControl(5)).certificate == "fresh"


def test_a_host_cannot_be_enrolled_without_an_authority_or_an_address(tmp_path: Path) -> None:
    good = Enrolment("h1", "10.0.0.1", 22, [key(tmp_path)], ["receive"], tmp_path / "channel")
    for bad, word in (
        (replace(good, authorities=[]), "host authority"),
        (replace(good, authorities=["ssh-rsa AAAA"]), "channel_authorities"),
        (replace(good, address="h1.example.org"), "no IP address"),
        (replace(good, place=Path("/a b")), "channel_dir"),
    ):
        with pytest.raises(SettingsError, match=word):
            enroll(tmp_path / "channel", bad)
        assert not (tmp_path / "channel").exists()
