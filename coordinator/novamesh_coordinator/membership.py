"""Who belongs to the pool: members, used invites, bans. The one owner of that state.

Rules: joining again is harmless; a ban counts whether somebody is a member or not; what the owner
ordered is remembered until the order has expired, so an old order never acts twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from novamesh_coordinator.effects import Turn
from novamesh_coordinator.events import MemberBanned, MemberJoined
from novamesh_coordinator.invite import Invite, check_invite, read_invite
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import short
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import BanOrder, JoinClaim, MessageId, NodeId

MEMBERS_MAX: Final = 65_536
ORDERS_MAX: Final = 16_384
BANS_MAX: Final = 16_384


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who joined."""

    member: NodeId
    joined_ms: int


@dataclass(frozen=True, slots=True)
class InviteUse:
    """How often an invite was used; forgotten once it has expired."""

    id: bytes
    expires_ms: int
    used: int


@dataclass(frozen=True, slots=True)
class MembershipState:
    """All of it, sorted."""

    members: tuple[Member, ...] = ()
    invites: tuple[InviteUse, ...] = ()
    bans: tuple[tuple[NodeId, str], ...] = ()
    orders: tuple[tuple[MessageId, int], ...] = ()


class Membership:
    """Members and bans."""

    def __init__(self, secret: bytes, open_pool: bool, state: MembershipState) -> None:
        self._secret = secret
        self._open = open_pool
        self._members = {member.member: member for member in state.members}
        self._invites = {use.id: use for use in state.invites}
        self._bans = dict(state.bans)
        self._orders = dict(state.orders)

    def dump(self) -> MembershipState:
        """The state, sorted."""
        return MembershipState(
            tuple(self._members[key] for key in sorted(self._members)),
            tuple(self._invites[key] for key in sorted(self._invites)),
            tuple(sorted(self._bans.items())),
            tuple(sorted(self._orders.items())),
        )

    def __len__(self) -> int:
        return len(self._members)

    def ban_reason(self, party: NodeId) -> str:
        """Why somebody is banned; empty if it is not."""
        return self._bans.get(party, "")

    def require(self, party: NodeId) -> None:
        """Return if somebody may act here.

        Raises:
            NovaMeshError: BANNED with the reason, NOT_A_MEMBER.
        """
        self._refuse_banned(party)
        if party not in self._members:
            raise NovaMeshError(
                Code.NOT_A_MEMBER,
                f"{short(party)} is not a member of this pool",
                "novamesh pool join CODE",
            )

    def join(self, turn: Turn, claim: Verified[JoinClaim]) -> None:
        """Let somebody in.

        Raises:
            NovaMeshError: BANNED, FORBIDDEN for an invite that is not good, NO_CAPACITY.
        """
        party = claim.issuer
        self._refuse_banned(party)
        if party in self._members:
            return
        invite = self._check(claim.message.invite, turn.now.wall_ms)
        if len(self._members) >= MEMBERS_MAX:
            raise NovaMeshError(
                Code.NO_CAPACITY, f"this pool has {MEMBERS_MAX} members", "join another pool"
            )
        self._require_room_for_orders(turn.now.wall_ms)
        turn.log(
            MemberJoined(
                member=party,
                at_ms=turn.now.wall_ms,
                invite=invite.id,
                invite_expires_ms=invite.expires_ms,
                claim=claim.id,
                claim_expires_ms=claim.message.header.expires_at_ms,
            )
        )

    def ban(self, turn: Turn, order: Verified[BanOrder]) -> None:
        """Keep somebody out, or let it in again.

        Raises:
            NovaMeshError: REPLAYED for an order that acted already, BUSY.
        """
        if order.id in self._orders:
            raise NovaMeshError(Code.REPLAYED, "this order was already carried out")
        self._require_room_for_orders(turn.now.wall_ms)
        if len(self._bans) >= BANS_MAX:
            raise NovaMeshError(Code.NO_CAPACITY, f"{BANS_MAX} are banned", "lift old bans first")
        wanted = order.message
        reason = "" if wanted.lift else wanted.reason or "by the pool's owner"
        turn.log(
            MemberBanned(
                member=wanted.member,
                at_ms=turn.now.wall_ms,
                reason=reason,
                order=order.id,
                order_expires_ms=wanted.header.expires_at_ms,
            )
        )

    def apply(self, record: MemberJoined | MemberBanned) -> None:
        """Change the state as a record says."""
        if isinstance(record, MemberJoined):
            self._members[record.member] = Member(record.member, record.at_ms)
            self._note_order(record.claim, record.claim_expires_ms, record.at_ms)
            if record.invite:
                self._count_use(record)
            return
        self._note_order(record.order, record.order_expires_ms, record.at_ms)
        if record.reason:
            self._bans[record.member] = record.reason
        else:
            self._bans.pop(record.member, None)

    def _check(self, token: bytes, now_ms: int) -> Invite:
        if self._open and not token:
            return Invite(b"", 0, 0)
        invite = read_invite(self._secret, token)
        use = self._invites.get(invite.id)
        check_invite(invite, use.used if use else 0, now_ms)
        return invite

    def _count_use(self, record: MemberJoined) -> None:
        use = self._invites.get(record.invite)
        used = (use.used if use else 0) + 1
        self._invites = {
            key: kept for key, kept in self._invites.items() if kept.expires_ms > record.at_ms
        }
        self._invites[record.invite] = InviteUse(record.invite, record.invite_expires_ms, used)

    def _note_order(self, order: MessageId, expires_ms: int, at_ms: int) -> None:
        if len(self._orders) >= ORDERS_MAX // 2:
            self._orders = {
                key: due for key, due in self._orders.items() if due + CLOCK_SKEW_MS >= at_ms
            }
        self._orders[order] = expires_ms

    def _require_room_for_orders(self, now_ms: int) -> None:
        live = len(self._orders)
        if live >= ORDERS_MAX:
            live = sum(due + CLOCK_SKEW_MS >= now_ms for due in self._orders.values())
        if live >= ORDERS_MAX:
            raise NovaMeshError(
                Code.BUSY, "too many joins and orders in a short time", "try again", 60_000
            )

    def _refuse_banned(self, party: NodeId) -> None:
        reason = self._bans.get(party)
        if reason:
            raise NovaMeshError(
                Code.BANNED,
                f"{short(party)} is banned from this pool: {reason}",
                "ask the pool's owner",
            )
