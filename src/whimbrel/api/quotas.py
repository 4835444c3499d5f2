"""How much one project may have: the same generous bounds for all, so that nobody fills a deployment by mistake."""

from __future__ import annotations

from whimbrel.domain.errors import Forbidden
from whimbrel.store.servers import Usage

INSTANCES = 10_000
CORES = 100_000
RAM_MB = 512 * 1024 * 1024
METADATA_ITEMS = 128
KEY_PAIRS = 100
SERVER_GROUPS = 10
SERVER_GROUP_MEMBERS = 10


def check_growth(used: Usage, more: Usage) -> None:
    """Refuse what would take a project beyond its bounds, in Nova's words; only what grows is looked at."""
    rows = (
        ("instances", more.instances, used.instances, INSTANCES),
        ("cores", more.cores, used.cores, CORES),
        ("ram", more.ram_mb, used.ram_mb, RAM_MB),
    )
    for name, asked, have, most in rows:
        if asked > 0 and have + asked > most:
            raise Forbidden(f"Quota exceeded for {name}: Requested {asked}, but already used {have} of {most} {name}")


def check_metadata(items: int) -> None:
    """Refuse more metadata than a server may have."""
    if items > METADATA_ITEMS:
        raise Forbidden(f"Maximum number of metadata items exceeds {METADATA_ITEMS}")
