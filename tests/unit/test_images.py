"""The image service: an image's data is taken whole or not at all, checked once, and given only to who may have it."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from starlette.requests import ClientDisconnect

from tests.unit.cloud import Cloud
from whimbrel.api.handlers import images as handlers
from whimbrel.domain.errors import Invalid
from whimbrel.ops import clock
from whimbrel.store import image_files

BYTES = {"Content-Type": "application/octet-stream"}
V21 = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
V20 = {"Content-Type": "application/openstack-images-v2.0-json-patch"}
MIB = 1024 * 1024


def qcow2(version: int = 3, size: int = 64 * MIB, **changes: int) -> bytes:
    """Return a qcow2 header as the format's description lays it out, with single fields changed."""
    fields = {"backing_at": 0, "backing_length": 0, "cluster_bits": 16, "encryption": 0, "features": 0, **changes}
    first = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        fields["backing_at"],
        fields["backing_length"],
        fields["cluster_bits"],
        size,
        fields["encryption"],
        1,
        3 << 16,
        1 << 16,
        1,
        0,
        0,
    )
    head = first + struct.pack(">QQQII", fields["features"], 0, 0, 4, 104)
    tables = struct.pack(">Q", 2 << 16).ljust(2 << 16, b"\0") + bytes(8)  # refcounts, their block, first level
    return head.ljust(1 << 16, b"\0") + tables


def reading(content: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: content[offset : offset + length]


async def make(cloud: Cloud, who: str = "alice", **fields: Any) -> dict[str, Any]:
    body = {"name": "tiny", "disk_format": "raw", "container_format": "bare", **fields}
    answer = await cloud.http.post("/image/v2/images", json=body, headers=cloud.token(who))
    assert answer.status_code == 201, answer.text
    image: dict[str, Any] = answer.json()
    return image


async def upload(cloud: Cloud, image: dict[str, Any], data: Any, who: str = "alice") -> httpx2.Response:
    url = f"/image/v2/images/{image['id']}/file"
    return await cloud.http.put(url, content=data, headers={**cloud.token(who), **BYTES})


async def show(cloud: Cloud, image: dict[str, Any], who: str = "alice") -> dict[str, Any]:
    answer = await cloud.http.get(f"/image/v2/images/{image['id']}", headers=cloud.token(who))
    shown: dict[str, Any] = answer.json()
    return shown


def stored(cloud: Cloud) -> list[str]:
    folder = Path(cloud.services.settings.api.image_dir)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_data_goes_in_and_comes_out(cloud: Cloud) -> None:
    data = bytes(range(256)) * 10_000
    image = await make(cloud, hw_disk_bus="virtio", **{"owner_specified.openstack.md5": ""})
    assert (image["status"], image["size"], image["visibility"]) == ("queued", None, "shared")
    assert image["hw_disk_bus"] == "virtio"

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    assert (await upload(cloud, image, pieces())).status_code == 204
    digest = hashlib.sha256(data).hexdigest()
    shown = await show(cloud, image)
    assert (shown["status"], shown["size"], shown["virtual_size"]) == ("active", len(data), len(data))
    assert (shown["os_hash_algo"], shown["os_hash_value"]) == ("sha256", digest)
    assert stored(cloud) == [digest]
    answer = await cloud.http.get(shown["file"].replace("/v2", "/image/v2"), headers=cloud.token("alice"))
    assert answer.content == data and answer.headers["Content-Length"] == str(len(data))
    assert (await upload(cloud, image, b"other")).status_code == 409, "data is given once"


@pytest.mark.anyio
async def test_an_upload_that_is_cut_leaves_nothing(cloud: Cloud) -> None:
    image = await make(cloud)

    async def cut() -> AsyncIterator[bytes]:
        yield b"x" * (2 * MIB)
        raise ClientDisconnect

    assert (await upload(cloud, image, cut())).status_code == 400
    assert stored(cloud) == []
    assert (await show(cloud, image))["status"] == "queued"
    assert (await upload(cloud, image, b"whole")).status_code == 204


@pytest.mark.anyio
async def test_an_upload_beyond_the_bounds_leaves_nothing(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    image = await make(cloud)
    monkeypatch.setattr(image_files, "MAX_IMAGE_BYTES", 1000)
    assert (await upload(cloud, image, b"x" * 1001)).status_code == 413
    assert (await upload(cloud, image, b"")).status_code == 400
    monkeypatch.setattr(handlers, "STALL_SECONDS", 0.05)

    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        await anyio.sleep(5)
        yield b"y"

    answer = await upload(cloud, image, silent())
    assert answer.status_code == 400 and "stood still" in answer.text
    assert stored(cloud) == []
    assert (await upload(cloud, image, b"x" * 1000)).status_code == 204


@pytest.mark.anyio
async def test_a_qcow2_is_what_it_says(cloud: Cloud) -> None:
    for header, reason in (
        (qcow2(backing_at=200, backing_length=11), "backing file"),
        (qcow2(version=2, backing_at=200), "backing file"),
        (qcow2(features=4), "external data file"),
        (qcow2(features=1 << 17), "not known"),
        (qcow2(encryption=2), "encrypted"),
        (qcow2(version=4), "version 4"),
        (qcow2(size=0), "virtual size"),
        (qcow2(cluster_bits=40), "damaged"),
        (b"KDMV" + bytes(508), "not one"),
        (b"QFI\xfb", "too short"),
    ):
        image = await make(cloud, disk_format="qcow2")
        answer = await upload(cloud, image, header)
        assert (answer.status_code, reason in answer.text) == (400, True), (reason, answer.text)
        assert (await show(cloud, image))["status"] == "queued"
    assert stored(cloud) == []
    image = await make(cloud, disk_format="qcow2")
    assert (await upload(cloud, image, qcow2())).status_code == 204
    assert (await show(cloud, image))["virtual_size"] == 64 * MIB


@pytest.mark.parametrize("options", [["-o", "compat=0.10"], [], ["-o", "extended_l2=on,lazy_refcounts=on"]])
def test_real_images_are_read_as_qemu_reads_them(tmp_path: Path, options: list[str]) -> None:
    disk = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, disk, "48M"], check=True, timeout=30)
    assert image_files.virtual_size("qcow2", reading(disk.read_bytes()), disk.stat().st_size) == 48 * MIB
    top = tmp_path / "top"
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(disk), "-F", "qcow2", str(top)]
    subprocess.run(overlay, check=True, timeout=30)
    with pytest.raises(Invalid, match="backing file"):
        image_files.virtual_size("qcow2", reading(top.read_bytes()), top.stat().st_size)


