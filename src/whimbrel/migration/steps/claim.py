"""Room at the target, set aside before anything is touched."""

from __future__ import annotations

from whimbrel.domain.migration import Where
from whimbrel.migration.messages import Facts
from whimbrel.migration.ports import Books, Case


def take(books: Books, case: Case) -> Facts:
    """Claim the new flavor's room at the target."""
    return books.take_claim(case)


def give_back(books: Books, case: Case) -> Facts:
    """Free the target's room again."""
    books.give_back_claim(case)
    return {}


def settle_target(books: Books, case: Case) -> Facts:
    """Leave the server with its claim at the target only."""
    return books.settle_claims(case, keep=Where.TARGET)


def settle_source(books: Books, case: Case) -> Facts:
    """Leave the server with its claim at the source only."""
    return books.settle_claims(case, keep=Where.SOURCE)


def release_all(books: Books, case: Case) -> Facts:
    """Close the server: no claim, no address, no record in the lists."""
    facts = books.settle_claims(case, keep=None)
    books.close_server(case)
    return facts
