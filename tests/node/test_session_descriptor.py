"""A session and others share one advertiser: whoever has the descriptor renewed, all send it."""

from __future__ import annotations

from support.memory_attach import Pool
from support.mqtt import running


async def test_a_descriptor_that_was_renewed_for_others_is_sent_too() -> None:
    pool = Pool()
    pool.session.advertise()  # nobody to tell yet
    async with running(pool.session):
        wire = pool.wire()
        await wire.welcome()
        await wire.hear()
        newest = pool.advertiser.renew(pool.wall_ms)
        pool.session.advertise()
        pool.session.advertise()
        assert (await wire.hear()).descriptor == newest
        assert wire.up.empty()


async def test_a_descriptor_is_renewed_while_the_pool_is_away() -> None:
    pool = Pool()
    before = pool.advertiser.current(pool.wall_ms)
    pool.wall_ms += 60_000
    pool.session.advertise()
    assert pool.advertiser.current(pool.wall_ms) != before
