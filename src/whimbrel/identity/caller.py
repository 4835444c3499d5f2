"""Who is asking: what a token says, and nothing else of the request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """A user in a project (None when unscoped) with the roles held there."""

    user_id: str
    user_name: str
    project_id: str | None
    project_name: str | None
    roles: frozenset[str]

    @property
    def is_admin(self) -> bool:
        """Return whether the caller may see and do everything."""
        return "admin" in self.roles
