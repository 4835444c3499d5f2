"""Runs on a host of the lab and does single steps there, as an agent would: one order per line in, one answer out."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from whimbrel.agent.control import StepControl
from whimbrel.agent.directories import HostDirectories
from whimbrel.agent.disks.channel import SshChannels
from whimbrel.agent.disks.store import HostDisks
from whimbrel.agent.grants import LedgerGrants
from whimbrel.agent.guests.libvirt import LibvirtGuests
from whimbrel.agent.ledger import Ledger, boot_marker
from whimbrel.domain.errors import StepError
from whimbrel.migration.messages import Order
from whimbrel.migration.ports import World
from whimbrel.migration.protocols import HostStep, protocol
from whimbrel.ops import settings


class Request(msgspec.Struct):
    order: Order
    verb: str
    limit: float = 120.0
    stall: float = 60.0


def main() -> None:
    agent = settings.load(Path(sys.argv[1])).agent
    assert agent is not None
    ledger = Ledger(agent.state_dir, boot_marker(agent.run_dir))
    guests, channels = LibvirtGuests(agent), SshChannels(agent, ledger)
    world = World(
        guests,
        HostDirectories(agent.instances_dir),
        HostDisks(agent, channels, guests.ready),
        channels,
        LedgerGrants(ledger),
    )
    decoder = msgspec.json.Decoder(Request)
    for line in sys.stdin.buffer:
        request = decoder.decode(line)
        order = request.order
        step = protocol(order.protocol, order.version).step(order.step)
        assert isinstance(step, HostStep)
        action = {"do": step.do, "undo": step.undo, "probe": step.probe}[request.verb]
        assert action is not None
        try:
            answer = {"facts": action(world, order, StepControl(request.limit, stall=request.stall))}
        except StepError as error:
            answer = {"error": type(error).__name__, "reason": str(error), "facts": error.facts}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
