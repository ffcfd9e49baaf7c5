"""A pool is taken apart while a client streams: no answer has a seam, and nothing is paid twice.

Two homes behind NAT, a public node, a coordinator, a broker, each in a place of its own. The
coordinator is killed, then the broker, then both homes' nodes. `make done` plays it longer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from novamesh import verify_file
from novamesh_proto.identity import format_node_id
from support.network_beds import missing
from support.outage_pool import HOMES, PUBLIC, OutagePool, Streams

pytestmark = pytest.mark.timeout(400)
SLOTS = int(os.environ.get("NOVAMESH_TEST_DONE_SLOTS", "1"))  # of a home: streams at its node
TOKENS = int(os.environ.get("NOVAMESH_TEST_DONE_TOKENS", "1500"))
RECOVER_S = 10.0
STEP_TOKENS = 100  # that every stream brings before the next thing is killed
WHOLE_S = 180.0
SETTLED_S = 60.0


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OutagePool]:
    if lacking := missing():
        pytest.skip(f"an internet of network namespaces needs {lacking}")
    with OutagePool(tmp_path) as running:
        running.start_all(SLOTS)
        yield running


def test_answers_outlive_coordinator_broker_and_half_the_nodes(pool: OutagePool) -> None:
    with Streams(pool) as streams:
        relayed, direct = _begin(pool, streams)
        pool.coordinator.kill()
        streams.grow(relayed, STEP_TOKENS, WHOLE_S)
        assert pool.broker is not None
        pool.broker.kill()
        streams.grow(relayed, STEP_TOKENS, WHOLE_S)
        for name in HOMES:
            pool.daemons[name].kill()
        streams.finish(WHOLE_S)
        ids = {name: daemon.ready.split()[-1] for name, daemon in pool.daemons.items()}
        for stream in relayed:
            _went_on_elsewhere(streams, stream, ids)
        for stream in direct:
            assert streams.end(stream)["nodes"] == [ids[PUBLIC]]
            assert streams.end(stream)["paths"] == ["direct"]
        assert max(_longest_pause_s(said) for said in streams.said.values()) < RECOVER_S
        broken = {stream: streams.end(stream) for stream in streams.said}
        _coordinator_returns(pool, broken, ids)
        assert _whole(streams, len(broken)) == [broken[stream]["digest"] for stream in broken]
    pool.coordinator.stop()
    checked = json.loads(pool.cli("coordinator", "check", "--json", home="pool").stdout)
    assert checked["problems"] == []
    assert checked["settlements"] <= checked["jobs"]


def _begin(pool: OutagePool, streams: Streams) -> tuple[list[int], list[int]]:
    """Streams of the homes' nodes, relayed, then as many of the public one's, direct."""
    relayed, direct = list(range(2 * SLOTS)), list(range(2 * SLOTS, 4 * SLOTS))
    pool.cli("node", "pause", home=PUBLIC)
    pool.await_circuits()
    for stream in relayed:
        streams.ask(stream, TOKENS, seed=stream)
    streams.grow(relayed, 1, WHOLE_S)
    pool.cli("node", "resume", home=PUBLIC)
    for stream in direct:
        streams.ask(stream, TOKENS, seed=stream)
    streams.grow([*relayed, *direct], STEP_TOKENS, WHOLE_S)
    return relayed, direct


def _went_on_elsewhere(streams: Streams, stream: int, ids: dict[str, str]) -> None:
    """The first part is a home's, the last the public node's, which was asked itself."""
    end = streams.end(stream)
    assert end["nodes"][0] in {ids[name] for name in HOMES}
    assert (end["nodes"][-1], end["paths"][-1]) == (ids[PUBLIC], "direct")
    proof = verify_file(Path(end["receipt"]))
    assert [format_node_id(part.node) for part in proof.parts] == end["nodes"]
    assert proof.donated


def _longest_pause_s(said: list[dict[str, Any]]) -> float:
    return max(later["at"] - earlier["at"] for earlier, later in pairwise(said))


def _coordinator_returns(
    pool: OutagePool, ends: dict[int, dict[str, Any]], ids: dict[str, str]
) -> None:
    """What was donated is logged, what a direct stream brought is settled, a job once at most."""
    pool.start_coordinator()
    pool.await_nodes(1)
    parts = [pair for end in ends.values() for pair in zip(end["jobs"], end["nodes"], strict=True)]
    given = {end["jobs"][0] for end in ends.values()}
    donated = [job for job, node in parts if job not in given and node == ids[PUBLIC]]
    deadline = time.monotonic() + SETTLED_S
    while True:
        listed = json.loads(pool.cli("coordinator", "nodes", "--json", home="pool").stdout)
        logged = {each["node"]: each["jobs_donated"] for each in listed}
        jobs = {each["job"]: each for each in json.loads(pool.cli("jobs", "ls", "--json").stdout)}
        settled = {job for job, each in jobs.items() if each["state"] == "settled"}
        direct = {end["jobs"][0] for end in ends.values() if len(end["jobs"]) == 1}
        if logged.get(ids[PUBLIC]) == len(donated) and direct <= settled:
            break
        assert time.monotonic() < deadline, (logged, jobs)
    assert set(jobs) == given, "what was donated is no job of the coordinator's"


def _whole(streams: Streams, count: int) -> list[str]:
    """The same answers once more, of a pool in which nothing breaks."""
    for stream in range(count):
        streams.ask(count + stream, TOKENS, seed=stream)
    streams.finish(WHOLE_S)
    return [str(streams.end(count + stream)["digest"]) for stream in range(count)]
