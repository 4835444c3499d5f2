"""Runs on a host of the lab and lends its real ports to a test outside, which does single steps with them as an agent.

With only the settings' path it reads orders: one per line in, one answer out. With a socket's path behind it, it serves
the ports themselves there, to whoever knows them through `Ports`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from multiprocessing import current_process
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import msgspec

from whimbrel.agent.control import StepControl
from whimbrel.agent.ledger import Ledger, boot_marker
from whimbrel.agent.service import world
from whimbrel.domain.errors import StepError
from whimbrel.migration.messages import Order
from whimbrel.migration.ports import World
from whimbrel.migration.protocols import HostStep, protocol
from whimbrel.ops import settings

KEY = b"the socket lies in a directory that only its user can enter"


class Request(msgspec.Struct):
    order: Order
    verb: str
    limit: float = 120.0
    stall: float = 60.0


class Ports(BaseManager):
    """A host's ports from outside it: `Start` makes them anew, `StepControl` a control that lives beside them."""


class Start:
    """The ports as an agent that has just started would have them; the ledger is its host's."""

    def __init__(self, made: World) -> None:
        self.made = made

    def port(self, name: str) -> Any:
        return getattr(self.made, name)


Ports.register("Port", create_method=False)
Ports.register("Start", method_to_typeid={"port": "Port"})
Ports.register("StepControl", StepControl)


def main() -> None:
    agent = settings.load(Path(sys.argv[1])).agent
    assert agent is not None
    ledger = Ledger(agent.state_dir, boot_marker(agent.run_dir))
    if sys.argv[2:]:
        serve(sys.argv[2], lambda: Start(world(agent, ledger, lambda: True)))
    else:
        answer_orders(world(agent, ledger, lambda: True))


def serve(socket: str, start: Callable[[], Start]) -> None:
    Ports.register("Start", start, method_to_typeid={"port": "Port"})
    current_process().authkey = KEY  # a step asks its control over the socket too
    server = Ports(socket, KEY).get_server()
    print("listening", flush=True)
    server.serve_forever()


def answer_orders(parts: World) -> None:
    decoder = msgspec.json.Decoder(Request)
    for line in sys.stdin.buffer:
        request = decoder.decode(line)
        order = request.order
        step = protocol(order.protocol, order.version).step(order.step)
        assert isinstance(step, HostStep)
        action = {"do": step.do, "undo": step.undo, "probe": step.probe}[request.verb]
        assert action is not None
        try:
            answer = {"facts": action(parts, order, StepControl(request.limit, stall=request.stall))}
        except StepError as error:
            answer = {"error": type(error).__name__, "reason": str(error), "facts": error.facts}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
