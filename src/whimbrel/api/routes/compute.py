"""The rows of the compute service."""

from __future__ import annotations

from typing import Any

from whimbrel.api.call import Handler, Route, Schema
from whimbrel.api.handlers import (
    deployment,
    discovery,
    finding,
    flavors,
    hypervisors,
    instance_actions,
    migrations,
    recovery,
    server_create,
    server_lists,
    server_moves,
    server_power,
    server_switches,
    servers,
    services,
)
from whimbrel.api.schemas import flavors as flavor_schema
from whimbrel.api.schemas import servers as server_schema
from whimbrel.api.schemas import services as service_schema

SERVER = "/servers/{id}"
FLAVOR = "/flavors/{id}"


def _row(method: str, path: str, handler: Handler, rule: str | None, **more: Any) -> Route:
    if path.startswith(SERVER):
        more["subject"] = finding.subject
    return Route("compute", method, f"/v2.1{path}", handler, f"os_compute_api:{rule}" if rule else None, **more)


def _action(name: str, handler: Handler, rule: str, schemas: tuple[Schema, ...] = ()) -> Route:
    schemas = schemas or server_schema.action(name, {})
    return _row("POST", f"{SERVER}/action", handler, rule, action=name, schemas=schemas)


_DISCOVERY = (
    Route("compute", "GET", "", discovery.compute_versions, public=True),
    Route("compute", "GET", "/v2", discovery.compute_version_2_0, public=True),
    Route("compute", "GET", "/v2.1", discovery.compute_version, public=True),
    Route("compute", "GET", "/{version}", discovery.compute_choices, public=True),
    Route("placement", "GET", "", discovery.placement_versions, public=True),
)

_SERVERS = (
    _row("GET", "/servers", server_lists.brief, "servers:index"),
    _row("POST", "/servers", server_create.create, "servers:create", schemas=server_schema.CREATE),
    _row("GET", "/servers/detail", server_lists.detail, "servers:detail"),
    _row("GET", SERVER, servers.show, "servers:show"),
    _row("PUT", SERVER, servers.update, "servers:update", schemas=server_schema.UPDATE),
    _row("DELETE", SERVER, servers.delete, "servers:delete"),
    _row("GET", f"{SERVER}/ips", servers.list_addresses, "ips:index"),
    _row("GET", f"{SERVER}/ips/{{network}}", servers.show_addresses, "ips:show"),
    _row("GET", f"{SERVER}/os-security-groups", servers.list_security_groups, "os-security-groups:list"),
)

_ACTIONS = (
    _action("migrate", server_moves.migrate, "os-migrate-server:migrate", server_schema.MIGRATE),
    _action("os-migrateLive", server_moves.migrate_live, "os-migrate-server:migrate_live", server_schema.MIGRATE_LIVE),
    _action("evacuate", recovery.evacuate, "os-evacuate", server_schema.EVACUATE),
    _action("resize", server_moves.resize, "servers:resize", server_schema.RESIZE),
    _action("confirmResize", server_moves.confirm, "servers:confirm_resize"),
    _action("revertResize", server_moves.revert, "servers:revert_resize"),
    _action("os-start", server_power.start, "servers:start"),
    _action("os-stop", server_power.stop, "servers:stop"),
    _action("reboot", server_power.reboot, "servers:reboot", server_schema.REBOOT),
    _action("os-getConsoleOutput", server_power.console, "os-console-output", server_schema.CONSOLE),
    _action("forceDelete", servers.force_delete, "servers:delete"),
    _action("restore", servers.restore, "servers:delete"),
    _action("lock", server_switches.lock, "os-lock-server:lock", server_schema.LOCK),
    _action("unlock", server_switches.unlock, "os-lock-server:unlock"),
    _action("os-resetState", server_switches.reset_state, "os-admin-actions:reset_state", server_schema.RESET_STATE),
)

