"""The identity service: log in, and keep the projects, users and roles. One domain, Keystone v3 shaped."""

from __future__ import annotations

import math
from typing import Any

from sqlalchemy import Connection, Row

from whimbrel.api import parameters
from whimbrel.api.call import Call, Reply
from whimbrel.api.views import identity as view
from whimbrel.domain.errors import Forbidden, Invalid, NotFound, Unauthorized
from whimbrel.identity import policy
from whimbrel.identity.caller import Caller
from whimbrel.identity.tokens import TokenData
from whimbrel.ops import ids
from whimbrel.store import identity as store

REFUSED = "The request you have made requires authentication."


# --- discovery and tokens -------------------------------------------------------------------------


async def versions(call: Call) -> Reply:
    """List the identity API's versions."""
    return Reply(300, {"versions": {"values": [view.version(call.services.public_url)]}})


async def version(call: Call) -> Reply:
    """Show v3."""
    return Reply(body={"version": view.version(call.services.public_url)})


async def create_token(call: Call) -> Reply:
    """Log in by password or by an older token, for one project or for none."""
    auth = call.body["auth"]
    user, methods, not_after = await _authenticate(call, auth["identity"])
    project, roles = await _scope(call, user, auth.get("scope"))
    caller = Caller(
        user_id=user.id,
        user_name=user.name,
        project_id=project.id if project else None,
        project_name=project.name if project else None,
        roles=roles,
    )
    token, data = call.services.tokens.issue(caller, methods, not_after)
    body = {"token": view.token(data, call.services.settings.api)}
    return Reply(201, body, {"X-Subject-Token": token, "Vary": "X-Auth-Token"})


async def show_token(call: Call) -> Reply:
    """Say what the token in X-Subject-Token says; one's own, or any for an administrator."""
    token = call.headers.get("x-subject-token") or ""
    try:
        data: TokenData = call.services.tokens.read(token)
    except Unauthorized as error:
        raise NotFound("Could not find token: it is not valid, or no longer.") from error
    policy.enforce("identity:validate_token", call.who, {"user_id": data.caller.user_id})
    body = {"token": view.token(data, call.services.settings.api)}
    return Reply(body=body, headers={"X-Subject-Token": token, "Vary": "X-Auth-Token"})


async def show_catalog(call: Call) -> Reply:
    """List the services and where they are."""
    links = {"self": f"{call.services.public_url}/identity/v3/auth/catalog"}
    return Reply(body={"catalog": view.catalog(call.services.settings.api), "links": links})


async def _authenticate(call: Call, identity: dict[str, Any]) -> tuple[Row[Any], tuple[str, ...], float]:
    """Return who it is, how they proved it, and when the proof ends; Unauthorized without saying what was wrong."""
    methods = identity["methods"]
    if methods not in (["password"], ["token"]) or methods[0] not in identity:
        raise Unauthorized(REFUSED)
    if methods == ["password"]:
        claimed = identity["password"]["user"]
        user = await call.services.store.read(_claimed_user, claimed)
        good = await call.services.passwords.matches(claimed["password"], user.password if user else None)
        if user is None or not good or not user.enabled:
            raise Unauthorized(REFUSED)
        return user, ("password",), math.inf
    old = call.services.tokens.read(identity["token"]["id"])
    user = await call.services.store.read(lambda tx: store.find_user(tx, id=old.caller.user_id))
    if user is None or not user.enabled:
        raise Unauthorized(REFUSED)
    return user, tuple(dict.fromkeys((*old.methods, "token"))), old.expires_at


async def _scope(call: Call, user: Row[Any], scope: Any) -> tuple[Row[Any] | None, frozenset[str]]:
    """Return the project that is asked for and the user's roles there; none of either when none is asked for."""
    if scope is None or scope == "unscoped":
        return None, frozenset()
    if "project" not in scope:
        raise Unauthorized("Only a project can be the scope of a token here; ask for one.")

    def find(tx: Connection) -> tuple[Row[Any] | None, frozenset[str]]:
        project = _claimed_project(tx, scope["project"])
        if project is None or not project.enabled:
            return None, frozenset()
        return project, store.roles_of(tx, user.id, project.id)

    project, roles = await call.services.store.read(find)
    if project is None or not roles:
        raise Unauthorized("The user holds no role in that project, or there is no such project.")
    return project, roles


def _claimed_user(tx: Connection, claimed: dict[str, Any]) -> Row[Any] | None:
    if "id" in claimed:
        return store.find_user(tx, id=claimed["id"])
    if "name" not in claimed or not _in_domain(claimed.get("domain")):
        return None
    return store.find_user(tx, name=claimed["name"])


