"""The door: addressed to us, fresh, once, by whom it must be; and which speeds count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_coordinator.verifier import Verifier, rankable_speed
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    InferenceAttestation,
    JobDecision,
    MatchQuery,
    NodeDescriptor,
    NodeId,
    NodesQuery,
    RelayReceipt,
)
from support.actors import ClientActor, NodeActor
from support.clock import START_MS
from support.parties import COORDINATOR, NETWORK
from support.story import tell

HOUR_MS = 3_600_000


@pytest.fixture
def verifier() -> Verifier:
    def require(party: NodeId) -> None:
        if party != CLIENT.id:
            raise NovaMeshError(Code.NOT_A_MEMBER, "a stranger")

    return Verifier(COORDINATOR.node_id, NETWORK, require)


CLIENT = ClientActor("client", COORDINATOR.node_id)
NODE = NodeActor("node", COORDINATOR.node_id)


def refused(check: object, *arguments: object) -> Code:
    with pytest.raises(NovaMeshError) as error:
        check(*arguments)  # type: ignore[operator]
    return error.value.code


def test_a_query_acts_once(verifier: Verifier) -> None:
    query = CLIENT.match(START_MS)
    assert verifier.open_query(query, MatchQuery, START_MS).issuer == CLIENT.id
    assert refused(verifier.open_query, query, MatchQuery, START_MS) is Code.REPLAYED
    assert verifier.open(query, MatchQuery, START_MS).issuer == CLIENT.id


def test_a_stranger_leaves_no_trace(verifier: Verifier) -> None:
    query = ClientActor("stranger", COORDINATOR.node_id).match(START_MS)
    for _ in range(2):
        assert refused(verifier.open_query, query, MatchQuery, START_MS) is Code.NOT_A_MEMBER
    assert len(verifier._seen) == 0


def test_an_order_acts_once(verifier: Verifier) -> None:
    owner = ClientActor("coordinator", COORDINATOR.node_id)
    order = owner.sign(NodesQuery(owner.header(START_MS)))
    verifier.open_order(order, NodesQuery, START_MS)
    assert refused(verifier.open_order, order, NodesQuery, START_MS) is Code.REPLAYED


@pytest.mark.parametrize(
    ("actor", "at_ms", "code"),
    [
        (ClientActor("client", CLIENT.id), START_MS, Code.WRONG_AUDIENCE),
        (ClientActor("client", COORDINATOR.node_id, "else"), START_MS, Code.WRONG_NETWORK),
        (CLIENT, START_MS - HOUR_MS, Code.NOT_FRESH),
        (CLIENT, START_MS + HOUR_MS, Code.NOT_FRESH),
    ],
)
def test_what_is_not_for_us_now_is_refused(
    verifier: Verifier, actor: ClientActor, at_ms: int, code: Code
) -> None:
    assert refused(verifier.open_query, actor.match(at_ms), MatchQuery, START_MS) is code


def test_another_message_is_not_taken_for_this_one(verifier: Verifier) -> None:
    query = CLIENT.ask_models(START_MS)
    assert refused(verifier.open_query, query, MatchQuery, START_MS) is Code.WRONG_TYPE


def test_only_the_owner_orders(verifier: Verifier) -> None:
    query = CLIENT.sign(NodesQuery(CLIENT.header(START_MS)))
    assert refused(verifier.open_order, query, NodesQuery, START_MS) is Code.FORBIDDEN


def test_a_node_speaks_for_itself_only(verifier: Verifier) -> None:
    other = NodeActor("other", COORDINATOR.node_id)
    header = other.header(START_MS)
    said = other.sign(JobDecision(header, bytes(32), 1, 1, True))  # type: ignore[arg-type]
    code = refused(verifier.open_of, said, JobDecision, NODE.id, START_MS)
    assert code is Code.FORBIDDEN
    copied = other.descriptor(START_MS)
    assert refused(verifier.open_descriptor, copied, NODE.id, START_MS) is Code.FORBIDDEN


def test_a_hello_is_bound_to_challenge_and_certificate(verifier: Verifier) -> None:
    nonce, digest = b"n" * 32, b"d" * 32
    hello = NODE.hello(nonce, digest, START_MS)
    opened, descriptor = verifier.open_hello(hello, nonce, digest, START_MS)
    assert opened.issuer == descriptor.issuer == NODE.id
    for other in ((b"x" * 32, digest, Code.BAD_SIGNATURE), (nonce, b"x" * 32, Code.PIN_MISMATCH)):
        assert refused(verifier.open_hello, hello, other[0], other[1], START_MS) is other[2]


STORY = tell()
CLAIM, RELAY = STORY.attestation.message, STORY.relay_receipt.message


def speed(
    claim: InferenceAttestation = CLAIM,
    relay: RelayReceipt = RELAY,
    burst_tokens: int = 10,
    descriptor: NodeDescriptor | None = STORY.descriptor.message,
) -> int:
    return rankable_speed(claim, relay, burst_tokens, descriptor)


def decoded_in(decode_us: int) -> InferenceAttestation:
    return replace(CLAIM, timing=replace(CLAIM.timing, decode_us=decode_us))


def test_the_witnessed_speed_counts_unless_the_claim_contradicts_it() -> None:
    assert speed() == 99 * 1_000_000_000 // CLAIM.timing.decode_us
    assert speed(decoded_in(1_900_000)) == 99 * 1_000_000_000 // 1_990_000
    assert speed(relay=replace(RELAY, tokens=1)) == 0
    for too_fast in (0, 1_000):
        assert speed(decoded_in(too_fast)) == 0
    assert speed(descriptor=None) == 0
    assert speed(relay=replace(RELAY, first_us=1, last_us=100_000)) == 0


def test_chunks_that_were_held_back_make_no_node_faster() -> None:
    sent_at_once = replace(RELAY, first_us=RELAY.last_us - 1_000)
    assert speed(relay=sent_at_once) == speed()
    assert speed(relay=sent_at_once, burst_tokens=51) == 0
