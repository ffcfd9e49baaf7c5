"""`novamesh demo`: a whole pool on this machine, through the public command line only.

A coordinator and two nodes start as real processes on ports of loopback. A word problem goes to the
built-in model through the sealed path; its answer streams, its receipt is shown; the node that
answered is killed and a second job is served all the same; the coordinator stops and the receipt
still verifies. Nothing stays behind, whatever happens: no process, no file.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from novamesh.cli.daemons import Daemon, DaemonError, Daemons
from novamesh.cli.output import format_fields, plural, say, write
from novamesh.cli.receipt import witnessed
from novamesh.client import Client
from novamesh.completion import Completion
from novamesh.config import Config, find_places, load_config
from novamesh.private_file import write_private
from novamesh.receipts import read_receipt, verify_file
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id, short
from novamesh_proto.receipt import VerifiedReceipt

MODEL: Final = "nova-pico"
PROBLEMS: Final = (
    # Three steps with large numbers: a short answer comes too fast to be timed.
    "Maya has 134 apples. She buys 52 more. Then she gives away 38. Later she finds 109 more. "
    "How many apples does she have now?",
    "Tom has 52 coins. He loses 19 coins. How many coins does Tom have now?",
)
NODES: Final = ("node-1", "node-2")
_NEEDED: Final = ("torch", "tokenizers", "psutil", "sqlalchemy", "grpc_health")
ANYWHERE: Final = "127.0.0.1:0"


async def demo(
    *,
    model: str = MODEL,
    keep_receipt: Annotated[
        Path | None, Parameter(help="Write the first job's receipt to this file.")
    ] = None,
) -> None:
    """Start a whole pool on this machine, ask it something, check the proof, pull a plug.

    Everything lives in a temporary folder and on ports of loopback, and is gone at the end.

    Parameters
    ----------
    model
        A built-in model, or a model folder.
    """
    _require_parts()
    _require_model(model)
    started = time.monotonic()
    try:
        with _ended_by_signals(), _temporary_folder() as folder:
            async with Daemons(folder) as daemons:
                await _Demo(folder, daemons, model, started).play(keep_receipt)
    except DaemonError as error:
        say(error.tail)
        raise
    write(f"done in {time.monotonic() - started:.1f} s; no process and no file is left behind\n")


class _Demo:
    """The acts of the play, in order."""

    def __init__(self, folder: Path, daemons: Daemons, model: str, started: float) -> None:
        self._folder = folder
        self._daemons = daemons
        self._model = model
        self._started = started
        self._code = ""
        self._nodes: dict[str, Daemon] = {}

    async def play(self, keep_receipt: Path | None) -> None:
        """All of it. Raises whatever goes wrong."""
        write(f"a pool on this machine, in {self._folder}\n")
        coordinator = await self._start_coordinator()
        await self._start_nodes()
        async with self._client() as client:
            await client.join()
            first = await self._ask(client, 1, PROBLEMS[0])
            verified = verify_file(first.receipt_path, client.config.require_pool().coordinator_id)
            write(f"receipt\n{_describe(verified)}")
            if keep_receipt is not None:
                write_private(keep_receipt, read_receipt(first.receipt_path))
            await self._kill(first)
            second = await self._ask(client, 2, PROBLEMS[1])
            write(f"  answered by  {short(second.node)}, the node that is left\n")
            pin = client.config.require_pool().coordinator_id
        await coordinator.stop()
        verify_file(first.receipt_path, pin)
        write("coordinator stopped; the receipt still verifies, offline\n")

    async def _start_coordinator(self) -> Daemon:
        await self._daemons.command("coordinator", "coordinator", "init", "--name", "demo")
        serve = ("coordinator", "serve", "--listen", ANYWHERE, "--http", ANYWHERE)
        daemon = await self._daemons.start("coordinator", *serve)
        self._tell("coordinator", daemon.ready.rpartition(" ")[2])
        self._code = (await self._daemons.command("coordinator", "coordinator", "invite")).strip()
        return daemon

    async def _start_nodes(self) -> None:
        try:
            async with asyncio.TaskGroup() as starts:
                for name in NODES:
                    starts.create_task(self._start_node(name), name=name)
        except* (DaemonError, OSError) as group:  # or nobody reads what the demo tells
            failure = group.exceptions[0]
        else:
            return
        raise failure

    async def _start_node(self, name: str) -> None:
        daemon = await self._daemons.start(
            name, "node", "start", "--join", self._code, "--model", self._model, "--threads", "1"
        )
        peer = daemon.ready.rpartition(" ")[2]
        self._nodes[peer] = daemon
        self._tell(name, f"{peer[:7]}…{peer[-4:]}")

    def _client(self) -> Client:
        home = self._folder / "client"
        config = load_config(home, env={})
        return Client(config=Config(find_places(home), None, config.client), join=self._code)

    async def _ask(self, client: Client, number: int, problem: str) -> Completion:
        write(f"\njob {number}  {problem}\n")
        (served,) = {one.name for one in await client.models()}
        run = client.run(served, problem, max_tokens=160)
        async with contextlib.aclosing(run.__aiter__()) as pieces:
            text = ""
            async for piece in pieces:
                write(piece.text)
                text += piece.text
        write("" if text.endswith("\n") else "\n")
        return await run.completion()

    async def _kill(self, answered: Completion) -> None:
        peer = format_node_id(answered.node)
        daemon = self._nodes[peer]
        await daemon.kill()
        write(f"\n{daemon.name} killed (SIGKILL), the one that answered\n")

    def _tell(self, name: str, text: str) -> None:
        write(f"  {name.ljust(11)}  {text.ljust(22)}  after {self._elapsed():.1f} s\n")

    def _elapsed(self) -> float:
        return time.monotonic() - self._started


def _describe(verified: VerifiedReceipt) -> str:
    claim = verified.attestation
    read = claim.message.prompt_tokens if claim is not None else 0
    name = verified.offer.name if verified.offer is not None else ""
    digest = verified.terms.message.model_profile.hex()
    parts = ", ".join(part for part, _ in verified.signatures)
    return format_fields(
        {
            "answered by": format_node_id(verified.node),
            "model": f"{name}  sha256:{digest[:32]}…",
            "tokens": f"{read} read, {plural(verified.completion_tokens, 'token')} answered",
            "witnessed": witnessed(verified),
            "signatures": f"{len(verified.signatures)} ok: {parts}",
        },
        indent="  ",
    )


def _require_parts() -> None:
    """The daemons need what a client alone does not."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NovaMeshError(
            Code.UNSUPPORTED,
            f"the demo runs nodes and a coordinator, which need {', '.join(missing)}",
            "pip install 'novamesh[node,coordinator]'",
        )


def _require_model(model: str) -> None:
    """A model that is not there is the user's mistake, and no daemon need start to find it.

    The engine is reached by import string: no package of ours depends on it from here.
    """
    try:
        importlib.import_module("novamesh_engine.catalogue").locate(model)
    except NovaMeshError as error:
        raise NovaMeshError(Code.BAD_REQUEST, error.message, error.hint) from None


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="novamesh-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP ends the play; everything is cleaned up.

    Cleaning up is bounded, so further ones are ignored until the process has ended: a second Ctrl-C
    must not leave daemons and files behind.
    """
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    assert task is not None, "the demo runs in a task"
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ending = False

    def end() -> None:
        nonlocal ending
        if not ending:
            ending = True
            say("ending: everything is stopped and removed")
            task.cancel()

    for number in caught:
        loop.add_signal_handler(number, end)
    try:
        yield
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
            if ending:
                signal.signal(number, signal.SIG_IGN)
