"""Flavors as each microversion shows them."""

from __future__ import annotations

from typing import Any

from whimbrel.api.call import Version
from whimbrel.api.views import links


def brief(flavor: dict[str, Any], version: Version, public_url: str) -> dict[str, Any]:
    """Return a flavor as the short list shows it."""
    shown = {"id": flavor["id"], "name": flavor["name"], "links": links.of(public_url, "flavors", flavor["id"])}
    if version >= (2, 55):
        shown["description"] = flavor["description"]
    return shown


def whole(flavor: dict[str, Any], version: Version, public_url: str) -> dict[str, Any]:
    """Return a flavor with its sizes."""
    shown = brief(flavor, version, public_url) | {
        "ram": flavor["ram_mb"],
        "vcpus": flavor["vcpus"],
        "disk": flavor["disk_gb"],
        "swap": _swap(flavor, version),
        "OS-FLV-EXT-DATA:ephemeral": flavor["ephemeral_gb"],
        "OS-FLV-DISABLED:disabled": flavor["disabled"],
        "os-flavor-access:is_public": flavor["public"],
        "rxtx_factor": 1.0,
    }
    if version >= (2, 61):
        shown["extra_specs"] = flavor["extra_specs"]
    return shown


def inlined(flavor: dict[str, Any]) -> dict[str, Any]:
    """Return a flavor as a server carries it from 2.47 on."""
    return {
        "vcpus": flavor["vcpus"],
        "ram": flavor["ram_mb"],
        "disk": flavor["disk_gb"],
        "ephemeral": flavor["ephemeral_gb"],
        "swap": flavor["swap_mb"],
        "original_name": flavor["name"],
        "extra_specs": flavor["extra_specs"],
    }


def _swap(flavor: dict[str, Any], version: Version) -> int | str:
    return "" if version < (2, 75) and not flavor["swap_mb"] else int(flavor["swap_mb"])
