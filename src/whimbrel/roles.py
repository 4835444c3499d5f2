"""Wires the roles: settings in, database and bus made, the role run until it is told to stop.

A role ends with exit code 0 on SIGTERM, and with 1 when the broker has lost its consumers, so that whoever
supervises it starts it again: what it was doing is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import structlog

from whimbrel.bus import queues
from whimbrel.bus.amqp import AmqpBus
from whimbrel.bus.codec import registry
from whimbrel.bus.port import Bus, Timing
from whimbrel.bus.signing import Signer, Verifier
from whimbrel.bus.trust import AgentTrust, ControllerTrust, Trust
from whimbrel.domain.errors import BusError, SettingsError, WhimbrelError
from whimbrel.migration.messages import MESSAGES
from whimbrel.ops import clock, log, metrics, settings

if TYPE_CHECKING:
    from whimbrel.store.engine import Store

_log = structlog.get_logger()

PROBE_EVERY = 10.0

Role = Callable[[settings.Settings, Bus], Awaitable[None]]


async def api(conf: settings.Settings, bus: Bus) -> None:
    """Serve the HTTP APIs."""
    from whimbrel.api.app import Services, serve
    from whimbrel.identity import policy
    from whimbrel.identity.tokens import Tokens
    from whimbrel.store import image_files
    from whimbrel.store.outbox import Relay

    store = _store(conf)
    if conf.api.policy_file is not None:
        policy.load(Path(conf.api.policy_file))
    image_files.forget_leftovers(Path(conf.api.image_dir), clock.now())
    relay = Relay(store, bus.cast)
    tokens = Tokens(Path(conf.identity.key_file), conf.identity.token_lifetime)
    async with asyncio.TaskGroup() as group:
        sweep = group.create_task(relay.run(), name="relay")
        await serve(Services(conf, store, bus, relay, tokens))
        sweep.cancel()


async def scheduler(conf: settings.Settings, bus: Bus) -> None:
    """Answer where servers could go."""
    from whimbrel.scheduler.service import Scheduler

    await Scheduler(conf.scheduler, conf.conductor.service_down_after, _store(conf), bus).run()


async def conductor(conf: settings.Settings, bus: Bus) -> None:
    """Decide."""
    from whimbrel.conductor.passes import Passes
    from whimbrel.conductor.service import Conductor
    from whimbrel.identity.authority import SshAuthority
    from whimbrel.identity.tokens import Tokens

    tokens = Tokens(Path(conf.identity.key_file), conf.identity.token_lifetime)

    def ticket_url(image_id: str) -> str:
        return f"{conf.conductor.image_url}/v2/images/{image_id}/file?ticket={tokens.ticket(image_id)}"

    passes = Passes(SshAuthority.load(Path(conf.channels.authority_file)))
    await Conductor(conf, _store(conf), bus, ticket_url, passes).run()


async def agent(conf: settings.Settings, bus: Bus) -> None:
    """Do what is ordered, on this host."""
    from whimbrel.agent.service import run as serve

    await serve(conf, bus)


async def controller(conf: settings.Settings, bus: Bus) -> None:
    """Run api, scheduler and conductor in one process."""
    async with asyncio.TaskGroup() as group:
        for role in (scheduler, conductor, api):
            group.create_task(role(conf, bus), name=role.__name__)


ROLES: dict[str, Role] = {role.__name__: role for role in (api, scheduler, conductor, agent, controller)}


def run(name: str, config: Path) -> None:
    """Run a role by its settings file until SIGTERM or SIGINT; raise WhimbrelError when it cannot start or go on."""
    conf = settings.load(config)
    host = conf.agent.host if name == "agent" and conf.agent else None
    log.configure(name, conf.logs, host=host)
    if name != "agent" and conf.database is not None:
        _count_books(conf, conf.database.url)
    metrics.serve(conf.metrics)
    asyncio.run(_run(name, conf, config))


def _count_books(conf: settings.Settings, url: str) -> None:
    """Let this process's metrics say what the database says whenever somebody reads them."""
    from whimbrel.store.counts import MEANINGS, read_counts
    from whimbrel.store.engine import Store

    read = functools.partial(read_counts, Store(url), conf.conductor.service_down_after)
    metrics.show(metrics.Reading(read, MEANINGS))


