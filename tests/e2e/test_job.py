"""A job from the command line to a receipt that outlives the pool, and one that is cancelled."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from novamesh import Client
from novamesh_proto.messages import JobState
from support.processes import RealPool

pytestmark = pytest.mark.timeout(180)
PROBLEM = "Tom has 12 apples. He buys 25 more and gives 9 away. How many apples does he have?"


async def test_cancelled_job_is_stopped_and_the_node_serves_the_next(pool: RealPool) -> None:
    async with Client(home=pool.home("client")) as client:
        run = client.run("nova-pico", PROBLEM, max_tokens=150, ignore_eos=True)
        async for _ in run:
            break
        await run.cancel()
        job = (await client.jobs(1))[0]
        assert job.state is JobState.CANCELLED
        answer = await client.complete("nova-pico", PROBLEM)
        assert answer.text


def test_normal_job_leaves_a_receipt_that_verifies_without_the_pool(pool: RealPool) -> None:
    done = pool.cli("run", "nova-pico", PROBLEM, "--json")
    answer = json.loads(done.stdout)
    assert answer["text"].strip()
    listed = json.loads(pool.cli("jobs", "ls", "--json").stdout)
    assert listed[0]["state"] == "settled"
    receipt = Path(answer["receipt"])
    assert pool.coordinator.stop() == 0
    verified = pool.cli("receipt", "verify", str(receipt))
    assert "signatures" in verified.stdout + verified.stderr
    _one_flipped_byte_is_named(pool, receipt)


def _one_flipped_byte_is_named(pool: RealPool, receipt: Path) -> None:
    damaged = bytearray(receipt.read_bytes())
    damaged[damaged.index(b"\nattestation ") + 100] ^= 1
    copy = receipt.with_name("damaged")
    copy.write_bytes(damaged)
    refused = pool.cli("receipt", "verify", str(copy), check=False)
    assert refused.returncode != 0
    assert "attestation" in refused.stderr


def test_daemons_end_cleanly_when_told(pool: RealPool) -> None:
    running = [daemon for daemon in pool.daemons.values() if daemon.running]
    for daemon in running:
        daemon.signal(signal.SIGINT)
    assert [daemon.wait(30) for daemon in running] == [0] * len(running)
