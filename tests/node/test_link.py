"""The link: a pinned stream over real TLS, and the server's reasons as our errors."""

from __future__ import annotations

import pytest

from novamesh_node.link import Link
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import AttachRequest, NodeLoad
from support.clock import START_MS
from support.fake_coordinator import FakeCoordinator, coordinator
from support.offers import SIGNER
from support.parties import party


def link(pool: FakeCoordinator) -> Link:
    return Link(pool.address, SIGNER, b"invite")


async def test_values_cross_the_stream_and_the_certificate_is_known() -> None:
    async with coordinator() as pool, link(pool).dial() as stream:
        challenge = (await stream.read()).challenge
        assert challenge is not None
        assert len(challenge.nonce) == 32
        assert stream.certificate_key_digest == pool.certificate.key_digest
        await stream.write(AttachRequest(load=NodeLoad(1, True)))
        with pytest.raises(NovaMeshError) as caught:
            await stream.read()
        assert caught.value.code is Code.UNAVAILABLE
        with pytest.raises(NovaMeshError):
            await stream.write(AttachRequest(load=NodeLoad(1, True)))
        await stream.end()


async def test_another_identity_at_the_address_is_a_pin_mismatch() -> None:
    async with coordinator(party("impostor")) as pool:
        with pytest.raises(NovaMeshError) as caught:
            async with link(pool).dial():
                pass
    assert caught.value.code is Code.PIN_MISMATCH


async def test_nobody_at_the_address_is_unavailable() -> None:
    async with coordinator() as pool:
        gone = link(pool)
    with pytest.raises(NovaMeshError) as caught:
        async with gone.dial():
            pass
    assert caught.value.code is Code.UNAVAILABLE


async def test_a_refusal_carries_its_reason_and_its_hint() -> None:
    async with coordinator() as pool:
        pool.refusals.append(NovaMeshError(Code.BANNED, "for lying", "ask the owner"))
        async with link(pool).dial() as stream:
            with pytest.raises(NovaMeshError) as caught:
                await stream.read()
    error = caught.value
    assert (error.code, error.message, error.hint) == (Code.BANNED, "for lying", "ask the owner")


async def test_joining_shows_the_invite() -> None:
    async with coordinator() as pool:
        await link(pool).join(START_MS)
        assert pool.claims[0].invite == b"invite"
        pool.refusals.append(NovaMeshError(Code.FORBIDDEN, "used up"))
        with pytest.raises(NovaMeshError) as caught:
            await link(pool).join(START_MS)
    assert caught.value.code is Code.FORBIDDEN
