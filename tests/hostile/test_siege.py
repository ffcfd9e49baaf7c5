"""Somebody wants the coordinator to serve nobody: honest jobs are answered all the while.

What it does to their latency is measured by benchmarks/hostile.py (`make siege`).
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

from support.hostile.attacker import Attacker
from support.hostile.attacks import ATTACKS
from support.hostile.coordinator import Victim
from support.hostile.honest import HonestClient, HonestNode, Pace

JOBS = 6
PATIENCE_S = 60.0
CLIENTS = 80  # with 64 calls each: more than a coordinator takes at once
# How much of an attack there must have been, unless it was cut short.
ENOUGH = {
    "slow_calls": ("calls", 5_000),
    "attach_streams": ("calls", 5_000),
    "signed_calls": ("calls", 3_000),
    "bombs": ("calls", 100),
    "resets": ("twenties of calls", 200),
}
ADDRESSES = (f"127.0.2.{number}" for number in itertools.count(1))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ENOUGH)
async def test_honest_jobs_are_answered(victim: Victim, name: str) -> None:
    what, least = ENOUGH[name]
    him = Attacker(victim.port, next(ADDRESSES), slow_clients=CLIENTS)
    kept_out = victim.kept_out
    async with HonestNode("node", victim.address, Pace(), slots=64).attached():
        client = await HonestClient.join("client", victim.address)
        attack = asyncio.ensure_future(ATTACKS[name](him))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while him.did[what] < least and victim.kept_out == kept_out:
                    await client.job()
                for _ in range(JOBS):
                    await client.job()
        finally:
            attack.cancel()
            await asyncio.wait([attack])
            await client.close()
    assert not victim.traces()
