"""The image service: describe an image, upload its data once, hand it to clients and to hosts that hold a ticket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode

import anyio
from anyio import to_thread
from sqlalchemy import Connection, Row

from whimbrel.api import faults, validation
from whimbrel.api.call import Call, Reply
from whimbrel.api.handlers import image_search
from whimbrel.api.handlers.image_patch import patched
from whimbrel.api.schemas.images import DOCUMENT
from whimbrel.api.views import images as view
from whimbrel.domain.errors import Conflict, Forbidden, Invalid, NotFound, TooLarge, Unauthorized, Unavailable
from whimbrel.identity import policy
from whimbrel.store import image_files
from whimbrel.store import images as store

CHUNK_BYTES = 1024 * 1024
STALL_SECONDS = 60.0
TAGS_MAX = 128


async def versions(call: Call) -> Reply:
    """List the image API's versions."""
    return Reply(300, {"versions": [view.version(call.services.public_url)]})


async def show_schema(call: Call) -> Reply:
    """Describe an image."""
    return Reply(body=view.schema())


async def list_images(call: Call) -> Reply:
    """List a page of the images that the caller may see, and where the next page is."""
    limit = image_search.limit_of(call)
    wanted = image_search.search_of(call)
    rows = await call.services.store.read(store.search, wanted, call.first("marker"), limit)
    body = {"images": [view.image(row) for row in rows], "first": "/v2/images", "schema": "/v2/schemas/images"}
    if len(rows) == limit:
        query = {**{name: list(values) for name, values in call.query.items()}, "marker": [rows[-1].id]}
        body["next"] = f"/v2/images?{urlencode(query, doseq=True)}"
    return Reply(body=body)


async def show_image(call: Call) -> Reply:
    """Show one image by its id."""
    row = await call.services.store.read(
        store.find_image, call.params["id"], call.who.project_id, every=call.who.is_admin
    )
    return Reply(body=view.image(row))


async def create_image(call: Call) -> Reply:
    """Describe a new image; its data is uploaded next."""
    document = call.body
    for name in view.READ_ONLY:
        if name in document:
            raise Forbidden(f"Attribute '{name}' is read-only.")
    owner = document.get("owner", call.who.project_id)
    if owner is None or (owner != call.who.project_id and not call.who.is_admin):
        raise Forbidden("Only an administrator may make an image for another project.")
    _may_publish(call, "shared", document.get("visibility", "shared"))
    row = await call.services.store.write(
        store.create, {"visibility": "shared", **view.values({**document, "owner": owner})}
    )
    return Reply(201, view.image(row), {"Location": f"{call.services.public_url}/image/v2/images/{row.id}"})


async def update_image(call: Call) -> Reply:
    """Change fields and properties of an image, all of them or none."""

    def run(tx: Connection) -> Row[Any]:
        row = _own(tx, call)
        before = view.document(row)
        after = patched(before, call.body)
        validation.check(DOCUMENT, call.version, after)
        if before["owner"] != after["owner"] and not call.who.is_admin:
            raise Forbidden("Only an administrator may give an image to another project.")
        _may_publish(call, before["visibility"], after["visibility"])
        fixed = [name for name in ("disk_format", "container_format") if before[name] != after[name]]
        if fixed and row.status != "queued":
            raise Forbidden(f"Attribute {fixed[0]} can be changed only before the data is uploaded.")
        return store.change(tx, row.id, view.values(after))

    return Reply(body=view.image(await call.services.store.write(run)))


async def delete_image(call: Call) -> Reply:
    """Remove an image, and its data when no other image has the same. Servers that were made from it do not care."""
    folder = _folder(call)

    def run(tx: Connection) -> str | None:
        row = _own(tx, call)
        store.remove(tx, row.id)
        return str(row.sha256) if row.sha256 else None

    sha256 = await call.services.store.write(run)
    if sha256 is not None:
        await call.services.store.write(store.collect, folder, sha256)
    return Reply(204)


async def add_tag(call: Call) -> Reply:
    """Put a tag on an image; one that is there already stays."""
    return await _retag(call, add=True)


async def remove_tag(call: Call) -> Reply:
    """Take a tag off an image; one that is not there is not found."""
    return await _retag(call, add=False)


