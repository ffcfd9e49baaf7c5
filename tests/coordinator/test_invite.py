"""Invites: only ours, only in time, only so often."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_coordinator.invite import (
    USES_MAX,
    Invite,
    check_invite,
    invite_secret,
    read_invite,
    write_invite,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import MIB
from support.parties import CLIENT, COORDINATOR

SECRET = invite_secret(COORDINATOR)
invites = st.builds(
    Invite,
    st.binary(min_size=8, max_size=8),
    st.integers(0, 2**64 - 1),
    st.integers(0, USES_MAX),
)


@given(invites)
def test_what_is_written_reads_back(invite: Invite) -> None:
    token = write_invite(SECRET, invite)
    assert read_invite(SECRET, token) == invite
    assert len(token) <= 64


@given(st.binary(max_size=64))
def test_nothing_else_is_taken(token: bytes) -> None:
    with pytest.raises(NovaMeshError) as refused:
        read_invite(SECRET, token)
    assert refused.value.code is Code.FORBIDDEN


def test_another_coordinators_invites_are_not_ours() -> None:
    token = write_invite(invite_secret(CLIENT), Invite(bytes(8), MIB, 1))
    with pytest.raises(NovaMeshError):
        read_invite(SECRET, token)


def test_a_newer_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh_coordinator.invite._VERSION", 2)
    token = write_invite(SECRET, Invite(bytes(8), 5, 1))
    monkeypatch.undo()
    with pytest.raises(NovaMeshError, match="version 2"):
        read_invite(SECRET, token)


def test_time_and_uses_bound_it() -> None:
    invite = Invite(bytes(8), 1_000, 2)
    check_invite(invite, 1, 999)
    for used, now_ms in ((2, 999), (0, 1_000)):
        with pytest.raises(NovaMeshError):
            check_invite(invite, used, now_ms)
