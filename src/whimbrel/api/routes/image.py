"""The rows of the image service."""

from __future__ import annotations

from whimbrel.api.call import Handler, Route
from whimbrel.api.handlers import images as do
from whimbrel.api.schemas import images as schema


def _row(method: str, path: str, handler: Handler, rule: str) -> Route:
    return Route("image", method, path, handler, f"image:{rule}")


IMAGE: tuple[Route, ...] = (
    Route("image", "GET", "", do.versions, public=True),
    Route("image", "GET", "/versions", do.versions, public=True),
    Route("image", "POST", "/v2/images", do.create_image, "image:add_image", schemas=schema.DOCUMENT),
    _row("GET", "/v2/images", do.list_images, "get_images"),
    _row("GET", "/v2/images/{id}", do.show_image, "get_image"),
    _row("PATCH", "/v2/images/{id}", do.update_image, "modify_image"),
    _row("DELETE", "/v2/images/{id}", do.delete_image, "delete_image"),
    _row("PUT", "/v2/images/{id}/tags/{tag}", do.add_tag, "modify_image"),
    _row("DELETE", "/v2/images/{id}/tags/{tag}", do.remove_tag, "modify_image"),
    Route("image", "PUT", "/v2/images/{id}/file", do.upload, "image:upload_image", raw=True),
    Route("image", "GET", "/v2/images/{id}/file", do.download, public=True),
    _row("GET", "/v2/schemas/image", do.show_schema, "get_images"),
)