async def _retag(call: Call, *, add: bool) -> Reply:
    tag = call.params["tag"]

    def run(tx: Connection) -> None:
        row = _own(tx, call)
        others = [one for one in row.tags if one != tag]
        if not add and len(others) == len(row.tags):
            raise NotFound(f"Image {row.id} has no tag {tag}.")
        if add and (len(others) >= TAGS_MAX or len(tag) > 255):
            raise TooLarge(f"An image has at most {TAGS_MAX} tags of 255 characters.")
        store.change(tx, row.id, {"tags": [*others, tag] if add else others})

    await call.services.store.write(run)
    return Reply(204)


# --- data -----------------------------------------------------------------------------------------


async def upload(call: Call) -> Reply:
    """Take an image's data; unless all of it arrives and is what was declared, the image stays as it was."""
    row = await call.services.store.read(_own, call)
    if row.status != "queued":
        raise Conflict(f"Image {row.id} has its data already; make a new image.")
    if row.disk_format is None or row.container_format is None:
        raise Invalid(f"Image {row.id} needs a disk_format and a container_format before its data is uploaded.")
    if call.headers.get("content-type", "").split(";")[0].strip() != "application/octet-stream":
        raise faults.UnsupportedMediaType("An image's data is uploaded as application/octet-stream.")
    draft = await to_thread.run_sync(image_files.Draft, _folder(call))
    try:
        async for data in _chunks(call.stream):
            await to_thread.run_sync(draft.feed, data)
        if draft.size_bytes == 0:
            raise Invalid("The upload was empty; send the image's data.")
        virtual_bytes = await to_thread.run_sync(
            image_files.virtual_size, row.disk_format, draft.read, draft.size_bytes
        )
        await to_thread.run_sync(draft.sync)
        content = {"sha256": draft.sha256, "size_bytes": draft.size_bytes, "virtual_size_bytes": virtual_bytes}
        await call.services.store.write(store.activate, row.id, content, draft.publish)
    finally:
        draft.discard()
    return Reply(204)


async def download(call: Call) -> Reply:
    """Send an image's data to a caller who may see it, or to a host that holds a ticket for it."""
    project_id, every = _reader(call)
    row = await call.services.store.read(store.find_image, call.params["id"], project_id, every=every)
    if row.status != "active":
        return Reply(204)
    try:
        path = image_files.content_path(_folder(call), row.sha256)
        file = await to_thread.run_sync(path.open, "rb")
    except FileNotFoundError as error:
        raise Unavailable(f"The data of image {row.id} is missing from the image store; upload it again.") from error
    headers = {"Content-Length": str(row.size_bytes)}
    return Reply(headers=headers, stream=_send(file), media_type="application/octet-stream")


def _reader(call: Call) -> tuple[str | None, bool]:
    """Return the project whose images may be read, and whether all may: a ticket is for just this image."""
    ticket = call.first("ticket")
    if ticket is not None:
        if call.services.tokens.verify_ticket(ticket) != call.params["id"]:
            raise Unauthorized("The ticket is for another image.")
        return None, True
    token = call.headers.get("x-auth-token")
    if not token:
        raise Unauthorized("The request you have made requires authentication.")
    caller = call.services.tokens.verify(token)
    policy.enforce("image:download_image", caller, {"project_id": caller.project_id})
    return caller.project_id, caller.is_admin


async def _chunks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytearray]:
    """Gather what arrives into pieces of about 1 MiB; Invalid when nothing arrives for a minute."""
    gathered = bytearray()
    while True:
        try:
            with anyio.fail_after(STALL_SECONDS):
                data = await anext(stream, None)
        except TimeoutError as error:
            raise Invalid(f"The upload stood still for {STALL_SECONDS:.0f} s; send it again.") from error
        gathered += data or b""
        if gathered and (data is None or len(gathered) >= CHUNK_BYTES):
            yield gathered
            gathered = bytearray()
        if data is None:
            return


async def _send(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while data := await to_thread.run_sync(file.read, CHUNK_BYTES):
            yield data


def _own(tx: Connection, call: Call) -> Row[Any]:
    return store.own_image(tx, call.params["id"], call.who.project_id, every=call.who.is_admin)


def _may_publish(call: Call, before: str, after: str) -> None:
    if after == "public" and before != "public":
        policy.enforce("image:publicize_image", call.who, {"project_id": call.who.project_id})


def _folder(call: Call) -> Path:
    return Path(call.services.settings.api.image_dir)
