"""Bodies open for their node alone, and only as the signed terms promise them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novamesh_proto import envelope, names, sealing, wire
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import BODY_BYTES_MAX, BODY_PADDING
from novamesh_proto.messages import JobBody, JobId, JobTerms, NodeId, Sampling, SealedJob
from novamesh_proto.sealing import HpkeKey
from support import parties
from support.message_values import values
from support.parties import CLIENT, NETWORK, NODE
from support.refusals import refused, unless_refused
from support.vectors import Vector, golden, load

MARKER = "the-secret-question"
DESCRIPTOR = parties.sign(parties.descriptor(), NODE)
JOB = JobId(parties.digest("job"))
SALT = sealing.salt(parties.digest("response key"), JOB)
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=6)


@golden("sealing/rfc9180")
def test_rfc9180(vector: Vector) -> None:
    """The suite is RFC 9180's. Its vectors have associated data, which only the library's own
    tests may pass: hence the private function."""
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    key = X25519PrivateKey.from_private_bytes(vector.data("private"))
    sealed = vector.data("enc") + vector.data("ciphertext")

    def run() -> bytes:
        return openssl.hpke._decrypt_with_aad(
            suite, sealed, key, vector.data("info"), vector.data("aad")
        )

    if vector.ok:
        assert key.public_key().public_bytes_raw() == vector.data("public")
        assert run() == vector.data("plaintext")
    else:
        with pytest.raises(InvalidTag):
            run()


def open_vector(vector: Vector) -> JobBody:
    job = wire.decode(SealedJob, vector.data("job"))
    terms = envelope.open(job.terms, JobTerms, network=NETWORK)
    key = HpkeKey.from_bytes(vector.data("hpke_key"))
    return sealing.open_body(job, terms, key, NodeId(vector.data("node")))


@golden("sealing/body")
def test_golden_bodies(vector: Vector) -> None:
    with vector.verdict():
        body = open_vector(vector)
    if vector.ok:
        assert body.client_seed.hex() == vector["body"]["client_seed"]
        assert body.response_key.hex() == vector["body"]["response_key"]
        assert body.text == vector["body"]["text"]
        assert list(body.stop) == vector["body"]["stop"]
        assert list(body.prefix_token_ids) == vector["body"]["prefix_token_ids"]
        if body.chat is not None:
            said = [message.content for message in body.chat.messages]
            assert said == [m["content"] for m in vector["body"]["chat"]["messages"]]
        if body.tokens is not None:
            assert list(body.tokens.token_ids) == vector["body"]["tokens"]["token_ids"]


def open_job(
    job: SealedJob,
    terms: Verified[JobTerms],
    key: HpkeKey | None = None,
    node: NodeId | None = None,
) -> JobBody:
    return sealing.open_body(job, terms, key or parties.hpke_key("node"), node or NODE.node_id)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=values(JobBody))
def test_every_body_comes_back(body: JobBody) -> None:
    changes = {}
    if body.prefix_token_ids:
        parent = JobId(parties.digest("parent"))
        changes = {
            "parent_job": parent,
            "start_position": len(body.prefix_token_ids),
            "prefix_digest": sealing.forced_prefix_digest(body, parent),
        }
    job, terms = parties.sealed_job(DESCRIPTOR, body, **changes)
    assert open_job(job, terms) == body
    assert len(job.body) % BODY_PADDING == 0


def test_nobody_in_between_can_read_it() -> None:
    job, _ = parties.sealed_job(DESCRIPTOR, parties.body(MARKER))
    assert MARKER.encode() not in wire.encode(job)
    assert parties.digest("response key") not in wire.encode(job)


def test_short_prompts_look_alike() -> None:
    lengths = {
        len(sealing.seal_body(parties.body("x" * size)).ciphertext) for size in range(1, 100)
    }
    assert lengths == {BODY_PADDING}


def test_two_seals_share_no_key() -> None:
    one, other = sealing.seal_body(parties.body()), sealing.seal_body(parties.body())
    assert one.key != other.key
    assert one.ciphertext != other.ciphertext
    assert one.commitment != other.commitment


def test_a_sealed_body_is_what_the_terms_need() -> None:
    sealed = sealing.seal_body(parties.body())
    assert sealed.digest == hashlib.sha256(sealed.ciphertext).digest()
    assert sealed.commitment == sealing.body_key_commitment(sealed.key)
    assert sealed.key.hex() not in repr(sealed)


def test_a_body_above_the_limit_is_not_sealed() -> None:
    body = JobBody(parties.digest("a"), parties.digest("b"), text="x" * BODY_BYTES_MAX)
    with pytest.raises(NovaMeshError) as caught:
        sealing.seal_body(body)
    assert caught.value.code is Code.TOO_LARGE


def test_terms_of_another_job_do_not_open_it() -> None:
    job, _ = parties.sealed_job(DESCRIPTOR)
    _, other = parties.sealed_job(DESCRIPTOR)
    with pytest.raises(NovaMeshError, match="another job") as caught:
        open_job(job, other)
    assert caught.value.code is Code.CANNOT_OPEN


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_bit_of_body_or_wrap_may_differ(at: int, bit: int) -> None:
    raw = load("sealing/body")[0]
    job = wire.decode(SealedJob, raw.data("job"))
    terms = envelope.open(job.terms, JobTerms, network=NETWORK)
    sealed = bytearray(job.body + job.wraps[0].sealed_key)
    sealed[at % len(sealed)] ^= 1 << bit
    wrap = replace(job.wraps[0], sealed_key=bytes(sealed[len(job.body) :]))
    changed = replace(job, body=bytes(sealed[: len(job.body)]), wraps=(wrap,))
    assert unless_refused(lambda: open_job(changed, terms), Code.CANNOT_OPEN) is None


def test_a_wrap_opens_for_its_job_and_key_alone() -> None:
    body_key = parties.digest("body key")
    wrap = sealing.wrap_key(body_key, JOB, DESCRIPTOR)
    assert wrap.node == NODE.node_id
    assert wrap.descriptor == DESCRIPTOR.id
    assert parties.hpke_key("node").unwrap(wrap.sealed_key, JOB) == body_key
    for key, job in (("node", JobId(parties.digest("other"))), ("other", JOB)):
        with pytest.raises(NovaMeshError) as caught:
            parties.hpke_key(key).unwrap(wrap.sealed_key, job)
        assert caught.value.code is Code.CANNOT_OPEN


@pytest.mark.parametrize("size", [0, 31, 79, 81])
def test_a_wrap_of_another_size_does_not_open(size: int) -> None:
    with pytest.raises(NovaMeshError) as caught:
        parties.hpke_key("node").unwrap(bytes(size), JOB)
    assert caught.value.code is Code.CANNOT_OPEN


def test_a_descriptor_with_a_key_of_small_order_is_its_nodes_fault() -> None:
    poisoned = parties.sign(parties.descriptor(hpke_key=bytes(32)), NODE)
    with pytest.raises(PeerError) as caught:
        sealing.wrap_key(parties.digest("body key"), JOB, poisoned)
    assert caught.value.code is Code.BAD_KEY
    assert caught.value.peer.startswith("12D3KooW")


def test_an_hpke_key_survives_its_bytes_and_stays_out_of_sight() -> None:
    key = HpkeKey.generate()
    assert HpkeKey.from_bytes(key.to_bytes()).public == key.public
    assert key.to_bytes().hex() not in repr(key)
    with pytest.raises(NovaMeshError) as caught:
        HpkeKey.from_bytes(b"short")
    assert caught.value.code is Code.BAD_KEY


@given(one=TOKENS, other=TOKENS)
def test_token_digests_are_equal_for_equal_tokens_only(one: list[int], other: list[int]) -> None:
    same = one == other
    assert (sealing.output_digest(SALT, one) == sealing.output_digest(SALT, other)) is same


@given(tokens=TOKENS)
def test_token_digests_are_salted_and_keep_their_purpose(tokens: list[int]) -> None:
    other = sealing.salt(parties.digest("response key"), JobId(parties.digest("other")))
    kinds = (sealing.prompt_digest, sealing.output_digest, sealing.prefix_digest)
    assert len({kind(salt, tokens) for kind in kinds for salt in (SALT, other)}) == 6


def test_commitments_keep_their_purpose() -> None:
    secret = parties.digest("secret")
    assert sealing.seed_commitment(secret) != sealing.body_key_commitment(secret)
    assert sealing.forced_prefix_digest(parties.body(), JOB) == b""


def test_the_client_is_who_signs() -> None:
    job, terms = parties.sealed_job(DESCRIPTOR)
    assert terms.issuer == CLIENT.node_id
    assert envelope.message_id(job.terms) == terms.id


FOREIGN = (
    Code.CANNOT_OPEN,
    "the body key was wrapped for another key or job",
    "ask for new candidates and seal the job again",
)


def test_a_body_that_does_not_open_says_why() -> None:
    job, terms = parties.sealed_job(DESCRIPTOR)
    _, other = parties.sealed_job(DESCRIPTOR, timeout_ms=1)
    with refused(Code.CANNOT_OPEN, "these terms belong to another job"):
        open_job(job, other)
    for body in (job.body + b"x", bytes(len(job.body))):
        with refused(Code.CANNOT_OPEN, "the sealed body is not the one the terms name"):
            open_job(replace(job, body=body), terms)
    with refused(Code.CANNOT_OPEN, "the body key was not wrapped for this node", FOREIGN[2]):
        open_job(job, terms, node=CLIENT.node_id)
    with refused(*FOREIGN):
        open_job(job, terms, parties.hpke_key("another"))
    with refused(*FOREIGN):
        parties.hpke_key("node").unwrap(b"", JOB)
    wrap = sealing.wrap_key(bytes(32), JobId(terms.id), DESCRIPTOR)
    with refused(Code.CANNOT_OPEN, "the body key is not the one the terms commit to"):
        open_job(replace(job, wraps=(wrap,)), terms)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"sampling": Sampling(seed_commitment=bytes(32), max_tokens=200)},
            "the seed is not the one the terms commit to",
        ),
        ({"start_position": 1}, "start, parent and forced prefix do not fit together"),
        ({"parent_job": JOB}, "start, parent and forced prefix do not fit together"),
        ({"prefix_digest": bytes(32)}, "start, parent and forced prefix do not fit together"),
    ],
)
def test_what_the_terms_promised_otherwise_is_told(changes: dict[str, Any], problem: str) -> None:
    content = parties.body()
    sealed = sealing.seal_body(content)
    wanted = parties.terms(
        body_digest=sealed.digest,
        body_bytes=len(sealed.ciphertext),
        key_commitment=sealed.commitment,
    )
    seed = sealing.seed_commitment(content.client_seed)
    wanted = replace(wanted, sampling=replace(wanted.sampling, seed_commitment=seed))
    terms = parties.sign(replace(wanted, **changes), CLIENT)
    wrap = sealing.wrap_key(sealed.key, JobId(terms.id), DESCRIPTOR)
    job = SealedJob(terms.envelope, sealed.ciphertext, (wrap,))
    with refused(Code.CANNOT_OPEN, problem):
        open_job(job, terms)


def test_another_prefix_than_the_terms_name_is_told() -> None:
    content = parties.body(prefix_token_ids=(1, 2))
    changes = {"parent_job": JOB, "start_position": 2, "prefix_digest": bytes(32)}
    job, terms = parties.sealed_job(DESCRIPTOR, content, **changes)
    with refused(Code.CANNOT_OPEN, "the forced prefix is not the one the terms name"):
        open_job(job, terms)


@pytest.mark.parametrize("plaintext", [b"\xff" * 15 + b"\x80", b"no padding at all"])
def test_a_sealed_body_that_holds_none_is_told(plaintext: bytes) -> None:
    key = bytes(32)
    ciphertext = ChaCha20Poly1305(key).encrypt(bytes(12), plaintext, names.LABEL_BODY)
    terms = parties.sign(
        parties.terms(
            body_digest=hashlib.sha256(ciphertext).digest(),
            body_bytes=len(ciphertext),
            key_commitment=sealing.body_key_commitment(key),
        ),
        CLIENT,
    )
    wrap = sealing.wrap_key(key, JobId(terms.id), DESCRIPTOR)
    with pytest.raises(NovaMeshError) as caught:
        open_job(SealedJob(terms.envelope, ciphertext, (wrap,)), terms)
    assert caught.value.code is Code.CANNOT_OPEN
    assert caught.value.message.startswith("the body opens, but is none: ")
    assert not caught.value.message.endswith("None")


def test_a_body_under_another_key_or_label_does_not_open() -> None:
    key = bytes(32)
    ciphertext = ChaCha20Poly1305(key).encrypt(bytes(12), bytes(64), b"another label")
    terms = parties.sign(
        parties.terms(
            body_digest=hashlib.sha256(ciphertext).digest(),
            body_bytes=len(ciphertext),
            key_commitment=sealing.body_key_commitment(key),
        ),
        CLIENT,
    )
    wrap = sealing.wrap_key(key, JobId(terms.id), DESCRIPTOR)
    with refused(Code.CANNOT_OPEN, "the sealed body does not open"):
        open_job(SealedJob(terms.envelope, ciphertext, (wrap,)), terms)


def test_an_hpke_key_is_told_by_its_size_and_its_order() -> None:
    with refused(Code.BAD_KEY, "an X25519 key has 32 bytes, this has 31"):
        HpkeKey.from_bytes(bytes(31))
    weak = parties.sign(parties.descriptor(hpke_key=bytes(32)), NODE)
    with pytest.raises(PeerError) as caught:
        sealing.wrap_key(bytes(32), JOB, weak)
    error = caught.value
    assert (error.code, error.message, error.peer) == (
        Code.BAD_KEY,
        "this node's HPKE key is of small order",
        format_node_id(NODE.node_id),
    )
    key = HpkeKey.generate()
    assert (
        key.public
        == X25519PrivateKey.from_private_bytes(key.to_bytes()).public_key().public_bytes_raw()
    )