_METADATA = (
    _row("GET", f"{SERVER}/metadata", server_switches.list_metadata, "server-metadata:index"),
    _row(
        "POST",
        f"{SERVER}/metadata",
        server_switches.add_metadata,
        "server-metadata:create",
        schemas=server_schema.SET_METADATA,
    ),
    _row(
        "PUT",
        f"{SERVER}/metadata",
        server_switches.replace_metadata,
        "server-metadata:update_all",
        schemas=server_schema.SET_METADATA,
    ),
    _row("GET", f"{SERVER}/metadata/{{key}}", server_switches.show_metadata, "server-metadata:show"),
    _row(
        "PUT",
        f"{SERVER}/metadata/{{key}}",
        server_switches.set_metadata_item,
        "server-metadata:update",
        schemas=server_schema.SET_METADATA_ITEM,
    ),
    _row("DELETE", f"{SERVER}/metadata/{{key}}", server_switches.delete_metadata_item, "server-metadata:delete"),
)

_TAGS = (
    _row("GET", f"{SERVER}/tags", server_switches.list_tags, "os-server-tags:index", since=(2, 26)),
    _row(
        "PUT",
        f"{SERVER}/tags",
        server_switches.replace_tags,
        "os-server-tags:update_all",
        schemas=server_schema.SET_TAGS,
        since=(2, 26),
    ),
    _row("DELETE", f"{SERVER}/tags", server_switches.delete_tags, "os-server-tags:delete_all", since=(2, 26)),
    _row("GET", f"{SERVER}/tags/{{tag}}", server_switches.check_tag, "os-server-tags:show", since=(2, 26)),
    _row("PUT", f"{SERVER}/tags/{{tag}}", server_switches.add_tag, "os-server-tags:update", since=(2, 26)),
    _row("DELETE", f"{SERVER}/tags/{{tag}}", server_switches.delete_tag, "os-server-tags:delete", since=(2, 26)),
)

_MIGRATIONS = (
    _row("GET", "/os-migrations", migrations.index, "os-migrations:index"),
    _row("GET", f"{SERVER}/migrations", migrations.of_server, "servers:migrations:index", since=(2, 23)),
    _row(
        "GET",
        f"{SERVER}/migrations/{{migration_id}}",
        migrations.show_of_server,
        "servers:migrations:show",
        since=(2, 23),
    ),
    _row(
        "DELETE",
        f"{SERVER}/migrations/{{migration_id}}",
        migrations.cancel,
        "servers:migrations:delete",
        since=(2, 24),
    ),
    _row(
        "POST",
        f"{SERVER}/migrations/{{migration_id}}/action",
        migrations.force_complete,
        "servers:migrations:force_complete",
        action="force_complete",
        schemas=server_schema.FORCE_COMPLETE,
        since=(2, 22),
    ),
    _row("GET", f"{SERVER}/os-instance-actions", instance_actions.index, "os-instance-actions:list"),
    _row("GET", f"{SERVER}/os-instance-actions/{{request_id}}", instance_actions.show, "os-instance-actions:show"),
)

