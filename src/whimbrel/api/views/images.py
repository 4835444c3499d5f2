"""Images as Glance v2 shows them: one flat object, in which an image's own properties stand beside the known fields."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from whimbrel.ops import clock

COLUMNS = {
    "id": "id",
    "owner": "project_id",
    "name": "name",
    "visibility": "visibility",
    "protected": "protected",
    "os_hidden": "hidden",
    "tags": "tags",
    "disk_format": "disk_format",
    "container_format": "container_format",
    "min_disk": "min_disk_gb",
    "min_ram": "min_ram_mb",
}
"""Each field that a client may write, and the column that keeps it."""

READ_ONLY = (
    *("status", "checksum", "os_hash_algo", "os_hash_value", "size", "virtual_size", "created_at", "updated_at"),
    *("self", "file", "schema", "direct_url", "locations", "stores"),
)


def version(public_url: str) -> dict[str, Any]:
    """Describe v2, the one version."""
    return {"id": "v2.9", "status": "CURRENT", "links": [{"rel": "self", "href": f"{public_url}/image/v2/"}]}


def image(row: Row[Any]) -> dict[str, Any]:
    """Show an image. There is no MD5 `checksum`: clients verify by `os_hash_value`."""
    return {
        **row.properties,
        **{name: getattr(row, column) for name, column in COLUMNS.items()},
        "status": row.status,
        "checksum": None,
        "os_hash_algo": "sha256" if row.sha256 else None,
        "os_hash_value": row.sha256,
        "size": row.size_bytes,
        "virtual_size": row.virtual_size_bytes,
        "created_at": clock.iso(row.created_at),
        "updated_at": clock.iso(row.updated_at),
        "self": f"/v2/images/{row.id}",
        "file": f"/v2/images/{row.id}/file",
        "schema": "/v2/schemas/image",
    }


def document(row: Row[Any]) -> dict[str, Any]:
    """Return the part of an image that a client may change."""
    return {**row.properties, **{name: getattr(row, column) for name, column in COLUMNS.items()}}


def values(document: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that such a document is kept in; what is no known field is a property."""
    columns = {column: document[name] for name, column in COLUMNS.items() if name in document}
    return {**columns, "properties": {name: value for name, value in document.items() if name not in COLUMNS}}


def schema() -> dict[str, Any]:
    """Describe an image to clients that ask for its schema before they show it."""
    known: dict[str, Any] = {name: {"type": ["null", "string"], "readOnly": True} for name in READ_ONLY}
    known |= {name: {"type": ["null", "string"]} for name in COLUMNS}
    known |= {name: {"type": "boolean"} for name in ("protected", "os_hidden")}
    known |= {name: {"type": "integer"} for name in ("min_disk", "min_ram")}
    known |= {name: {"type": ["null", "integer"], "readOnly": True} for name in ("size", "virtual_size")}
    known["tags"] = {"type": "array", "items": {"type": "string"}}
    return {"name": "image", "properties": known, "additionalProperties": {"type": "string"}}
