"""The door for sealed jobs and attestations: what does not fit, and in which words it is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from novamesh_coordinator.inputs import JobSubmitted
from novamesh_coordinator.relay import Relay
from novamesh_coordinator.verifier import Verifier, check_claim
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import InferenceAttestation, JobDecision, NodesQuery
from support.actors import ClientActor, NodeActor
from support.clock import START_MS
from support.parties import COORDINATOR, NETWORK
from support.refusals import refused
from support.scene import Scene

CLIENT = ClientActor("client", COORDINATOR.node_id)
NODE, OTHER = (NodeActor(name, COORDINATOR.node_id) for name in ("node", "other"))
ORDER = CLIENT.seal([NODE.descriptor(START_MS), OTHER.descriptor(START_MS)], START_MS)


@pytest.fixture
def verifier() -> Verifier:
    return Verifier(COORDINATOR.node_id, NETWORK, lambda party: None)


def test_a_sealed_job_is_handed_on_with_its_wraps(verifier: Verifier) -> None:
    wraps = tuple((wrap.node, wrap.descriptor) for wrap in ORDER.job.wraps)
    found = verifier.open_job(ORDER.job, (b"held",), START_MS)
    assert found == JobSubmitted(ORDER.terms, wraps, (b"held",))
    assert [node for node, _ in wraps] == [NODE.id, OTHER.id]


def test_a_body_or_a_wrap_that_does_not_fit_is_refused(verifier: Verifier) -> None:
    job, size = ORDER.job, len(ORDER.job.body)
    with refused(Code.BAD_REQUEST, f"the sealed body has {size + 1} bytes, its terms say {size}"):
        verifier.open_job(replace(job, body=job.body + b"x"), (), START_MS)
    words = (Code.BAD_REQUEST, "the sealed body is not the one its terms name", "seal it again")
    with refused(*words):
        verifier.open_job(replace(job, body=bytes(size)), (), START_MS)
    with refused(Code.BAD_REQUEST, "two key wraps are for the same node"):
        verifier.open_job(replace(job, wraps=(job.wraps[0], job.wraps[0])), (), START_MS)
    with pytest.raises(NovaMeshError) as late:
        verifier.open_job(job, (), START_MS + 3_600_000)
    assert late.value.code is Code.NOT_FRESH


def test_who_may_speak_is_told(verifier: Verifier) -> None:
    with refused(
        Code.FORBIDDEN,
        "only the pool's owner may ask this",
        "run it where the coordinator's key is",
    ):
        query = CLIENT.sign(NodesQuery(CLIENT.header(START_MS)))
        verifier.open_order(query, NodesQuery, START_MS)
    said = OTHER.sign(JobDecision(OTHER.header(START_MS), ORDER.id, 1, 1, True))
    with pytest.raises(PeerError) as caught:
        verifier.open_of(said, JobDecision, NODE.id, START_MS)
    error = caught.value
    signer = format_node_id(OTHER.id)
    assert (error.message, error.peer) == (
        f"JobDecision was signed by {signer}",
        format_node_id(NODE.id),
    )
    with pytest.raises(PeerError) as caught:
        verifier.open_descriptor(OTHER.descriptor(START_MS), NODE.id, START_MS)
    error = caught.value
    assert (error.code, error.message, error.peer, error.hint) == (
        Code.FORBIDDEN,
        "this descriptor belongs to another node",
        format_node_id(NODE.id),
        "attach with the key that signed the descriptor",
    )


def test_an_advertisement_and_a_claim_are_opened_by_this_clock(verifier: Verifier) -> None:
    old = NODE.descriptor(START_MS - 2 * 3_600_000)
    with pytest.raises(NovaMeshError) as caught:
        verifier.open_descriptor(old, NODE.id, START_MS)
    assert caught.value.code is Code.NOT_FRESH
    nonce, digest = b"n" * 32, b"d" * 32
    hello = NODE.hello(nonce, digest, START_MS, descriptor=OTHER.descriptor(START_MS))
    with pytest.raises(PeerError) as foreign:
        verifier.open_hello(hello, nonce, digest, START_MS)
    assert foreign.value.message == "this descriptor belongs to another node"


def test_a_hello_that_was_meant_for_another_connection_is_told_so(verifier: Verifier) -> None:
    nonce, digest = b"n" * 32, b"d" * 32
    hello = NODE.hello(nonce, digest, START_MS, descriptor=NODE.descriptor(START_MS))
    with refused(Code.BAD_SIGNATURE, "this hello answers another challenge", "attach again"):
        verifier.open_hello(hello, bytes(32), digest, START_MS)
    with refused(
        Code.PIN_MISMATCH,
        "the node sees another certificate than the coordinator's",
        "somebody stands in between, or the certificate is an old one: fetch it again",
    ):
        verifier.open_hello(hello, nonce, bytes(32), START_MS)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("lie", [{}, {"chunks": 2}, {"chain_head": bytes(32)}], ids=str)
def test_a_claim_is_of_the_chain_that_the_relay_saw_to_its_end(
    final: bool, lie: dict[str, object]
) -> None:
    scene = Scene()
    attempt, table = scene.attempt, scene.table
    stream = Relay().open(attempt.assignment, 0, 0)
    stream.chain.follow(attempt.chunk(3, final=final).chunk)
    sealed = attempt.attest(table.now_ms, **lie)
    claim = table.verifier.open_of(sealed, InferenceAttestation, scene.node.id, table.now_ms)
    if final and not lie:
        check_claim(claim, attempt.terms, stream)
        return
    with pytest.raises(PeerError) as caught:
        check_claim(claim, attempt.terms, stream)
    assert (caught.value.code, caught.value.peer) == (Code.CORRUPT, format_node_id(scene.node.id))
    assert caught.value.message == (
        f"the attestation names a chain of {lie.get('chunks', 1)} chunks, the relay saw another "
        f"one of 1{'' if final else ' without a final chunk'}"
    )