def keep(conf: settings.Settings) -> None:
    """Run this host's keeper until SIGTERM or SIGINT; it needs neither broker nor database."""
    from whimbrel.agent import keeper

    if conf.agent is None:
        raise SettingsError("The settings have no [agent] table; a keeper needs the agent's.")
    log.configure("keeper", conf.logs, host=conf.agent.host)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keeper.run(conf.agent, stop)


async def _run(name: str, conf: settings.Settings, config: Path) -> None:
    bus = bus_of(name, conf)
    await bus.start()
    work = asyncio.create_task(_role(name, conf, bus))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, work.cancel)
    if name == "agent" and conf.agent is not None:
        loop.add_signal_handler(signal.SIGHUP, _renew, conf.agent, config)
    try:
        with contextlib.suppress(asyncio.CancelledError):
            await work
    except ExceptionGroup as group:
        raise _first(group) from group
    finally:
        await bus.close()


def _renew(mine: settings.Agent, config: Path) -> None:
    """Read again what may change while the agent runs; a fault in the file is logged, and everything stays."""
    try:
        taken = settings.renew(mine, config)
    except SettingsError as error:
        _log.error("settings_not_read_again", fault=str(error))
    else:
        _log.info("settings_read_again", **taken)


def bus_of(name: str, conf: settings.Settings) -> AmqpBus:
    """Make the role's bus; SettingsError if it could not make itself believed, or tell whom to believe."""
    if conf.broker is None:
        raise SettingsError("The settings name no broker; add a [broker] table with its `url`.")
    trust = _trust(name, conf)
    bus = AmqpBus(
        conf.broker.url,
        registry(*MESSAGES),
        name=f"whimbrel-{name}",
        timing=Timing(heartbeat=conf.broker.heartbeat),
        trust=trust,
        ca_file=conf.broker.ca_file,
    )
    host = trust.host
    if host is not None and bus.user != queues.agent(host):
        raise SettingsError(
            f"[broker] url logs in as {bus.user}, but host {host} is believed only as {queues.agent(host)}; "
            f"`whimbrel host broker-user {host}` tells how to make that user."
        )
    return bus


def _trust(name: str, conf: settings.Settings) -> Trust:
    if name == "agent":
        if conf.agent is None:
            raise SettingsError("The settings have no [agent] table; an agent needs at least host and address.")
        return AgentTrust(conf.agent.host, Verifier(conf.agent.controller_keys))
    # A scheduler only answers.
    return ControllerTrust(None if name == "scheduler" else Signer.load(Path(conf.orders.key_file)))


async def _role(name: str, conf: settings.Settings, bus: Bus) -> None:
    async with asyncio.TaskGroup() as group:
        watch = group.create_task(_watch(bus), name="watch")
        await ROLES[name](conf, bus)
        watch.cancel()


async def _watch(bus: Bus) -> None:
    """End the process when its consumers are gone from a broker that is there: a fresh start mends it."""
    while True:
        await asyncio.sleep(PROBE_EVERY)
        await bus.probe()


def _store(conf: settings.Settings) -> Store:
    """Open the database, at this release's schema; imported late, because an agent needs neither."""
    from whimbrel.store import schema
    from whimbrel.store.engine import Store

    if conf.database is None:
        raise SettingsError("The settings name no database; add a [database] table with its `url`.")
    store = Store(conf.database.url)
    schema.check(store)
    return store


def _first(group: ExceptionGroup[Exception]) -> Exception:
    """Return the first plain exception of a group: the fault that ended the rest."""
    for error in group.exceptions:
        found = _first(error) if isinstance(error, ExceptionGroup) else error
        if isinstance(found, BusError | WhimbrelError):
            return found
    return group.exceptions[0]
