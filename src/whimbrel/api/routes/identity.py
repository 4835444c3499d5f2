"""The rows of the identity service."""

from __future__ import annotations

from whimbrel.api.call import Handler, Route, Schema
from whimbrel.api.handlers import identity as do
from whimbrel.api.schemas import identity as schema

_GRANTS = "/v3/projects/{id}/users/{user_id}/roles"


def _row(method: str, path: str, handler: Handler, rule: str | None, schemas: tuple[Schema, ...] = ()) -> Route:
    policy = f"identity:{rule}" if rule else None
    return Route("identity", method, path, handler, policy, schemas=schemas)


IDENTITY: tuple[Route, ...] = (
    Route("identity", "GET", "", do.versions, public=True),
    Route("identity", "GET", "/v3", do.version, public=True),
    Route("identity", "POST", "/v3/auth/tokens", do.create_token, schemas=schema.AUTHENTICATE, public=True),
    _row("GET", "/v3/auth/tokens", do.show_token, None),
    _row("GET", "/v3/auth/catalog", do.show_catalog, None),
    _row("GET", "/v3/auth/projects", do.list_my_projects, None),
    _row("GET", "/v3/projects", do.list_projects, "list_projects"),
    _row("POST", "/v3/projects", do.create_project, "create_project", schema.CREATE_PROJECT),
    _row("GET", "/v3/projects/{id}", do.show_project, None),
    _row("PATCH", "/v3/projects/{id}", do.update_project, "update_project", schema.UPDATE_PROJECT),
    _row("DELETE", "/v3/projects/{id}", do.delete_project, "delete_project"),
    _row("GET", "/v3/users", do.list_users, "list_users"),
    _row("POST", "/v3/users", do.create_user, "create_user", schema.CREATE_USER),
    _row("GET", "/v3/users/{id}", do.show_user, None),
    _row("PATCH", "/v3/users/{id}", do.update_user, "update_user", schema.UPDATE_USER),
    _row("DELETE", "/v3/users/{id}", do.delete_user, "delete_user"),
    _row("GET", "/v3/users/{id}/projects", do.list_user_projects, None),
    _row("GET", "/v3/roles", do.list_roles, "list_roles"),
    _row("GET", "/v3/roles/{id}", do.show_role, "get_role"),
    _row("GET", "/v3/role_assignments", do.list_assignments, "list_role_assignments"),
    _row("GET", _GRANTS, do.list_grants, "check_grant"),
    _row("GET", _GRANTS + "/{role_id}", do.check_grant, "check_grant"),
    _row("PUT", _GRANTS + "/{role_id}", do.grant, "create_grant"),
    _row("DELETE", _GRANTS + "/{role_id}", do.revoke, "revoke_grant"),
    _row("GET", "/v3/domains", do.list_domains, "list_domains"),
    _row("GET", "/v3/domains/{id}", do.show_domain, "get_domain"),
    _row("GET", "/v3/services", do.list_services, "list_services"),
    _row("GET", "/v3/services/{id}", do.show_service, "get_service"),
    _row("GET", "/v3/endpoints", do.list_endpoints, "list_endpoints"),
)