def _claimed_project(tx: Connection, claimed: dict[str, Any]) -> Row[Any] | None:
    if "id" in claimed:
        return store.find_project(tx, id=claimed["id"])
    if "name" not in claimed or not _in_domain(claimed.get("domain")):
        return None
    return store.find_project(tx, name=claimed["name"])


def _in_domain(domain: dict[str, Any] | None) -> bool:
    """Return whether the one domain is meant, by its id or its name."""
    return domain is not None and any(domain.get(key) == value for key, value in view.DOMAIN.items())


# --- projects -------------------------------------------------------------------------------------


async def list_projects(call: Call) -> Reply:
    """List the projects, of one name if asked; those of another domain are none."""
    if not _asks_for_our_domain(call):
        return _listing(call, "projects", [])
    rows = await call.services.store.read(store.list_projects, call.first("name"))
    return _listing(call, "projects", [view.project(row) for row in rows if _enabled_as_asked(call, row)])


async def show_project(call: Call) -> Reply:
    """Show one project: any for an administrator, one's own for the others."""
    policy.enforce("identity:get_project", call.who, {"project_id": call.params["id"]})
    row = await call.services.store.read(store.project, call.params["id"])
    return Reply(body={"project": view.project(row)})


async def create_project(call: Call) -> Reply:
    """Add a project."""
    wanted = call.body["project"]
    row = await call.services.store.write(
        store.create_project, wanted["name"], wanted.get("description") or "", enabled=wanted.get("enabled", True)
    )
    return Reply(201, {"project": view.project(row)})


async def update_project(call: Call) -> Reply:
    """Change a project's name, description or `enabled`."""
    wanted = call.body["project"]
    values = {key: wanted[key] for key in ("name", "enabled") if key in wanted}
    if "description" in wanted:
        values["description"] = wanted["description"] or ""
    row = await call.services.store.write(store.update_project, call.params["id"], values)
    return Reply(body={"project": view.project(row)})


async def delete_project(call: Call) -> Reply:
    """Remove a project that owns nothing."""
    await call.services.store.write(store.delete_project, call.params["id"])
    return Reply(204)


async def list_my_projects(call: Call) -> Reply:
    """List the projects that the caller could ask a token for."""
    rows = await call.services.store.read(store.projects_of, call.who.user_id)
    return _listing(call, "projects", [view.project(row) for row in rows])


# --- users ----------------------------------------------------------------------------------------


async def list_users(call: Call) -> Reply:
    """List the users, of one name if asked; those of another domain are none."""
    if not _asks_for_our_domain(call):
        return _listing(call, "users", [])
    rows = await call.services.store.read(store.list_users, call.first("name"))
    return _listing(call, "users", [view.user(row) for row in rows if _enabled_as_asked(call, row)])


async def show_user(call: Call) -> Reply:
    """Show one user: any for an administrator, oneself for the others."""
    policy.enforce("identity:get_user", call.who, {"user_id": call.params["id"]})
    row = await call.services.store.read(store.user, call.params["id"])
    return Reply(body={"user": view.user(row)})


async def create_user(call: Call) -> Reply:
    """Add a user; one without a password gets one that nobody knows."""
    wanted = call.body["user"]
    hashed = await call.services.passwords.hash(wanted.get("password") or ids.new_secret())
    row = await call.services.store.write(
        store.create_user, wanted["name"], hashed, enabled=wanted.get("enabled", True)
    )
    return Reply(201, {"user": view.user(row)})


async def update_user(call: Call) -> Reply:
    """Change a user's name, password or `enabled`."""
    wanted = call.body["user"]
    values = {key: wanted[key] for key in ("name", "enabled") if key in wanted}
    if wanted.get("password"):
        values["password"] = await call.services.passwords.hash(wanted["password"])
    row = await call.services.store.write(store.update_user, call.params["id"], values)
    return Reply(body={"user": view.user(row)})


async def delete_user(call: Call) -> Reply:
    """Remove a user; tokens that are out end with their life."""
    if call.params["id"] == call.who.user_id:
        raise Forbidden("You cannot delete the user that you are logged in as; let another administrator do it.")
    await call.services.store.write(store.delete_user, call.params["id"])
    return Reply(204)


