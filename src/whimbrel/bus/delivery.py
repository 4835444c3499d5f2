"""What one delivery comes to, the same on every transport: handled, worth another try, or hopeless."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from whimbrel.bus.codec import Codec, Context, DecodeError, current_context
from whimbrel.bus.port import Handler
from whimbrel.bus.trust import Disbelieved, Origin, Trust
from whimbrel.domain.errors import BusError, WhimbrelError

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Refused:
    """The answer to a call whose handler raised."""

    reason: str


@dataclass(frozen=True)
class Handled:
    """The handler returned; `answer` goes back to a caller, if there is one."""

    answer: bytes | None = None


@dataclass(frozen=True)
class Failed:
    """The handler raised: the same message may succeed later, a bounded number of times."""

    reason: str


@dataclass(frozen=True)
class Hopeless:
    """The bytes are no message of ours, or not the sender's to say: a dead letter, and no answer."""

    reason: str


ANSWERS = Codec({"Refused": Refused})


@dataclass(frozen=True)
class Receiver:
    """What every delivery to one process is met with."""

    codec: Codec
    trust: Trust


async def deliver(
    receiver: Receiver, handler: Handler, data: bytes, origin: Origin, *, asked: bool
) -> Handled | Failed | Hopeless:
    """Check the sender, decode, run the handler in the sender's log context, and say what to do with the delivery."""
    codec, trust = receiver.codec, receiver.trust
    try:
        trust.check_bytes(origin, data)
        message, context = codec.decode(data)
        trust.check_message(origin, message)
    except Disbelieved as error:
        return Hopeless(str(error))
    except DecodeError as error:
        return _refusal(str(error), {}) if asked else Hopeless(str(error))
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
    try:
        answer = await handler(message)
        if not asked:
            return Handled()
        if answer is None:
            return _refusal(f"{type(message).__name__} is not a question that is answered here.", context)
        return Handled(codec.encode(answer, current_context()))
    except Exception as error:  # a consumer must outlive whatever a handler raises
        reason = str(error) if isinstance(error, WhimbrelError) else f"{type(error).__name__}: {error}"
        log.warning("a handler failed", message=type(message).__name__, reason=reason, exc_info=True)
        return _refusal(reason, context) if asked else Failed(reason)


def open_answer(codec: Codec, data: bytes, queue: str) -> object:
    """Return the answer in `data`; BusError with the reason if it is a refusal or cannot be read."""
    try:
        refused, _ = ANSWERS.decode(data)
    except DecodeError:
        return codec.decode(data)[0]
    assert isinstance(refused, Refused)
    raise BusError(f"{queue} refused: {refused.reason}")


def _refusal(reason: str, context: Context) -> Handled:
    return Handled(ANSWERS.encode(Refused(reason), context))