@pytest.mark.anyio
async def test_a_raw_image_is_never_interpreted(cloud: Cloud) -> None:
    image = await make(cloud, disk_format="raw")
    data = qcow2(backing_at=200, backing_length=11)
    assert (await upload(cloud, image, data)).status_code == 204
    assert (await show(cloud, image))["virtual_size"] == len(data)


@pytest.mark.anyio
async def test_equal_data_is_kept_once_and_until_its_last_image_goes(cloud: Cloud) -> None:
    first, second = await make(cloud), await make(cloud)
    for image in (first, second):
        assert (await upload(cloud, image, b"same")).status_code == 204
    assert len(stored(cloud)) == 1
    for image, left in ((first, 1), (second, 0)):
        answer = await cloud.http.delete(f"/image/v2/images/{image['id']}", headers=cloud.token("alice"))
        assert (answer.status_code, len(stored(cloud))) == (204, left)


@pytest.mark.anyio
async def test_a_stale_draft_goes_and_nothing_else(cloud: Cloud) -> None:
    await upload(cloud, await make(cloud), b"kept")
    folder = Path(cloud.services.settings.api.image_dir)
    for name in ("draft-new", "somebody-elses"):
        (folder / name).write_bytes(b"")
    assert image_files.forget_leftovers(folder, clock.now()) == 0
    assert image_files.forget_leftovers(folder, clock.now() + image_files.STALE_DRAFT_SECONDS + 1) == 1
    assert stored(cloud) == sorted([hashlib.sha256(b"kept").hexdigest(), "somebody-elses"])


