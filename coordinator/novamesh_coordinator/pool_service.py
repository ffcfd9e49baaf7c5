"""PoolService: what members ask. Requests become inputs, replies become protobuf; nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any, Final, cast

from novamesh_coordinator.events import AttemptSettled
from novamesh_coordinator.hub import Watcher
from novamesh_coordinator.inputs import (
    AckReceived,
    CancelAsked,
    DescriptorsAsked,
    JobAsked,
    JobsAsked,
    JoinAsked,
    MatchAsked,
    ModelsAsked,
    ReceiptHandedIn,
    WatchAsked,
)
from novamesh_coordinator.service import Context, Door, guarded
from novamesh_coordinator.watch import Follower
from novamesh_proto import envelope, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CANDIDATES_MAX, DESCRIPTORS_LISTED_MAX
from novamesh_proto.messages import (
    CancelOrder,
    ClientReceipt,
    DescriptorsQuery,
    Envelope,
    JobId,
    JobQuery,
    JobsQuery,
    JobView,
    JoinClaim,
    MatchQuery,
    ModelsQuery,
    PoolCard,
    ProfileDigest,
    SealedJob,
    StreamAck,
    WatchQuery,
    WatchResponse,
)
from novamesh_proto.names import payload_type
from novamesh_proto.node_table import Source
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc

WRITE_S: Final = 30.0  # a client that takes no event for so long is not there any more
_ATTESTATION: Final = payload_type("InferenceAttestation")


class PoolService(coordinator_pb2_grpc.PoolServiceServicer):
    """The coordinator's side for members."""

    def __init__(self, door: Door) -> None:
        self.door = door

    @guarded
    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloResponse:
        """Who are you, what time is it?"""
        identity, now_ms = self.door.identity, self.door.clock.now_ms()
        header = envelope.header(identity.key, identity.network, (), now_ms)
        card = PoolCard(header, now_ms, self.door.version, identity.open)
        return pb.HelloResponse(card=wire.to_pb(envelope.seal(card, identity.key)))

    @guarded
    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        """Become a member."""
        claim = self.door.open_repeatable(request.claim, JoinClaim)
        await self.door.sequencer.submit(JoinAsked(claim))
        return pb.JoinResponse()

    @guarded
    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """What is served here?"""
        query = self.door.open_query(request.query, ModelsQuery)
        models: Any = await self.door.sequencer.submit(ModelsAsked(query))
        return pb.ListModelsResponse(models=[wire.to_pb(model) for model in models])

    @guarded
    async def ListDescriptors(
        self, request: pb.ListDescriptorsRequest, context: Context
    ) -> pb.ListDescriptorsResponse:
        """Who is here?"""
        query = self.door.open_query(request.query, DescriptorsQuery)
        await self.door.sequencer.submit(DescriptorsAsked(query))
        listed = islice(self._found(query.message.model_profile), DESCRIPTORS_LISTED_MAX)
        return pb.ListDescriptorsResponse(descriptors=[wire.to_pb(each) for each in listed])

    @guarded
    async def Match(self, request: pb.MatchRequest, context: Context) -> pb.MatchResponse:
        """Who would take this job?"""
        query = self.door.open_query(request.query, MatchQuery)
        candidates: Any = await self.door.sequencer.submit(MatchAsked(query))
        return pb.MatchResponse(candidates=[wire.to_pb(one) for one in candidates])

    @guarded
    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:
        """Take this job."""
        door = self.door
        sealed = wire.from_pb(SealedJob, request.job)
        reservations = tuple(request.reservations[:CANDIDATES_MAX])
        asked = door.verifier.open_job(sealed, reservations, door.clock.now_ms())
        door.parties.take(asked.terms.issuer, door.clock.monotonic())
        body = (JobId(asked.terms.id), request.job.SerializeToString())
        view = cast(JobView, await door.sequencer.submit(asked, body))
        return pb.SubmitResponse(job=wire.to_pb(view))

    @guarded
    async def Watch(  # type: ignore[override]  # writes itself, to see how long a write takes
        self, request: pb.WatchRequest, context: Context
    ) -> None:
        """Follow a job."""
        query = self.door.open_query(request.query, WatchQuery)
        watcher, clock = self.door.hub.watch(query.message.job), self.door.clock
        try:
            await self.door.sequencer.submit(WatchAsked(query))
            async for event in self._events(watcher, query.message):
                began_s = clock.monotonic()
                await context.write(wire.to_pb(event))
                # Only now: gRPC can end no call while a write is under way.
                if clock.monotonic() - began_s > WRITE_S:
                    raise NovaMeshError(
                        Code.EXPIRED, "the client does not read its events", "watch again"
                    )
        finally:
            self.door.hub.unwatch(watcher)

    @guarded
    async def Acknowledge(
        self, request: pb.AcknowledgeRequest, context: Context
    ) -> pb.AcknowledgeResponse:
        """I have received this much."""
        ack = self.door.open_repeatable(request.ack, StreamAck)
        await self.door.sequencer.submit(AckReceived(ack))
        return pb.AcknowledgeResponse()

    @guarded
    async def SubmitReceipt(
        self, request: pb.SubmitReceiptRequest, context: Context
    ) -> pb.SubmitReceiptResponse:
        """This is what I make of it."""
        receipt = self.door.open_repeatable(request.receipt, ClientReceipt)
        await self.door.sequencer.submit(ReceiptHandedIn(receipt))
        return pb.SubmitReceiptResponse()

    @guarded
    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        """Stop it."""
        order = self.door.open_repeatable(request.order, CancelOrder)
        view = await self.door.sequencer.submit(CancelAsked(order))
        return pb.CancelResponse(job=wire.to_pb(view))

    @guarded
    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """Where is it?"""
        query = self.door.open_query(request.query, JobQuery)
        view = await self.door.sequencer.submit(JobAsked(query))
        return pb.GetJobResponse(job=wire.to_pb(view))

    @guarded
    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """Where are they?"""
        query = self.door.open_query(request.query, JobsQuery)
        views: Any = await self.door.sequencer.submit(JobsAsked(query))
        return pb.ListJobsResponse(jobs=[wire.to_pb(view) for view in views])

    def _found(self, profile: bytes) -> Iterator[Envelope]:
        """Descriptors of nodes that are here, one each, those that came by a stream first.

        An empty profile is any.
        """
        membership = self.door.sequencer.core.membership
        now_ms = self.door.clock.now_ms()
        for streamed in (True, False):
            for entry in self.door.table.fresh(now_ms):
                if (Source.COORDINATOR in entry.sources) is not streamed:
                    continue
                offered = not profile or entry.state.offer(ProfileDigest(profile)) is not None
                if offered and not membership.ban_reason(entry.node):
                    yield entry.descriptor.envelope

    async def _events(self, watcher: Watcher, query: WatchQuery) -> AsyncIterator[WatchResponse]:
        """A job's events in order, the last one its terminal state."""
        follower = Follower(query)
        while True:
            watcher.bell.clear()
            seen = watcher.seen
            assert seen is not None
            stream = self.door.sequencer.core.relay.get(query.job)
            for event in follower.read(seen.view, stream):
                yield event
            if watcher.bell.is_set():
                continue
            if seen.view.state.terminal:
                for event in seen.tail or await self._logged_tail(query.job):
                    yield event
                yield WatchResponse(job=seen.view)
                return
            await watcher.bell.wait()

    async def _logged_tail(self, job: JobId) -> list[WatchResponse]:
        """What followed the chunks of a job whose stream is gone, from the log."""
        tail: list[WatchResponse] = []
        for record in await self.door.store.records_of(job):
            if isinstance(record, AttemptSettled):
                attested = record.claim.payload_type == _ATTESTATION
                tail += [WatchResponse(attestation=record.claim)] if attested else []
                if record.relay_receipt is not None:
                    tail.append(WatchResponse(relay_receipt=record.relay_receipt))
                tail.append(WatchResponse(settlement=record.settlement))
        return tail
