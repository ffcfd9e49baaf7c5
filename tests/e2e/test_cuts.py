"""Links are cut without a word, and a laptop sleeps: answers go on, and everybody comes back.

Everybody has a place of its own on a small internet. In the middle of answers, at the same time:
the link of a node that its client can reach itself is cut both ways; one node hears and is not
heard any more, one is heard and hears nothing; a client loses its coordinator, but not its node; a
laptop falls asleep, and wakes up at another address. Nobody is told: not a packet says so. Then
each of the lost nodes is given one more job, which it can never begin.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from novamesh import verify_file
from novamesh_node.cli import pause, resume
from novamesh_proto.evidence import VerifiedReceipt
from novamesh_proto.identity import format_node_id
from support.network_beds import missing
from support.outage_pool import Streams, write_long_model
from support.spread_pool import SpreadPool

pytestmark = pytest.mark.timeout(300)
# What still passes of a node's link: nothing, what it hears, what it says.
CUTS = {
    "dora": {},
    "bob": {"inbound": False},
    "cleo": {"outbound": False},
}
SPARE = "pia"  # offers what each of them does, and takes over
LAPTOP = "lara"
PUBLIC = ("dora", SPARE, LAPTOP)
CLIENTS = ("client", "wren")
PORT = 7701
TOKENS = 1000  # more than what a link still holds that is cut
SIGNED = 64  # after so many of them a node has signed for some
SHORT = 8
WATCHED = 200  # tokens that come from a node which is found to be in reach meanwhile
RECORD = 5  # jobs after which a node is not new: nine of ten jobs are its own, the spare being new
WHOLE_S = 120.0
ATTACHED_S = 60.0
DIRECT_S = 45.0  # longer than a client leaves a node alone that it did not reach


@dataclass
class Story:
    """What happened: the streams by what they were to show, and jobs as the pool told of them."""

    pool: SpreadPool
    ids: dict[str, str]
    broken: dict[str, dict[str, Any]] = field(default_factory=dict)  # ends of streams, by node
    moved: dict[str, dict[str, Any]] = field(default_factory=dict)
    whole: dict[str, dict[str, Any]] = field(default_factory=dict)
    alone: dict[str, Any] = field(default_factory=dict)  # without a coordinator
    before: list[dict[str, Any]] = field(default_factory=list)  # the links were mended
    after: list[dict[str, Any]] = field(default_factory=list)
    addresses: tuple[str, str] = ("", "")  # of the laptop
    laptop: tuple[dict[str, Any], dict[str, Any]] = ({}, {})


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadPool]:
    if lacking := missing():
        pytest.skip(f"an internet of network namespaces needs {lacking}")
    with SpreadPool(tmp_path_factory.mktemp("spread")) as running:
        for name in (*CUTS, LAPTOP, SPARE):
            write_long_model(_model(running, name))
        for name in (*PUBLIC, *CLIENTS):
            running.net.add_host(name)
        for name in CUTS.keys() - set(PUBLIC):
            running.add_home(name)
        with ThreadPoolExecutor(max_workers=2) as starting:
            joined = [starting.submit(running.join, name) for name in CLIENTS]
            started = [starting.submit(_start, running, name) for name in (SPARE, *CUTS, LAPTOP)]
            for each in (*joined, *started):
                each.result()
        yield running


def _model(pool: SpreadPool, name: str) -> Path:
    return pool.root / f"nova-{name}"


def _start(pool: SpreadPool, name: str) -> None:
    """A node with a model of its own; the spare one has everybody's, and room for all of them."""
    models = (*CUTS, SPARE) if name == SPARE else (name,)
    flags = [flag for model in models for flag in ("--model", str(_model(pool, model)))]
    listening = ("--listen", f"0.0.0.0:{PORT}") if name in PUBLIC else ()
    slots = "12" if name == SPARE else "6"
    pool.start_node(name, "--slots", slots, *flags, *listening)
    if name == SPARE:
        pause(home=pool.home(SPARE))


@pytest.fixture(scope="module")
def story(pool: SpreadPool) -> Story:
    """Everything that is cut, and everything that follows."""
    ids = {name: daemon.ready.split()[-1] for name, daemon in pool.daemons.items()}
    told = Story(pool, ids)
    with Streams(pool) as client, Streams(pool, "wren") as wren:
        _give_them_records(told, client)
        broken = _ask_each(client, TOKENS)
        client.grow(list(broken.values()), SIGNED, WHOLE_S)
        with ThreadPoolExecutor(len(CUTS)) as cutting:
            list(cutting.map(lambda name: _cut(pool, name), CUTS))
        told.addresses = _fall_asleep(pool)
        resume(home=pool.home(SPARE))
        wren.ask(0, TOKENS, 1, f"nova-{SPARE}")
        wren.grow([0], 1, WHOLE_S)
        pool.net.cut(pool.host("wren"), peer=pool.host("pool"))
        told.moved = _ask_until_it_moves_on(client)
        pool.daemons[LAPTOP].signal(signal.SIGCONT)
        wren.finish(WHOLE_S)
        told.alone = wren.end(0)
        client.finish(WHOLE_S)
        told.before = _jobs(pool)
        told.broken = {name: client.end(stream) for name, stream in broken.items()}
        _come_back(told, client)
    return told


@pytest.mark.parametrize("name", CUTS)
def test_an_answer_goes_on_elsewhere_without_a_seam(story: Story, name: str) -> None:
    end, spare = story.broken[name], story.ids[SPARE]
    assert end["nodes"] == [story.ids[name], spare]
    assert end["digest"] == story.whole[name]["digest"]
    assert _states(story.before, end["jobs"]) == ["failed", "settled"]
    proof = _proof(end)
    assert [format_node_id(part.node) for part in proof.parts] == end["nodes"]
    lost, last = proof.spans
    assert (lost.start, lost.end, last.end) == (0, last.start, TOKENS)
    assert 0 < lost.signed <= lost.end