async def list_user_projects(call: Call) -> Reply:
    """List the projects in which a user holds a role."""
    policy.enforce("identity:list_user_projects", call.who, {"user_id": call.params["id"]})

    def find(tx: Connection) -> Any:
        store.user(tx, call.params["id"])
        return store.projects_of(tx, call.params["id"])

    rows = await call.services.store.read(find)
    return _listing(call, "projects", [view.project(row) for row in rows])


# --- roles, the domain and the catalog's parts ----------------------------------------------------


async def list_roles(call: Call) -> Reply:
    """List the five roles."""
    name = call.first("name")
    return _listing(call, "roles", [view.role(role) for role in policy.ROLES if name in (None, role)])


async def show_role(call: Call) -> Reply:
    """Show one role."""
    return Reply(body={"role": view.role(_role(call.params["id"]))})


async def list_assignments(call: Call) -> Reply:
    """List who holds which role where."""
    role_id = call.first("role.id")
    rows = await call.services.store.read(
        store.list_assignments,
        user_id=call.first("user.id"),
        project_id=call.first("scope.project.id"),
        role=_role(role_id) if role_id else None,
    )
    names = (call.first("include_names") or "false").lower() not in ("false", "0")
    return _listing(call, "role_assignments", view.assignments(rows, names=names))


async def list_grants(call: Call) -> Reply:
    """List the roles that a user was given in a project."""
    held = await call.services.store.read(store.roles_of, call.params["user_id"], call.params["id"])
    return _listing(call, "roles", [view.role(name) for name in policy.ROLES if name in held])


async def check_grant(call: Call) -> Reply:
    """Say by 204 or 404 whether a user was given a role in a project."""
    name = _role(call.params["role_id"])
    held = await call.services.store.read(store.roles_of, call.params["user_id"], call.params["id"])
    if name not in held:
        raise NotFound(f"User {call.params['user_id']} does not hold the role {name} there.")
    return Reply(204)


async def grant(call: Call) -> Reply:
    """Give a user a role in a project."""
    name = _role(call.params["role_id"])
    await call.services.store.write(store.grant, call.params["user_id"], call.params["id"], name)
    return Reply(204)


async def revoke(call: Call) -> Reply:
    """Take a role in a project from a user; tokens that are out end with their life."""
    name = _role(call.params["role_id"])
    await call.services.store.write(store.revoke, call.params["user_id"], call.params["id"], name)
    return Reply(204)


async def list_domains(call: Call) -> Reply:
    """List the one domain."""
    shown = call.first("name") in (None, view.DOMAIN["name"])
    return _listing(call, "domains", [view.domain()] if shown else [])


async def show_domain(call: Call) -> Reply:
    """Show the one domain."""
    if call.params["id"] != view.DOMAIN["id"]:
        raise NotFound(f"Could not find domain: {call.params['id']}.")
    return Reply(body={"domain": view.domain()})


async def list_services(call: Call) -> Reply:
    """List the services, of one name or type if asked."""
    wanted = {key: call.first(key) for key in ("name", "type")}
    shown = [one for one in view.services() if all(value in (None, one[key]) for key, value in wanted.items())]
    return _listing(call, "services", shown)


async def show_service(call: Call) -> Reply:
    """Show one service."""
    for service in view.services():
        if service["id"] == call.params["id"]:
            return Reply(body={"service": service})
    raise NotFound(f"Could not find service: {call.params['id']}.")


async def list_endpoints(call: Call) -> Reply:
    """List the endpoints, of one service or interface if asked."""
    wanted = {key: call.first(key) for key in ("service_id", "interface", "region_id")}
    every = view.endpoints(call.services.settings.api)
    shown = [one for one in every if all(value in (None, one[key]) for key, value in wanted.items())]
    return _listing(call, "endpoints", shown)


def _role(role_id: str) -> str:
    name = view.role_name(role_id)
    if name is None:
        raise NotFound(f"Could not find role: {role_id}.")
    return name


def _listing(call: Call, noun: str, items: list[dict[str, Any]]) -> Reply:
    return Reply(body=view.listing(noun, parameters.asked_page(call, items), call.services.public_url))


def _asks_for_our_domain(call: Call) -> bool:
    return call.first("domain_id") in (None, view.DOMAIN["id"])


def _enabled_as_asked(call: Call, row: Row[Any]) -> bool:
    wanted = call.first("enabled")
    if wanted is None:
        return True
    if wanted.lower() not in ("true", "false", "0", "1"):
        raise Invalid(f"`enabled` is true or false, not {wanted}.")
    return bool(row.enabled) is (wanted.lower() in ("true", "1"))
