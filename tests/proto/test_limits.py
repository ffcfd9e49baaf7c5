"""The maxima fit into each other: what one rule allows, no other makes impossible."""

from __future__ import annotations

from dataclasses import replace

from novamesh_proto import envelope, limits, wire
from novamesh_proto.messages import AttachAssignment, AttachResponse, JobTerms, KeyWrap, SealedJob
from support import parties
from support.parties import CLIENT, NETWORK, NODE
from support.story import tell


def test_the_largest_sealed_job_fits_one_message() -> None:
    terms = envelope.seal(parties.terms(body_bytes=limits.BODY_BYTES_MAX), CLIENT)
    wrap = KeyWrap(NODE.node_id, parties.digest("descriptor"), bytes(80))
    job = SealedJob(terms, bytes(limits.BODY_BYTES_MAX), (wrap,) * limits.CANDIDATES_MAX)
    sent = AttachResponse(assignment=AttachAssignment(tell().assignment.envelope, job))
    assert len(wire.encode(sent)) < limits.MESSAGE_BYTES_MAX - limits.CONTROL_BYTES_MAX


def test_the_largest_terms_fit_a_control_message() -> None:
    stops = tuple(range(2**32 - limits.STOP_TOKENS_MAX, 2**32))
    sampling = replace(parties.terms().sampling, stop_token_ids=stops)
    header = parties.head(CLIENT, *[NODE] * limits.AUDIENCE_MAX)
    sealed = envelope.seal(parties.terms(sampling=sampling, header=header), CLIENT)
    assert envelope.open(sealed, JobTerms, network=NETWORK).message.sampling == sampling


def test_terms_may_live_as_long_as_their_job() -> None:
    assert limits.JOB_TIMEOUT_MS_MAX <= limits.CONTROL_LIFE_MS


def test_padding_wastes_no_part_of_the_largest() -> None:
    assert limits.BODY_BYTES_MAX % limits.BODY_PADDING == 0
    assert limits.CHUNK_BYTES_MAX % limits.CHUNK_PADDING == 0


def test_a_lease_outlives_a_checkpoint_and_a_reservation() -> None:
    assert limits.CHECKPOINT_MS < limits.RESERVATION_MS < limits.LEASE_MS
