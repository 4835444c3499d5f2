"""The only place that makes identifiers, so that a simulation can make them repeatable."""

from __future__ import annotations

import secrets
import uuid


def new_uuid() -> str:
    """Return a fresh random UUID in its canonical text form."""
    return str(uuid.uuid4())


def new_hex() -> str:
    """Return a fresh UUID without hyphens, as Keystone writes its ids."""
    return uuid.uuid4().hex


def new_request_id() -> str:
    """Return a request id in the form that OpenStack clients show: `req-<uuid>`."""
    return f"req-{uuid.uuid4()}"


def new_mac() -> str:
    """Return a random MAC address in the range that OpenStack's guests have: `fa:16:3e:xx:xx:xx`."""
    return "fa:16:3e:" + ":".join(f"{part:02x}" for part in secrets.token_bytes(3))


def new_secret(size: int = 32) -> str:
    """Return `size` random bytes as URL-safe text, for passwords and keys."""
    return secrets.token_urlsafe(size)
