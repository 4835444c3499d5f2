"""The controller's key, the users of the broker, and the settings that name them."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import click.testing
import pytest

from whimbrel import roles
from whimbrel.bus import queues
from whimbrel.bus.signing import Signer, Verifier
from whimbrel.cli.main import cli
from whimbrel.domain.errors import SettingsError
from whimbrel.ops.settings import Agent, Broker, Orders, Settings


def test_the_key_is_made_once_for_its_owner_and_a_change_of_keys_has_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "state" / "order.key"
    old = Signer.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Signer.load(path).public_key == old.public_key
    new = Signer.load(tmp_path / "new.key")
    both, later = Verifier([old.public_key, new.public_key]), Verifier([new.public_key])
    for signer in (old, new):
        assert both.passes("agent.h1", b"{}", signer.sign("agent.h1", b"{}"))
    signature = old.sign("agent.h1", b"{}")
    assert not later.passes("agent.h1", b"{}", signature)
    assert not both.passes("agent.h2", b"{}", signature)
    assert not both.passes("agent.h1", b"{ }", signature)
    assert not any(both.passes("agent.h1", b"{}", text) for text in ("", "=", "ä", signature[:-4], signature * 2))


@pytest.mark.parametrize(
    ("text", "reason"), [("no key", "holds no private key"), (None, "Ed25519"), ("", "holds no private key")]
)
def test_a_file_that_holds_no_such_key_is_named(tmp_path: Path, text: str | None, reason: str) -> None:
    from whimbrel.lab import certificates

    path = tmp_path / "order.key"
    if text is None:
        certificates.make(tmp_path, "127.0.0.1")
        path = tmp_path / "api.key"
    else:
        path.write_text(text)
    with pytest.raises(SettingsError, match=f"{path}.*{reason}"):
        Signer.load(path)


def test_an_agent_that_could_not_be_believed_or_would_believe_anybody_does_not_start(tmp_path: Path) -> None:
    key = Signer.load(tmp_path / "order.key").public_key
    mine, shared = Broker("amqp://agent.h1:x@127.0.0.1/"), Broker("amqp://whimbrel:x@127.0.0.1/")
    assert (
        roles.bus_of("agent", Settings(broker=mine, agent=Agent("h1", "a", controller_keys=[key]))).user == "agent.h1"
    )
    for conf, reason in (
        (Settings(broker=shared, agent=Agent("h1", "a", controller_keys=[key])), "whimbrel host broker-user h1"),
        (Settings(broker=mine, agent=Agent("h2", "a", controller_keys=[key])), "believed only as agent.h2"),
        (Settings(broker=mine, agent=Agent("h1", "a")), "whimbrel host controller-key"),
        (Settings(broker=mine, agent=Agent("h1", "a", controller_keys=["AAAA"])), "'AAAA' is not an Ed25519"),
        (Settings(broker=mine), r"\[agent\]"),
        (Settings(agent=Agent("h1", "a", controller_keys=[key])), r"\[broker\]"),
    ):
        with pytest.raises(SettingsError, match=reason):
            roles.bus_of("agent", conf)
    assert roles.bus_of("scheduler", Settings(broker=shared, orders=Orders(str(tmp_path / "none")))).user == "whimbrel"
    assert not (tmp_path / "none").exists(), "a scheduler gives no orders and needs no key"


def test_what_an_operator_types_gives_a_host_its_own_queue_and_the_way_to_controllers(tmp_path: Path) -> None:
    run = click.testing.CliRunner().invoke
    said = run(cli, ["host", "broker-user", "h1.example.org"])
    add, rights, *_, url = said.output.splitlines()
    (password,) = re.findall(r"^printf %s (\S{32,}) \| rabbitmqctl add_user agent\.h1\.example\.org$", add)
    assert f"agent.h1.example.org:{password}@" in url
    own, way = r"'^agent\.h1\.example\.org$'", r"'^whimbrel\.reports$'"
    assert rights == f"rabbitmqctl set_permissions --vhost / agent.h1.example.org {own} {way} {own}"
    for name in ("a b", "h1;reboot", "", "$(x)", "-x", "h1\n"):
        assert run(cli, ["host", "broker-user", "--", name]).exit_code != 0
    config = tmp_path / "controller.toml"
    config.write_text(f"[orders]\nkey_file = '{tmp_path}/order.key'\n")
    printed = run(cli, ["host", "controller-key", "--config", str(config)]).output
    assert printed == Signer.load(tmp_path / "order.key").public_key + "\n"


def test_a_hosts_rights_are_no_prefix_of_anothers() -> None:
    may = queues.permissions("h1")
    for other in ("agent.h11", "agentxh1", "xagent.h1", "agent.h1.x", "conductor"):
        assert not re.search(may.configure, other) and not re.search(may.read, other)
    assert not any(re.search(may.write, name) for name in ("", "amq.default", "agent.h1", "whimbrelxreports"))
