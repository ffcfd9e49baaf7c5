"""Nodes freeze, brokers die, clocks are wrong: what they had goes on elsewhere, or they are told.

Beside this: nodes killed before their first token (`test_faults`) and in the middle of an answer
(`test_failover`), links cut either way and both, before an answer and in its middle, and a laptop
that wakes up at another address (`test_cuts`), a coordinator killed under direct streams
(`test_direct`).
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from novamesh import Client
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import JobState
from support.debian_packages import tool
from support.mosquitto import Mosquitto
from support.processes import Daemon, RealPool

pytestmark = pytest.mark.timeout(180)
PROMPT = "Write a long story about an owl and 12 apples."
TOKENS = 400
ASKED: dict[str, Any] = {"max_tokens": TOKENS, "temperature": 0.9, "seed": 7, "ignore_eos": True}
FROZEN_S = 60.0  # four leases: everybody has given it up long before


async def test_a_node_that_is_frozen_in_mid_answer_is_gone_on_without(pool: RealPool) -> None:
    before = _settled(pool)
    async with Client(home=pool.home("client")) as client:
        whole = await client.complete("nova-pico", PROMPT, **ASKED)
        run, texts, frozen = client.run("nova-pico", PROMPT, **ASKED), [], None
        began_s = time.monotonic()
        async for piece in run:
            texts.append(str(piece))
            if frozen is None and len(texts) == 2:
                (job,) = await client.jobs(1)
                assert job.state is JobState.RUNNING, "the answer was over before it could break"
                frozen = _daemon(pool, format_node_id(job.node))
                frozen.signal(signal.SIGSTOP)
        done = await run.completion()
        assert frozen is not None
        # Nobody knows that it is frozen until its lease is over; so long it has to be.
        await asyncio.sleep(max(0.0, began_s + FROZEN_S - time.monotonic()))
        frozen.signal(signal.SIGCONT)
        pool.await_nodes(2)
        ended = await client.jobs(2)
    assert ("".join(texts), done.token_ids) == (whole.text, whole.token_ids)
    first, last = done.parts
    assert first.node != last.node
    assert [job.state for job in ended] == [JobState.SETTLED, JobState.FAILED]
    # What it finished when it thawed is late: two answers were paid, and not a token more.
    assert _settled(pool) - before <= 2 * TOKENS
    assert _problems(pool) == []


@dataclass
class AnnouncedPool(RealPool):
    """A pool whose coordinator finds nodes by a broker too."""

    broker: Mosquitto | None = None

    @property
    def presence(self) -> tuple[str, str]:
        """The flag that names the broker."""
        assert self.broker is not None
        return "--mqtt", f"mqtt://127.0.0.1:{self.broker.port}"

    def start_coordinator(self) -> Daemon:
        """Serve on the pool's address."""
        serve = ["coordinator", "serve", "--listen", self.address, "--http", "127.0.0.1:0"]
        return self.start("pool", [*serve, *self.presence])


@pytest.fixture(scope="module")
def announced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnnouncedPool]:
    """Its one node is present by the broker as well."""
    folder = tmp_path_factory.mktemp("announced")
    with Mosquitto(folder / "broker") as broker, AnnouncedPool(folder, broker=broker) as running:
        running.join()
        running.start_node("cleo", *running.presence)
        yield running


async def test_a_broker_that_dies_takes_no_job_with_it(announced: AnnouncedPool) -> None:
    assert announced.broker is not None
    async with Client(home=announced.home("client")) as client:
        run, pieces = client.run("nova-pico", PROMPT, **ASKED), 0
        async for _ in run:
            pieces += 1
            if pieces == 2:
                announced.broker.kill()
        done = await run.completion()
        again = await client.complete("nova-pico", PROMPT, **ASKED)  # begun without a broker
    assert (len(done.parts), done.text) == (1, again.text)
    announced.broker.start()
    announced.await_nodes(1)
    assert _problems(announced) == []


def test_a_wrong_clock_is_told_its_offset_and_harms_nobody(announced: AnnouncedPool) -> None:
    asked = ("run", "nova-pico", "What is 31 plus 14?")
    node = ("node", "start", "--join", announced.invite(), "--threads", "1")
    announced.await_nodes(1)
    wrong = [
        _at_another_time(announced, shift, home, command)
        for shift in ("+2h", "-2h")
        for home, command in ((f"late{shift}", node), ("client", asked))
    ]
    for process in wrong:
        _, told = process.communicate(timeout=90)
        assert process.returncode != 0
        assert re.search(r" 7[12]\d\d(\.\d)? s (ahead|behind|ago|in the past)", told), told
        assert "timedatectl set-ntp true" in told
    assert json.loads(announced.cli(*asked, "--json").stdout)["text"]


def _at_another_time(
    running: RealPool, shift: str, home: str, arguments: tuple[str, ...]
) -> subprocess.Popen[str]:
    """Start a command whose wall clock is wrong; other clocks are as they are."""
    found = tool("faketime")
    folder = (found.root or Path("/")) / "usr" / "lib"
    wrong = {
        "LD_PRELOAD": str(next(folder.rglob("libfaketime.so.1"))),
        "FAKETIME": shift,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return subprocess.Popen(
        [*running.command(home), *arguments],
        env=running.environment(home) | wrong,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _settled(pool: RealPool) -> int:
    """Tokens that were paid so far."""
    nodes = json.loads(pool.cli("coordinator", "nodes", "--json", home="pool").stdout)
    return sum(node["tokens_settled"] for node in nodes)


def _problems(pool: RealPool) -> list[str]:
    """What is wrong with the log, once the coordinator has ended."""
    pool.coordinator.stop()
    checked = json.loads(pool.cli("coordinator", "check", "--json", home="pool").stdout)
    pool.start_coordinator()
    problems: list[str] = checked["problems"]
    return problems


def _daemon(pool: RealPool, node: str) -> Daemon:
    return next(daemon for daemon in pool.daemons.values() if daemon.ready.endswith(node))
