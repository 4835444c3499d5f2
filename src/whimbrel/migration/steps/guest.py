"""Who runs: seal and unseal at the source, define, start and revoke at the target, power.

The order of the lines is the safety: a promise is on the disk before the world is changed, and a guest is made
paused, then recorded as released, then let run. So "it never ran here" is a fact that can be asked for.
"""

from __future__ import annotations

from contextlib import suppress

from whimbrel.domain.errors import StepError
from whimbrel.domain.migration import Answer
from whimbrel.domain.server import PowerAction, PowerState
from whimbrel.migration.messages import Facts, Order
from whimbrel.migration.ports import Control, World
from whimbrel.ops import clock

ALIVE = (PowerState.RUNNING, PowerState.PAUSED)
"""A process holds the guest's disks."""


def seal(world: World, order: Order, control: Control) -> Facts:
    """Stop the guest for good: promise first, then stop, undefine and rename, so that nothing can start it."""
    world.channels.reserve_slot(order, control)
    world.grants.seal(order.server, order.attempt)
    state = world.guests.state(order.server)
    forced = False
    if state in ALIVE:
        forced = world.guests.shut_down(order.server, order.work.grace, control)
    stopped_at = clock.now()
    definition = _put_away(world, order, control)
    return {
        "forced": forced,
        "stopped_at": stopped_at,
        "definition": definition,
        "power_state": PowerState.STOPPED,
    }


def put_aside(world: World, order: Order, control: Control) -> Facts:
    """Its memory has moved and it runs at the target: end the process that was held here, and keep its files sealed."""
    moved_away = world.grants.is_sealed(order.server) and world.disks.pushed(order) is not None
    if moved_away and world.directories.is_live(order.server):
        world.guests.destroy(order.server)
        _put_away(world, order, control)
    return {}


def _put_away(world: World, order: Order, control: Control) -> str:
    """Save the definition of a guest that has no process any more, forget the guest, and rename; return it."""
    definition = world.guests.definition(order.server)
    if definition is not None:
        world.directories.save_definition(order.server, definition)
        world.guests.undefine(order.server)
    else:
        definition = world.directories.saved_definition(order.server, order.attempt)
    if definition is None:
        raise StepError(
            f"Server {order.server} is not defined on {order.host} and no saved definition is there; "
            f"a hard reboot makes it anew."
        )
    world.disks.close_log(order, control)
    world.directories.seal(order.server, order.attempt)
    return definition


