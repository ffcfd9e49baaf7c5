"""Hostile messages by the thousand against a real coordinator, and honest jobs in between.

`python -m support.hostile.storm --messages 100000` tells what came back, by kind.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from novamesh.transport import Channel, error_from_rpc, open_channel
from novamesh_proto.errors import Code, NovaMeshError
from support.hostile.coordinator import Victim, serve
from support.hostile.honest import HonestClient, HonestNode, Pace
from support.hostile.shots import Gun, Shot
from support.hostile.streams import Saboteur
from support.parties import COORDINATOR

MEMBERS: Final = 12
WARM_UP_SHARE: Final = 4  # the first one of so many messages may still grow caches and heaps
GROWTH_BYTES_MAX: Final = 32 * 2**20
STREAM_SHARE: Final = 0.15  # of the messages that go to Attach
CALL_S: Final = 60.0
DIAL_S: Final = 20.0
JOB_PAUSE_S: Final = 0.2
PROBLEMS_MAX: Final = 20


@dataclass
class Storm:
    """What happened."""

    seed: int
    sent: int = 0
    slowed: int = 0  # times that a member was told to come again later
    came_back: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    jobs: int = 0
    before_bytes: int = 0
    after_bytes: int = 0
    took_s: float = 0.0

    async def run(self, victim: Victim, messages: int) -> None:
        """All of it."""
        began_s = time.monotonic()
        async with HonestNode("node", victim.address, Pace(), slots=64).attached():
            clients = [
                await HonestClient.join(f"member {n}", victim.address) for n in range(MEMBERS)
            ]
            steady = await HonestClient.join("steady", victim.address)
            working = asyncio.create_task(self._work(steady))
            fighters = [
                await self._arm(client, number, victim) for number, client in enumerate(clients)
            ]
            await self._volley(fighters, messages // WARM_UP_SHARE)
            self.before_bytes = victim.memory_bytes
            await self._volley(fighters, messages - messages // WARM_UP_SHARE)
            self.after_bytes = victim.memory_bytes
            working.cancel()
            await asyncio.wait([working])
            self.jobs += bool((await steady.job()).seconds)
            for one in (*fighters, *clients, steady):
                await one.close()
        self.problems += [f"its log: {line}" for line in victim.traces()[:PROBLEMS_MAX]]
        self.took_s = time.monotonic() - began_s

    @property
    def growth_bytes(self) -> int:
        """By how much the coordinator's resident memory grew after the warm-up."""
        return self.after_bytes - self.before_bytes

    def note(self, problem: str) -> None:
        """Something that must not be."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"seed {self.seed}: {problem}")

    async def _arm(self, client: HonestClient, number: int, victim: Victim) -> Fighter:
        done = await client.job()
        channels = [
            await open_channel(victim.address, COORDINATOR.node_id, DIAL_S) for _ in range(2)
        ]
        rng = random.Random(f"{self.seed} {number}")
        name, digest = f"saboteur {number}", channels[0].certificate_key_digest
        saboteur = Saboteur(name, channels[0].channel, digest, rng)
        await client.caller.join(saboteur.claim)
        return Fighter(self, channels, Gun(done, rng), saboteur, rng)

    async def _volley(self, fighters: list[Fighter], messages: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for fighter in fighters:
                tasks.create_task(fighter.fight(self.sent + messages))

    async def _work(self, client: HonestClient) -> None:
        """Honest jobs, one after the other."""
        while True:
            try:
                await client.job()
                self.jobs += 1
            except (NovaMeshError, grpc.aio.AioRpcError) as error:
                self.note(f"an honest job failed: {error}")
            await asyncio.sleep(JOB_PAUSE_S)


@dataclass
class Fighter:
    """One member with two connections."""

    storm: Storm
    channels: list[Channel]
    gun: Gun
    saboteur: Saboteur
    rng: random.Random

    async def close(self) -> None:
        """Hang up."""
        for channel in self.channels:
            await channel.close()

    async def fight(self, until: int) -> None:
        """Fire until all have sent that many together."""
        while self.storm.sent < until:
            if self.rng.random() < STREAM_SHARE:
                await self._sabotage()
            else:
                await self._shoot(self.gun.load())

    async def _sabotage(self) -> None:
        outcome = await self.saboteur.load_and_fire()
        self.storm.sent += 1
        self._judge(f"Attach {outcome.kind}", outcome.wanted, outcome.words, outcome.got)

    async def _shoot(self, shot: Shot) -> None:
        first, second = (channel.channel for channel in self.channels)
        if shot.elsewhere:
            got = [await self._ask(channel, shot) for channel in (first, second)]
        else:
            got = await asyncio.gather(*(self._ask(first, shot) for _ in shot.answers))
        self.storm.sent += len(got)
        method = shot.method.rpartition("/")[2]
        # Of a message that is sent twice, either may come first.
        wanted = list(shot.answers)
        for one in sorted(got, key=lambda error: error is not None):
            code = one.code if one is not None else None
            mine = code if code in wanted else wanted[0]
            wanted.remove(mine)
            self._judge(shot.kind, mine, shot.words, one, method)

    def _judge(
        self, kind: str, wanted: Code | None, words: str, got: NovaMeshError | None, at: str = ""
    ) -> None:
        code = got.code if got is not None else None
        self.storm.came_back[kind, code.value if code else "taken"] += 1
        if code is not wanted:
            told = got.message if got is not None else ""
            self.storm.note(f"{kind} {at} came to {code}, not {wanted}: {told}")
        elif got is not None and words not in got.message:
            self.storm.note(f"{kind} {at} is told {got.message!r}, without {words!r}")

    async def _ask(self, channel: Any, shot: Shot) -> NovaMeshError | None:
        """One call; how it was refused. Whoever is told to slow down does."""
        while True:
            try:
                call = channel.unary_stream(shot.method, _same, _same)
                async for _ in call(shot.data, timeout=CALL_S, metadata=shot.headers):
                    pass
            except grpc.aio.AioRpcError as failed:
                error = error_from_rpc(failed)
                if error.code is not Code.BUSY:
                    return error
                self.storm.slowed += 1
                await asyncio.sleep(error.retry_after_ms / 1000)
                continue
            return None


def _same(data: bytes) -> bytes:
    return data


async def storm(messages: int, seed: int) -> Storm:
    """One storm against a coordinator of its own."""
    made = Storm(seed)
    # As many as come: what comes back is to be the message's own refusal, and not "slow down".
    with (
        tempfile.TemporaryDirectory(prefix="storm-") as folder,
        serve(Path(folder), requests_per_s=100_000) as victim,
    ):
        await made.run(victim, messages)
    return made


def main() -> int:
    """1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    made = asyncio.run(storm(options.messages, options.seed))
    for (kind, code), count in sorted(made.came_back.items()):
        print(f"{kind:24} {code:16} {count:7}")
    print(*made.problems, sep="\n")
    grown = made.growth_bytes / 2**20
    print(
        f"{made.sent} messages, {made.slowed} told to slow down, {made.jobs} honest jobs answered, "
        f"memory {made.before_bytes / 2**20:.0f} MiB and {grown:+.1f}, {made.took_s:.0f} s"
    )
    return int(bool(made.problems) or made.growth_bytes > GROWTH_BYTES_MAX)


if __name__ == "__main__":
    sys.exit(main())
