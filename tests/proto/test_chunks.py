"""The chunks of an answer: a prefix of one chain, in order, without gap, repeat or foreign link."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_proto import wire
from novamesh_proto.chunks import ChainFollower, ChunkOpener, ChunkSealer
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import CHUNK_BYTES_MAX, CHUNK_PADDING
from novamesh_proto.messages import ChunkBody, FinishReason, JobId, NodeId, StreamChunk
from novamesh_proto.padding import pad
from support.parties import CLIENT, NODE, digest
from support.refusals import refused, unless_refused
from support.vectors import Vector, golden

RESPONSE_KEY = digest("response key")
ATTEMPT: dict[str, Any] = {
    "job": JobId(digest("job")),
    "attempt": 1,
    "fence": 7,
    "node": NODE.node_id,
}
# Everything that makes another attempt; each must change the keystream.
FOREIGN: dict[str, dict[str, Any]] = {
    "job": {"job": JobId(digest("other job"))},
    "attempt": {"attempt": 2},
    "fence": {"fence": 8},
    "node": {"node": CLIENT.node_id},
    "response key": {"response_key": digest("other response key")},
}
BODIES = st.builds(
    ChunkBody,
    token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=4).map(tuple),
    text=st.text(max_size=20),
)


def sealer(**changes: Any) -> ChunkSealer:
    return ChunkSealer(**{"response_key": RESPONSE_KEY, **ATTEMPT, **changes})


def opener(**changes: Any) -> ChunkOpener:
    return ChunkOpener(**{"response_key": RESPONSE_KEY, **ATTEMPT, **changes})


def seal_all(bodies: list[ChunkBody], **changes: Any) -> list[StreamChunk]:
    """All bodies sealed, the last one final."""
    maker = sealer(**changes)
    ended = [*bodies[:-1], replace(bodies[-1], finish=FinishReason.STOP)]
    return [maker.seal(body, body.finish is FinishReason.STOP) for body in ended]


def one_each(count: int) -> list[ChunkBody]:
    return [ChunkBody((number,), f"word {number} ") for number in range(count)]


@golden("sealing/chain")
def test_golden_chains(vector: Vector) -> None:
    job, node = JobId(vector.data("job")), NodeId(vector.data("node"))
    attempt = (job, vector["attempt"], vector["fence"], node)
    chunks = [wire.decode(StreamChunk, bytes.fromhex(chunk)) for chunk in vector["chunks"]]
    reader = ChunkOpener(vector.data("response_key"), *attempt)
    with vector.verdict():
        bodies = [reader.open(chunk) for chunk in chunks]
    follower = ChainFollower(*attempt)
    with replace(vector, expect=vector["follow"]).verdict():
        for chunk in chunks:
            follower.follow(chunk)
    if not vector.ok:
        return
    assert reader.head == follower.head == vector.data("head")
    assert reader.position == follower.tokens == vector["position"]
    assert reader.finished is follower.finished is vector["finished"]
    writer = ChunkSealer(vector.data("response_key"), *attempt)
    again = [writer.seal(body, body.finish is not FinishReason.UNSPECIFIED) for body in bodies]
    assert again == chunks
    for body, expected in zip(bodies, vector["bodies"], strict=True):
        assert list(body.token_ids) == expected["token_ids"]
        assert body.text == expected["text"]
        assert body.finish.name == expected["finish"]
        assert len(body.logprobs) == len(expected["logprobs"])


@settings(max_examples=60, deadline=None)
@given(bodies=st.lists(BODIES, min_size=1, max_size=6))
def test_all_three_walk_the_same_chain(bodies: list[ChunkBody]) -> None:
    writer, reader, relay = sealer(), opener(), ChainFollower(**ATTEMPT)
    ended = [*bodies[:-1], replace(bodies[-1], finish=FinishReason.LENGTH)]
    for body in ended:
        chunk = writer.seal(body, body.finish is FinishReason.LENGTH)
        relay.follow(chunk)
        assert reader.open(chunk) == body
        assert reader.head == writer.head == relay.head
        assert reader.position == writer.position == relay.tokens
        assert len(chunk.ciphertext) % CHUNK_PADDING == 0
    assert reader.finished
    assert relay.finished
    assert reader.chunks == relay.chunks == writer.chunks == len(bodies)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_received_is_a_prefix_of_the_chain(data: st.DataObject) -> None:
    """Reordered, dropped, repeated, foreign and renumbered chunks: none is ever taken."""
    bodies = one_each(5)
    honest = seal_all(bodies)
    foreign = [c for change in FOREIGN.values() for c in seal_all(bodies, **change)]
    pool = honest + foreign
    reader = opener()
    for _ in range(data.draw(st.integers(1, 8))):
        chunk = data.draw(st.sampled_from(pool))
        if data.draw(st.booleans()):
            chunk = replace(chunk, index=reader.chunks)
        taken = reader.chunks
        head = reader.head
        body = unless_refused(
            lambda chunk=chunk: reader.open(chunk), Code.CORRUPT, Code.CANNOT_OPEN
        )
        if body is None:
            assert (reader.chunks, reader.head) == (taken, head)
        else:
            assert chunk == honest[taken]
            assert body.token_ids == bodies[taken].token_ids


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bit_of_a_chunk_may_differ(data: st.DataObject) -> None:
    (chunk,) = seal_all([ChunkBody((1, 2), "two")])
    raw = bytearray(chunk.ciphertext)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = data.draw(
        st.sampled_from(
            [
                replace(chunk, ciphertext=bytes(raw)),
                replace(chunk, tokens=chunk.tokens + 1),
                replace(chunk, final=not chunk.final),
            ]
        )
    )
    with pytest.raises(NovaMeshError) as caught:
        opener().open(changed)
    assert caught.value.code is Code.CANNOT_OPEN


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_no_two_attempts_share_a_keystream(change: dict[str, Any]) -> None:
    """The same plaintext at the same index: equal ciphertext would be the same keystream."""
    body = ChunkBody((), "x" * 64)
    ours, theirs = (maker.seal(body, False).ciphertext for maker in (sealer(), sealer(**change)))
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) < len(same) // 4
    with pytest.raises(NovaMeshError) as caught:
        opener().open(sealer(**change).seal(body, False))
    assert caught.value.code is Code.CANNOT_OPEN


def test_no_two_chunks_share_a_keystream() -> None:
    writer = sealer()
    body = ChunkBody((), "x" * 64)
    ciphertexts = [writer.seal(body, False).ciphertext[:-16] for _ in range(20)]
    assert len({ciphertext[:16] for ciphertext in ciphertexts}) == 20


def test_fields_of_an_attempt_cannot_slide_into_each_other() -> None:
    heads = {
        ChainFollower(**{**ATTEMPT, "attempt": attempt, "fence": fence}).head
        for attempt in range(1, 5)
        for fence in range(1, 5)
    }
    assert len(heads) == 16


def test_a_refused_chunk_may_come_again() -> None:
    chunks = seal_all(one_each(3))
    reader = opener()
    reader.open(chunks[0])
    for bad in (chunks[2], chunks[0], replace(chunks[1], tokens=2)):
        with pytest.raises(NovaMeshError):
            reader.open(bad)
    assert reader.open(chunks[1]).token_ids == (1,)


def test_an_answer_cannot_be_cut_short_unseen() -> None:
    reader, relay = opener(), ChainFollower(**ATTEMPT)
    for chunk in seal_all(one_each(3))[:2]:
        reader.open(chunk)
        relay.follow(chunk)
    assert not reader.finished
    assert not relay.finished


def test_nothing_is_sealed_after_the_final_chunk() -> None:
    writer = sealer()
    writer.seal(ChunkBody((1,), "end", finish=FinishReason.STOP), True)
    with pytest.raises(NovaMeshError) as caught:
        writer.seal(ChunkBody((2,), "more"), False)
    assert caught.value.code is Code.CONFLICT


@pytest.mark.parametrize(
    ("finish", "final"), [(FinishReason.STOP, False), (FinishReason.UNSPECIFIED, True)]
)
def test_a_finish_reason_goes_with_the_final_chunk(finish: FinishReason, final: bool) -> None:
    with pytest.raises(NovaMeshError) as caught:
        sealer().seal(ChunkBody((1,), "x", finish=finish), final)
    assert caught.value.code is Code.BAD_REQUEST


def test_a_chunk_that_is_too_large_changes_nothing() -> None:
    writer = sealer()
    head = writer.head
    with pytest.raises(NovaMeshError) as caught:
        writer.seal(ChunkBody((1,), "x" * CHUNK_BYTES_MAX), False)
    assert caught.value.code is Code.TOO_LARGE
    assert (writer.head, writer.chunks) == (head, 0)
    largest = writer.seal(ChunkBody((), "x" * (CHUNK_BYTES_MAX - 40)), False)
    assert len(largest.ciphertext) <= CHUNK_BYTES_MAX


def test_who_breaks_the_rules_inside_a_good_chunk_is_named() -> None:
    lying = sealer().seal_padded(b"\x80" + bytes(15), 3, False)
    with pytest.raises(PeerError) as caught:
        opener().open(lying)
    assert caught.value.peer.startswith("12D3KooW")


def test_a_relay_names_the_node_whose_chain_is_broken() -> None:
    relay = ChainFollower(**ATTEMPT)
    with pytest.raises(PeerError) as caught:
        relay.follow(seal_all(one_each(2))[1])
    assert caught.value.code is Code.CORRUPT


def test_a_broken_chain_says_where_and_whose_it_is() -> None:
    first, second, *_ = seal_all(one_each(3))
    relay = ChainFollower(**ATTEMPT)
    with pytest.raises(PeerError) as caught:
        relay.follow(second)
    assert (caught.value.code, caught.value.message, caught.value.peer) == (
        Code.CORRUPT,
        "the answer's chain is broken: chunk 1 came where 0 was due",
        format_node_id(ATTEMPT["node"]),
    )
    with refused(Code.CORRUPT, "the answer's chain is broken: chunk 1 came where 0 was due"):
        opener().open(second)
    with refused(Code.CANNOT_OPEN, "chunk 0 was changed or is not of this attempt"):
        opener().open(replace(first, tokens=first.tokens + 1))
    only = sealer().seal(ChunkBody((1,), "x", finish=FinishReason.STOP), True)
    relay.follow(only)
    with refused(Code.CORRUPT, "the answer's chain is broken: chunk 1 follows the final one"):
        relay.check_next(replace(only, index=1))


def test_a_sealer_says_what_it_refuses() -> None:
    writer = sealer()
    words = "a finish reason goes with the final chunk only"
    with refused(Code.BAD_REQUEST, words):
        writer.seal(ChunkBody((1,), "x"), True)
    with refused(Code.BAD_REQUEST, words):
        writer.seal(ChunkBody((1,), "x", finish=FinishReason.STOP), False)
    writer.seal(ChunkBody((1,), "x", finish=FinishReason.STOP), True)
    with refused(Code.CONFLICT, "nothing follows the final chunk"):
        writer.seal(ChunkBody((1,), "x"), False)


@pytest.mark.parametrize(
    ("body", "tokens", "final", "problem"),
    [
        (ChunkBody((1, 2), "xy"), 3, False, "it counts other tokens than it holds"),
        (ChunkBody((1, 2), "xy"), 2, True, "its finish reason and final flag do not fit"),
        (
            ChunkBody((1,), "x", finish=FinishReason.STOP),
            1,
            False,
            "its finish reason and final flag do not fit",
        ),
    ],
)
def test_what_a_node_sealed_against_the_rules_is_its_fault(
    body: ChunkBody, tokens: int, final: bool, problem: str
) -> None:
    plaintext = pad(wire.encode(body), CHUNK_PADDING, CHUNK_BYTES_MAX)
    chunk = sealer().seal_padded(plaintext, tokens, final)
    with pytest.raises(PeerError) as caught:
        opener().open(chunk)
    assert (caught.value.code, caught.value.message, caught.value.peer) == (
        Code.CANNOT_OPEN,
        f"chunk 0 breaks the rules: {problem}",
        format_node_id(ATTEMPT["node"]),
    )


def test_what_is_no_body_at_all_is_the_nodes_fault_too() -> None:
    chunk = sealer().seal_padded(bytes(CHUNK_PADDING), 1, False)
    with pytest.raises(PeerError) as caught:
        opener().open(chunk)
    assert caught.value.message.startswith("chunk 0 breaks the rules: ")
    assert not caught.value.message.endswith("None")