@pytest.mark.anyio
async def test_a_ticket_fetches_its_image_and_no_other(cloud: Cloud) -> None:
    image, other = await make(cloud), await make(cloud)
    for one in (image, other):
        await upload(cloud, one, b"data")
    ticket = cloud.services.tokens.ticket(image["id"])
    token = cloud.token("alice")["X-Auth-Token"]
    for name, query, status in (
        (image, f"?ticket={ticket}", 200),
        (other, f"?ticket={ticket}", 401),
        (image, "?ticket=junk", 401),
        (image, f"?ticket={token}", 401),
        (image, "", 401),
    ):
        answer = await cloud.http.get(f"/image/v2/images/{name['id']}/file{query}")
        assert answer.status_code == status, query
        assert (answer.content == b"data") is (status == 200)


# --- descriptions ---------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"disk_format": "vmdk"}, 400),
        ({"container_format": "docker"}, 400),
        ({"min_disk": -1}, 400),
        ({"hw_scsi": 7}, 400),
        ({"id": "not-an-id"}, 400),
        ({"status": "active"}, 403),
        ({"owner": "somebody-else"}, 403),
        ({"visibility": "public"}, 403),
        ({"visibility": "private", "tags": ["a"], "id": "6a1ae0b5-6b1b-4a3f-9a0b-0a4f0e3c6b11"}, 201),
    ],
)
async def test_what_an_image_may_be(cloud: Cloud, fields: dict[str, Any], status: int) -> None:
    body = {"name": "x", "disk_format": "qcow2", "container_format": "bare", **fields}
    answer = await cloud.http.post("/image/v2/images", json=body, headers=cloud.token("alice"))
    assert answer.status_code == status, answer.text


@pytest.mark.anyio
async def test_who_sees_and_changes_an_image(cloud: Cloud) -> None:
    mine = await make(cloud)
    public = await make(cloud, "admin", visibility="public")
    community = await make(cloud, visibility="community")
    for who, image, read, write in (
        ("alice", mine, 200, 200),
        ("admin", mine, 200, 200),
        ("rita", mine, 200, 403),
        ("bob", mine, 404, 404),
        ("bob", public, 200, 403),
        ("bob", community, 200, 403),
    ):
        url, token = f"/image/v2/images/{image['id']}", cloud.token(who)
        assert (await cloud.http.get(url, headers=token)).status_code == read, who
        change = [{"op": "replace", "path": "/name", "value": "new"}]
        assert (await cloud.http.patch(url, json=change, headers={**token, **V21})).status_code == write, who
        assert (await upload(cloud, image, b"", who)).status_code == (400 if write == 200 else write), who
    listed = await cloud.http.get("/image/v2/images", headers=cloud.token("bob"))
    assert [image["id"] for image in listed.json()["images"]] == [public["id"]]
    listed = await cloud.http.get("/image/v2/images?visibility=all", headers=cloud.token("bob"))
    assert {image["id"] for image in listed.json()["images"]} == {public["id"], community["id"]}


@pytest.mark.anyio
async def test_an_image_is_changed_in_both_dialects(cloud: Cloud) -> None:
    image = await make(cloud)
    url = f"/image/v2/images/{image['id']}"

    async def patch(operations: Any, dialect: dict[str, str]) -> httpx2.Response:
        return await cloud.http.patch(url, json=operations, headers={**cloud.token("alice"), **dialect})

    add = [{"op": "add", "path": "/hw_disk_bus", "value": "ide"}, {"op": "replace", "path": "/min_disk", "value": 2}]
    changed = (await patch(add, V21)).json()
    assert (changed["hw_disk_bus"], changed["min_disk"]) == ("ide", 2)
    changed = (await patch([{"replace": "/name", "value": "b"}, {"remove": "/hw_disk_bus"}], V20)).json()
    assert changed["name"] == "b" and "hw_disk_bus" not in changed
    for operations, status in (
        ([{"op": "replace", "path": "/nowhere", "value": "x"}], 409),
        ([{"op": "remove", "path": "/nowhere"}], 409),
        ([{"op": "remove", "path": "/name"}], 403),
        ([{"op": "replace", "path": "/status", "value": "active"}], 403),
        ([{"op": "replace", "path": "/visibility", "value": "public"}], 403),
        ([{"op": "replace", "path": "/owner", "value": "other"}], 403),
        ([{"op": "add", "path": "/disk_format", "value": "vmdk"}], 400),
        ([{"op": "add", "path": "/x/y", "value": "1"}], 400),
        ([{"op": "add", "path": "/x"}], 400),
        ([{"op": "replace", "path": "/name", "value": "c"}, {"op": "remove", "path": "/nowhere"}], 409),
        ({"op": "add"}, 400),
    ):
        assert (await patch(operations, V21)).status_code == status, operations
    assert (await show(cloud, image))["name"] == "b", "all operations are done, or none"
    await upload(cloud, image, b"data")
    late = [{"op": "replace", "path": "/disk_format", "value": "qcow2"}]
    assert (await patch(late, V21)).status_code == 403, "a format that data was checked against stays"


