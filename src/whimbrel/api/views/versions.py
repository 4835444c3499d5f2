"""The documents that clients discover the API's versions with, before they have a token."""

from __future__ import annotations

from typing import Any

from whimbrel.api import microversion

_UPDATED = "2013-07-23T11:33:21Z"


def compute_version(public_url: str) -> dict[str, Any]:
    """Return v2.1 as the SDK negotiates with it."""
    return {
        "id": "v2.1",
        "status": "CURRENT",
        "version": microversion.text(microversion.MAX),
        "min_version": microversion.text(microversion.MIN),
        "updated": _UPDATED,
        "links": [
            {"rel": "self", "href": f"{public_url}/compute/v2.1/"},
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
        ],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}],
    }


def compute_version_2_0(public_url: str) -> dict[str, Any]:
    """Return v2.0, which clients look for by name and never use."""
    return {
        "id": "v2.0",
        "status": "DEPRECATED",
        "version": "",
        "min_version": "",
        "updated": "2011-01-21T11:33:21Z",
        "links": [{"rel": "self", "href": f"{public_url}/compute/v2/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2"}],
    }


def compute_versions(public_url: str) -> dict[str, Any]:
    """Return every version of the compute API, in the short form of the list."""
    rows = (compute_version_2_0(public_url), compute_version(public_url))
    return {"versions": [{**_without_media(row), "links": row["links"][:1]} for row in rows]}


def _without_media(version: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in version.items() if key != "media-types"}


def compute_choices(public_url: str) -> dict[str, Any]:
    """Return where a request to an unknown version could go instead."""
    whole = compute_version(public_url)
    return {"choices": [{name: whole[name] for name in ("id", "status", "links", "media-types")}]}


def placement_versions() -> dict[str, Any]:
    """Return the placement API's one version; only this document of it is served."""
    return {
        "versions": [
            {
                "id": "v1.0",
                "max_version": "1.0",
                "min_version": "1.0",
                "status": "CURRENT",
                "links": [{"rel": "self", "href": ""}],
            }
        ]
    }
