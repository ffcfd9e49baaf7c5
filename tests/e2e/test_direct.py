"""Answers come from the node itself where it can be reached, and outlive their coordinator."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from novamesh import Client, verify_file
from novamesh_proto.messages import JobId, JobPath, JobState
from support.processes import RealPool

pytestmark = pytest.mark.timeout(180)
PROMPT = "Write a long story about an owl and 12 apples."
ASKED: dict[str, Any] = {"max_tokens": 300, "temperature": 0.9, "seed": 11, "ignore_eos": True}
LISTENING = ("--listen", "127.0.0.1:0", "--donate", "--slots", "25")
STREAMS = 50


@pytest.fixture(scope="module")
def reachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    """A pool whose two nodes listen."""
    with RealPool(tmp_path_factory.mktemp("reachable")) as pool:
        pool.join()
        for name in ("dora", "emil"):
            pool.start_node(name, *LISTENING)
        pool.await_nodes(2)
        yield pool


async def test_an_answer_comes_from_its_node_and_is_settled(reachable: RealPool) -> None:
    async with Client(home=reachable.home("client")) as client:
        done = await client.complete("nova-pico", PROMPT, **ASKED)
    proof = verify_file(done.receipt_path)
    assert proof.client_receipt is not None
    assert proof.client_receipt.message.path is JobPath.DIRECT
    assert proof.settlement is not None
    assert proof.settlement.message.completion_tokens == 300
    assert proof.relay_receipt is None


async def test_streams_outlive_their_coordinator_and_are_settled_when_it_returns(
    reachable: RealPool,
) -> None:
    async with Client(home=reachable.home("client")) as client:
        runs = [client.run("nova-pico", PROMPT, **(ASKED | {"seed": n})) for n in range(STREAMS)]
        begun = [asyncio.Event() for _ in runs]

        async def read(number: int) -> int:
            async for _ in runs[number]:
                begun[number].set()
            return len((await runs[number].completion()).token_ids)

        reads = [asyncio.create_task(read(number)) for number in range(len(runs))]
        await asyncio.gather(*(event.wait() for event in begun))
        await asyncio.sleep(0.5)
        reachable.coordinator.kill()
        assert await asyncio.gather(*reads) == [300] * len(runs)
        jobs = [(await run.completion()).job for run in runs]
    reachable.start_coordinator()
    reachable.await_nodes(2)
    async with Client(home=reachable.home("client")) as client:
        for job in jobs:
            assert await _settled(client, job)
    reachable.coordinator.stop()
    checked = json.loads(reachable.cli("coordinator", "check", "--json", home="pool").stdout)
    assert checked["problems"] == []
    reachable.start_coordinator()


async def _settled(client: Client, job: JobId) -> bool:
    """Whether a job is settled within half a minute."""
    for _ in range(150):
        if (await client.job(job)).state is JobState.SETTLED:
            return True
        await asyncio.sleep(0.2)
    return False


async def test_a_node_is_found_and_asked_without_any_coordinator(reachable: RealPool) -> None:
    """Such work is donated: proved as any other, paid by nobody, and logged when we are told."""
    home = reachable.home("client")
    reachable.await_nodes(2)
    async with Client(home=home) as client:
        whole = await client.complete("nova-pico", PROMPT, **ASKED)
    node = reachable.daemons["dora"]
    peer, endpoint = node.ready.split()[-1], _endpoint(node.log.read_text())
    reachable.coordinator.kill()
    reachable.cli("config", "set", "client.nodes", f"{peer}@{endpoint}")
    done = reachable.cli(
        "run", "nova-pico", PROMPT, "--mesh", "--json", "--max-tokens", "40", "--seed", "3"
    )
    said = json.loads(done.stdout)
    assert said["node"] == peer
    async with Client(home=home) as client:
        alone = await client.complete("nova-pico", PROMPT, mesh=True, **ASKED)
    assert alone.text == whole.text, "the same seed gives the same answer whoever asks"
    proof = verify_file(alone.receipt_path)
    assert proof.donated
    assert proof.settlement is None
    reachable.start_coordinator()
    reachable.await_nodes(2)
    donated = await _donated(reachable, peer)
    assert donated == {"jobs": 2, "tokens": 300 + said["completion_tokens"]}


def _endpoint(log: str) -> str:
    """Where a node said that it listens."""
    return re.findall(r"clients are told (\S+)", log)[-1]


async def _donated(pool: RealPool, peer: str) -> dict[str, int]:
    """What the coordinator has logged of a node's donations, once there is any."""
    for _ in range(50):
        nodes = json.loads(pool.cli("coordinator", "nodes", "--json", home="pool").stdout)
        (found,) = [each for each in nodes if each["node"] == peer]
        if found["jobs_donated"] >= 2:
            return {"jobs": found["jobs_donated"], "tokens": found["tokens_donated"]}
        await asyncio.sleep(0.2)
    raise AssertionError("the coordinator was never told")