@pytest.mark.anyio
async def test_a_protected_image_is_not_deleted(cloud: Cloud) -> None:
    image = await make(cloud, protected=True)
    url, alice = f"/image/v2/images/{image['id']}", cloud.token("alice")
    assert (await cloud.http.delete(url, headers=alice)).status_code == 403
    await cloud.http.patch(url, json=[{"replace": "/protected", "value": False}], headers={**alice, **V20})
    assert (await cloud.http.delete(url, headers=alice)).status_code == 204
    assert (await cloud.http.delete(url, headers=alice)).status_code == 404


@pytest.mark.anyio
async def test_tags(cloud: Cloud) -> None:
    image, alice = await make(cloud, tags=["old"]), cloud.token("alice")
    url = f"/image/v2/images/{image['id']}/tags"
    assert [(await cloud.http.put(f"{url}/new", headers=alice)).status_code for _ in range(2)] == [204, 204]
    assert (await cloud.http.delete(f"{url}/old", headers=alice)).status_code == 204
    assert (await cloud.http.delete(f"{url}/old", headers=alice)).status_code == 404
    assert (await show(cloud, image))["tags"] == ["new"]


@pytest.mark.anyio
async def test_lists_are_narrowed_sorted_and_paged(cloud: Cloud) -> None:
    made = {}
    for number, name in enumerate(("b", "a", "c", "a%")):
        fields: dict[str, Any] = {"tags": [f"t{number}", "all"], "flavour": name, "min_ram": number}
        made[name] = (await make(cloud, name=name, os_hidden=name == "a%", **fields))["id"]
    alice = cloud.token("alice")

    async def names(query: str, status: int = 200) -> list[str]:
        answer = await cloud.http.get(f"/image/v2/images?{query}", headers=alice)
        assert answer.status_code == status, answer.text
        return [image["name"] for image in answer.json()["images"]] if status == 200 else []

    assert await names("") == ["c", "a", "b"]
    assert await names("sort=name:asc") == ["a", "b", "c"]
    assert await names("sort_key=status&sort_dir=asc&sort_key=name&sort_dir=desc") == ["c", "b", "a"]
    assert await names(f"id=in:{made['a']},{made['c']}&sort=name:asc") == ["a", "c"]
    assert await names("name=b") == ["b"]
    assert await names("tag=t0") == ["b"] and await names("tag=%25") == []
    assert await names("flavour=c") == ["c"] and await names("min_ram=1") == ["a"]
    assert await names("os_hidden=True") == ["a%"]
    assert await names("status=active") == [] and await names("member_status=all&name=b") == ["b"]
    for wrong in ("limit=-1", "limit=x", "sort=nothing", "visibility=some", "marker=none", "protected=maybe"):
        await names(wrong, 400)
    seen, url = [], "/image/v2/images?limit=2&sort=name:asc"
    while url:
        page = (await cloud.http.get(url if url.startswith("/image") else f"/image{url}", headers=alice)).json()
        seen += [image["name"] for image in page["images"]]
        url = page.get("next", "")
    assert seen == ["a", "b", "c"]


@pytest.mark.anyio
async def test_names_are_not_found_so_that_clients_look_them_up(cloud: Cloud) -> None:
    answer = await cloud.http.get("/image/v2/images/tiny", headers=cloud.token("alice"))
    assert answer.status_code == 404 and answer.headers["Content-Type"].startswith("text/html")
    discovery = await cloud.http.get("/image")
    assert discovery.status_code == 300 and discovery.json()["versions"][0]["status"] == "CURRENT"
