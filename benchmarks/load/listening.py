"""A node with a fake engine that clients reach themselves, in a process of its own, and they.

`python -m load.listening FOLDER MESH`: it says as a line of JSON where it listens, over TLS and, if
MESH is "mesh", in a mesh. Its clock stands still, as its clients' does: nothing expires.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

from novamesh.clock import Clock
from novamesh.config import Pool
from novamesh.pool import PoolConnection
from novamesh_node import admission, direct_service, doorway
from novamesh_proto import envelope, sealing
from novamesh_proto.buckets import Rate
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import JobId, NodeDescriptor, Sampling
from support.clock import START_MS
from support.mesh_peers import Attendee, mesh_config
from support.own_front import Alone, Visitor, open_front
from support.parties import CLIENT, NETWORK, NODE, body, head, sealed_job

FOLDERS: Final = (Path(__file__).parent.parent, Path(__file__).parent.parent.parent / "tests")
TOKENS: Final = 32
DIAL_S: Final = 30.0


class Caller:
    """A client that asks the node itself, over TLS or through a tunnel."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: host:port or "unix:…"."""
        pool = Pool(endpoint, format_node_id(NODE.node_id), NETWORK)
        clock = Clock(lambda: START_MS, time.monotonic)
        self._connection = PoolConnection(pool, CLIENT, clock, DIAL_S)
        self._numbers = itertools.count()

    async def close(self) -> None:
        """Hang up."""
        await self._connection.close()

    async def ask(self) -> float:
        """One job to its end; seconds from its acceptance to the first chunk of its answer."""
        connection, visitor = self._connection, Visitor()
        (said,) = await connection.list_descriptors()
        content = body()
        seed = sealing.seed_commitment(content.client_seed)
        job, terms = sealed_job(
            envelope.open(said, NodeDescriptor, network=NETWORK), content,
            header=head(CLIENT, NODE, label=f"job {next(self._numbers)}"),
            sampling=Sampling(seed_commitment=seed, max_tokens=TOKENS),
        )  # fmt: skip
        name = JobId(terms.id)
        opener = sealing.ChunkOpener(content.response_key, name, 1, 1, NODE.node_id)
        alone, events = Alone(visitor, job, name, opener, terms), []
        await connection.submit(job, ())
        accepted_s, first_s = time.perf_counter(), 0.0
        async for event in connection.watch(name, 0, 0):
            events.append(event)
            if event.chunk is not None and not first_s:
                first_s = time.perf_counter()
        alone.read(events)
        await connection.submit_receipt(alone.receipt(events))
        return first_s - accepted_s


@contextlib.contextmanager
def listening(mesh: bool) -> Iterator[dict[str, Any]]:
    """A node that listens: its `endpoint`, and its `peer` and `at` in a mesh."""
    with tempfile.TemporaryDirectory(prefix="nm") as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "load.listening", folder, "mesh" if mesh else "alone"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, FOLDERS))},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())
        finally:
            process.kill()
            process.wait()
            process.stdout and process.stdout.close()


@contextlib.asynccontextmanager
async def tunnel(node: dict[str, Any]) -> AsyncIterator[str]:
    """The end of a tunnel to a node that listens in a mesh."""
    with tempfile.TemporaryDirectory(prefix="nm") as folder:
        async with Attendee(mesh_config(Path(folder))) as here:
            peer = bytes.fromhex(node["peer"])
            async with here.mesh.open_tunnel(peer, tuple(node["at"])) as endpoint:
                yield endpoint


async def _serve(folder: Path, mesh: bool) -> None:
    socket = folder / "grpc"
    rates = ((admission, "CLIENT_RATE"), (doorway, "JOB_RATE"), (doorway, "CROWD_RATE"))
    for module, name in rates:
        vars(module)[name] = Rate(100_000, 100_000)  # one client asks as often as many would
    async with contextlib.AsyncExitStack() as stack:
        counter = await stack.enter_async_context(open_front(folder, slots=64))
        served = direct_service.listen(counter.front, NODE, "127.0.0.1:0", socket)
        listener = await stack.enter_async_context(served)
        told: dict[str, Any] = {"endpoint": f"127.0.0.1:{listener.port}"}
        if mesh:
            config = mesh_config(folder, serve_socket=socket)
            attendee = await stack.enter_async_context(Attendee(config))
            told |= {"peer": attendee.node.hex(), "at": attendee.mesh.addresses}
        print(json.dumps(told), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2] == "mesh"))
