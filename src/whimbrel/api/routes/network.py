"""The rows of the network service."""

from __future__ import annotations

from whimbrel.api.call import Handler, Route
from whimbrel.api.handlers import networks as do


def _row(path: str, handler: Handler, rule: str | None = "network:get_network") -> Route:
    return Route("network", "GET", f"/v2.0{path}", handler, rule)


NETWORK: tuple[Route, ...] = (
    Route("network", "GET", "", do.versions, public=True),
    Route("network", "GET", "/v2.0", do.resources, public=True),
    _row("/networks", do.list_networks),
    _row("/networks/{id}", do.show_network),
    _row("/subnets", do.list_subnets, "network:get_subnet"),
    _row("/subnets/{id}", do.show_subnet, "network:get_subnet"),
    _row("/ports", do.list_ports, "network:get_port"),
    _row("/ports/{id}", do.show_port, "network:get_port"),
    _row("/security-groups", do.list_security_groups),
    _row("/security-groups/{id}", do.show_security_group),
    _row("/floatingips", do.list_nothing, None),
    _row("/extensions", do.list_nothing, None),
    _row("/extensions/{alias}", do.show_extension, None),
    _row("/quotas/{project_id}", do.show_quota, None),
)
