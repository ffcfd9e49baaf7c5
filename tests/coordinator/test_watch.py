"""What a watcher is told: in order, once, nothing before it is durable."""

from __future__ import annotations

import pytest

from novamesh_coordinator.watch import Follower
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobState, JobView, WatchQuery, WatchResponse
from support.actors import Attempt, ClientActor
from support.table import Table


class Scene:
    """A job at work and its client."""

    def __init__(self) -> None:
        self.table = Table()
        self.client: ClientActor = self.table.client()
        self.node = self.table.node("one")
        self.other = self.table.node("two")
        self.order = self.table.order(self.client, self.node, self.other)
        self.attempt: Attempt = self.table.assigned(self.node)

    def follower(self, attempt: int = 0, from_chunk: int = 0) -> Follower:
        header = self.client.header(self.table.now_ms)
        return Follower(WatchQuery(header, self.order.id, attempt, from_chunk))

    def view(self) -> JobView:
        return self.table.view(self.client, self.order.id)

    def read(self, follower: Follower) -> list[str]:
        stream = self.table.core.relay.get(self.order.id)
        return [name(event) for event in follower.read(self.view(), stream)]


def name(event: WatchResponse) -> str:
    if event.chunk is not None:
        return f"chunk {event.chunk.index}"
    if event.job is not None:
        return event.job.state.name.lower()
    return next(n for n in ("assignment", "checkpoint") if getattr(event, n) is not None)


def test_a_new_watcher_is_told_everything_once() -> None:
    scene = Scene()
    follower = scene.follower()
    assert scene.read(follower) == ["assigned", "assignment"]
    assert scene.read(follower) == []
    scene.table.decide(scene.attempt)
    for _ in range(2):
        scene.table.send(scene.attempt, scene.attempt.chunk())
    scene.table.checkpoint(scene.attempt)
    assert scene.read(follower) == ["running", "chunk 0", "chunk 1", "checkpoint"]
    scene.table.send(scene.attempt, scene.attempt.chunk(final=True))
    scene.table.attest(scene.attempt)
    assert scene.read(follower) == ["chunk 2"]
    assert scene.view().state is JobState.SETTLED


def test_a_watcher_that_comes_back_is_told_the_rest() -> None:
    scene = Scene()
    for _ in range(3):
        scene.table.send(scene.attempt, scene.attempt.chunk())
    assert scene.read(scene.follower(1, 2)) == ["assigned", "assignment", "chunk 2"]
    assert scene.read(scene.follower(1, 9)) == ["assigned", "assignment"]
    assert scene.read(scene.follower(0, 9))[2:] == ["chunk 0", "chunk 1", "chunk 2"]


def test_a_watcher_is_not_told_again_what_a_restarted_coordinator_gets_again() -> None:
    scene = Scene()
    for _ in range(3):
        scene.table.send(scene.attempt, scene.attempt.chunk())
    follower = scene.follower(1, 2)
    scene.table.restart()
    assert scene.read(follower) == ["assigned", "assignment"]
    scene.table.attach(scene.node, (scene.attempt.running,))
    for chunk in scene.attempt.sent:
        scene.table.send(scene.attempt, chunk)
    assert scene.read(follower) == ["running", "chunk 2"]


def test_another_attempt_begins_anew() -> None:
    scene = Scene()
    follower = scene.follower()
    scene.read(follower)
    scene.table.detach(scene.node)
    second = scene.table.assigned(scene.other)
    scene.table.send(second, second.chunk())
    assert scene.read(follower) == ["assigned", "assignment", "chunk 0"]


def test_an_attempt_is_not_told_before_its_view_is() -> None:
    scene = Scene()
    before = scene.view()
    follower = scene.follower()
    scene.read(follower)
    scene.table.detach(scene.node)
    stream = scene.table.core.relay.get(scene.order.id)
    assert list(follower.read(before, stream)) == []


def test_a_watcher_too_far_behind_is_told() -> None:
    scene = Scene()
    scene.table.core.relay._stream_bytes_max = 1_000
    follower = scene.follower()
    scene.read(follower)
    for _ in range(40):
        scene.table.send(scene.attempt, scene.attempt.chunk())
    with pytest.raises(NovaMeshError) as refused:
        scene.read(follower)
    assert refused.value.code is Code.STALE
