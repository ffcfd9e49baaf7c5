"""A node's link is cut, both ways or one way, without a word: its job moves on, and it comes back.

Both nodes are cut before a job is given out, so that whichever gets it never starts; the other is
mended at once and takes over when the lease has run out. Nobody is told of a cut: not a packet says
so.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from novamesh_proto.limits import LEASE_MS
from support.network_beds import Home, missing
from support.spread_pool import SpreadPool

pytestmark = pytest.mark.timeout(180)
PROBLEM = "What is 31 plus 14?"
NODES = ("ada", "bob")
GRACE_S = 15.0  # of what nobody may be stuck for longer, once its lease has run out


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadPool]:
    if lacking := missing():
        pytest.skip(f"an internet of network namespaces needs {lacking}")
    with SpreadPool(tmp_path_factory.mktemp("spread")) as running:
        for name in NODES:
            running.add_home(name)
        running.join()
        yield running


@pytest.fixture
def pool(spread: SpreadPool) -> SpreadPool:
    """Both nodes attached, whatever the test before left."""
    for name in NODES:
        spread.net.mend(_home(spread, name))
    spread.revive(*NODES)
    spread.await_nodes(len(NODES))
    return spread


def test_job_of_a_node_whose_link_is_cut_both_ways_moves_on(pool: SpreadPool) -> None:
    lost = _see_a_job_move_on(pool, inbound=True)
    settled = _jobs(pool)[0]
    # It wakes up in another network: what was open is gone, and it attaches from there by itself.
    pool.net.move(_home(pool, lost))
    pool.net.mend(_home(pool, lost))
    pool.await_nodes(len(NODES))
    # Whatever it still had to say of the attempt that it lost changes nothing.
    assert _jobs(pool)[0] == settled


def test_job_of_a_node_that_hears_and_is_not_heard_moves_on(pool: SpreadPool) -> None:
    _see_a_job_move_on(pool, inbound=False)


def _see_a_job_move_on(pool: SpreadPool, inbound: bool) -> str:
    """Cut what both nodes say, and perhaps hear; which of them lost the job to the other."""
    for name in NODES:
        pool.net.cut(_home(pool, name), inbound=inbound)
    answer = _ask(pool)
    lost = _name(pool, _assigned(pool)["node"])
    (other,) = set(NODES) - {lost}
    pool.net.mend(_home(pool, other))
    out, err = answer.communicate(timeout=LEASE_MS / 1000 + GRACE_S)
    assert answer.returncode == 0, err
    assert json.loads(out)["text"]
    job = _jobs(pool)[0]
    assert (job["state"], job["attempt"]) == ("settled", 2)
    assert _name(pool, job["node"]) == other
    return lost


def _home(pool: SpreadPool, name: str) -> Home:
    place = pool.net.places[name]
    assert isinstance(place, Home)
    return place


def _ask(pool: SpreadPool) -> subprocess.Popen[str]:
    """Run a job in the background."""
    return subprocess.Popen(
        [*pool.command("client"), "run", "nova-pico", PROBLEM, "--json"],
        env=pool.environment("client"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _jobs(pool: SpreadPool) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(pool.cli("jobs", "ls", "--json").stdout)
    return listed


def _assigned(pool: SpreadPool) -> dict[str, Any]:
    """The newest job, as soon as a node has been told to do it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        jobs = _jobs(pool)
        if jobs and jobs[0]["state"] == "assigned":
            return jobs[0]
        time.sleep(0.1)
    raise AssertionError("the job was not given out")


def _name(pool: SpreadPool, node: str) -> str:
    """Which of the nodes has that id."""
    return next(name for name in NODES if pool.daemons[name].ready.split()[-1] == node)
