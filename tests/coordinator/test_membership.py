"""Who is in: invites, bans, replays."""

from __future__ import annotations

import pytest

from novamesh_coordinator import membership
from novamesh_coordinator.events import MemberBanned, MemberJoined
from novamesh_coordinator.inputs import BanAsked
from novamesh_coordinator.membership import Membership, MembershipState
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import BanOrder
from support.actors import ClientActor
from support.parties import COORDINATOR
from support.table import Table


@pytest.fixture
def table() -> Table:
    return Table()


def actor(name: str = "client") -> ClientActor:
    return ClientActor(name, COORDINATOR.node_id)


def refusal(table: Table, name: str, invite: bytes) -> tuple[Code, str]:
    with pytest.raises(NovaMeshError) as refused:
        table.join(actor(name), invite)
    return refused.value.code, refused.value.message


def test_an_invite_lets_somebody_in_once(table: Table) -> None:
    invite = table.invite(uses=2)
    for name in ("a", "a", "b", "a"):
        table.join(actor(name), invite)
    assert len(table.core.membership) == 2
    assert len(table.log) == 2
    assert refusal(table, "c", invite)[0] is Code.FORBIDDEN
    table.join(actor("c"), table.invite(name=b"invite-2"))


def test_an_invite_expires(table: Table) -> None:
    invite = table.invite(days=1)
    table.clock.advance(86_401)
    code, message = refusal(table, "client", invite)
    assert (code, message) == (Code.FORBIDDEN, "this invite has expired")


@pytest.mark.parametrize(
    ("invite", "said"),
    [(b"", "needs an invite"), (b"x" * 37, "not one of this pool"), (b"x" * 64, "not one of")],
)
def test_a_made_up_invite_is_refused(table: Table, invite: bytes, said: str) -> None:
    code, message = refusal(table, "client", invite)
    assert code is Code.FORBIDDEN
    assert said in message


def test_every_flipped_bit_of_an_invite_is_noticed(table: Table) -> None:
    invite = table.invite()
    for index in range(len(invite)):
        forged = bytearray(invite)
        forged[index] ^= 1
        assert refusal(table, "client", bytes(forged))[0] is Code.FORBIDDEN


def test_uses_of_expired_invites_are_forgotten(table: Table) -> None:
    table.join(actor("a"), table.invite(days=1, name=b"invite-1"))
    table.clock.advance(2 * 86_400)
    table.join(actor("b"), table.invite(days=1, name=b"invite-2"))
    assert [use.id for use in table.core.membership.dump().invites] == [b"invite-2"]


def test_an_open_pool_takes_anybody_and_still_counts_invites() -> None:
    table = Table(open_pool=True)
    table.join(actor("a"), b"")
    table.join(actor("b"), table.invite())
    assert [r.invite for r in table.log if isinstance(r, MemberJoined)] == [b"", b"invite-1"]
    assert refusal(table, "c", b"nonsense")[0] is Code.FORBIDDEN


def test_a_ban_is_told_with_its_reason_and_can_be_lifted(table: Table) -> None:
    client = table.client()
    table.ban(client.id, "floods")
    with pytest.raises(NovaMeshError, match="floods") as refused:
        table.match(client)
    assert refused.value.code is Code.BANNED
    assert refusal(table, "client", table.invite())[0] is Code.BANNED
    table.ban(client.id, lift=True)
    with pytest.raises(NovaMeshError) as refused:
        table.match(client)
    assert refused.value.code is Code.MODEL_NOT_FOUND


def test_the_coordinator_bans_anybody_but_itself(table: Table) -> None:
    with pytest.raises(NovaMeshError, match="own PeerId") as refused:
        table.ban(COORDINATOR.node_id)
    assert refused.value.code is Code.BAD_REQUEST
    assert table.log == []


def test_somebody_can_be_banned_before_it_joins(table: Table) -> None:
    table.ban(actor("stranger").id, "")
    assert "by the pool's owner" in refusal(table, "stranger", table.invite())[1]


def test_an_old_order_never_acts_twice_not_even_after_a_restart(table: Table) -> None:
    client, owner = table.client(), actor("coordinator")
    order = owner.sign(BanOrder(owner.header(table.now_ms), client.id, "spam"))
    verified = table.verifier.open(order, BanOrder, table.now_ms)
    table.do(BanAsked(verified))
    table.ban(client.id, lift=True)
    table.restart()
    with pytest.raises(NovaMeshError) as refused:
        table.do(BanAsked(verified))
    assert refused.value.code is Code.REPLAYED


def test_a_stranger_is_told_how_to_join(table: Table) -> None:
    with pytest.raises(NovaMeshError) as refused:
        table.match(actor("stranger"))
    assert (refused.value.code, refused.value.hint) == (
        Code.NOT_A_MEMBER,
        "novamesh pool join CODE",
    )


def test_everything_has_a_bound(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "MEMBERS_MAX", 1)
    table.client("a")
    assert refusal(table, "b", table.invite())[0] is Code.NO_CAPACITY
    monkeypatch.setattr(membership, "BANS_MAX", 0)
    with pytest.raises(NovaMeshError) as refused:
        table.ban(actor("b").id)
    assert refused.value.code is Code.NO_CAPACITY
    monkeypatch.setattr(membership, "ORDERS_MAX", 1)
    with pytest.raises(NovaMeshError) as refused:
        table.ban(actor("b").id)
    assert refused.value.code is Code.BUSY
    monkeypatch.setattr(membership, "BANS_MAX", 9)
    table.clock.advance(600)  # the old claim has expired
    table.ban(actor("b").id)
    assert len(table.core.membership.dump().orders) == 1


def test_the_state_reads_back() -> None:
    table = Table()
    client = table.client()
    table.ban(client.id)
    state = table.core.membership.dump()
    again = Membership(b"", False, state)
    assert again.dump() == state
    assert Membership(b"", False, MembershipState()).dump() == MembershipState()
    assert any(isinstance(record, MemberBanned) for record in table.log)
