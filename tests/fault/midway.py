"""A move that is caught in the act, and the two ways in which it may end: it goes on, or the guest is back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cloud import Cloud, Server, wait_for

BALLAST = "fill_mib=16"
SLOW = "16mbit"
"""The ballast takes eight seconds over such a link."""

ENOUGH = 2 << 20
"""Bytes at the target after which a copy is well in its middle."""


@contextmanager
def mid_copy(cloud: Cloud, server: Server) -> Iterator[None]:
    """Move a server with ballast cold from h1 to h2 over a slow link, and give the word while the bytes flow."""
    server.stop_first()
    cloud.lab.limit("h2", SLOW)
    server.migrate("h2")
    wait_for("bytes at the target", lambda: arrived(cloud, server) > ENOUGH)
    assert cloud.runners(server.id) == []
    yield
    cloud.lab.limit("h2", None)


def arrived(cloud: Cloud, server: Server) -> int:
    """Return how many bytes of the root disk the target has written."""
    return sum(path.stat().st_blocks * 512 for path in incoming(cloud, server) if path.name == "disk-0")


def incoming(cloud: Cloud, server: Server) -> list[Path]:
    """Return the files that the target holds under an attempt's name."""
    return list(cloud.instances("h2").glob(f"{server.id}.incoming-*/*"))


def assert_goes_on(cloud: Cloud, server: Server) -> None:
    """The move ended as if nothing had happened, and can be confirmed."""
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost("h2")
    server.confirm()
    assert cloud.runners(server.id) == ["h2"]
    cloud.assert_tidy({server: "h2"})


def assert_back(cloud: Cloud, server: Server, *words: str) -> None:
    """The move ended by itself with its guest on the source again, and the user can read why."""
    server.wait("ACTIVE")
    assert_error(server, *words)
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def assert_refused(cloud: Cloud, server: Server, *words: str) -> None:
    """The move ended before the guest was touched, and the user can read why."""
    server.wait("ACTIVE")
    assert_error(server, *words)
    assert len(server.boots("h1")) == 1, "the guest was stopped"
    server.assert_nothing_lost("h1")
    cloud.assert_tidy({server: "h1"})


def assert_error(server: Server, *words: str) -> None:
    """The last move failed, for a reason with these words."""
    migration, reason = server.migration(), server.reason()
    assert migration["outcome"] == "error" and not migration["open"]
    assert all(word in reason for word in words), reason
