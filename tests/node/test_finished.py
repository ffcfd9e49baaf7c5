"""What ended lately is kept, within its bounds in number, bytes and time."""

from __future__ import annotations

import itertools

from novamesh_node import finished
from novamesh_node.admission import Admitted
from novamesh_node.answer import Answer, Work
from novamesh_node.attempt import AttemptKey
from novamesh_node.attestor import Machine
from novamesh_node.delivery import Delivery
from novamesh_node.finished import Ended, Finished
from novamesh_proto import envelope
from novamesh_proto.messages import AttachRequest, JobTerms
from support.offers import SIGNER, Offers
from support.parties import HARDWARE, NETWORK

OFFERS = Offers()
COUNT = itertools.count()


def ended(at_ms: int, size: int = 0, *, answered: bool = True) -> Ended:
    """An attempt that ended then, with so many bytes in its tail."""
    offer = OFFERS.make()
    terms = envelope.open(offer.message.job.terms, JobTerms, network=NETWORK)
    admitted = Admitted(offer.assignment, terms, offer.message.job)
    answer = Answer(Work(admitted, offer.body, ()), SIGNER, Machine(HARDWARE, "fake"), 0)
    if size:
        answer.tail.append(AttachRequest(failure=offer.assignment.envelope), next(COUNT))
        answer.tail._bytes = size
    return Ended(admitted, answer if answered else None, Delivery(None), at_ms)


def keys(kept: Finished, now_ms: int) -> list[AttemptKey]:
    return list(kept.fresh(now_ms))


def test_old_ones_are_forgotten() -> None:
    kept, one, two = Finished(), ended(0), ended(1000, answered=False)
    kept.add(one)
    kept.add(two)
    assert keys(kept, finished.FINISHED_MS) == [one.admitted.key, two.admitted.key]
    assert keys(kept, finished.FINISHED_MS + 1) == [two.admitted.key]
    assert keys(kept, finished.FINISHED_MS + 1001) == []
    assert kept.kept == {}


def test_the_oldest_makes_room() -> None:
    kept, made = Finished(number_max=2), [ended(number) for number in range(3)]
    for each in made:
        kept.add(each)
    assert keys(kept, 3) == [each.admitted.key for each in made[1:]]


def test_bytes_are_bounded_too() -> None:
    kept, made = Finished(bytes_max=1000), [ended(0, 600), ended(1, 300), ended(2, 200)]
    for each in made:
        kept.add(each)
    assert keys(kept, 3) == [each.admitted.key for each in made[1:]]
