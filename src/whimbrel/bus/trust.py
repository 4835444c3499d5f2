"""Who may say what on the bus: whom a process believes, and how it makes itself believed.

Two things are known of a message beside its bytes. Its user is the broker's word: RabbitMQ refuses a message that
names another user than the one who has logged in. Its signature is the controller's own word, which not even the
broker can forge. Each process has one `Trust`; a message that it does not believe reaches no handler.

| message | believed when |
| --- | --- |
| what a host says of itself (`HOSTS_SAY`) | it comes from the user of the host that it names |
| the answer to a call | it comes from the user of the host that was asked, or from a controller when one was asked |
| all else that a controller takes | it comes from no host's user |
| whatever an agent takes | a controller signed these bytes for this host's queue |
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel.bus import queues
from whimbrel.bus.signing import Signer, Verifier
from whimbrel.domain.errors import BusError
from whimbrel.migration.messages import Progress, StepReport
from whimbrel.migration.presence import Heartbeat

HOSTS_SAY = (StepReport, Heartbeat, Progress)


class Disbelieved(BusError):
    """A message whose sender may not say this; receiving it again would not help."""


@dataclass(frozen=True)
class Origin:
    """Where a message was taken from (a queue or a topic), who the broker says sent it, and the signature on it."""

    place: str
    user: str | None = None
    signature: str | None = None


class Trust:
    """Believes everything and signs nothing, which is for a bus of one process; the roles have one of those below.

    `host` is the host whose agent this process is; it can use only what an agent's broker user may. None: all.
    """

    host: str | None = None

    def sign(self, queue: str, data: bytes) -> str | None:
        """Return the signature that a message to this queue shall bear, None when it needs none."""
        return None

    def check_bytes(self, origin: Origin, data: bytes) -> None:
        """Raise Disbelieved when these bytes are not even to be decoded."""

    def check_message(self, origin: Origin, message: object) -> None:
        """Raise Disbelieved when the sender may not say this."""

    def check_answer(self, queue: str, origin: Origin) -> None:
        """Raise Disbelieved when the sender is not who reads the queue that the question went to."""


class ControllerTrust(Trust):
    """For api, scheduler and conductor; `signer` is for those that send to hosts."""

    def __init__(self, signer: Signer | None) -> None:
        self._signer = signer

    def sign(self, queue: str, data: bytes) -> str | None:
        """Sign what goes to a host."""
        return self._signer.sign(queue, data) if self._signer and queues.is_agents(queue) else None

    def check_message(self, origin: Origin, message: object) -> None:
        """Believe a host of itself only, and believe no host what is a controller's to say."""
        if isinstance(message, HOSTS_SAY):
            if origin.user != queues.agent(message.host):
                raise Disbelieved(f"{_named(origin)} may not send a {type(message).__name__} of host {message.host}.")
        else:
            _refuse_hosts(origin, type(message).__name__)

    def check_answer(self, queue: str, origin: Origin) -> None:
        """Believe the host that was asked, or any controller when a controller was."""
        if queues.is_agents(queue):
            if origin.user != queue:
                raise Disbelieved(f"{_named(origin)} may not answer for {queue}.")
        else:
            _refuse_hosts(origin, f"answer for {queue}")


class AgentTrust(Trust):
    """For the agent of one host, which obeys nobody but a controller whose key it was given."""

    def __init__(self, host: str, verifier: Verifier) -> None:
        self.host = host
        self._verifier = verifier

    def check_bytes(self, origin: Origin, data: bytes) -> None:
        """Refuse what no controller has signed for this very queue, before anything is made of it."""
        if origin.signature is None:
            raise Disbelieved(f"A message to {origin.place} from {_named(origin)} bears no signature.")
        if not self._verifier.passes(origin.place, data, origin.signature):
            raise Disbelieved(
                f"A message to {origin.place} from {_named(origin)} bears a signature that none of [agent] "
                "controller_keys made for it."
            )


def _refuse_hosts(origin: Origin, what: str) -> None:
    if origin.user is None or queues.is_agents(origin.user):
        raise Disbelieved(f"{_named(origin)} may not send this {what}; only a controller may.")


def _named(origin: Origin) -> str:
    return f"The broker's user {origin.user}" if origin.user is not None else "A sender who is not named"
