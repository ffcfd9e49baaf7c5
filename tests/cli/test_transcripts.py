"""Every screen of the command line equals its golden transcript."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

from novamesh import retries
from novamesh.cli import app, demo, doctor, main
from novamesh.config import find_places, save_pool
from novamesh.mesh import installed
from novamesh.private_file import write_private
from novamesh.receipts import Receipts
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.join_code import format_join_code
from support.fake_answer import OTHER_PICO, PICO, Death, Script
from support.fake_pool import FakePool
from support.parties import CLIENT
from support.transcripts import SCENE, Exchange, read_transcript, settle

PARTS = doctor._PARTS
FOLDER = Path(__file__).parent / "transcripts"
UPDATE = os.environ.get("NOVAMESH_UPDATE_TRANSCRIPTS") == "1"

SCRIPTS = {
    "plain": Script(),
    "two models": Script(models=(("nova-pico", PICO), ("nova-pico", OTHER_PICO))),
    "empty": Script(models=()),
    "hostile": Script(answer=("A\x1b[31m red\x07 ", "herring\n"), models=(("ev\x1b[2Jil", PICO),)),
    "full": Script(
        refusals={
            "Match": [
                NovaMeshError(Code.BUSY, "no node is free: all 4 slots are busy", "try again", ms)
                for ms in (1, 1, 60_000, 60_000)
            ]
        }
    ),
    "failing": Script(failures=[NovaMeshError(Code.POLICY, "the owner does not allow this")]),
    "broken": Script(deaths=[Death(4, "handed back"), None, Death(3), None]),
    "tampered": Script(tampered="attestation"),
    "closed": Script(
        refusals={"Join": [NovaMeshError(Code.FORBIDDEN, "this invite is used up", "ask for one")]}
    ),
    "late": Script(clock_offset_ms=-10_000),
    "banned": Script(
        refusals={"ListModels": [NovaMeshError(Code.BANNED, "you are banned: spam", "ask why")]}
    ),
}


class Stage:
    """A member's home, perhaps a pool, and what has happened there."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.pool: FakePool | None = None
        self._patch = monkeypatch
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        write_private(self.home / "client.key", CLIENT.to_bytes().hex().encode() + b"\n")
        for name in [name for name in os.environ if name.startswith("NOVAMESH_")]:
            self._patch.delenv(name)
        self._patch.setenv("NOVAMESH_HOME", str(self.home))
        self._patch.setenv("COLUMNS", "80")
        self._patch.setenv("NO_COLOR", "1")
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def set(self, scene: str) -> None:
        """One `@` line."""
        verb, _, rest = scene.partition(" ")
        if verb == "pool":
            self.pool = self._closing.enter_context(FakePool(Script()))
        elif verb == "joined":
            self.set("pool")
            save_pool(find_places(self.home), self._pool.entry)
        elif verb == "script":
            self._pool.script = SCRIPTS[rest]
        elif verb == "stop":
            self._pool.stop()
        elif verb == "without":
            self._patch.setitem(sys.modules, rest, None)
            for held in ("novamesh_engine.trial", "novamesh_engine.roofline"):
                self._patch.delitem(sys.modules, held, raising=False)  # they have it already
        elif verb == "alone":
            self._patch.setattr(doctor, "_PARTS", tuple((m, "no_such", e) for m, _, e in PARTS))
            self._patch.setattr(demo, "_NEEDED", ("no_such_library",))
            self._patch.setattr(installed, "version", lambda: None)
            self._patch.setattr(installed, "build_lacks", lambda: ("gcc", "gmp.h"))
        elif verb == "file":
            name, _, text = rest.partition(" ")
            (self.home / name).write_text(text.replace("\\n", "\n"))
        elif verb == "chmod":
            mode, _, name = rest.partition(" ")
            (self.home / name).chmod(int(mode, 8))
        elif verb == "damage":
            path = Receipts(self.home / "receipts").list()[0].path
            data = path.read_bytes()
            at = data.index(b"attestation ") + 200
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        else:
            raise ValueError(scene)

    @property
    def _pool(self) -> FakePool:
        assert self.pool is not None
        return self.pool

    def variables(self) -> dict[str, str]:
        """What `$NAME` means now."""
        values = {"HOME": str(self.home)}
        if self.pool is not None:
            values["CODE"] = format_join_code(self.pool.join_code)
            if self.pool.jobs:
                values["JOB"] = list(self.pool.jobs)[-1].hex()[:12]
        receipts = Receipts(self.home / "receipts").list()
        if receipts:
            values["RECEIPT"] = str(receipts[0].path)
        return values

    def known(self) -> dict[str, str]:
        """Exact texts that differ between runs, with their placeholders of the same length."""
        known = {str(self.home): "HOME"}
        jobs = list(self.pool.jobs) if self.pool is not None else []
        for number, job in enumerate(jobs, start=1):
            known[job.hex()] = f"JOB{number}".ljust(64, ".")
            known[job.hex()[:12]] = f"JOB{number}".ljust(12, ".")
        return known

    def play(self, exchange: Exchange) -> Exchange:
        """Type it."""
        for line in exchange.before:
            if line.startswith(SCENE):
                self.set(line[2:])
        out, err = io.StringIO(), io.StringIO()
        self._patch.setattr(sys, "stdin", io.StringIO("\n".join(exchange.stdin)))
        words = exchange.words(self.variables())
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        known = self.known()
        return Exchange(
            exchange.command,
            exchange.stdin,
            status,
            settle(out.getvalue(), known),
            settle(err.getvalue(), known),
            exchange.before,
        )


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_screens(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_transcript(path)
    with Stage(tmp_path, monkeypatch) as stage:
        played = [stage.play(exchange) for exchange in expected]
    if UPDATE:
        path.write_text("\n".join(line for one in played for line in one.lines()) + "\n")
    for was, wanted in zip(played, expected, strict=True):
        assert was.lines() == wanted.lines()


def test_there_is_a_transcript_for_every_command() -> None:
    typed = {
        one.command.split(" --help")[0] for p in FOLDER.glob("*.txt") for one in read_transcript(p)
    }
    for command in app:
        if not command.startswith("-"):
            assert any(f"{line} ".startswith(f"novamesh {command} ") for line in typed), command
