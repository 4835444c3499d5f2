"""Orders that no controller gave, brought by one who may write to every queue: refused before they are written down."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.security.conftest import CODEC, Intruder, Scene, until
from whimbrel.bus import queues
from whimbrel.bus.link import SIGNATURE
from whimbrel.bus.signing import Signer
from whimbrel.domain.server import PowerState
from whimbrel.migration.messages import Ask, Order, ReadConsole

pytestmark = [pytest.mark.anyio, pytest.mark.broker, pytest.mark.xdist_group("security")]

H1 = queues.agent("h1")


async def bring(owner: Intruder, data: bytes, signature: str | None, **properties: Any) -> None:
    """Put bytes into h1's queue."""
    headers = {} if signature is None else {SIGNATURE: signature}
    await owner.publish(queues.DEFAULT_EXCHANGE, H1, data, headers=headers, **properties)


def newest_order(scene: Scene) -> Order:
    """Return the newest order about the victim that h1 has obeyed."""
    query = "SELECT body FROM orders WHERE server = ? ORDER BY number DESC LIMIT 1"
    (row,) = scene.ledger("h1", query, scene.victim)
    return msgspec.json.decode(row["body"], type=Order)


async def test_an_order_that_no_controller_signed_for_this_host_is_not_even_written_down(
    scene: Scene, broker_owner: Intruder
) -> None:
    old = newest_order(scene)
    newer = replace(old, epoch=old.epoch + 1, number=old.number + 1, protocol="delete", step="remove_all")
    data = CODEC.encode(newer, {})
    true = CODEC.encode(old, {})
    stranger = Signer(Ed25519PrivateKey.generate())
    before, log = scene.promises("h1"), scene.cloud.dir / "agent1.log"
    forged: dict[str, tuple[bytes, str | None]] = {
        "unsigned": (data, None),
        "signed by a stranger": (data, stranger.sign(H1, data)),
        "signed for another host": (data, scene.signer.sign(queues.agent("h2"), data)),
        "the signature of another order": (data, scene.signer.sign(H1, true)),
        "a newer epoch in a signed order": (true.replace(b'"epoch":', b'"epoch":9'), scene.signer.sign(H1, true)),
        "another context on a signed order": (
            true.replace(b'"context":{}', b'"context":{"migration":9}'),
            scene.signer.sign(H1, true),
        ),
        "a signature that is none": (data, "nonsense"),
        "an unsigned question": (CODEC.encode(Ask(old), {}), None),
    }
    for what, (bytes_, signature) in forged.items():
        assert bytes_ != true, what
        await bring(broker_owner, bytes_, signature)
    await bring(broker_owner, CODEC.encode(ReadConsole(scene.victim, None), {}), None, reply_to="answers.x")

    def refused() -> int:
        return log.read_text().count("a message became a dead letter")

    await until("a word about each", lambda: refused() >= len(forged) + 1)
    assert scene.promises("h1") == before
    assert scene.state("h1", scene.victim) is PowerState.RUNNING


async def test_an_old_order_is_not_obeyed_again_though_its_signature_is_good(
    scene: Scene, broker_owner: Intruder
) -> None:
    for action, status in (("os-stop", "SHUTOFF"), ("os-start", "ACTIVE")):
        await asyncio.to_thread(scene.act, scene.victim, action)
        await asyncio.to_thread(scene.wait, scene.victim, status)
    query = "SELECT body FROM orders WHERE server = ? ORDER BY number"
    orders = [msgspec.json.decode(row["body"], type=Order) for row in scene.ledger("h1", query, scene.victim)]
    before, server, log = scene.promises("h1"), scene.server(), scene.cloud.dir / "agent1.log"
    for old in orders:
        data = CODEC.encode(old, {})
        await bring(broker_owner, data, scene.signer.sign(H1, data))
    # One that the ledger has forgotten, or never had, is refused by its number alone.
    lost = replace(orders[-1], number=orders[-1].number - 1, step="stop_guest", attempt="0-0")
    data = CODEC.encode(lost, {})
    await bring(broker_owner, data, scene.signer.sign(H1, data))
    await until("a word about the last", lambda: "refused an order that is too old" in log.read_text())
    assert scene.promises("h1") == before and scene.server() == server
    assert scene.state("h1", scene.victim) is PowerState.RUNNING
