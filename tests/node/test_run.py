"""An attempt as its owner ends it, and as its client sees it."""

from __future__ import annotations

import asyncio

import pytest

from novamesh_node.admission import Admitted
from novamesh_node.delivery import Delivery
from novamesh_node.run import Run
from novamesh_node.worker import Ticket
from novamesh_proto import envelope
from novamesh_proto.messages import JobTerms
from support.fake_crew import station
from support.offers import Offers
from support.parties import NETWORK, PROFILE
from support.working_desk import node


def made() -> Run:
    offer = Offers().make(given={"attempt": 3})
    terms = envelope.open(offer.message.job.terms, JobTerms, network=NETWORK)
    return Run(Admitted(offer.assignment, terms, offer.message.job), station("cpu"), Delivery(None))


def test_is_shown_without_its_insides() -> None:
    run = made()
    seen = run.seen
    assert (seen.number, seen.answer, seen.running) == (3, None, True)
    assert seen.delivery is run.delivery
    assert seen.terms is run.admitted.terms


@pytest.mark.parametrize("counts", [True, False])
async def test_before_the_engine_has_it_it_ends_silently(counts: bool) -> None:
    run = made()
    run.end(counts=counts)  # not begun: nothing to end
    run.task = asyncio.create_task(asyncio.sleep(60))
    run.end(counts=counts)
    with pytest.raises(asyncio.CancelledError):
        await run.task


async def test_what_counts_ends_by_the_engine() -> None:
    async with node() as at:
        run = made()
        run.served = at.crew.stations[0].served[PROFILE]
        run.ticket = Ticket(run.served.worker, "nobody")
        run.task = asyncio.create_task(asyncio.sleep(60))
        run.end(counts=True)
        await asyncio.sleep(0)
        assert not run.task.done(), "the engine's last output ends it"
        run.stop()
