"""A whole node that runs as a task, what it tells people, and jobs for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from novamesh_node import control
from novamesh_node.config import NodeConfig, load_node_config
from novamesh_node.daemon import Voice, serve
from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Verified
from novamesh_proto.join_code import format_join_code
from novamesh_proto.messages import (
    AttachAssignment,
    ChunkBody,
    JobAssignment,
    JobBody,
    JobId,
    JobTerms,
    JoinCode,
    SealedJob,
)
from support.fake_coordinator import Attached, FakeCoordinator
from support.parties import CLIENT, COORDINATOR, NETWORK, body, head, sign, terms

MARKER = "a marker that is found nowhere"


@dataclass
class Heard:
    """What the node told people."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, node: str) -> None:
        self.ready.append(node)
        self.is_ready.set()


@dataclass
class Node:
    """A node that runs as a task."""

    config: NodeConfig
    task: asyncio.Task[None]
    heard: Heard

    async def ready(self) -> None:
        waiting = asyncio.ensure_future(self.heard.is_ready.wait())
        await asyncio.wait({waiting, self.task}, timeout=20, return_when="FIRST_COMPLETED")
        if self.task.done():
            waiting.cancel()
            self.task.result()
        assert self.heard.is_ready.is_set()

    async def ask(self, command: str, **arguments: Any) -> control.Reply:
        return await control.ask(self.config.places.node_socket, command, arguments)

    async def over(self) -> None:
        await asyncio.wait_for(self.task, 20)


def configure(home: Path, pool: FakeCoordinator, model: Path, join: bool = True) -> NodeConfig:
    code = JoinCode(pool.address, COORDINATOR.node_id, NETWORK, b"invite")
    flags = {"models": str(model), "threads": 1, "slots": 2}
    return load_node_config(home, {}, flags, format_join_code(code) if join else None)


@contextlib.asynccontextmanager
async def node(config: NodeConfig) -> AsyncIterator[Node]:
    heard = Heard()
    voice = Voice(lambda head, text: heard.lines.append((head, text)), heard.note)
    task = asyncio.create_task(serve(config, voice), name="node")
    try:
        yield Node(config, task, heard)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class Job:
    """A job for an attached node, sealed to the descriptor it showed."""

    offer: AttachAssignment
    body: JobBody
    terms: Verified[JobTerms]
    assignment: Verified[JobAssignment]
    node: Attached

    def read(self, messages: list[Any]) -> list[ChunkBody]:
        opener = sealing.ChunkOpener(
            self.body.response_key, JobId(self.terms.id), 1, 1, self.node.descriptor.issuer
        )
        return [opener.open(m.chunk.chunk) for m in messages if m.chunk is not None]


def job(at: Attached, max_tokens: int = 12) -> Job:
    now_ms = at.hello.header.issued_at_ms
    content = body(MARKER)
    sealed = sealing.seal_body(content)
    made = terms(header=head(CLIENT, COORDINATOR, now_ms=now_ms))
    sampling = replace(
        made.sampling, max_tokens=max_tokens, ignore_eos=True,
        seed_commitment=sealing.seed_commitment(content.client_seed),
    )  # fmt: skip
    profile = at.descriptor.message.models[0].model_profile
    wanted = sign(
        replace(
            made, sampling=sampling, model_profile=profile, body_digest=sealed.digest,
            body_bytes=len(sealed.ciphertext), key_commitment=sealed.commitment,
        ),
        CLIENT,
    )  # fmt: skip
    node_id = at.descriptor.issuer
    header = envelope.header(COORDINATOR, NETWORK, (node_id, CLIENT.node_id), now_ms)
    order = JobAssignment(header, JobId(wanted.id), node_id, 1, 1, 15_000)
    assignment = sign(order, COORDINATOR)
    wrap = sealing.wrap_key(sealed.key, JobId(wanted.id), at.descriptor)
    offer = AttachAssignment(
        assignment.envelope, SealedJob(wanted.envelope, sealed.ciphertext, (wrap,))
    )
    return Job(offer, content, wanted, assignment, at)
