"""A pool is taken apart while a client streams: no answer has a seam, and nothing is paid twice.

Two homes behind NAT, a public node, a coordinator, a broker, each in a place of its own. The
coordinator is killed, then the broker, then the node of each home. `make done` plays it longer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from novamesh import verify_file
from novamesh_proto.identity import format_node_id
from support.network_beds import missing
from support.outage_pool import HOMES, PUBLIC, OutagePool, Streams

SLOTS = int(os.environ.get("NOVAMESH_TEST_DONE_SLOTS", "1"))  # of a home: streams at its node
TOKENS = int(os.environ.get("NOVAMESH_TEST_DONE_TOKENS", "3000"))
LONGER = SLOTS * TOKENS / 3000  # than in `make test`: every token is computed, on however few cores
RECOVER_S = 10.0  # where the machine is this pool's; where others work on it, as much longer
OWN_LOAD = 6.0
STEP_TOKENS = 100  # that a stream brings after the coordinator's end and before its node's
WHOLE_S = 180.0 * LONGER
SETTLED_S = 60.0
pytestmark = pytest.mark.timeout(400 * LONGER)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[OutagePool]:
    if lacking := missing():
        pytest.skip(f"an internet of network namespaces needs {lacking}")
    with OutagePool(tmp_path) as running:
        running.start_all(SLOTS)
        yield running


def test_answers_outlive_coordinator_broker_and_half_the_nodes(pool: OutagePool) -> None:
    with Streams(pool) as streams:
        at_home, direct = _begin(pool, streams)
        relayed = [stream for some in at_home.values() for stream in some]
        pool.coordinator.kill()
        assert pool.broker is not None
        pool.broker.kill()
        with ThreadPoolExecutor(len(HOMES)) as killers:
            list(killers.map(lambda name: _kill(pool, streams, name, at_home[name]), HOMES))
        busy = os.getloadavg()[0]
        streams.finish(WHOLE_S)
        ids = {name: daemon.ready.split()[-1] for name, daemon in pool.daemons.items()}
        for stream in relayed:
            _went_on_elsewhere(streams, stream, ids)
        for stream in direct:
            assert streams.end(stream)["nodes"] == [ids[PUBLIC]]
            assert streams.end(stream)["paths"] == ["direct"]
        pauses_s = {stream: _longest_pause_s(said) for stream, said in streams.said.items()}
        stretch = max(1.0, busy / OWN_LOAD)
        print(f"load {busy:.1f}; longest pause of each answer, those of the homes' nodes first:")
        print(*(f"{pauses_s[stream]:.2f} s" for stream in (*relayed, *direct)))
        assert max(pauses_s.values()) < RECOVER_S * stretch
        ends = {stream: streams.end(stream) for stream in streams.said}
        _coordinator_returns(pool, ends, ids)
        assert _whole(streams, relayed) == [ends[stream]["digest"] for stream in relayed]
    pool.coordinator.stop()
    checked = json.loads(pool.cli("coordinator", "check", "--json", home="pool").stdout)
    assert checked["problems"] == []
    assert checked["settlements"] <= checked["jobs"]


def _begin(pool: OutagePool, streams: Streams) -> tuple[dict[str, list[int]], list[int]]:
    """Streams of each home's node, relayed, then of the public one, direct."""
    places = (*HOMES, PUBLIC)
    for name in places[1:]:
        pool.cli("node", "pause", home=name)
    pool.await_circuits()
    asked: dict[str, list[int]] = {}
    for number, name in enumerate(places):
        if number:
            pool.cli("node", "resume", home=name)  # whoever came before has no room any more
        asked[name] = list(range(number * SLOTS, (number + 1) * SLOTS))
        for stream in asked[name]:
            streams.ask(stream, TOKENS, seed=stream)
        streams.grow(asked[name], 1, WHOLE_S)
    direct = asked.pop(PUBLIC)
    return asked, direct


def _kill(pool: OutagePool, streams: Streams, name: str, at_work: list[int]) -> None:
    """A home's node, once its streams have recovered from the loss of the coordinator."""
    streams.grow(at_work, STEP_TOKENS, WHOLE_S)
    pool.daemons[name].kill()


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


def _whole(streams: Streams, wanted: list[int]) -> list[str]:
    """The same answers once more, from a node that nobody kills."""
    again = [len(streams.said) + number for number in range(len(wanted))]
    for stream, seed in zip(again, wanted, strict=True):
        streams.ask(stream, TOKENS, seed)
    streams.finish(WHOLE_S)
    return [str(streams.end(stream)["digest"]) for stream in again]
