"""TLS to the broker and to the API: who cannot prove its name is not spoken to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import click.testing
import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.fakecloud import free_port
from tests.security.conftest import CODEC
from tests.unit.cloud import open_cloud
from whimbrel.agent.disks.fetch import from_store
from whimbrel.api.app import serve
from whimbrel.bus import queues
from whimbrel.bus.amqp import AmqpBus
from whimbrel.bus.port import Timing
from whimbrel.bus.signing import Signer, Verifier
from whimbrel.bus.trust import AgentTrust, ControllerTrust
from whimbrel.cli.main import cli
from whimbrel.domain.errors import BusError, SettingsError, StepError
from whimbrel.lab import certificates
from whimbrel.lab.broker import Broker
from whimbrel.lab.certificates import tls_of
from whimbrel.migration.messages import Wake
from whimbrel.ops.settings import Api, Settings

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("security")]

HASTY = Timing(start=3)


@pytest.fixture(scope="module")
def proofs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    certificates.make(directory, "127.0.0.1")
    return directory


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another authority."""
    directory = tmp_path_factory.mktemp("other")
    certificates.make(directory, "127.0.0.1")
    return str(directory / "ca.pem")


@pytest.fixture(scope="module")
def node(proofs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    directory, tls = tmp_path_factory.mktemp("rabbitmq"), tls_of(proofs, "broker")
    broker = Broker(directory, "127.0.0.1", free_port(), user="whimbrel", password="p@ss/word", tls=tls)
    try:
        broker.start(deadline=120)
        yield broker
    finally:
        broker.kill()


@pytest.mark.broker
async def test_a_broker_is_spoken_to_only_over_tls_and_only_under_its_name(
    node: Broker, proofs: Path, strangers: str
) -> None:
    ours = str(proofs / "ca.pem")
    good = AmqpBus(node.url, CODEC, name="test", timing=replace(HASTY, start=60), ca_file=ours)
    await good.start()
    await good.cast(queues.CONDUCTOR, Wake(1))
    await good.close()
    refusals = {
        "certificate verify failed": (node.url, strangers),
        "certificate verify failed: .*": (node.url, None),
        "(?i)hostname mismatch|not valid for 'localhost'": (node.url.replace("@127.0.0.1", "@localhost"), ours),
        "could not be used": (node.url.replace("amqps", "amqp"), ours),
    }
    for reason, (url, ca_file) in refusals.items():
        bad = AmqpBus(url, CODEC, name="test", timing=HASTY, ca_file=ca_file)
        with pytest.raises(BusError, match=reason):
            await bad.start()


@pytest.mark.broker
async def test_what_an_operator_types_makes_a_user_that_an_agent_can_work_as(node: Broker, proofs: Path) -> None:
    typed = click.testing.CliRunner().invoke(cli, ["host", "broker-user", "h9"]).output
    environment = {
        "PATH": "/usr/lib/rabbitmq/bin:/usr/bin:/bin",
        "HOME": str(node.dir / "home"),
        "RABBITMQ_NODENAME": "whimbrel@localhost",
        "ERL_EPMD_PORT": str(node.port + 2),
    }
    done = await anyio.run_process(["sh", "-e"], input=typed.encode(), env=environment, check=False)
    assert done.returncode == 0, done.stderr
    key = Ed25519PrivateKey.generate()
    url = typed.split('url = "')[1].split('"')[0].replace("BROKER:5671", f"127.0.0.1:{node.port}")
    ours, taken = str(proofs / "ca.pem"), anyio.Event()

    async def take(message: object) -> None:
        assert message == Wake(9)
        taken.set()

    trusts = {node.url: ControllerTrust(Signer(key)), url: AgentTrust("h9", Verifier([Signer(key).public_key]))}
    controller, agent = (
        AmqpBus(address, CODEC, name="test", timing=replace(HASTY, start=60), ca_file=ours, trust=trust)
        for address, trust in trusts.items()
    )
    for bus in (controller, agent):
        await bus.start()
    await agent.consume(queues.agent("h9"), take)
    await controller.cast(queues.agent("h9"), Wake(9))
    with anyio.fail_after(30):
        await taken.wait()
    for bus in (agent, controller):
        await bus.close()


async def test_the_api_speaks_tls_to_clients_and_to_hosts_that_fetch_images(
    proofs: Path, strangers: str, tmp_path: Path
) -> None:
    files = tls_of(proofs, "api")
    port, ours = free_port(), str(files.authority)
    url = f"https://127.0.0.1:{port}"
    api = Api(port=port, public_url=url, certificate_file=str(files.certificate), key_file=str(files.key))
    known = ssl.create_default_context(cafile=ours)
    async with open_cloud(tmp_path) as cloud, anyio.create_task_group() as group:
        await cloud.services.bus.start()
        group.start_soon(serve, replace(cloud.services, settings=Settings(api=api)))
        async with httpx2.AsyncClient(verify=known, trust_env=False) as http:
            with anyio.fail_after(30):
                while True:
                    try:
                        answer = await http.get(f"{url}/identity/v3")
                        break
                    except httpx2.TransportError:
                        await anyio.sleep(0.05)
            assert answer.status_code == 200 and answer.json()["version"]["links"][0]["href"].startswith(url)
        fetched = await anyio.to_thread.run_sync(lambda: b"".join(from_store(f"{url}/identity/v3", ours)))
        assert b"version" in fetched
        for ca_file in (strangers, None):
            with pytest.raises(StepError, match=r"cannot be reached.*certificate"):
                await anyio.to_thread.run_sync(lambda ca=ca_file: list(from_store(f"{url}/identity/v3?ticket=x", ca)))
        async with httpx2.AsyncClient(trust_env=False) as plain:
            with pytest.raises(httpx2.TransportError):
                await plain.get(f"http://127.0.0.1:{port}/identity/v3")
        group.cancel_scope.cancel()


async def test_half_a_proof_is_an_error_that_names_both_files(proofs: Path, tmp_path: Path) -> None:
    files = tls_of(proofs, "api")
    wrong = {
        "belong together": Api(certificate_file=str(files.certificate)),
        "cannot be used": Api(certificate_file=str(files.certificate), key_file=str(tmp_path / "none")),
    }
    async with open_cloud(tmp_path) as cloud:
        for reason, api in wrong.items():
            with pytest.raises(SettingsError, match=f"certificate_file and key_file .*{reason}"):
                await serve(replace(cloud.services, settings=Settings(api=api)))
    with pytest.raises(SettingsError, match="ca_file"):
        AmqpBus("amqps://u:p@127.0.0.1/", CODEC, name="test", ca_file=str(tmp_path / "none"))
