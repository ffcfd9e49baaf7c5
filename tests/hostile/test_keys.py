"""Weak keys, malleated signatures and swapped identities, through the real doors.

What the parsers refuse is tested in tests/proto; here a real coordinator is asked over TLS, and
clients, nodes and the owner dial servers that show what they should not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from novamesh.transport import Channel, error_from_rpc, open_channel
from novamesh_coordinator.owner_link import open_owner_link
from novamesh_node.link import Link
from novamesh_node.statements import Signer
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import NODE_ID_PREFIX
from novamesh_proto.messages import (
    AttachAssignment,
    Envelope,
    NodeId,
    RunningAttempt,
    Signature,
)
from support.actors import Actor, ClientActor, NodeActor
from support.hostile import certificates
from support.hostile.coordinator import Victim
from support.hostile.honest import DIAL_S, Done, HonestClient, HonestNode, Pace, now_ms
from support.hostile.shots import METHODS, Method
from support.hostile.twists import header, loose
from support.memory_channel import AttachCall, Caller
from support.parties import COORDINATOR, NETWORK, party
from support.vectors import load

BAD_KEYS = {
    vector.name: vector.data("public")
    for vector in load("identity/keys")
    if vector.name.startswith(("order", "y is"))
}
NEUTRAL = bytes([1]) + bytes(31)
RNG = random.Random(0)


def by_name(method: Method) -> str:
    return method.path.rpartition("/")[2]


@contextlib.asynccontextmanager
async def dialled(victim: Victim) -> AsyncIterator[Channel]:
    channel = await open_channel(victim.address, COORDINATOR.node_id, DIAL_S)
    try:
        yield channel
    finally:
        await channel.close()


@pytest.fixture(scope="module")
def done(victim: Victim) -> Done:
    """A job that was answered, for messages that are about one."""

    async def have_one() -> Done:
        async with HonestNode("node", victim.address, Pace(tokens=2)).attached():
            client = await HonestClient.join("client", victim.address)
            try:
                return await client.job()
            finally:
                await client.close()

    return asyncio.run(have_one())


async def refusal(channel: Channel, path: str, data: bytes) -> NovaMeshError | None:
    call = channel.channel.unary_stream(path, lambda said: said, lambda came: came)
    try:
        async for _ in call(data, timeout=DIAL_S):
            pass
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    return None


async def code_of(channel: Channel, method: Method, sealed: Envelope, done: Done) -> Code | None:
    data = method.wrap(loose(sealed), done).SerializeToString()
    error = await refusal(channel, method.path, data)
    return None if error is None else error.code


def resign(sealed: Envelope, keyid: bytes, sig: bytes) -> Envelope:
    return Envelope(sealed.payload_type, sealed.payload, (Signature(NodeId(keyid), sig),))


async def hello_refused(channel: Channel, make: Callable[[bytes], Envelope]) -> Code:
    """What a hello is refused with; `make` gets the nonce of the challenge."""
    call = AttachCall(channel.channel, NodeActor("anybody", COORDINATOR.node_id))
    try:
        challenge = (await call.read()).challenge
        assert challenge is not None
        await call.send(hello=make(challenge.nonce))
        with pytest.raises(NovaMeshError) as refused:
            await call.read()
        return refused.value.code
    finally:
        await call.close()


def test_all_the_weak_keys_are_here() -> None:
    assert len([name for name in BAD_KEYS if name.startswith("order")]) == 10
    assert len([name for name in BAD_KEYS if name.startswith("y is")]) == 5


@pytest.mark.parametrize("name", BAD_KEYS)
async def test_a_weak_key_opens_no_door(victim: Victim, done: Done, name: str) -> None:
    """With such a key one signature fits many messages: R is the neutral element, S is zero."""
    node_id, fits_all = NODE_ID_PREFIX + BAD_KEYS[name], NEUTRAL + bytes(32)
    node = NodeActor("anybody", COORDINATOR.node_id)
    async with dialled(victim) as channel:
        seen = channel.certificate_key_digest

        def by_a_weak_key(nonce: bytes) -> Envelope:
            return resign(node.hello(nonce, seen, now_ms()), node_id, fits_all)

        def with_such_a_descriptor(nonce: bytes) -> Envelope:
            advert = resign(node.descriptor(now_ms()), node_id, fits_all)
            return node.hello(nonce, seen, now_ms(), descriptor=advert)

        for method in METHODS:
            weak = resign(sign(method, done.client, done), node_id, fits_all)
            assert await code_of(channel, method, weak, done) is Code.BAD_KEY, method.path
        for make in (by_a_weak_key, with_such_a_descriptor):
            assert await hello_refused(channel, make) is Code.BAD_KEY


@pytest.mark.parametrize("method", METHODS, ids=by_name)
async def test_a_malleated_or_swapped_signature_opens_no_door(
    victim: Victim, done: Done, method: Method
) -> None:
    mine = COORDINATOR if method.by_owner else done.client.key
    other = party("swapped")
    right = sign(method, done.client, done)
    sig = right.signatures[0].sig
    twice = Envelope(right.payload_type, right.payload, right.signatures * 2)
    signed = envelope.pae(right.payload_type, right.payload)
    wrong = {
        "S + L": (resign(right, mine.node_id, certificates.malleate(sig)), Code.BAD_SIGNATURE),
        "mine under another's name": (resign(right, other.node_id, sig), Code.BAD_SIGNATURE),
        "another's under my name": (
            resign(right, mine.node_id, other.sign(signed)), Code.BAD_SIGNATURE,
        ),
        "another says it was me": (
            resign(right, other.node_id, other.sign(signed)), Code.BAD_KEY,
        ),
        "two signatures": (twice, Code.BAD_REQUEST),
        "none": (Envelope(right.payload_type, right.payload, ()), Code.BAD_REQUEST),
    }  # fmt: skip
    async with dialled(victim) as channel:
        for name, (sealed, code) in wrong.items():
            assert await code_of(channel, method, sealed, done) is code, name
        assert await code_of(channel, method, right, done) is method.answer


async def test_a_malleated_or_swapped_hello_attaches_nobody(victim: Victim) -> None:
    node, other = (NodeActor(name, COORDINATOR.node_id) for name in ("anybody", "another"))
    async with dialled(victim) as channel, dialled(victim) as second:
        seen = channel.certificate_key_digest
        assert seen == second.certificate_key_digest  # a coordinator has one certificate

        def malleated(nonce: bytes) -> Envelope:
            right = node.hello(nonce, seen, now_ms())
            return resign(right, node.id, certificates.malleate(right.signatures[0].sig))

        def of_another(nonce: bytes) -> Envelope:
            right = other.hello(nonce, seen, now_ms())
            return resign(right, node.id, right.signatures[0].sig)

        def malleated_descriptor(nonce: bytes) -> Envelope:
            right = node.descriptor(now_ms())
            advert = resign(right, node.id, certificates.malleate(right.signatures[0].sig))
            return node.hello(nonce, seen, now_ms(), descriptor=advert)

        def another_certificate(nonce: bytes) -> Envelope:
            return node.hello(nonce, bytes(32), now_ms(), descriptor=node.descriptor(now_ms()))

        for make, code in (
            (malleated, Code.BAD_SIGNATURE),
            (of_another, Code.BAD_SIGNATURE),
            (malleated_descriptor, Code.BAD_SIGNATURE),
            (another_certificate, Code.PIN_MISMATCH),
        ):
            assert await hello_refused(channel, make) is code, make.__name__


async def test_nobody_speaks_for_an_attempt_of_another_node(victim: Victim) -> None:
    """Neither with its chunks, nor with its statements, nor by resuming it."""
    client = await HonestClient.join("client", victim.address)
    async with dialled(victim) as channel, dialled(victim) as elsewhere:
        caller = Caller(channel.channel)
        given, call = await _job_at_work(caller, client.actor, channel)
        attempt = call.node.take(given.assignment, given.job)
        await call.send(decision=attempt.decide(now_ms()))
        thief = NodeActor("thief", COORDINATOR.node_id)
        await caller.join(thief.claim(now_ms()))
        thief.advert = thief.descriptor(now_ms(), models=())
        other = AttachCall(elsewhere.channel, thief)
        running = (RunningAttempt(**attempt.ids, chunks=1),)
        await other.open(now_ms(), running, elsewhere.certificate_key_digest)
        assert not other.resumed
        mine = attempt.chunk(final=True)
        await other.send(chunk=mine)
        stop = (await other.read()).cancel
        assert stop is not None
        assert (stop.job, stop.code) == (mine.job, "stale")
        await other.send(attestation=attempt.attest(now_ms()))
        with pytest.raises(NovaMeshError) as refused:
            await other.read()
        assert refused.value.code is Code.FORBIDDEN
        await call.send(chunk=mine)
        await call.send(attestation=attempt.attest(now_ms()))
        query = client.actor.watch(mine.job, now_ms())
        events = [event async for event in caller.watch(query)]
        assert events[-1].job is not None
        assert (events[-1].job.state.name, events[-1].job.node) == ("SETTLED", call.node.id)
        for one in (call, other):
            await one.close()
    await client.close()


async def _job_at_work(
    caller: Caller, client: ClientActor, channel: Channel
) -> tuple[AttachAssignment, AttachCall]:
    """A job that a node was given and has not answered."""
    node = NodeActor("worker", COORDINATOR.node_id)
    await caller.join(node.claim(now_ms()))
    call = AttachCall(channel.channel, node)
    await call.open(now_ms(), digest=channel.certificate_key_digest)
    candidates = await caller.match(client.match(now_ms()))
    order = client.seal([one.descriptor for one in candidates], now_ms(), f"key {now_ms()}")
    await caller.submit(order, tuple(one.reservation for one in candidates))
    given = (await call.read()).assignment
    assert given is not None
    return given, call


async def test_a_job_is_its_own_clients_and_nobody_elses(victim: Victim, done: Done) -> None:
    other = ClientActor("curious", COORDINATOR.node_id)
    async with dialled(victim) as channel:
        await Caller(channel.channel).join(other.claim(now_ms()))
        for method in METHODS:
            if method.of_a_job:
                sealed = other.sign(method.make(header(other, RNG), done))
                assert await code_of(channel, method, sealed, done) is Code.NOT_FOUND, method.path


def sign(method: Method, client: ClientActor, done: Done) -> Envelope:
    """A right message to a method, by whoever may send it."""
    who = Actor("coordinator", COORDINATOR.node_id) if method.by_owner else client
    return who.sign(method.make(header(who, RNG), done))


P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
PUBLIC = COORDINATOR.node_id[len(NODE_ID_PREFIX) :]
SIG = COORDINATOR.sign(certificates.SIGNED_PREFIX + certificates.spki_of(P256))
SHOWN: dict[str, tuple[certificates.TlsKey, bytes | None, Code]] = {
    "another identity's": (P256, certificates.vouch(party("impostor"), P256), Code.PIN_MISMATCH),
    "the right identity's word for another key": (
        P256, certificates.vouch(COORDINATOR, ec.generate_private_key(ec.SECP256R1())),
        Code.BAD_SIGNATURE,
    ),
    "malleated": (
        P256, certificates.signed_key(PUBLIC, certificates.malleate(SIG)), Code.BAD_SIGNATURE,
    ),
    "wrong curve": (P384, certificates.vouch(COORDINATOR, P384), Code.BAD_KEY),
    "Ed25519": (ED25519, certificates.vouch(COORDINATOR, ED25519), Code.BAD_KEY),
    "nobody's": (P256, None, Code.BAD_KEY),
    **{
        f"key {name}": (
            P256, certificates.signed_key(public, NEUTRAL + bytes(32)), Code.BAD_KEY,
        )
        for name, public in BAD_KEYS.items()
    },
}  # fmt: skip


async def by_a_client(address: str) -> None:
    """As the SDK dials."""
    await open_channel(address, COORDINATOR.node_id, DIAL_S)


async def by_a_node(address: str) -> None:
    """As a node attaches."""
    signer = Signer(party("node"), NETWORK, COORDINATOR.node_id)
    async with Link(address, signer, b"").dial():
        pass


async def by_the_owner(address: str) -> None:
    """As the owner's commands ask."""

    def ask() -> None:
        with open_owner_link(address, COORDINATOR, NETWORK):
            pass

    await asyncio.to_thread(ask)


@pytest.mark.parametrize("dial", [by_a_client, by_a_node, by_the_owner])
@pytest.mark.parametrize("name", SHOWN)
async def test_a_certificate_that_is_not_the_pools_is_not_dialled(
    tmp_path: Path, name: str, dial: Callable[[str], Any]
) -> None:
    tls_key, extension, code = SHOWN[name]
    pem = certificates.show(tmp_path, tls_key, extension)
    async with certificates.stand_in(pem) as address:
        with pytest.raises(NovaMeshError) as refused:
            await dial(address)
    assert refused.value.code is code
    assert refused.value.message