def is_sealed(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Sealed means: promised, not known to the hypervisor, and renamed."""
    if world.guests.state(order.server) is not None:
        return Answer.NOT_DONE, {}
    definition = world.directories.saved_definition(order.server, order.attempt)
    if world.directories.is_sealed(order.server, order.attempt) and definition is not None:
        return Answer.DONE, {"definition": definition, "power_state": PowerState.STOPPED}
    return Answer.NOT_DONE, {}


def unseal(world: World, order: Order, control: Control) -> Facts:
    """Bring the guest back at the source under a newer grant, running if it ran before."""
    if world.grants.is_sealed(order.server) and world.guests.state(order.server) in ALIVE:
        # It was asked to stop and may be half-way down: let it finish, or it would stop after we left.
        world.guests.shut_down(order.server, order.work.grace, control)
    world.directories.unseal(order.server, order.attempt)
    definition = world.directories.saved_definition(order.server, order.attempt)
    if definition is not None:
        world.guests.define(order.server, definition)
    return {"power_state": run(world, order)}


def is_unsealed(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Back means: live, defined, and running if it ran before."""
    state = world.guests.state(order.server)
    wanted = PowerState.RUNNING if order.work.was_running else PowerState.STOPPED
    released = world.grants.was_released(order.server, order.epoch)
    if state is wanted and not world.grants.is_sealed(order.server) and (released or not order.work.was_running):
        return Answer.DONE, {"power_state": wanted}
    return Answer.NOT_DONE, {}


def check_source(world: World, order: Order, control: Control) -> Facts:
    """Prove that there is something to go back to, before anything is touched."""
    put_aside(world, order, control)  # it may still be owed
    if not world.directories.is_sealed(order.server, order.attempt):
        raise StepError(f"The copy of server {order.server} on {order.host} is missing; it keeps running where it is.")
    return {}


def define(world: World, order: Order, control: Control) -> Facts:
    """Give the incoming directory its live name and make the guest known, stopped."""
    world.directories.adopt(order.server, order.attempt)
    definition, rewrites = world.guests.compose(order)
    world.guests.define(order.server, definition)
    world.directories.save_definition(order.server, definition)
    return {"rewrites": rewrites}


def undefine(world: World, order: Order, control: Control) -> Facts:
    """Forget the guest at the target and give the directory its incoming name again."""
    if world.directories.is_live(order.server, order.attempt):
        world.guests.destroy(order.server)
        world.guests.undefine(order.server, for_good=True)
        world.directories.disown(order.server, order.attempt)
    elif not world.directories.is_live(order.server):
        # This undo came as a debt, after that of `prepare` had taken the files: a definition without any is left over.
        world.guests.undefine(order.server, for_good=True)
    return {}


def is_defined(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Defining again is accepted, so only a whole effect counts."""
    whole = world.directories.is_live(order.server, order.attempt) and world.guests.state(order.server) is not None
    return (Answer.DONE if whole else Answer.NOT_DONE), {}


def start(world: World, order: Order, control: Control) -> Facts:
    """Let the guest run here, if it ran before; the facts say whether it was ever released."""
    state = run(world, order)
    return {"power_state": state, "released": order.work.was_running, "running_at": clock.now()}


def is_running(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Running means: released, and the hypervisor says so."""
    released = world.grants.was_released(order.server, order.epoch)
    if not order.work.was_running:
        return Answer.NOT_DONE, {}
    if released and world.guests.state(order.server) is PowerState.RUNNING:
        return Answer.DONE, {"power_state": PowerState.RUNNING, "released": True}
    return Answer.NOT_DONE, {"released": released}


def revoke(world: World, order: Order, control: Control) -> Facts:
    """Refuse the older epoch (accepting this order did that), end the guest, and say whether it had ever run."""
    epoch = int(order.results.get("hand_over", {}).get("epoch", order.epoch))
    released = world.grants.was_released(order.server, epoch)
    world.grants.seal(order.server, order.attempt)
    world.guests.destroy(order.server)
    return {"released": released, "power_state": PowerState.STOPPED}


def stop_target(world: World, order: Order, control: Control) -> Facts:
    """Stop the guest that is about to be given up; what it wrote since the hand-over goes with it."""
    world.grants.seal(order.server, order.attempt)
    world.guests.destroy(order.server)
    world.guests.undefine(order.server)
    return {"power_state": PowerState.STOPPED}


def is_stopped(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Stopped means: promised, and not known to the hypervisor any more."""
    stopped = world.grants.is_sealed(order.server) and world.guests.state(order.server) is None
    return (Answer.DONE if stopped else Answer.NOT_DONE), {}


def fence(world: World, order: Order, control: Control) -> Facts:
    """Stand aside for an evacuation: promise not to run the guest any more, and end it. Its files stay."""
    world.grants.seal(order.server, order.attempt)
    world.guests.destroy(order.server)
    return {}


def is_fenced(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """Aside means: promised, and no process holds the guest's disks."""
    aside = world.grants.is_sealed(order.server) and world.guests.state(order.server) not in ALIVE
    return (Answer.DONE if aside else Answer.NOT_DONE), {}


def restart(world: World, order: Order, control: Control) -> Facts:
    """What it was stopped for did not come about: bring the guest back where it is, under a newer grant."""
    definition = world.directories.saved_definition(order.server, order.attempt)
    if definition is not None:
        world.guests.define(order.server, definition)
    return {"power_state": run(world, order)}


def set_power(world: World, order: Order, control: Control) -> Facts:
    """Start, stop or reboot the guest where it is; one that a move could not bring back is brought back first."""
    server, action = order.server, order.work.action
    state = world.guests.state(server)
    forced = False
    if state is None and action is not PowerAction.STOP:
        world.directories.bring_back(server)
        definition = world.directories.saved_definition(server, order.attempt)
        if definition is not None:
            world.guests.define(server, definition)
    if action in (PowerAction.STOP, PowerAction.REBOOT_SOFT) and state in ALIVE:
        forced = world.guests.shut_down(server, order.work.grace, control)
    elif action is PowerAction.REBOOT_HARD:
        world.guests.destroy(server)
        definition, _ = world.guests.compose(order)
        world.guests.define(server, definition)
        world.directories.save_definition(server, definition)
    running = action is not PowerAction.STOP
    if running and world.guests.state(server) is not PowerState.RUNNING:
        world.grants.grant(order)
        _run(world, order)
    return {"power_state": PowerState.RUNNING if running else PowerState.STOPPED, "forced": forced}


def is_powered(world: World, order: Order, control: Control) -> tuple[Answer, Facts]:
    """A start or stop that shows is done; whether a reboot happened cannot be seen, so it is done again."""
    state = world.guests.state(order.server)
    wanted = {PowerAction.START: PowerState.RUNNING, PowerAction.STOP: PowerState.STOPPED}
    action = order.work.action
    if action in wanted and state is wanted[action]:
        return Answer.DONE, {"power_state": state}
    return Answer.NOT_DONE, {}


def run(world: World, order: Order) -> PowerState:
    """Record the grant and let the guest run, if it ran before; a failure says whether it was ever released."""
    world.grants.grant(order)
    if not order.work.was_running:
        return PowerState.STOPPED
    try:
        _run(world, order)
    except StepError as error:
        error.facts["released"] = world.grants.was_released(order.server, order.epoch)
        raise
    return PowerState.RUNNING


def _run(world: World, order: Order) -> None:
    """Make the guest paused, record the release, let it run; what was made and cannot be let run is ended."""
    try:
        if world.guests.state(order.server) not in ALIVE:
            world.guests.create_paused(order.server)
        world.grants.release(order)
        world.guests.resume(order.server)
    except StepError:
        _drop_half_started(world, order.server)
        raise


def _drop_half_started(world: World, server: str) -> None:
    """End a process that was made and not let run; the next try makes another one."""
    with suppress(StepError):  # what has failed before matters more, and a try that follows may find it gone
        if world.guests.state(server) is PowerState.PAUSED:
            world.guests.destroy(server)