@pytest.mark.parametrize("name", CUTS)
def test_a_job_that_cannot_begin_moves_on(story: Story, name: str) -> None:
    end = story.moved[name]
    assert end["nodes"] == [story.ids[SPARE]]
    (job,) = [job for job in story.before if job["job"] in end["jobs"]]
    assert (job["state"], job["attempt"]) == ("settled", 2)


def test_the_lost_come_back_and_what_they_still_had_to_say_changes_nothing(story: Story) -> None:
    for name in CUTS:
        assert story.whole[name]["nodes"] == [story.ids[name]]
    assert [job for job in story.after if job in story.before] == story.before


def test_an_answer_from_its_node_needs_no_coordinator(story: Story) -> None:
    assert (story.alone["nodes"], story.alone["paths"]) == ([story.ids[SPARE]], ["direct"])
    deadline = time.monotonic() + ATTACHED_S
    while _states(_jobs(story.pool, "wren"), story.alone["jobs"]) != ["settled"]:
        assert time.monotonic() < deadline, "it was not settled when the link was mended"


def test_a_laptop_that_wakes_up_elsewhere_is_reached_there(story: Story) -> None:
    before, after = (_proof(end).descriptor.message for end in story.laptop)
    assert [before.endpoints, after.endpoints] == [(address,) for address in story.addresses]
    assert after.sequence > before.sequence
    assert [end["paths"] for end in story.laptop] == [["direct"], ["direct"]]


def test_nothing_is_wrong_with_the_log(story: Story) -> None:
    pool = story.pool
    pool.coordinator.stop()
    checked = json.loads(pool.cli("coordinator", "check", "--json", home="pool").stdout)
    assert checked["problems"] == []


def _ask_each(client: Streams, tokens: int) -> dict[str, int]:
    """An answer of each node's own model; its stream."""
    return {name: _ask(client, name, tokens) for name in CUTS}


def _ask(client: Streams, name: str, tokens: int) -> int:
    stream = len(client.said)
    client.ask(stream, tokens, 7, f"nova-{name}")
    return stream


def _give_them_records(told: Story, client: Streams) -> None:
    """Short answers of each, and one of the laptop; nobody is new then but the spare one."""
    for _ in range(RECORD):
        _ask_each(client, SHORT)
    client.finish(WHOLE_S)
    told.laptop = (_ask_laptop(client), {})


def _ask_laptop(client: Streams) -> dict[str, Any]:
    """An answer that came from the laptop itself; the relay may be sooner, for an answer or two."""
    deadline = time.monotonic() + DIRECT_S
    while True:
        stream = _ask(client, LAPTOP, WATCHED)
        client.finish(WHOLE_S, stream)
        end = client.end(stream)
        if end["paths"] == ["direct"] or time.monotonic() > deadline:
            return end


def _cut(pool: SpreadPool, name: str) -> None:
    pool.net.cut(pool.net.places[name], **CUTS[name])


def _fall_asleep(pool: SpreadPool) -> tuple[str, str]:
    """The laptop; its address before and after."""
    pool.daemons[LAPTOP].signal(signal.SIGSTOP)
    old = pool.host(LAPTOP)
    return f"{old.address}:{PORT}", f"{pool.net.move(old).address}:{PORT}"


def _ask_until_it_moves_on(client: Streams) -> dict[str, dict[str, Any]]:
    """The end of a job that each of the lost nodes was given first, and did not begin."""
    asked, moved = _ask_each(client, SHORT), dict[str, dict[str, Any]]()
    deadline = time.monotonic() + WHOLE_S
    while len(moved) < len(CUTS):
        assert time.monotonic() < deadline, f"only of {list(moved)}"
        time.sleep(0.05)
        for name in CUTS.keys() - moved.keys():
            end = client.last(asked[name])
            if "digest" not in end:
                continue
            if _proof(end).assignment.message.attempt > 1:
                moved[name] = end
            else:  # the spare one was given it at once
                asked[name] = _ask(client, name, SHORT)
    return moved


def _come_back(told: Story, client: Streams) -> None:
    """Every link is whole again, everybody attaches, and the same is asked of who was lost."""
    pool = told.pool
    for name in (*CUTS, "wren"):
        pool.net.mend(pool.net.places[name])
    pause(home=pool.home(SPARE))
    deadline = time.monotonic() + ATTACHED_S
    while pool.daemons[LAPTOP].log.read_text().count("attached") < 2:
        assert time.monotonic() < deadline, "the laptop did not attach from its new address"
        time.sleep(0.1)
    pool.await_nodes(len(CUTS) + 2)
    told.laptop = (told.laptop[0], _ask_laptop(client))
    whole = _ask_each(client, TOKENS)
    client.finish(WHOLE_S)
    told.whole = {name: client.end(stream) for name, stream in whole.items()}
    told.after = _jobs(pool)


def _jobs(pool: SpreadPool, home: str = "client") -> list[dict[str, Any]]:
    command = ("jobs", "ls", "--count", "100", "--json")
    listed: list[dict[str, Any]] = json.loads(pool.cli(*command, home=home).stdout)
    return listed


def _states(jobs: list[dict[str, Any]], wanted: list[str]) -> list[str]:
    found = {job["job"]: job["state"] for job in jobs}
    return [found[job] for job in wanted]


def _proof(end: dict[str, Any]) -> VerifiedReceipt:
    return verify_file(Path(end["receipt"]))
