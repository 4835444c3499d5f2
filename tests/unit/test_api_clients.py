"""The api on a real socket: an unmodified OpenStack client, and an end that keeps nobody waiting."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from typing import Any

import anyio
import httpx2
import openstack
import pytest
from anyio.abc import TaskGroup

from tests.unit.cloud import PASSWORD, Cloud
from tests.unit.compute_cloud import IMAGE, PLACED, active, close, furnish, open_window, progress, servers_url
from whimbrel.api.app import Services, serve
from whimbrel.domain.errors import SettingsError
from whimbrel.domain.migration import Mark
from whimbrel.ops.settings import Api, Settings
from whimbrel.store.outbox import Relay

pytestmark = pytest.mark.anyio


async def listening(cloud: Cloud, group: TaskGroup) -> str:
    """Serve the cloud on a free port and return its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    image_dir = cloud.services.settings.api.image_dir
    services = replace(cloud.services, settings=Settings(api=Api(port=port, public_url=url, image_dir=image_dir)))
    group.start_soon(serve, services)
    async with httpx2.AsyncClient() as http:
        for _ in range(100):
            try:
                await http.get(f"{url}/compute")
                return url
            except httpx2.TransportError:
                await anyio.sleep(0.05)
    raise AssertionError("the api did not come up")


def connect(url: str, user: str, project: str) -> Any:
    return openstack.connect(
        auth_url=f"{url}/identity/v3", username=user, password=PASSWORD, project_name=project,
        user_domain_id="default", project_domain_id="default", region_name="RegionOne",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning", "ignore::ResourceWarning")
async def test_the_openstack_sdk_creates_moves_and_deletes_a_server(cloud: Cloud) -> None:
    furnish(cloud)
    await cloud.services.bus.start()

    async with anyio.create_task_group() as group:
        url = await listening(cloud, group)
        with anyio.fail_after(60):
            sdk = await anyio.to_thread.run_sync(connect, url, "admin", "admin")
            call = partial(_in_thread, sdk)
            server = await call("create_server", name="vm", image_id=IMAGE, flavor_id="1", networks="auto")
            assert server.id and server.admin_password
            close(cloud, server.id, "completed", host="h1", **PLACED)
            found = await call("find_server", "vm")
            assert (found.status, found.compute_host, found.flavor.name) == ("ACTIVE", "h1", "small")
            await call("migrate_server", server.id, host="h2")
            progress(cloud, server.id, ("claim", Mark.DONE), target="h2")
            open_window(cloud, server.id)
            moves = [move.status for move in await call("migrations")]
            assert moves == ["finished"]
            await call("confirm_server_resize", server.id)
            close(cloud, server.id, "confirmed", power_state="running")
            actions = [action.action for action in await call("server_actions", server.id)]
            assert actions == ["confirmResize", "migrate", "create"]
            assert [host.name for host in await call("hypervisors", details=True)] == ["h1", "h2"]
            await call("delete_server", server.id)
        group.cancel_scope.cancel()
    await cloud.services.bus.close()


async def _in_thread(sdk: Any, what: str, /, *args: Any, **kwargs: Any) -> Any:
    def ask() -> Any:
        answer = getattr(sdk.compute, what)(*args, **kwargs)
        return list(answer) if hasattr(answer, "__next__") else answer

    return await anyio.to_thread.run_sync(ask)


async def test_the_end_sends_watchers_home_and_a_taken_port_is_named(cloud: Cloud) -> None:
    furnish(cloud)
    await cloud.services.bus.start()
    server_id = await active(cloud)
    await cloud.http.post(servers_url(f"/{server_id}/action"), json={"migrate": None}, headers=cloud.token("admin"))
    number = progress(cloud, server_id, ("claim", Mark.DONE), target="h2")
    seen: list[str] = []

    async def watch(url: str, begun: anyio.Event) -> None:
        async with httpx2.AsyncClient() as http:
            path = f"{url}/whimbrel/v1/migrations/{number}/events"
            async with http.stream("GET", path, headers=cloud.token("admin")) as answer:
                async for line in answer.aiter_lines():
                    seen.append(line)
                    begun.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as watchers, anyio.create_task_group() as group:
            url = await listening(cloud, group)
            begun = anyio.Event()
            watchers.start_soon(watch, url, begun)
            await begun.wait()
            port = int(url.rpartition(":")[2])
            taken = replace(cloud.services, settings=Settings(api=Api(port=port)))
            with pytest.raises(SettingsError, match=str(port)):
                await serve(taken)
            group.cancel_scope.cancel()
    assert seen[0] == "event: migration"
    await cloud.services.bus.close()


async def test_nobody_waits_for_a_broker_that_is_away(cloud: Cloud) -> None:
    async def never(queue: str, message: object) -> None:
        await anyio.sleep_forever()

    services: Services = replace(cloud.services, relay=Relay(cloud.services.store, never))
    with anyio.fail_after(5):
        await services.publish([(1, "conductor", object())])
