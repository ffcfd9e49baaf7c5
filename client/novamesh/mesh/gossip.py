"""Descriptors by gossip: signed bytes in, signed bytes out, one topic a pool.

Rules: bytes that `check` refuses are neither delivered nor forwarded, and cost their sender; our
own descriptor is said again to newcomers and every few seconds, the more rarely the more peers
there are, so that a pool of any size hears a bounded number a second. What the bytes mean is the
business of whoever passes `check`.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio
from libp2p.abc import IHost
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.score import ScoreParams, TopicScoreParams
from libp2p.tools.anyio_service import background_trio_service

from novamesh.mesh import hardening
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.limits import GOSSIP_BYTES_MAX
from novamesh_proto.names import gossip_topic

REPEAT_MIN_S: Final = 5.0  # a small pool repeats this often
REPEAT_SHARE_S: Final = 0.125  # and this much more rarely for every peer that is known
NEWCOMER_S: Final = 1.0  # newcomers are told at most this often
_LOOK_S: Final = 0.2
_SEEN_S: Final = 120
_PROTOCOL: Final = TProtocol("/meshsub/1.1.0")

_log = logging.getLogger(__name__)

Check = Callable[[bytes], None]


class Gossip:
    """One pool's topic on one host."""

    def __init__(
        self,
        host: IHost,
        network: str,
        check: Check,
        deliver: Callable[[bytes], None],
        crowd: Callable[[], int],
    ) -> None:
        self._topic = gossip_topic(network)
        self._check = check
        self._deliver = deliver
        self._crowd = crowd  # how many peers are known
        self._rng = random.Random()
        self._own: bytes | None = None
        self._said = trio.Event()
        self.router = _make_router()
        self.pubsub = hardening.SafePubsub(
            host,
            self.router,
            seen_ttl=_SEEN_S,
            max_inbound_rpc_size=hardening.RPC_BYTES_MAX,
            allowed_topics={self._topic},
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take part in the topic until the block is left."""
        async with (
            background_trio_service(self.router),
            background_trio_service(self.pubsub),
            trio.open_nursery() as nursery,
        ):
            await self.pubsub.wait_until_ready()
            self.pubsub.set_topic_validator(self._topic, self._valid, is_async_validator=False)
            await nursery.start(self._listen)
            nursery.start_soon(self._repeat)
            yield
            nursery.cancel_scope.cancel()

    def say(self, descriptor: bytes) -> None:
        """Publish our descriptor now and to whoever comes; the newest wins."""
        self._own = descriptor
        self._said.set()

    def _valid(self, forwarder: ID, message: rpc_pb2.Message) -> bool:
        if len(message.data) > GOSSIP_BYTES_MAX:
            return False
        try:
            self._check(message.data)
        except NovaMeshError as error:
            _log.debug("refused a descriptor from %s: %s", forwarder, error.message)
            return False
        except Exception as error:  # a check that fails is our bug, and refuses; it kills nothing
            _log.warning("checking a descriptor failed: %s", type(error).__name__)
            return False
        return True

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        subscription = await self.pubsub.subscribe(self._topic)
        task_status.started()
        own = self.pubsub.my_id.to_bytes()
        while True:
            message = await subscription.get()
            if message.from_id != own:
                self._deliver(message.data)

    async def _repeat(self) -> None:
        """Say our descriptor when it changes, when somebody new listens, and now and then."""
        told: set[ID] = set()
        last_s = -REPEAT_MIN_S
        pause_s = self._pause_s()
        while True:
            with trio.move_on_after(_LOOK_S):
                await self._said.wait()
            if self._own is None:
                continue
            listeners = set(self.pubsub.peer_topics.get(self._topic, ()))
            since_s = trio.current_time() - last_s
            newcomers = bool(listeners - told) and since_s >= NEWCOMER_S
            if not (self._said.is_set() or newcomers or since_s >= pause_s):
                continue
            self._said = trio.Event()
            told, last_s, pause_s = listeners, trio.current_time(), self._pause_s()
            await self.pubsub.publish(self._topic, self._own)

    def _pause_s(self) -> float:
        return (REPEAT_MIN_S + REPEAT_SHARE_S * self._crowd()) * self._rng.uniform(0.7, 1.3)


def _make_router() -> GossipSub:
    """Gossipsub that scores; in this library a positive weight of a fault is what it costs."""
    return GossipSub(
        [_PROTOCOL],
        degree=6,
        degree_low=4,
        degree_high=12,
        heartbeat_interval=1,
        do_px=False,
        max_messages_per_topic_per_second=hardening.TOPIC_RATE,
        score_params=ScoreParams(
            p2_first_message_deliveries=TopicScoreParams(weight=1, cap=20, decay=0.97),
            p4_invalid_messages=TopicScoreParams(weight=20, cap=100, decay=0.97),
            p5_behavior_penalty_weight=1,
            p5_behavior_penalty_decay=0.97,
            publish_threshold=-60,
            gossip_threshold=-30,
            graylist_threshold=-80,
            accept_px_threshold=0,
        ),
    )
