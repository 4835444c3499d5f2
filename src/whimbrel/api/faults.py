"""Errors as HTTP answers: one map from error to status, and the shape that each service's clients expect.

compute    {"itemNotFound": {"code": 404, "message": "..."}}
identity   {"error": {"code": 404, "message": "...", "title": "Not Found"}}
network    {"NeutronError": {"type": "NotFound", "message": "...", "detail": ""}}
placement  {"errors": [{"status": 404, "title": "Not Found", "detail": "..."}]}
image      a small HTML page
whimbrel   {"error": {"code": 404, "message": "..."}}
"""

from __future__ import annotations

import html
from http import HTTPStatus
from typing import Any

from whimbrel.api.call import Reply
from whimbrel.domain.errors import BusError, RequestError, StepError, Unavailable, WhimbrelError


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    status = 405


class NotAcceptable(RequestError):
    """The microversion is outside what this release speaks."""

    status = 406


class RequestTimeout(RequestError):
    """The body did not come in time."""

    status = 408


class Gone(RequestError):
    """The API was removed from OpenStack; clients know what that means."""

    status = 410


class UnsupportedMediaType(RequestError):
    """The body is of a kind that this request cannot have."""

    status = 415


COMPUTE_NAMES = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}


def status_of(error: WhimbrelError) -> int:
    """Return the HTTP status for an error that was raised on purpose."""
    match error:
        case RequestError():
            return error.status
        case Unavailable() | BusError():
            return 503
        case StepError():
            return 409
        case _:
            return 500


def reply(service: str, error: WhimbrelError) -> Reply:
    """Return the answer that tells a client of `service` about the error."""
    status = status_of(error)
    headers = {"Retry-After": "5"} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Keystone uri="/identity"'
    message = str(error) or _title(status)
    if service == "image":
        return Reply(status, _page(status, message), headers, media_type="text/html; charset=UTF-8")
    return Reply(status, _body(service, status, message, type(error).__name__), headers)


def unexpected(service: str) -> Reply:
    """Return the answer to a request that met a fault of ours; the log has the rest."""
    return reply(
        service,
        WhimbrelError("The request met an unexpected error; the log of the api has it under this request's id."),
    )


def _body(service: str, status: int, message: str, kind: str) -> dict[str, Any]:
    match service:
        case "compute":
            return {COMPUTE_NAMES.get(status, "computeFault"): {"code": status, "message": message}}
        case "identity":
            return {"error": {"code": status, "message": message, "title": _title(status)}}
        case "network":
            return {"NeutronError": {"type": kind, "message": message, "detail": ""}}
        case "placement":
            return {"errors": [{"status": status, "title": _title(status), "detail": message}]}
        case _:
            return {"error": {"code": status, "message": message}}


def _page(status: int, message: str) -> str:
    title = f"{status} {_title(status)}"
    text = html.escape(message)
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1>{text}</body></html>"


def _title(status: int) -> str:
    return HTTPStatus(status).phrase