_FLAVORS = (
    _row("GET", "/flavors", flavors.brief, None),
    _row("POST", "/flavors", flavors.create, "os-flavor-manage:create", schemas=flavor_schema.CREATE),
    _row("GET", "/flavors/detail", flavors.detail, None),
    _row("GET", FLAVOR, flavors.show, None),
    _row("PUT", FLAVOR, flavors.update, "os-flavor-manage:update", schemas=flavor_schema.UPDATE, since=(2, 55)),
    _row("DELETE", FLAVOR, flavors.delete, "os-flavor-manage:delete"),
    _row("GET", f"{FLAVOR}/os-extra_specs", flavors.list_specs, "os-flavor-extra-specs:index"),
    _row(
        "POST",
        f"{FLAVOR}/os-extra_specs",
        flavors.add_specs,
        "os-flavor-extra-specs:create",
        schemas=flavor_schema.EXTRA_SPECS,
    ),
    _row("GET", f"{FLAVOR}/os-extra_specs/{{key}}", flavors.show_spec, "os-flavor-extra-specs:show"),
    _row(
        "PUT",
        f"{FLAVOR}/os-extra_specs/{{key}}",
        flavors.set_spec,
        "os-flavor-extra-specs:update",
        schemas=flavor_schema.EXTRA_SPEC,
    ),
    _row("DELETE", f"{FLAVOR}/os-extra_specs/{{key}}", flavors.delete_spec, "os-flavor-extra-specs:delete"),
    _row("GET", f"{FLAVOR}/os-flavor-access", flavors.list_access, "os-flavor-access"),
    _row(
        "POST",
        f"{FLAVOR}/action",
        flavors.add_access,
        "os-flavor-access:add_tenant_access",
        action="addTenantAccess",
        schemas=flavor_schema.ADD_ACCESS,
    ),
    _row(
        "POST",
        f"{FLAVOR}/action",
        flavors.remove_access,
        "os-flavor-access:remove_tenant_access",
        action="removeTenantAccess",
        schemas=flavor_schema.REMOVE_ACCESS,
    ),
)

_HOSTS = (
    _row("GET", "/os-services", services.index, "os-services:list"),
    _row(
        "PUT",
        "/os-services/{id}",
        services.update_by_name,
        "os-services:update",
        schemas=service_schema.UPDATE,
        until=(2, 52),
    ),
    _row(
        "PUT", "/os-services/{id}", services.update, "os-services:update", schemas=service_schema.UPDATE, since=(2, 53)
    ),
    _row("DELETE", "/os-services/{id}", services.delete, "os-services:delete"),
    _row("GET", "/os-hypervisors", hypervisors.brief, "os-hypervisors:list"),
    _row("GET", "/os-hypervisors/detail", hypervisors.detail, "os-hypervisors:list-detail"),
    _row("GET", "/os-hypervisors/statistics", hypervisors.statistics, "os-hypervisors:statistics", until=(2, 87)),
    _row("GET", "/os-hypervisors/{id}", hypervisors.show, "os-hypervisors:show"),
    _row("GET", "/os-hypervisors/{id}/uptime", hypervisors.uptime, "os-hypervisors:uptime", until=(2, 87)),
    _row("GET", "/os-hypervisors/{id}/search", hypervisors.search, "os-hypervisors:search", until=(2, 52)),
    _row("GET", "/os-hypervisors/{id}/servers", hypervisors.servers, "os-hypervisors:servers", until=(2, 52)),
)

_DEPLOYMENT = (
    _row("GET", "/os-availability-zone", deployment.zones, "os-availability-zone:list"),
    _row("GET", "/os-availability-zone/detail", deployment.zones_detail, "os-availability-zone:detail"),
    _row("GET", "/limits", deployment.limits, "limits"),
    _row("GET", "/os-quota-sets/{id}", deployment.quota, "os-quota-sets:show"),
    _row("GET", "/os-quota-sets/{id}/defaults", deployment.quota_defaults, "os-quota-sets:defaults"),
    _row("GET", "/os-quota-sets/{id}/detail", deployment.quota_detail, "os-quota-sets:detail"),
    _row("GET", "/os-aggregates", deployment.no_aggregates, "os-aggregates:index"),
    _row("GET", "/os-server-groups", deployment.no_server_groups, "os-server-groups:index"),
    _row("GET", "/os-keypairs", deployment.no_keypairs, "os-keypairs:index"),
    _row("GET", "/extensions", deployment.no_extensions, "extensions"),
    _row("GET", "/os-agents", deployment.gone, None),
)

COMPUTE: tuple[Route, ...] = (
    *_DISCOVERY, *_SERVERS, *_ACTIONS, *_METADATA, *_TAGS, *_MIGRATIONS, *_FLAVORS, *_HOSTS, *_DEPLOYMENT,
)  # fmt: skip
