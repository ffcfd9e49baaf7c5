"""A pool without its coordinator: of the nodes that were found one is asked, and no other.

It stands where a session expects a pool. The node that is aimed at is the only one that the terms
name, assigns the work to itself and signs what it did, so the answer is proved as any other; nobody
pays for it. Rules: nodes are ranked by `matching` from what they say of themselves; who cannot be
reached or declines is passed over; one session uses one of these.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from novamesh.clock import Clock
from novamesh.direct_lines import DirectLine, DirectLines
from novamesh.discovery import BROKER_HINT, STATIC_HINT, Finder
from novamesh.job_transport import Wanted
from novamesh.model_choice import choose_model
from novamesh.retries import pause
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, short
from novamesh_proto.matching import Request, rank, unservable
from novamesh_proto.messages import (
    Candidate,
    Envelope,
    Header,
    JobId,
    JobPath,
    JobView,
    NodeDescriptor,
    NodeId,
    PoolModel,
    ProfileDigest,
    SealedJob,
    WatchResponse,
)

FIND_S: Final = 10.0  # a first node must be heard of within this
HINT_S: Final = 2.0  # gossip brings who is here sooner; then hints are followed
TRIED_MAX: Final = 8  # nodes dialled for one job
NO_RESERVATION: Final = bytes(16)  # a node holds nothing for anybody: it takes the job, or not
# Another node may do what this one would not.
_OTHERS_MAY: Final = frozenset({Code.BUSY, Code.UNAVAILABLE, Code.POLICY, Code.CANNOT_OPEN})


class MeshPool:
    """What one session needs of a pool, from nodes themselves."""

    def __init__(
        self, finder: Finder, lines: DirectLines, network: str, key: PrivateKey, clock: Clock
    ) -> None:
        self.network = network
        self.key = key
        self._finder = finder
        self._lines = lines
        self._clock = clock
        self._line: DirectLine | None = None
        self._chosen: Verified[NodeDescriptor] | None = None
        self._passed_over: set[NodeId] = set()

    @property
    def coordinator(self) -> NodeId:
        """Who assigns the work: the node itself."""
        return self._aimed().issuer

    @property
    def path(self) -> JobPath:
        """Which way the answer comes."""
        return JobPath.DIRECT if self._line is None else self._line.path

    @property
    def rtt_s(self) -> float | None:
        """Round trip to the node."""
        return None if self._line is None else self._line.rtt_s

    async def find_model(self, text: str) -> PoolModel:
        """The one model that a text means; nodes are heard of one by one, so it is waited for.

        Raises:
            NovaMeshError: NO_CAPACITY if nobody was found, else as `choose_model`.
        """
        await self._finder.wait(partial(self._is_known, text), FIND_S)
        models = self._models()
        if not models:
            raise NovaMeshError(
                Code.NO_CAPACITY,
                f"no node was found within {FIND_S:g} s",
                f"name one:  {STATIC_HINT}   or a broker:  {BROKER_HINT}",
            )
        return choose_model(text, models)

    async def aim(self, wanted: Wanted) -> None:
        """Choose the node that is asked, and reach it.

        Raises:
            NovaMeshError: as `matching.unservable`; UNAVAILABLE if none could be reached.
        """
        offered = partial(self._is_offered, wanted.model_profile)
        if not await self._finder.wait(offered, HINT_S):
            await self._finder.follow_hints(wanted.model_profile)
            await self._finder.wait(offered, FIND_S - HINT_S)
        refusal: NovaMeshError | None = None
        for _ in range(TRIED_MAX):
            chosen = self._rank(wanted, refusal)
            try:
                self._line = await self._lines.open(chosen, insist=True)
                self._chosen = chosen
                if self._line.path is JobPath.DIRECT:
                    self._finder.remember(chosen)
                return
            except NovaMeshError as error:
                refusal = error
                self._passed_over.add(chosen.issuer)
        assert refusal is not None
        raise refusal

    def may_try_again(self, error: NovaMeshError) -> bool | float:
        """What can heal; a node that has no room is passed over, not waited for."""
        return error.code is not Code.BUSY and pause(error)

    def may_ask_another(self, error: NovaMeshError) -> bool:
        """Whether another node may take what this one refused; then this one is passed over."""
        if self._chosen is None or error.code not in _OTHERS_MAY:
            return False
        self._passed_over.add(self._chosen.issuer)
        return True

    def header(self, *others: NodeId, life_ms: int = 60_000, in_reply_to: bytes = b"") -> Header:
        """A header of ours to the node and `others`."""
        audience = (self.coordinator, *others)
        now_ms = self._clock.now_ms()
        return envelope.header(
            self.key, self.network, audience, now_ms, life_ms, in_reply_to=in_reply_to
        )

    async def match(self, wanted: Wanted) -> tuple[Candidate, ...]:
        """The one candidate: the node that was aimed at."""
        reason = f"{short(self.coordinator)} was found without the coordinator"
        return (Candidate(self._aimed().envelope, reason, NO_RESERVATION),)

    async def submit(self, job: SealedJob, reservations: Sequence[bytes]) -> JobView:
        """Hand the job to the node."""
        return await self._to_node().connection.submit(job, ())

    async def watch(
        self, job: JobId, attempt: int, from_chunk: int
    ) -> AsyncGenerator[WatchResponse]:
        """The events of the job, from the node; where the line broke, over a new one."""
        if self._line is None:
            self._line = await self._lines.open(self._aimed(), insist=True)
        line = self._line
        try:
            async with contextlib.aclosing(
                line.connection.watch(job, attempt, from_chunk)
            ) as events:
                async for event in events:
                    yield event
        except NovaMeshError as error:
            if error.code is Code.NOT_FOUND:  # it began anew, and nobody else has the job
                raise NovaMeshError(Code.NODE_LOST, error.message) from None
            if error.code is Code.UNAVAILABLE:
                self._line = None
                await self._lines.drop(self.coordinator, line)
            raise

    async def acknowledge(self, ack: Envelope) -> None:
        """Tell the node what is here."""
        await self._to_node().connection.acknowledge(ack)

    async def submit_receipt(self, receipt: Envelope) -> None:
        """Tell the node what we make of it: with this it can show what it gave."""
        await self._to_node().connection.submit_receipt(receipt)

    async def cancel(self, job: JobId) -> JobView:
        """Stop the job."""
        return await self._to_node().connection.cancel(job)

    async def get_job(self, job: JobId) -> JobView:
        """Where the job is."""
        return await self._to_node().connection.get_job(job)

    def _aimed(self) -> Verified[NodeDescriptor]:
        if self._chosen is None:
            raise NovaMeshError(Code.INTERNAL, "no node was chosen yet")
        return self._chosen

    def _to_node(self) -> DirectLine:
        if self._line is None:
            raise NovaMeshError(Code.UNAVAILABLE, "no node was reached yet")
        return self._line

    def _rank(self, wanted: Wanted, before: NovaMeshError | None) -> Verified[NodeDescriptor]:
        """The node to ask; `before` is why the last one was not reached."""
        now_ms = self._clock.now_ms()
        excluded = tuple({*wanted.excluded, *self._passed_over})
        request = Request(
            wanted.model_profile, wanted.prompt_bytes, wanted.max_tokens, excluded=excluded
        )
        states = [entry.state for entry in self._finder.table.fresh(now_ms)]
        ranking = rank(request, states, random.SystemRandom(), 1)
        if not ranking.chosen:
            raise before or unservable(ranking) or NovaMeshError(Code.NO_CAPACITY, "nobody is here")
        found = self._finder.table.get(ranking.chosen[0].node, now_ms)
        assert found is not None, "whoever is ranked is in the table"
        return found

    def _is_known(self, text: str) -> bool:
        """Whether there is no use in waiting for more nodes."""
        try:
            choose_model(text, self._models())
        except NovaMeshError as error:
            return error.code is not Code.MODEL_NOT_FOUND
        return True

    def _is_offered(self, profile: ProfileDigest) -> bool:
        entries = self._finder.table.fresh(self._clock.now_ms())
        return any(entry.state.offer(profile) is not None for entry in entries)

    def _models(self) -> tuple[PoolModel, ...]:
        models: dict[ProfileDigest, PoolModel] = {}
        for entry in self._finder.table.fresh(self._clock.now_ms()):
            for offer in entry.descriptor.message.models:
                known = models.get(offer.model_profile) or PoolModel(
                    offer.model_profile, offer.name, 0, 0, 0
                )
                models[offer.model_profile] = replace(
                    known,
                    nodes=known.nodes + 1,
                    free_slots=known.free_slots + entry.state.free_slots,
                    context_max=max(known.context_max, offer.context_max),
                )
        return tuple(sorted(models.values(), key=lambda model: (model.name, model.model_profile)))
