"""Which way one attempt's messages go: up to the coordinator, or straight to its client.

While the client follows the attempt at this node, chunks go to it alone; the coordinator still gets
signs of work and checkpoints, and at the end the attestation with what the client signed for. When
the client's stream breaks, or the tail fills, the coordinator gets what it lacks from the attempt's
tail, so nobody misses anything. Work that was asked of this node alone has no coordinator: its
messages wait in the tail until the client comes. Rules: chunks are left out for good only where the
client has signed for all of them; the coordinator comes first and never waits for a client, and a
client that lags for STUCK_S is given up; what is passed on is in the tail already, so whoever comes
in between has it with what it lacked, and is not told twice; a gap that the tail cannot fill is not
papered over: then the client's word is all that the coordinator gets. Used on the loop only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from novamesh_node.outbox import OUTBOX_MAX, Outbox
from novamesh_node.tail import Tail
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.messages import AttachRequest, Envelope

WITNESS_S: Final = 2.0  # the client's receipt follows the attestation within this, or not at all
STUCK_S: Final = 3.0  # a client that lags for so long is given up, far within a lease


class Delivery:
    """The ways of one attempt. `session` gives the outbox of this moment; None where there is none:
    nobody but the client waits for this work."""

    def __init__(self, session: Callable[[], Outbox] | None) -> None:
        self._session = session
        self._order = asyncio.Lock()
        self._follower: Outbox | None = None
        self._relayed = 0  # chunks that the coordinator has, or will have from its outbox
        self.followed = False  # whether the client ever came
        self.wanted = session is not None  # by the coordinator; else its client alone waits
        self.ack: Envelope | None = None
        self.receipt: Envelope | None = None
        self.last_word: AttachRequest | None = None  # a failure, or the refusal of the job
        self._countersigned = asyncio.Event()
        self._confirmed = False  # the client has signed for the whole answer
        self._late_at: float | None = None  # when the client will have lagged for too long
        self._ended = False
        self._attested = False  # to the coordinator
        self._torn = False  # it lacks chunks that are no longer here
        self._both = False  # it gets chunks too, though the client is here

    @property
    def alone(self) -> bool:
        """Whether the client asked this node and nobody else."""
        return self._session is None

    @property
    def direct(self) -> bool:
        """Whether the client follows the attempt here now."""
        return self._follower is not None and not self._follower.closed

    async def send(self, messages: tuple[AttachRequest, ...], tail: Tail | None = None) -> None:
        """Pass messages on, in order; waits while the way they go is full.

        `tail`: the attempt's, which has them; none for signs of work.
        """
        if not messages:
            return
        before = self._follower
        async with self._order:
            follower, outbox = self._follower, self._outbox()
            if outbox is not None:
                for message in self._for_coordinator(messages, tail):
                    await self._relay(outbox, message)
            # Whoever came while this waited got these messages with what it lacked.
            if follower is None or follower is not before:
                return
            for message in messages:
                if message.progress is None and not await self._hand(follower, message):
                    await self._give_up(follower, tail)
                    return

    def post(self, message: AttachRequest) -> None:
        """Pass a decision or a failure on without waiting."""
        refused = message.failure is not None or message.decision is not None
        self.last_word = message if refused else self.last_word
        if self._follower is not None:
            self._follower.post(message)
        outbox = self._outbox()
        if outbox is not None:
            outbox.post(message)

    async def follow(
        self, tail: Tail | None, from_chunk: int
    ) -> tuple[tuple[AttachRequest, ...], Outbox]:
        """The client comes: what it lacks, and where the rest will be. A newer one takes its place.

        Raises:
            NovaMeshError: STALE if that chunk is no longer here.
        """
        backlog = tail.since(from_chunk) if tail is not None else ()
        follower, before = Outbox(), self._follower
        self._follower, self.followed, self._late_at = follower, True, None
        if self._ended:
            follower.end()
        if before is not None:
            await before.close()  # whoever waits for room in it goes on
        return backlog, follower

    async def unfollow(self, outbox: Outbox, tail: Tail | None) -> None:
        """The client's stream ended before the attempt: the coordinator gets what it lacks."""
        await outbox.close()
        if outbox is not self._follower:
            return
        async with self._order:
            if outbox is not self._follower:
                return
            await self._fill(tail)

    def resume(self, tail: Tail, chunk: int) -> tuple[AttachRequest, ...]:
        """What a new session lacks that has the chunks before `chunk`.

        Raises:
            NovaMeshError: STALE if that chunk is no longer here and nobody else receives it.
        """
        self._relayed, self._torn, self._both, self.wanted = chunk, False, False, True
        if self._confirmed:
            told = (*self.witnesses(), *tail.statements())
        elif self.direct and not self._attested:
            told = (*self.witnesses(), *tail.statements())
            # `conclude` brings claim and witness, or everything
            told = tuple(message for message in told if message.attestation is None)
        else:
            told = (*self.witnesses(), *tail.since(chunk))
        for message in told:
            self._count(message)
        return told

    def witnesses(self) -> tuple[AttachRequest, ...]:
        """What the client signed for: it stands in the place of a relay."""
        signed = (self.ack, self.receipt)
        return tuple(AttachRequest(witness=each) for each in signed if each is not None)

    def countersign(self, receipt: Envelope, *, confirms: bool) -> None:
        """The client's receipt is here; `confirms` that it has the whole answer."""
        self.receipt, self._confirmed = receipt, confirms
        self._countersigned.set()

    def end(self) -> None:
        """The attempt is over: whoever follows it gets what waits, and then the end."""
        self._ended = True
        if self._follower is not None:
            self._follower.end()

    async def conclude(self, tail: Tail) -> None:
        """An attempt ended: the coordinator gets what the client signed for, and the claim.

        And what it lacks, unless the client has signed for the whole answer.
        """
        if self.alone or self._attested:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITNESS_S):
                await self._countersigned.wait()
        async with self._order:
            if self._session is None or self._attested:
                return
            outbox = self._session()
            # Who does not want the answer any more gets the claim of it, which is evidence.
            short = self._confirmed or not self.wanted
            rest = tail.statements() if short else self._lacking(tail)
            for message in (*self.witnesses(), *rest):
                await self._relay(outbox, message)

    def _for_coordinator(
        self, messages: tuple[AttachRequest, ...], tail: Tail | None
    ) -> tuple[AttachRequest, ...]:
        """What it gets now, where these messages are due."""
        direct = self._follower is not None and not self._both
        if direct and not self._torn and tail is not None and tail.crowded:
            lacking = self._lacking(tail)  # before any of it is lost; these messages are among it
            self._both = not self._torn
            if self._both:
                return lacking
        alone = direct or self._torn
        return tuple(each for each in messages if not (alone and _for_client_alone(each)))

    async def _hand(self, follower: Outbox, message: AttachRequest) -> bool:
        """Give the client a message; False if it has lagged for too long."""
        if len(follower) < OUTBOX_MAX // 2:
            self._late_at = None  # it has caught up, not just made room for one
        elif len(follower) >= OUTBOX_MAX and self._late_at is None:
            self._late_at = asyncio.get_running_loop().time() + STUCK_S
        try:
            async with asyncio.timeout_at(self._late_at):
                await follower.put(message)
        except TimeoutError:
            return False
        return True

    async def _give_up(self, follower: Outbox, tail: Tail | None) -> None:
        """The client does not read: the coordinator takes over; the client may ask again."""
        await follower.close()
        if follower is self._follower:
            await self._fill(tail)

    async def _fill(self, tail: Tail | None) -> None:
        """From here on nobody follows: the coordinator gets what it lacks."""
        self._follower, self._late_at, self._both = None, None, False
        session = self._outbox()
        if session is None or tail is None or self._ended:
            return
        for message in self._lacking(tail):
            await self._relay(session, message)

    def _lacking(self, tail: Tail) -> tuple[AttachRequest, ...]:
        """What the coordinator lacks; nothing where that cannot be told without a gap."""
        try:
            return tail.since(self._relayed)
        except NovaMeshError:
            self._torn = True
            return ()

    def _outbox(self) -> Outbox | None:
        return self._session() if self._session is not None and self.wanted else None

    async def _relay(self, outbox: Outbox, message: AttachRequest) -> None:
        """To the coordinator, unless it has that, or got it with its new session meanwhile."""
        repeated = message.chunk is not None and message.chunk.chunk.index < self._relayed
        if not repeated and not (message.attestation is not None and self._attested):
            await outbox.put(message)
            self._count(message)

    def _count(self, message: AttachRequest) -> None:
        if message.chunk is not None:
            self._relayed = max(self._relayed, message.chunk.chunk.index + 1)
        self._attested = self._attested or message.attestation is not None


def _for_client_alone(message: AttachRequest) -> bool:
    """What the coordinator does not get while the client is here itself."""
    return message.chunk is not None or message.attestation is not None
