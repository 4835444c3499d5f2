"""Every error that Whimbrel raises on purpose, as a tree.

WhimbrelError                     message for a person: the noun and the remedy
  SettingsError                   a settings file is wrong
  RequestError                    the caller's fault
    Invalid                       400 the request makes no sense
    Unauthorized                  401
    Forbidden                     403
    NotFound                      404
    Conflict                      409 the server is in the wrong state
    TooLarge                      413
  StepError                       a step did not succeed; it may be undone
    Cancelled                     the step was told to stop
    TimedOut                      the step's deadline or its stall limit passed
    CannotTell                    the world did not answer: neither done nor not done
  BusError                        a message could not be delivered or answered in time
  Unavailable                     503 something that is needed does not answer
"""

from __future__ import annotations

from whimbrel.ops.errors import SettingsError, WhimbrelError

__all__ = [
    "BusError",
    "Cancelled",
    "CannotTell",
    "Conflict",
    "Forbidden",
    "Invalid",
    "NotFound",
    "RequestError",
    "SettingsError",
    "StepError",
    "TimedOut",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
    "WhimbrelError",
]


class RequestError(WhimbrelError):
    """The caller asked for something that cannot be; `status` is the HTTP code."""

    status = 400


class Invalid(RequestError):
    """The request makes no sense as it stands."""

    status = 400


class Unauthorized(RequestError):
    """The caller did not prove who they are."""

    status = 401


class Forbidden(RequestError):
    """The caller may not do this."""

    status = 403


class NotFound(RequestError):
    """The named thing does not exist, or the caller may not know that it does."""

    status = 404


class Conflict(RequestError):
    """The thing is in a state that does not allow this now."""

    status = 409


class TooLarge(RequestError):
    """The body, the image or the list is beyond its bound."""

    status = 413


class StepError(WhimbrelError):
    """A step of a protocol did not succeed. `facts` are written to the journal with the reason."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts


class Cancelled(StepError):
    """The step was told to stop, by a newer order or a user's cancel."""


class TimedOut(StepError):
    """The step's time limit passed, or no byte moved within the stall limit."""


class CannotTell(StepError):
    """The world did not answer (libvirtd is down, say): neither done nor not done."""


class BusError(WhimbrelError):
    """A message could not be delivered, or an answer did not come within its deadline."""


class Unavailable(WhimbrelError):
    """Something that is needed now does not answer; trying again later may help."""
