"""Identity as Keystone v3 shows it: one domain, five roles, and a catalog made from the settings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row

from whimbrel.identity import policy
from whimbrel.identity.tokens import TokenData
from whimbrel.ops import clock
from whimbrel.ops.settings import Api

DOMAIN = {"id": "default", "name": "Default"}
INTERFACES = ("public", "internal", "admin")
SERVICES = (
    ("identity", "keystone", "/identity"),
    ("compute", "nova", "/compute/v2.1"),
    ("image", "glance", "/image"),
    ("network", "neutron", "/network"),
    ("placement", "placement", "/placement"),
)
"""Type, name and path of each service; the names are those that clients and people know."""

_UPDATED = "2026-01-01T00:00:00Z"


def stable_id(*words: str) -> str:
    """Return an id that is the same in every process and for ever, for things that are not in the database."""
    return hashlib.sha256(":".join(words).encode()).hexdigest()[:32]


def role_name(role_id: str) -> str | None:
    """Return the name of the role of this id, None when there is none."""
    return next((name for name in policy.ROLES if stable_id("role", name) == role_id), None)


def version(public_url: str) -> dict[str, Any]:
    """Describe v3, the one version."""
    return {
        "id": "v3.14",
        "status": "stable",
        "updated": _UPDATED,
        "links": [{"rel": "self", "href": f"{public_url}/identity/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


def domain() -> dict[str, Any]:
    """Show the one domain."""
    return {**DOMAIN, "description": "The only domain", "enabled": True, "options": {}, "tags": []}


def role(name: str) -> dict[str, Any]:
    """Show a role."""
    return {"id": stable_id("role", name), "name": name, "domain_id": None, "description": None, "options": {}}


def project(row: Row[Any]) -> dict[str, Any]:
    """Show a project."""
    return {
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "enabled": row.enabled,
        "domain_id": DOMAIN["id"],
        "parent_id": DOMAIN["id"],
        "is_domain": False,
        "options": {},
        "tags": [],
    }


def user(row: Row[Any]) -> dict[str, Any]:
    """Show a user, without the password."""
    return {
        "id": row.id,
        "name": row.name,
        "enabled": row.enabled,
        "domain_id": DOMAIN["id"],
        "password_expires_at": None,
        "options": {},
    }


def services() -> list[dict[str, Any]]:
    """List the services of the catalog."""
    return [
        {"id": stable_id("service", kind), "type": kind, "name": name, "enabled": True, "links": {}}
        for kind, name, _ in SERVICES
    ]


def endpoints(api: Api) -> list[dict[str, Any]]:
    """List the endpoints of the catalog."""
    return [
        {**endpoint, "service_id": stable_id("service", kind), "enabled": True, "links": {}}
        for kind, _, path in SERVICES
        for endpoint in _endpoints(api, kind, path)
    ]


def catalog(api: Api) -> list[dict[str, Any]]:
    """Return the catalog as tokens carry it."""
    return [
        {"id": stable_id("service", kind), "type": kind, "name": name, "endpoints": _endpoints(api, kind, path)}
        for kind, name, path in SERVICES
    ]


def token(data: TokenData, api: Api) -> dict[str, Any]:
    """Show what a token says; one without a project has neither roles nor a catalog."""
    caller = data.caller
    shown: dict[str, Any] = {
        "methods": list(data.methods),
        "user": {"id": caller.user_id, "name": caller.user_name, "domain": DOMAIN, "password_expires_at": None},
        "audit_ids": [data.audit_id],
        "issued_at": _time(data.issued_at),
        "expires_at": _time(data.expires_at),
    }
    if caller.project_id is not None:
        shown |= {
            "project": {"id": caller.project_id, "name": caller.project_name, "domain": DOMAIN},
            "is_domain": False,
            "roles": [{"id": stable_id("role", name), "name": name} for name in policy.implied(caller.roles)],
            "catalog": catalog(api),
        }
    return shown


def assignments(rows: Iterable[Row[Any]], *, names: bool) -> list[dict[str, Any]]:
    """List who holds which role where, with the names if asked for."""
    shown = []
    for row in rows:
        parts: dict[str, dict[str, Any]] = {
            "role": {"id": stable_id("role", row.role)},
            "user": {"id": row.user_id},
            "project": {"id": row.project_id},
        }
        if names:
            parts["role"]["name"] = row.role
            parts["user"] |= {"name": row.user_name, "domain": DOMAIN}
            parts["project"] |= {"name": row.project_name, "domain": DOMAIN}
        shown.append({**{key: parts[key] for key in ("role", "user")}, "scope": {"project": parts["project"]}})
    return shown


def listing(noun: str, items: Sequence[dict[str, Any]], public_url: str) -> dict[str, Any]:
    """Return a whole list under its noun; there are no further pages."""
    links = {"self": f"{public_url}/identity/v3/{noun}", "next": None, "previous": None}
    return {noun: list(items), "links": links}


def _endpoints(api: Api, kind: str, path: str) -> list[dict[str, Any]]:
    url = api.public_url.rstrip("/") + path
    return [
        {
            "id": stable_id("endpoint", kind, interface),
            "interface": interface,
            "region": api.region,
            "region_id": api.region,
            "url": url,
        }
        for interface in INTERFACES
    ]


def _time(seconds: float) -> str:
    return clock.iso_micro(seconds) + "Z"
