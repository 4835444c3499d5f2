"""The server on a real socket, and clients that do not keep to HTTP, or never come to an end."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.unit import compute_cloud as fill
from tests.unit.cloud import Cloud
from whimbrel.api import app, patience, validation

pytestmark = pytest.mark.anyio
HOST = b"Host: cloud.test\r\n"
SOON = 5.0


class Wire:
    """Bytes to the server, and what it says before it hangs up."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def say(self, *parts: bytes, pause: float = 0.0, hang_up: bool = False) -> bytes:
        """Send the parts; return all that comes back until the server has closed, or answered once."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            for part in parts:
                with suppress(ConnectionError):
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(pause)
            if hang_up:
                return b""
            heard = b""
            with suppress(ConnectionError):
                async with asyncio.timeout(SOON):
                    while chunk := await reader.read(65536):
                        heard += chunk
                        if _whole(heard):
                            break
            return heard
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def _whole(heard: bytes) -> bool:
    head, found, body = heard.partition(b"\r\n\r\n")
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b": 0")
    return bool(found) and len(body) >= int(length.partition(b":")[2])


def status(heard: bytes) -> int:
    """Return the status of an answer, 0 when there is none."""
    return int(heard.split(b" ", 2)[1]) if heard.startswith(b"HTTP/1.1 ") else 0


@pytest.fixture
async def wire(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """Serve the cloud on loopback, by a server that is quickly out of patience."""
    monkeypatch.setattr(patience, "HEAD_SECONDS", 0.4)
    monkeypatch.setattr(validation, "BODY_SECONDS", 0.4)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    api = msgspec.structs.replace(cloud.services.settings.api, port=port)
    services = replace(cloud.services, settings=msgspec.structs.replace(cloud.services.settings, api=api))
    serving = asyncio.create_task(app.serve(services))
    wire = Wire(port)
    for _ in range(100):
        with suppress(ConnectionError):
            if status(await wire.say(b"GET /identity HTTP/1.1\r\n" + HOST + b"\r\n")) == 300:
                break
        await asyncio.sleep(0.02)
    yield wire
    assert status(await wire.say(b"GET /identity HTTP/1.1\r\n" + HOST + b"\r\n")) == 300, "it serves on, whatever came"
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


STRANGE = {
    "garbage": (b"\x00\xff\x16\x03\x01 nonsense\r\n\r\n", 400),
    "raw bytes in the path": (b"GET /compute/\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "a NUL in the path": (b"GET /compute/v2.1/servers/%ff%00%0d%0a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
    "no UTF-8 in the query": (b"GET /compute/v2.1/servers?%ff=%fe&limit=%ff HTTP/1.1\r\n" + HOST + b"\r\n", 401),
    "a long header": (b"GET /compute HTTP/1.1\r\n" + HOST + b"X-Long: " + b"a" * 200_000, 400),
    "a long address": (b"GET /compute?" + b"a" * 200_000, 400),
    "many headers": (b"GET /compute HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 20_000, 400),
    "a negative length": (b"POST /compute/v2.1/servers HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n", 400),
    "two lengths": (b"POST /x HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "no chunk": (b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "no version": (b"GET /compute HTTP/1.1\r\n" + HOST + b"X-OpenStack-Nova-API-Version: \xff\xfe\r\n\r\n", 400),
    "an upgrade": (b"GET /compute HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n", 200),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGE)
async def test_what_is_no_request_is_answered_as_such(wire: Wire, name: str) -> None:
    request_bytes, expected = STRANGE[name]
    heard = await wire.say(request_bytes)
    assert status(heard) == expected, heard[:300]
    assert b"Traceback" not in heard


async def test_a_head_that_does_not_end_holds_no_place(wire: Wire) -> None:
    began = asyncio.get_running_loop().time()
    slow = [b"GET /compute HTTP/1.1\r\n", *[b"X-%d: a\r\n" % number for number in range(20)]]
    silent, dripping, later = await asyncio.gather(
        wire.say(b""),
        wire.say(*slow, pause=0.1),
        wire.say(b"GET /identity HTTP/1.1\r\n" + HOST + b"\r\n", b"\r\n", b"GET /", pause=0.1),
    )
    assert (silent, dripping) == (b"", b"") and status(later) == 300
    assert asyncio.get_running_loop().time() - began < SOON


def _post(path: str, token: str, length: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n{length}\r\n\r\n".encode()


async def test_a_body_is_no_head_however_it_is_cut(wire: Wire, cloud: Cloud) -> None:
    fill.furnish(cloud)
    server = await fill.active(cloud)
    token = cloud.token("alice")["X-Auth-Token"]
    body = json.dumps({"server": {"name": "two"}}).encode() + b" " * 200_000
    head = f"PUT /compute/v2.1/servers/{server} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n"
    whole = head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    for cut in (len(whole), 200, 100_000, len(whole) - 100_000, len(whole) - 1):
        assert status(await wire.say(whole[:cut], whole[cut:], pause=0.05)) == 200, cut


async def test_a_body_has_a_size_and_a_time(wire: Wire, cloud: Cloud) -> None:
    token = cloud.token("alice")["X-Auth-Token"]
    url = "/compute/v2.1/servers"
    assert status(await wire.say(_post(url, token, "Content-Length: 100"), b"{")) == 408
    assert status(await wire.say(_post(url, token, "Content-Length: 9000000"), b"a" * 2_000_000)) == 413
    chunks = [b"10000\r\n" + b"a" * 65536 + b"\r\n"] * 40
    assert status(await wire.say(_post(url, token, "Transfer-Encoding: chunked"), *chunks)) == 413
    answer = await wire.say(_post(url, token, "Content-Length: 100"), b"{", hang_up=True)
    assert answer == b""


async def test_an_upload_that_stops_midway_leaves_nothing(wire: Wire, cloud: Cloud, tmp_path: Path) -> None:
    token = cloud.token("alice")
    made = await cloud.http.post(
        "/image/v2/images", json={"name": "i", "disk_format": "raw", "container_format": "bare"}, headers=token
    )
    image = made.json()["id"]
    head = (
        f"PUT /image/v2/images/{image}/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token['X-Auth-Token']}\r\n"
        "Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()
    await wire.say(head, b"10000\r\n" + b"a" * 65536 + b"\r\n", pause=0.1, hang_up=True)
    await wire.say(head, b"10000\r\n" + b"a" * 100, pause=0.1, hang_up=True)
    for _ in range(100):
        left = list((tmp_path / "images").glob("*"))
        if not left:
            break
        await asyncio.sleep(0.02)
    assert left == []
    shown = await cloud.http.get(f"/image/v2/images/{image}", headers=token)
    assert shown.json()["status"] == "queued"


async def test_a_tag_puts_no_line_into_the_answer(wire: Wire, cloud: Cloud) -> None:
    fill.furnish(cloud)
    server = await fill.active(cloud)
    token = cloud.token("alice")["X-Auth-Token"]
    for tag in ("a%0d%0aX-Injected:%20yes", "%C4%80", "%F0%9F%90%A6"):
        heard = await wire.say(
            f"PUT /compute/v2.1/servers/{server}/tags/{tag} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n"
            "X-OpenStack-Nova-API-Version: 2.26\r\n\r\n".encode()
        )
        assert status(heard) == 201, heard
        assert b"\r\nx-injected" not in heard.lower()
        assert f"/tags/{tag}".lower().encode().replace(b":", b"%3a") in heard.lower()


async def test_equal_keys_and_huge_numbers_are_read_as_json_says(wire: Wire, cloud: Cloud) -> None:
    fill.furnish(cloud)
    server = await fill.active(cloud)
    token = cloud.token("alice")["X-Auth-Token"]
    body = b'{"server": {"name": "one", "name": "two"}}'
    head = f"PUT /compute/v2.1/servers/{server} HTTP/1.1\r\nHost: x\r\nX-Auth-Token: {token}\r\n"
    heard = await wire.say(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert json.loads(heard.partition(b"\r\n\r\n")[2])["server"]["name"] == "two"
    for limit in ("9" * 18, "9" * 40, "-1", "%D9%A3"):
        listed = await cloud.http.get(f"/compute/v2.1/servers?limit={limit}", headers=cloud.token("alice"))
        assert listed.status_code == (200 if len(limit) == 18 else 400)
