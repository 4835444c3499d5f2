"""The table of queues: what exists, of which kind, who reads it and why it is so.

Sender and receiver both declare a queue from its row, so that an order can be sent to a host whose agent has
never run. Every argument is explicit: brokers' defaults differ between versions, and a queue that is declared
in two ways is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from whimbrel.domain.errors import BusError

SCHEDULER = "scheduler"
CONDUCTOR = "conductor"
DEAD_LETTERS = "dead-letters"
TOPICS_EXCHANGE = "whimbrel.topics"

_AGENT_PREFIX = "agent."


@dataclass(frozen=True)
class Queue:
    """One row.

    `redeliveries` is how often a message comes again after its handler failed; then our code moves it to the
    dead letters. `broker_buries` lets the broker do the same when a message kills its reader each time. That
    cannot be where calls arrive: a question whose asker has gone expires, and is no dead letter.
    """

    name: str
    quorum: bool
    max_length: int
    redeliveries: int
    broker_buries: bool
    read_by: str
    why: str

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
    ),
)

_ROWS = {row.name: row for row in TABLE}


# The temporary queue behind each subscription: one listener's, and the oldest events go first.
EVENTS_LENGTH = 1_000
EVENTS_ARGUMENTS: dict[str, str | int] = {
    "x-queue-type": "classic",
    "x-max-length": EVENTS_LENGTH,
    "x-overflow": "drop-head",
}


def agent(host: str) -> str:
    """Return the name of the queue that the agent of `host` reads."""
    return _AGENT_PREFIX + host


def find(name: str) -> Queue:
    """Return the row of the queue called `name`; BusError if the table has none."""
    row = _ROWS["agent.<host>"] if name.startswith(_AGENT_PREFIX) else _ROWS.get(name)
    if row is None or name == _AGENT_PREFIX:
        raise BusError(f"There is no queue {name!r}; the table of queues is in whimbrel/bus/queues.py.")
    return replace(row, name=name)
