"""The two dialects in which clients change an image, as one function from a document to the next.

v2.1   [{"op": "replace", "path": "/name", "value": "a"}]
v2.0   [{"replace": "/name", "value": "a"}]
"""

from __future__ import annotations

from typing import Any

from whimbrel.api.views.images import COLUMNS, READ_ONLY
from whimbrel.domain.errors import Conflict, Forbidden, Invalid

OPERATIONS = ("add", "replace", "remove")
OPERATIONS_MAX = 256


def patched(document: dict[str, Any], operations: Any) -> dict[str, Any]:
    """Return the document with every operation done; Invalid, Forbidden or Conflict names the one that cannot be."""
    if not isinstance(operations, list) or len(operations) > OPERATIONS_MAX:
        raise Invalid(f"The body must be a list of at most {OPERATIONS_MAX} operations.")
    changed = dict(document)
    for operation in operations:
        kind, name, value = _read(operation)
        if name in READ_ONLY or name == "id":
            raise Forbidden(f"Attribute '{name}' is read-only.")
        if kind == "remove":
            if name in COLUMNS:
                raise Forbidden(f"Property {name} may not be removed.")
            if changed.pop(name, None) is None:
                raise Conflict(f"Property {name} does not exist.")
        else:
            if kind == "replace" and name not in changed:
                raise Conflict(f"Property {name} does not exist.")
            changed[name] = value
    return changed


def _read(operation: Any) -> tuple[str, str, Any]:
    """Return what to do, with which field, and the value to give it."""
    if not isinstance(operation, dict):
        raise Invalid("Each operation must be an object.")
    kind = operation.get("op") or next((word for word in OPERATIONS if word in operation), None)
    path = operation.get("path") if "op" in operation else operation.get(kind or "")
    if kind not in OPERATIONS:
        raise Invalid("Each operation must be one of add, replace and remove.")
    if not isinstance(path, str) or not path.startswith("/") or len(path) == 1:
        raise Invalid(f"The path of an operation must be a name after a slash, not {path!r}.")
    if kind != "remove" and "value" not in operation:
        raise Invalid(f"The operation on {path} has no value.")
    if "/" in path[1:]:
        raise Invalid(f"The path {path} goes into a field; give the whole field a new value.")
    return kind, path[1:].replace("~1", "/").replace("~0", "~"), operation.get("value")
