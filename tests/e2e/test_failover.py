"""The node at work is killed in the middle of an answer, and nobody who reads it can tell."""

from __future__ import annotations

import json
from typing import Any

import pytest

from novamesh import Client, Completion, verify_file
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import JobState
from support.processes import Daemon, RealPool

pytestmark = pytest.mark.timeout(180)
PROMPT = "Write a long story about a café, an owl and 12 apples."
ASKED: dict[str, Any] = {"max_tokens": 400, "temperature": 0.9, "seed": 11, "ignore_eos": True}


async def test_killed_node_leaves_no_seam_in_the_answer(pool: RealPool) -> None:
    async with Client(home=pool.home("client")) as client:
        whole = await client.complete("nova-pico", PROMPT, **ASKED)
        text, broken = await _break(pool, client, pieces=2)
    assert text == broken.text == whole.text
    assert broken.token_ids == whole.token_ids
    assert len(whole.parts) == 1
    first, last = broken.parts
    assert first.node != last.node
    assert (first.start, first.end, last.start) == (0, last.start, first.end)
    assert first.signed <= first.end < last.end == 400
    verified = verify_file(broken.receipt_path)
    assert [part.job for part in verified.parts] == [first.job, last.job]
    said = pool.cli("receipt", "verify", str(broken.receipt_path))
    assert "one answer of 2 parts" in said.stdout + said.stderr
    _nothing_was_paid_twice(pool)


async def test_answer_goes_on_on_a_node_that_came_back(pool: RealPool) -> None:
    """Nobody else offers the model, so the node that was lost is asked again."""
    names = [name for name, daemon in pool.daemons.items() if _is_node(daemon)]
    pool.daemons[names[0]].kill()
    async with Client(home=pool.home("client")) as client:
        whole = await client.complete("nova-pico", PROMPT, **ASKED)
        text, broken = await _break(pool, client, pieces=4, back=True)
    assert text == broken.text == whole.text
    assert len({part.node for part in broken.parts}) == 1
    assert len(broken.parts) == 2
    _nothing_was_paid_twice(pool)


async def _break(
    pool: RealPool, client: Client, pieces: int, back: bool = False
) -> tuple[str, Completion]:
    """An answer whose node is killed once so many pieces of it are here."""
    run, texts = client.run("nova-pico", PROMPT, **ASKED), []
    async for piece in run:
        texts.append(str(piece))
        if len(texts) == pieces:
            (job,) = await client.jobs(1)
            assert job.state is JobState.RUNNING, "the answer was over before it could break"
            node = format_node_id(job.node)
            name = next(n for n, d in pool.daemons.items() if d.ready.endswith(node))
            pool.daemons[name].kill()
            if back:
                pool.start_node(name)
    return "".join(texts), await run.completion()


def _nothing_was_paid_twice(pool: RealPool) -> None:
    pool.coordinator.stop()
    checked = json.loads(pool.cli("coordinator", "check", "--json", home="pool").stdout)
    assert checked["problems"] == []


def _is_node(daemon: Daemon) -> bool:
    return daemon.ready.startswith("node ready") and daemon.running
