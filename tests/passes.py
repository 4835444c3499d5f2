"""Orders of tests that play the conductor for the hosts of a lab: with the pass that a conductor would give."""

from __future__ import annotations

from dataclasses import asdict

from msgspec.structs import replace

from whimbrel.agent.heartbeat import channel_of
from whimbrel.conductor.passes import Passes
from whimbrel.identity.authority import SshAuthority
from whimbrel.lab import Lab, configs
from whimbrel.lab.hosts import Host
from whimbrel.migration.messages import Order
from whimbrel.migration.presence import Channel
from whimbrel.ops import settings


def with_pass(lab: Lab, order: Order) -> Order:
    """Return the order with a pass, if it opens a channel."""
    passes = Passes(SshAuthority.load(configs.channel_authority(lab.dir)))
    return passes.sign(order, {host.name: (host.address, asdict(channel_at(host))) for host in lab.hosts.values()})


def channel_at(host: Host) -> Channel:
    """Return what the host's agent would tell of its channels."""
    agent = settings.load(host.dir / "agent.toml").agent
    assert agent is not None
    found = channel_of(replace(agent, channel_dir=f"{host.dir}/var-lib-libvirt/channel"))
    assert found is not None
    return found
