"""Whether and how an answer goes on when the part that was at work has ended badly. Pure.

Rules: an answer goes on only after something of it was delivered, only for a failure that another
node does not share, within the order's one deadline and PARTS_MAX parts. What was received is the
forced prefix of the next part, all of it: the text that the lost node still held back follows from
those tokens, and the next node, which takes them in first, sends it. Lost nodes are passed over as
long as somebody else offers the model. The first try follows at once, later ones after pauses.
Where an answer could go on, and its time or its prompt is missing, another process may do it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from novamesh.job_records import JobRecord
from novamesh.order import Continuation
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import EXCLUDED_MAX, PARTS_MAX
from novamesh_proto.messages import NodeId

LEFT_S_MIN: Final = 0.5  # of the deadline, below which no part is begun
FRUITLESS_MAX: Final = 8  # parts in a row that brought nothing
_PAUSES_S: Final = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)

# What befalls one node, or heals: another node, or the same one later, may do better.
_GOES_ON: Final = frozenset(
    {
        Code.NODE_LOST,
        Code.UNAVAILABLE,
        Code.INTERNAL,
        Code.BUSY,
        Code.STALE,
        Code.STORAGE,
        Code.EXPIRED,  # of a lease or by a wrong clock: time is left, or nothing is begun
        Code.NO_CAPACITY,
        Code.MODEL_NOT_FOUND,
        Code.CONFLICT,  # the part before still counts as at work, and is stopped meanwhile
    }
)


@dataclass(frozen=True, slots=True)
class Course:
    """Where an answer is between two of its parts.

    `parts` are those that brought tokens, `fruitless` counts those since then that did not, and
    `lost` are nodes that gave up on it, oldest first.
    """

    parts: int = 0
    fruitless: int = 0
    lost: tuple[NodeId, ...] = ()

    def after(self, error: NovaMeshError, node: NodeId | None, tokens: int) -> Course:
        """The course after a part that ended so, and brought so many tokens."""
        lost = self.lost
        if node is not None and error.code is not Code.BUSY:
            lost = (*(one for one in lost if one != node), node)[-EXCLUDED_MAX:]
        if tokens:
            return Course(self.parts + 1, 0, lost)
        return Course(self.parts, self.fruitless + 1, lost)

    def may_go_on(self, error: NovaMeshError) -> bool:
        """Whether another part may bring what `error` kept back."""
        return error.code in _GOES_ON and 0 < self.parts < PARTS_MAX

    def pause_s(self, error: NovaMeshError, left_s: float) -> float | None:
        """Seconds until the next part is begun, or None if the answer ends here with `error`.

        `left_s` is what is left of the order's deadline.
        """
        if not self.may_go_on(error):
            return None
        if self.fruitless > FRUITLESS_MAX:
            return None
        pause_s = _PAUSES_S[min(self.fruitless, len(_PAUSES_S) - 1)]
        if error.retry_after_ms:
            pause_s = max(pause_s, min(error.retry_after_ms / 1000, _PAUSES_S[-1]))
        return pause_s if left_s - pause_s >= LEFT_S_MIN else None


def continue_from(record: JobRecord) -> Continuation:
    """What goes on after the parts that a record holds."""
    return Continuation(
        client_seed=record.client_seed,
        sampling=record.terms.message.sampling,
        parent_job=record.parts[-1],
        token_ids=tuple(token for piece in record.received for token in piece.token_ids),
    )
