"""That the parts of one answer go on from each other; if one does not, what is wrong with it.

Rules: each part names the job before it and begins where that one's signed tokens end or beyond:
what lies between was witnessed by the client and attested by nobody. Client, pool, model, seed and
every other choice of sampling stay the same, so the answer is the one that a single node would have
given. No position is paid twice. Each part was checked by itself before (`evidence`).
"""

from __future__ import annotations

from novamesh_proto.evidence import VerifiedReceipt, wrong
from novamesh_proto.messages import Settlement


def check_continuation(earlier: tuple[VerifiedReceipt, ...], part: VerifiedReceipt) -> None:
    """Return if a part goes on from the ones before it, which are at least one, in order.

    Raises:
        NovaMeshError: CORRUPT; its message names the part of the receipt that is wrong.
    """
    before = earlier[-1]
    if len(earlier) == 1 and before.terms.message.parent_job:
        raise wrong("terms", "the answer began before the first section")
    said, ours = before.terms.message, part.terms.message
    if ours.parent_job != before.job:
        raise wrong("terms", "they do not go on from the job of the section before")
    if part.client != before.client:
        raise wrong("terms", "they are by another client than the section before")
    if ours.header.network != said.header.network:
        raise wrong("terms", "they name another pool than the section before")
    if ours.model_profile != said.model_profile:
        raise wrong("terms", "they name another model than the section before")
    if ours.sampling != said.sampling:
        raise wrong("terms", "they choose tokens otherwise than the section before")
    if ours.start_position < before.signed_position:
        raise wrong(
            "terms",
            f"they begin at position {ours.start_position}, the section before was signed up to "
            f"{before.signed_position}",
        )
    if not ours.start_position or not ours.prefix_digest:
        raise wrong("terms", "they go on from no token")
    _check_paid(earlier, part)


def _check_paid(earlier: tuple[VerifiedReceipt, ...], part: VerifiedReceipt) -> None:
    if part.settlement is None:
        return
    start, end = _paid(part.settlement.message)
    for other in earlier:
        if other.settlement is None:
            continue
        paid_start, paid_end = _paid(other.settlement.message)
        if start < paid_end and paid_start < end:
            raise wrong("settlement", f"it pays positions up to {paid_end} a second time")


def _paid(settled: Settlement) -> tuple[int, int]:
    return settled.start_position, settled.start_position + settled.completion_tokens
