"""The table of queues: what exists, of which kind, who reads it and why it is so.

Sender and receiver both declare a queue from its row, so that an order can be sent to a host whose agent has
never run. Every argument is explicit: brokers' defaults differ between versions, and a queue that is declared
in two ways is an error.

Whoever may write to the default exchange may write to every queue. So what hosts send goes through an exchange of
its own, `whimbrel.reports`, which controllers declare and bind; it is all that an agent's broker user may write to.
The only queue that an agent may declare or read is its own. Answers to calls go through `whimbrel.reports` too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from whimbrel.domain.errors import BusError

SCHEDULER = "scheduler"
CONDUCTOR = "conductor"
DEAD_LETTERS = "dead-letters"

REPORTS_EXCHANGE = "whimbrel.reports"
TOPICS_EXCHANGE = "whimbrel.topics"
DEFAULT_EXCHANGE = ""

_AGENT_PREFIX = "agent."
_ANSWERS_PREFIX = "answers."
_HOSTS_TOPICS = ("heartbeats", "progress")


@dataclass(frozen=True)
class Queue:
    """One row.

    `exchange` is the one through which the queue is written to. `redeliveries` is how often a message comes again
    after its handler failed; then our code moves it to the dead letters. `broker_buries` lets the broker do the same
    when a message kills its reader each time. That cannot be where calls arrive: a question whose asker has gone
    expires, and is no dead letter.
    """

    name: str
    quorum: bool
    max_length: int
    redeliveries: int
    broker_buries: bool
    read_by: str
    why: str
    exchange: str = DEFAULT_EXCHANGE

    @property
    def arguments(self) -> dict[str, str | int]:
        """The queue's arguments for a declaration; a full queue refuses, so that the sender keeps its row."""
        arguments: dict[str, str | int] = {
            "x-queue-type": "quorum" if self.quorum else "classic",
            "x-max-length": self.max_length,
            "x-overflow": "drop-head" if self.name == DEAD_LETTERS else "reject-publish",
        }
        if self.quorum:
            arguments["x-delivery-limit"] = self.redeliveries
            arguments["x-quorum-initial-group-size"] = 3
        if self.broker_buries:
            arguments["x-dead-letter-exchange"] = ""
            arguments["x-dead-letter-routing-key"] = DEAD_LETTERS
        return arguments


TABLE = (
    Queue(
        CONDUCTOR,
        quorum=True,
        max_length=100_000,
        redeliveries=3,
        broker_buries=True,
        read_by="every conductor",
        why="Reports decide what happens next, so they survive the loss of one broker node.",
        exchange=REPORTS_EXCHANGE,
    ),
    Queue(
        SCHEDULER,
        quorum=True,
        max_length=1_000,
        redeliveries=3,
        broker_buries=False,
        read_by="every scheduler",
        why="Carries calls; any scheduler that lives can answer them.",
    ),
    Queue(
        "agent.<host>",
        quorum=False,
        max_length=10_000,
        redeliveries=1,
        broker_buries=False,
        read_by="the agent of one host",
        why="One queue per host, and ten thousand quorum queues would be ten thousand Raft groups.",
    ),
    Queue(
        DEAD_LETTERS,
        quorum=True,
        max_length=10_000,
        redeliveries=3,
        broker_buries=False,
        read_by="a human",
        why="What no handler could take is kept to be looked at; the oldest go first when there is no room.",
        exchange=REPORTS_EXCHANGE,
    ),
)

_ROWS = {row.name: row for row in TABLE}


# The temporary queue behind each subscription, and each asker's for answers: one reader's, the oldest go first.
EVENTS_LENGTH = 1_000
EVENTS_ARGUMENTS: dict[str, str | int] = {
    "x-queue-type": "classic",
    "x-max-length": EVENTS_LENGTH,
    "x-overflow": "drop-head",
}


@dataclass(frozen=True)
class Permissions:
    """What a broker user may declare, write to and read, as RabbitMQ's regular expressions."""

    configure: str
    write: str
    read: str


def agent(host: str) -> str:
    """Return the name of the queue that the agent of `host` reads, which is also that of its broker user."""
    return _AGENT_PREFIX + host


def is_agents(name: str) -> bool:
    """Return whether a queue, or a broker user, is that of a host's agent."""
    return name.startswith(_AGENT_PREFIX)


def answers(asker: str) -> str:
    """Return the name of the queue where `asker` awaits the answers to its calls."""
    return _ANSWERS_PREFIX + asker


def is_answers(name: str) -> bool:
    """Return whether a queue is one where answers are awaited, and so a place that an answer may be sent to."""
    return name.startswith(_ANSWERS_PREFIX)


def permissions(host: str) -> Permissions:
    """Return all that the broker user of a host's agent may do."""
    own = f"^{re.escape(agent(host))}$"
    return Permissions(configure=own, write=f"^{re.escape(REPORTS_EXCHANGE)}$", read=own)


def find(name: str) -> Queue:
    """Return the row of the queue called `name`; BusError if the table has none."""
    row = _ROWS["agent.<host>"] if name.startswith(_AGENT_PREFIX) else _ROWS.get(name)
    if row is None or name == _AGENT_PREFIX:
        raise BusError(f"There is no queue {name!r}; the table of queues is in whimbrel/bus/queues.py.")
    return replace(row, name=name)


def writable(name: str, host: str | None) -> Queue:
    """Return the row of a queue to write to; BusError if `host` is given and its agent may not."""
    row = find(name)
    if host is not None and row.exchange != REPORTS_EXCHANGE:
        raise BusError(f"The agent of {host} may not write to {name}.")
    return row


def readable(name: str, host: str | None) -> Queue:
    """Return the row of a queue to read; BusError if `host` is given and it is another's."""
    row = find(name)
    if host is not None and name != agent(host):
        raise BusError(f"The agent of {host} may not read {name}.")
    return row


def exchange_of(topic: str, host: str | None = None) -> str:
    """Return the exchange that carries a topic; BusError if `host` is given and its agent may not write there."""
    exchange = REPORTS_EXCHANGE if topic in _HOSTS_TOPICS else TOPICS_EXCHANGE
    if host is not None and exchange != REPORTS_EXCHANGE:
        raise BusError(f"The agent of {host} may not tell {topic}.")
    return exchange
