"""A whole pool on a small internet, to take apart: two homes behind NAT, a public node, a broker.

`ada` and `bob` listen nowhere; `pia` does, and passes streams of the mesh on for them. The client
has a home of its own. All serve one model that is slow enough to be watched: the built-in one with
a longer context, so that an answer lasts.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from novamesh_engine.catalogue import locate
from novamesh_engine.quant.profile import read_profile, write_profile
from support.mosquitto import Mosquitto
from support.processes import Daemon
from support.spread_pool import SpreadPool

HOMES: Final = ("ada", "bob")
PUBLIC: Final = "pia"
MODEL: Final = "nova-long"
CONTEXT: Final = 8192
MESH_PORT: Final = 4001
BROKER_PORT: Final = 1883
CIRCUITS_S: Final = 60.0


@dataclass
class OutagePool(SpreadPool):
    """As a spread pool, with a broker at a place of its own."""

    broker: Mosquitto | None = None
    bootstrap: str = ""

    def start_all(self, slots: int) -> None:
        """Everybody is there and knows everybody; each home has `slots`, `pia` room for all."""
        write_long_model(self.root / MODEL)
        self.net.add_host(PUBLIC)
        for name in (*HOMES, "client"):
            self.add_home(name)
        public = self._start(PUBLIC, 4 * slots, "--listen", f"{self.host(PUBLIC).address}:7701")
        at = f"/ip4/{self.host(PUBLIC).address}/tcp/{MESH_PORT}"
        self.bootstrap = f"{at}/p2p/{public.ready.split()[-1]}"
        with ThreadPoolExecutor(max_workers=2) as starting:
            list(starting.map(lambda name: self._start(name, slots), HOMES))
        self.join()
        self.await_nodes(3)

    def await_circuits(self) -> None:
        """Until both homes' nodes are reached through the public one."""
        deadline = time.monotonic() + CIRCUITS_S
        for name in HOMES:
            while "/p2p-circuit" not in self.cli("node", "status", "--json", home=name).stdout:
                assert time.monotonic() < deadline, f"{name} has no circuit"

    def start_coordinator(self) -> Daemon:
        """It finds nodes by the broker too, which is started before it."""
        if self.broker is None:
            host = self.net.add_host("broker")
            self.broker = Mosquitto(self.root / "broker", port=BROKER_PORT, host=host.address)
            host.call(self.broker.__enter__)
        return super().start_coordinator()

    def start(self, home: str, arguments: list[str]) -> Daemon:
        """Every daemon is told of the broker."""
        assert self.broker is not None
        return super().start(home, [*arguments, "--mqtt", str(self.broker.broker())])

    def environment(self, home: str) -> dict[str, str]:
        """Everybody's part in the mesh is told by the environment."""
        public = home == PUBLIC
        mesh = {
            "ON": str(home == "client" or public or home in HOMES).lower(),
            "LISTEN": f"/ip4/0.0.0.0/tcp/{MESH_PORT}",
            "MDNS": "false",
            "RELAY": str(public).lower(),
            "BOOTSTRAP": "" if public else self.bootstrap,
        }
        told = {f"NOVAMESH_MESH_{key}": value for key, value in mesh.items()}
        return super().environment(home) | told

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.broker is not None:
            self.broker.kill()
        super().__exit__(kind, error, trace)

    def _start(self, name: str, slots: int, *arguments: str) -> Daemon:
        model = str(self.root / MODEL)
        flags = ("--donate", "--model", model, "--slots", str(slots))
        return self.start_node(name, *flags, *arguments)


class Streams:
    """Answers that a client in a process of its own streams, as it tells of them; use as `with`."""

    def __init__(self, pool: SpreadPool, home: str = "client") -> None:
        """Start the client, at its home."""
        self.said: dict[int, list[dict[str, Any]]] = {}
        self._process = subprocess.Popen(
            [*pool.prefix(home), sys.executable, "-m", "support.streaming_client"],
            env=pool.environment(home), cwd=Path(__file__).parent.parent, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read, name="streams")
        self._thread.start()

    def __enter__(self) -> Streams:
        return self

    def ask(self, stream: int, tokens: int, seed: int, model: str = MODEL) -> None:
        """Begin one more."""
        self.said[stream] = []
        assert self._process.stdin is not None
        asked = {"stream": stream, "model": model, "tokens": tokens, "seed": seed}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()

    def grow(self, streams: Sequence[int], tokens: int, seconds: float) -> None:
        """Until each of these has brought so many more, and none of them has ended."""
        least = {stream: _tokens(self.last(stream)) + tokens for stream in streams}
        self._wait(lambda: all(_tokens(self.last(one)) >= least[one] for one in streams), seconds)
        ended = [stream for stream in streams if "digest" in self.last(stream)]
        assert not ended, f"over before anything could break them: {ended}"

    def finish(self, seconds: float, *streams: int) -> None:
        """Until these streams have ended well, or all of them."""
        self._wait(lambda: all("digest" in self.last(one) for one in streams or self.said), seconds)

    def end(self, stream: int) -> dict[str, Any]:
        """What a stream said last, which has ended well."""
        last = self.last(stream)
        assert last["whole"], "its pieces are another text than the whole"
        return last

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def last(self, stream: int) -> dict[str, Any]:
        """What a stream said last, its end or not; empty before it said anything."""
        said = self.said[stream]
        return said[-1] if said else {}

    def _wait(self, found: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            failed = [one for one in map(self.last, self.said) if "failed" in one]
            assert not failed, failed
            assert self._process.poll() is None, "the client ended"
            if found():
                return
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {list(map(self.last, self.said))}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                told = json.loads(line)
                self.said[told.pop("stream")].append(told)


def _tokens(told: dict[str, Any]) -> int:
    return int(told.get("tokens", 0))


def write_long_model(folder: Path) -> None:
    """The built-in model under the folder's name, with room for a longer answer."""
    source = locate("nova-pico")
    shutil.copytree(source, folder)
    config = folder / "config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps(raw | {"max_position_embeddings": CONTEXT}))
    profile = read_profile(source)
    write_profile(folder, folder.name, profile.quant, profile.file_names)
