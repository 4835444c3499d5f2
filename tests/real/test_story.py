"""The straight stories on real guests: what is moved is whole, what is given up is gone, the machine is the same."""

from __future__ import annotations

import re

import pytest

from tests.cloud import Cloud, Server

pytestmark = pytest.mark.real


@pytest.fixture
def cloud(lab_guests: Cloud) -> Cloud:
    """An empty cloud of two hosts."""
    return lab_guests


def moved(cloud: Cloud, server: Server, target: str) -> None:
    """The server waits for its verdict: it runs at the target only, and the source keeps its copy, sealed."""
    server.wait("VERIFY_RESIZE")
    server.assert_nothing_lost(target)
    sealed = [path.parent.name for path in server.copies() if ".sealed-" in path.parent.name]
    assert len(sealed) == 1
    taken, _, _ = cloud.books()
    assert {host for owner, host, *_ in taken if owner == server.id} == set(cloud.lab.hosts)


def test_a_cold_migration_is_confirmed(cloud: Cloud) -> None:
    server = cloud.create(host="h1")
    before = server.show()
    server.migrate()
    moved(cloud, server, "h2")
    server.confirm()
    after = server.show()
    assert after["OS-EXT-SRV-ATTR:host"] == "h2" and after["addresses"] == before["addresses"]
    assert server.migration()["outcome"] == "confirmed"
    cloud.assert_tidy({server: "h2"})


def test_a_cold_migration_is_reverted(cloud: Cloud) -> None:
    server = cloud.create(host="h1")
    server.migrate("h2")
    moved(cloud, server, "h2")
    server.revert()
    server.wait_to_write("h1", boots=2)
    server.assert_nothing_lost("h1")
    assert server.migration()["outcome"] == "reverted"
    cloud.assert_tidy({server: "h1"})
