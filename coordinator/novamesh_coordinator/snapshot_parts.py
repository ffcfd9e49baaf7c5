"""The state cut into parts, so that of a long state only what changed is written again.

A part is a state of its own which holds one run of one table and nothing else; the numbers that
belong to no table are one part, too. All parts together, tables put end to end and numbers added,
are the state. Rules: a part is known by the SHA-256 of its canonical bytes; a run ends after an
item whose own id says so, unless it is short yet, or when it is full (content-defined chunking, as
rsync and casync do it), so a table that loses its oldest items and grows at its end keeps the parts
between. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from novamesh_coordinator import canonical
from novamesh_coordinator.core import CoreState
from novamesh_coordinator.log_chain import corrupt

DIGEST_BYTES: Final = 32
SPREAD: Final = 4  # a run has at least a fourth of the usual items, and at most four times as many
_TABLES: Final[tuple[tuple[str, str, int, Callable[[Any], bytes]], ...]] = (
    ("membership", "members", 64, lambda member: member.member),
    ("membership", "invites", 64, lambda use: use.id),
    ("membership", "bans", 64, lambda ban: ban[0]),
    ("membership", "orders", 64, lambda order: order[0]),
    ("registry", "adverts", 8, lambda advert: advert.node),
    ("ledger", "standings", 64, lambda standing: standing.node),
    ("ledger", "paid", 64, lambda paid: paid[0]),
    ("jobs", "jobs", 64, lambda job: job.job),
    ("donations", "donated", 64, lambda donated: donated.node),
    ("donations", "jobs", 64, lambda job: job[0]),
)
"""Which part of the state, which table of it, items of a run on average, and the id of an item."""


@dataclass(frozen=True, slots=True)
class Run:
    """Some items of one table that follow each other; or, with no items, the numbers."""

    table: int
    start: bytes
    items: tuple[Any, ...]
    state: CoreState


Written = dict[tuple[int, bytes], tuple[tuple[Any, ...], bytes]]
"""By table and first id: the items of each run of a snapshot, and their digest."""


class Encoder:
    """Writes the runs of one snapshot down; one that is as it was before keeps its digest."""

    def __init__(self, before: Written) -> None:
        self._before = before
        self.written: Written = {}

    def keep(self, run: Run) -> bytes | None:
        """The digest of a run that was written down before, kept if nothing in it changed."""
        items, digest = self._before.get((run.table, run.start), ((), b""))
        if not run.items or items != run.items:
            return None
        self.written[run.table, run.start] = items, digest
        return digest

    def encode(self, run: Run) -> tuple[bytes, bytes]:
        """The digest and the bytes of a run."""
        body = canonical.encode(run.state)
        digest = part_digest(body)
        self.written[run.table, run.start] = run.items, digest
        return digest, body


def cut(state: CoreState) -> Iterator[Run]:
    """The parts of a state, always in the same order."""
    yield Run(-1, b"", (), _numbers(state))
    for table, (owner, name, usual, ident) in enumerate(_TABLES):
        empty = type(getattr(state, owner))
        for items in _runs(getattr(getattr(state, owner), name), usual, ident):
            part = CoreState(**{owner: empty(**{name: items})})
            yield Run(table, ident(items[0]), items, part)


def _numbers(state: CoreState) -> CoreState:
    """The state without its tables."""
    for owner, name, *_ in _TABLES:
        state = replace(state, **{owner: replace(getattr(state, owner), **{name: ()})})
    return state


def _runs(
    items: Sequence[Any], usual: int, ident: Callable[[Any], bytes]
) -> Iterator[tuple[Any, ...]]:
    began = 0
    for end, item in enumerate(items, 1):
        length = end - began
        may_end = length >= usual // SPREAD and ident(item)[-1] % usual == 0
        if may_end or length == usual * SPREAD:
            yield tuple(items[began:end])
            began = end
    if began < len(items):
        yield tuple(items[began:])


def join(states: Iterable[CoreState]) -> CoreState:
    """The state that was cut into these."""
    empty = CoreState()
    whole = {owner.name: _opened(getattr(empty, owner.name)) for owner in fields(empty)}
    for state in states:
        for owner, values in whole.items():
            part = getattr(state, owner)
            for name in values:
                values[name] += getattr(part, name)
    return CoreState(
        **{owner: _closed(type(getattr(empty, owner)), values) for owner, values in whole.items()}
    )


def _opened(part: Any) -> dict[str, Any]:
    values = {each.name: getattr(part, each.name) for each in fields(part)}
    return {name: [] if value == () else value for name, value in values.items()}


def _closed(cls: type[Any], values: dict[str, Any]) -> Any:
    return cls(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def part_digest(body: bytes) -> bytes:
    """What a part is known by."""
    return hashlib.sha256(body).digest()


def names_of(body: bytes) -> list[bytes]:
    """The digests of a snapshot's parts, as its row lists them."""
    return [body[at : at + DIGEST_BYTES] for at in range(0, len(body), DIGEST_BYTES)]


def read_parts(seq: int, digests: Iterable[bytes], bodies: Iterable[object]) -> CoreState:
    """The state of the snapshot at event `seq`, from bodies as a database gives them, in order.

    Raises:
        NovaMeshError: CORRUPT.
    """
    return join(_read(seq, digest, body) for digest, body in zip(digests, bodies, strict=True))


def _read(seq: int, digest: bytes, body: object) -> CoreState:
    if type(body) is not bytes or part_digest(body) != digest:
        raise corrupt(f"a part of the snapshot at event {seq} was changed, or is missing")
    return canonical.decode(CoreState, body)
