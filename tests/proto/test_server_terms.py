"""The terms of every server: bounds that fit each other, and refusals that say what is wrong."""

from __future__ import annotations

import grpc
import pytest

from novamesh_proto import wire
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError
from novamesh_proto.limits import MESSAGE_BYTES_MAX, METADATA_BYTES_MAX
from novamesh_proto.messages import ErrorDetail
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.server_terms import SERVER_OPTIONS, refusal, strict
from novamesh_proto.v1 import coordinator_pb2 as pb


@pytest.mark.parametrize("code", list(MEANINGS))
def test_every_error_is_told_as_a_status_and_whole(code: Code) -> None:
    error = NovaMeshError(code, "what happened", "what to do", 700)
    told = refusal(error)
    assert hasattr(grpc.StatusCode, told.status)
    assert told.text == "what happened"
    ((name, value),) = told.trailer
    assert name == ERROR_METADATA
    assert wire.decode(ErrorDetail, value) == ErrorDetail(code, "what happened", "what to do", 700)


def test_a_long_error_is_cut_and_fits_into_the_trailer() -> None:
    told = refusal(NovaMeshError(Code.BUSY, "é" * 10_000, "ü" * 10_000, -5))
    detail = wire.decode(ErrorDetail, told.trailer[0][1])
    assert (len(detail.message), len(detail.hint), detail.retry_after_ms) == (500, 250, 0)
    assert len(told.text.encode()) + len(told.trailer[0][1]) < METADATA_BYTES_MAX


def test_bytes_that_are_no_message_are_refused_in_our_words() -> None:
    parse = strict(pb.HelloRequest.FromString)
    assert parse(b"") == pb.HelloRequest()
    with pytest.raises(NovaMeshError) as caught:
        strict(pb.SubmitRequest.FromString)(b"\xff\xff\xff")
    assert caught.value.code is Code.BAD_REQUEST


def test_the_bounds_are_those_of_the_protocol() -> None:
    options = dict(SERVER_OPTIONS)
    assert len(options) == len(SERVER_OPTIONS), "an option is said once"
    assert options["grpc.max_receive_message_length"] == MESSAGE_BYTES_MAX
    assert options["grpc.absolute_max_metadata_size"] == METADATA_BYTES_MAX
    assert options["grpc.so_reuseport"] == 0
