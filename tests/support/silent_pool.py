"""A pool whose coordinator may fall silent to its client, as a machine does that loses its power.

`ada` listens nowhere, so what it answers is relayed; `pia` listens, donates, and is paused until
it is wanted. The client dials the coordinator through a proxy that can swallow everything.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Final

from novamesh import Client, Completion
from novamesh.config import load_config
from support.cutting_proxy import CuttingProxy
from support.outage_pool import MODEL, write_long_model
from support.ports import free_port
from support.processes import RealPool

TOKENS: Final = 1_200
PROMPT: Final = "Write a long story about an owl and 12 apples."
ASKED: Final[dict[str, Any]] = {
    "max_tokens": TOKENS, "temperature": 0.9, "seed": 3, "ignore_eos": True,
}  # fmt: skip
DONATED_S: Final = 30.0


@dataclass
class SilentPool(RealPool):
    """As a real pool; `proxy` stands between the client and the coordinator."""

    proxy: CuttingProxy = field(init=False)
    endpoint: str = field(default_factory=lambda: f"127.0.0.1:{free_port()}")  # of `pia`

    def __enter__(self) -> SilentPool:
        super().__enter__()
        try:
            write_long_model(self.root / MODEL)
            self.proxy = CuttingProxy(int(self.address.rpartition(":")[2]))
            self.proxy.__enter__()
            self.join()
            model = ("--model", str(self.root / MODEL), "--slots", "2")
            pia = (*model, "--listen", self.endpoint, "--donate")
            with ThreadPoolExecutor(max_workers=2) as starting:
                started = starting.submit(self.start_node, "ada", *model)
                self.start_node("pia", *pia)
                started.result()
            self.await_nodes(2)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if hasattr(self, "proxy"):
            self.proxy.__exit__(kind, error, trace)
        super().__exit__(kind, error, trace)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Its client, which knows where `pia` is."""
        config = load_config(self.home("client"))
        pool = replace(config.require_pool(), address=f"127.0.0.1:{self.proxy.port}")
        pia = self.daemons["pia"].ready.split()[-1]
        settings = replace(config.client, nodes=f"{pia}@{self.endpoint}")
        async with Client(config=replace(config, pool=pool, client=settings)) as client:
            yield client

    async def lose_coordinator(self, client: Client) -> tuple[Completion, float]:
        """An answer whose coordinator falls silent after its first pieces; its longest pause, s."""
        self.cli("node", "pause", home="pia")
        run = client.run(MODEL, PROMPT, **ASKED)
        pieces, last_s, longest_s = 0, 0.0, 0.0
        silence: asyncio.Task[None] | None = None
        async for _ in run:
            now_s = time.monotonic()
            if pieces >= 2:
                longest_s = max(longest_s, now_s - last_s)
            pieces, last_s = pieces + 1, now_s
            if pieces == 2:
                silence = asyncio.create_task(self._fall_silent())
        if silence is not None:
            await silence
        return await run.completion(), longest_s

    async def _fall_silent(self) -> None:
        """Once `pia` would take over: a client asks nodes how free they are every 20 s only."""
        await asyncio.to_thread(self.cli, "node", "resume", home="pia")
        self.proxy.freeze()

    def donated(self) -> int:
        """Jobs that nodes told the coordinator of as donated."""
        listed = json.loads(self.cli("coordinator", "nodes", "--json", home="pool").stdout)
        return sum(node["jobs_donated"] for node in listed)

    def await_donated(self, count: int) -> None:
        """Until the coordinator has logged so many."""
        deadline = time.monotonic() + DONATED_S
        while self.donated() < count:
            assert time.monotonic() < deadline, "what was donated is not logged"
