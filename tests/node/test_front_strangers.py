"""What strangers ask of a node that donates takes nothing away from its pool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from novamesh_node import admission, finished
from novamesh_node.admission import CLIENT_RATE, Policy
from novamesh_node.attempt import AttemptKey
from novamesh_proto.errors import Code, NovaMeshError
from support.own_front import Alone, Counter, Visitor, open_front
from support.parties import party
from support.working_desk import LONG


def refusal(counter: Counter, alone: Alone) -> Code:
    with pytest.raises(NovaMeshError) as caught:
        counter.front.submit(alone.job)
    return caught.value.code


def strangers(count: int) -> list[Visitor]:
    return [Visitor(party(f"stranger {number}")) for number in range(count)]


async def test_a_node_that_donates_nothing_says_so_before_it_checks_a_signature(
    tmp_path: Path,
) -> None:
    async with open_front(tmp_path, Policy()) as counter:
        alone = counter.order()
        terms = alone.job.terms
        forged = replace(terms, signatures=(replace(terms.signatures[0], sig=bytes(64)),))
        alone.job = replace(alone.job, terms=forged)
        assert refusal(counter, alone) is Code.POLICY


async def test_one_slot_is_the_pools(tmp_path: Path) -> None:
    async with open_front(tmp_path, slots=1) as counter:
        assert refusal(counter, counter.order()) is Code.POLICY
        counter.node.desk.take(counter.node.offers.make().message)
        assert (await counter.node.decision()).accepted


async def test_a_client_has_a_rate_of_its_own(tmp_path: Path) -> None:
    async with open_front(tmp_path) as counter:
        alone = counter.order()
        for _ in range(int(CLIENT_RATE.burst)):
            counter.front.submit(alone.job)  # the same again is harmless, and counts
        with pytest.raises(NovaMeshError) as caught:
            counter.front.submit(counter.order().job)
        assert caught.value.code is Code.BUSY
        assert caught.value.retry_after_ms == 500
        assert counter.front.submit(counter.order(strangers(1)[0]).job)


async def test_their_jobs_fill_no_memory_of_the_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ALONE_REMEMBERED_MAX", 2)
    async with open_front(tmp_path) as counter:
        for visitor in strangers(2):
            counter.front.submit(counter.order(visitor).job)
            await counter.node.idle()
        assert refusal(counter, counter.order()) is Code.BUSY
        counter.node.desk.take(counter.node.offers.make().message)
        assert (await counter.node.decision()).accepted


async def test_what_is_refused_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "ALONE_REMEMBERED_MAX", 1)
    async with open_front(tmp_path, Policy(10, donates=True)) as counter:
        for _ in range(3):
            assert refusal(counter, counter.order(max_tokens=LONG)) is Code.POLICY
        counter.front.submit(counter.order().job)


async def test_their_answers_push_out_none_of_the_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novamesh_node.desk.ALONE_MAX", 2)
    async with open_front(tmp_path) as counter:
        offer = counter.node.offers.make()
        counter.node.desk.take(offer.message)
        await counter.node.idle()
        await counter.node.outbox.close()
        orders = [counter.order(visitor, max_tokens=1) for visitor in strangers(4)]
        for alone in orders:
            counter.front.submit(alone.job)
            await counter.node.idle()
        (listed,) = counter.node.desk.listing()
        assert AttemptKey(listed.job, 1, listed.fence).job == offer.job
        kept = [alone for alone in orders if counter.node.desk.find(alone.id) is not None]
        assert kept == orders[2:]
    assert finished.ALONE_MAX < finished.FINISHED_MAX
