"""A role of Whimbrel that can be held at gates: `python -m tests.fault.gated ROLE CONFIG GATES`.

An agent is held in the step's own thread: before, the order is in its ledger and not begun; after, the effect is
there and not yet written down. A conductor is held outside of its transactions: before, the one that would do its own
step is taken back and made anew; after, it is committed and nothing of it was sent.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from tests.fault.gates import AFTER, BEFORE, HOLD, Gate, Gates
from whimbrel import roles
from whimbrel.agent import executor
from whimbrel.conductor import drive, service
from whimbrel.domain.migration import Verb
from whimbrel.lab.processes import wait_until
from whimbrel.store.engine import Store


def gate_agent(gates: Gates) -> None:
    """Hold steps of hosts."""
    perform = executor.perform

    def held(world: Any, order: Any, control: Any) -> Any:
        if order.verb is not Verb.DO:
            return perform(world, order, control)
        gates.hold(Gate(order.protocol, order.step, BEFORE), order.server)
        outcome = perform(world, order, control)
        gates.hold(Gate(order.protocol, order.step, AFTER), order.server)
        return outcome

    executor.perform = held


class Held(BaseException):
    """Takes a transaction back that must wait at a gate; nothing in the product may swallow it."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(gate.name)
        self.gate = gate


def gate_conductor(gates: Gates) -> None:
    """Hold the conductor's own steps."""
    do_now = drive.Driver._do_now
    done: dict[str, list[Gate]] = {}

    def held(driver: Any, hand: Any, step: Any) -> None:
        server, table = hand.migration.server_id, hand.table.name
        before = Gate(table, step.name, BEFORE)
        if gates.holds_up(before, server):
            raise Held(before)
        do_now(driver, hand, step)
        done.setdefault(server, []).append(Gate(table, step.name, AFTER))

    write = Store.write

    async def patient(store: Store, function: Any, *args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                return await write(store, function, *args, **kwargs)
            except Held as stop:
                await until_open(gates, stop.gate)

    class GatedConductor(service.Conductor):
        async def _publish(self, effects: Any) -> None:
            for change in effects.changed:
                for gate in done.pop(change.server, []):
                    if gates.holds_up(gate, change.server):
                        await until_open(gates, gate)
            await super()._publish(effects)

    drive.Driver._do_now = held  # type: ignore[method-assign]
    Store.write = patient  # type: ignore[method-assign,assignment]
    service.Conductor = GatedConductor  # type: ignore[misc]


async def until_open(gates: Gates, gate: Gate) -> None:
    """Wait until the gate is taken away."""
    await asyncio.to_thread(wait_until, lambda: gates.is_open(gate), HOLD)


def main(role: str, config: str, directory: str) -> None:
    """Run the role with its steps gated."""
    gates = Gates(Path(directory))
    if role == "agent":
        gate_agent(gates)
    elif role == "conductor":
        gate_conductor(gates)
    roles.run(role, Path(config))


if __name__ == "__main__":
    main(*sys.argv[1:])
