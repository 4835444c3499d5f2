"""The one moment at which the server changes hosts: a row in the database, at a new epoch."""

from __future__ import annotations

from whimbrel.domain.migration import Where
from whimbrel.migration.messages import Facts
from whimbrel.migration.ports import Books, Case


def commit(books: Books, case: Case) -> Facts:
    """From here the server belongs to the target; the source has sealed its copy before."""
    return books.place(case, at=Where.TARGET)


def take_back(books: Books, case: Case) -> Facts:
    """The server belongs to the source again; the target has answered that it does not run it."""
    return books.place(case, at=Where.SOURCE)
