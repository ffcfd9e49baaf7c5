"""Clients that lie: what a modified SDK could ask of the pool. What is not changed is production's.

None of them may be paid for, be believed, or take from others what the rules do not give them; what
must hold whatever they do is in `invariants`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from novamesh.candidates import verify_candidates
from novamesh.desk import Desk
from novamesh.model_choice import choose_model
from novamesh.order import Draft, draft
from novamesh.pool import PoolConnection, Wanted
from novamesh_proto import envelope, sealing
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.messages import (
    ClientReceipt,
    Envelope,
    JobId,
    JobTerms,
    PoolModel,
    ReceiptVerdict,
    StreamAck,
)
from support.parties import NETWORK, OFFER
from support.sim.client import Client, Wish, make_order

SAID_MAX: Final = 40
AGAIN_SHARE: Final = 0.3
HOARDED: Final = 6  # matches without a submission
MORE_TOKENS: Final = 5


class EchoingConnection(PoolConnection):
    """What was asked and signed once is asked again, byte for byte."""

    said: tuple[tuple[str, object], ...] = ()

    async def _call(self, method: str, request: Callable[[], object]) -> Any:
        made = request()
        try:
            return await super()._call(method, lambda: made)
        finally:
            if not asyncio.current_task().cancelling():  # type: ignore[union-attr]
                await self._again(method, made)

    async def _again(self, method: str, made: object) -> None:
        self.said = (*self.said, (method, made))[-SAID_MAX:]
        if random.random() < AGAIN_SHARE:
            old_method, old = random.choice(self.said)
            with contextlib.suppress(NovaMeshError):
                await super()._call(old_method, lambda: old)


class LyingClient(Client):
    """One of those below."""

    honest = False


class Replayer(LyingClient):
    """Repeats what it said: receipts, cancels, whole jobs."""

    connection = EchoingConnection


class DenyingConnection(PoolConnection):
    """It takes the answer, and signs that there was none."""

    async def acknowledge(self, ack: Envelope) -> None:
        """Nothing came."""
        said = envelope.open(ack, StreamAck, network=NETWORK).message
        await super().acknowledge(envelope.seal(replace(said, chunks=0), self.key))

    async def submit_receipt(self, receipt: Envelope) -> None:
        """Nothing came."""
        said = envelope.open(receipt, ClientReceipt, network=NETWORK).message
        nothing = replace(said, chunks=0, completion_tokens=0, verdict=ReceiptVerdict.INCOMPLETE)
        await super().submit_receipt(envelope.seal(nothing, self.key))


class Denier(LyingClient):
    """Denies what it got, and then wants it cancelled."""

    connection = DenyingConnection

    async def after(self, wish: Wish, desk: Desk) -> None:
        """So that nobody is paid."""
        if wish.completion is not None:
            with contextlib.suppress(NovaMeshError):
                await desk.pool.cancel(wish.completion.job)


class DoubleSpender(LyingClient):
    """Has an answer continued from a place that was paid, twice, so that it is paid again."""

    async def after(self, wish: Wish, desk: Desk) -> None:
        """Collude with whatever node it gets."""
        done = wish.completion
        if done is None or len(done.token_ids) < 2:
            return
        for share in (2, 3):
            kept = done.token_ids[: max(1, len(done.token_ids) // share)]
            with contextlib.suppress(NovaMeshError):
                model = await _model(desk)
                made = _continued(wish, desk, model, done.job, kept)
                wanted = Wanted(model.model_profile, 64, wish.tokens + MORE_TOKENS)
                found, now_ms = await desk.pool.match(wanted), desk.clock.now_ms()
                chosen = verify_candidates(found, model, NETWORK, now_ms)
                job = made.wrap([one for one, _ in chosen])
                await desk.pool.submit(job, [reservation for _, reservation in chosen])


class Hoarder(LyingClient):
    """Keeps slots without submitting."""

    async def before(self, desk: Desk) -> None:
        """As many as it gets."""
        for _ in range(HOARDED):
            with contextlib.suppress(NovaMeshError):
                await desk.pool.match(Wanted((await _model(desk)).model_profile, 64, 8))


async def _model(desk: Desk) -> PoolModel:
    models = await desk.pool.list_models()
    return choose_model(OFFER.name, models)


def _continued(
    wish: Wish, desk: Desk, model: PoolModel, parent: JobId, kept: tuple[int, ...]
) -> Draft:
    """A job that goes on after `kept` of a parent's answer."""
    tokens = wish.tokens + MORE_TOKENS
    order = make_order("on", replace(wish, tokens=tokens, deadline_s=20.0))
    fresh = draft(order, model, desk.pool.header(), desk.pool.key, tokens)
    body = replace(fresh.body, prefix_token_ids=kept)
    sealed = sealing.seal_body(body)
    terms = replace(
        fresh.terms.message,
        body_digest=sealed.digest,
        body_bytes=len(sealed.ciphertext),
        key_commitment=sealed.commitment,
        parent_job=parent,
        start_position=len(kept),
        prefix_digest=sealing.forced_prefix_digest(body, parent),
    )
    signed = envelope.open(envelope.seal(terms, desk.pool.key), JobTerms, network=NETWORK)
    return Draft(signed, sealed, body)


LYING_CLIENTS: Final[tuple[type[Client], ...]] = (Replayer, Denier, DoubleSpender, Hoarder)
