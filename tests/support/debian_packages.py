"""Programs out of Debian packages for tests: what the system has, else an unpacked copy in build/.

    python tests/support/debian_packages.py mosquitto nft=nftables        fetches them ahead

Nothing is installed and nobody need be root: the package and the libraries that this machine lacks
are downloaded by apt and unpacked below build/debian, once for all who test side by side. What
cannot be had fails with the reason that apt gave; no test is skipped for it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CACHE: Final = Path(__file__).parent.parent.parent / "build" / "debian"
FETCH_S: Final = 300
_SYSTEM: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not everybody's PATH has these
_INSTALLED: Final = re.compile(r"^Inst (\S+)", re.MULTILINE)


class ToolMissingError(RuntimeError):
    """A program that a test needs cannot be had here; the message says what to install."""


@dataclass(frozen=True)
class Tool:
    """A program and what its process needs in its environment."""

    path: Path
    env: dict[str, str] = field(default_factory=dict)
    root: Path | None = None  # where the package's other files lie, where it is an unpacked copy

    def environment(self) -> dict[str, str]:
        """This process's environment with what the program needs."""
        return {**os.environ, **self.env}


def tool(program: str, package: str | None = None) -> Tool:
    """A program, from PATH or out of its Debian package (of the same name, unless told).

    Raises:
        ToolMissingError: naming program, package and what apt said.
    """
    package = package or program
    path = os.pathsep.join((os.environ.get("PATH", ""), *_SYSTEM))
    if found := shutil.which(program, path=path):
        return Tool(Path(found))
    root = CACHE / package / "root"
    with _alone(CACHE / f"{package}.lock"):
        if not (CACHE / package / "complete").exists():
            _fetch(package, CACHE / package)
    folders = [root / "usr" / "sbin", root / "usr" / "bin", root / "sbin", root / "bin"]
    unpacked = shutil.which(program, path=os.pathsep.join(map(str, folders)))
    if unpacked is None:
        raise ToolMissingError(f"package {package} has no program {program}")
    libraries = {str(each.parent) for each in root.rglob("*.so*")}
    env = {"LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))} if libraries else {}
    return Tool(Path(unpacked), env, root)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time fetches a package."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _fetch(package: str, folder: Path) -> None:
    """Download and unpack a package with the packages that this machine lacks for it."""
    for needed in ("apt-get", "dpkg-deb"):
        if shutil.which(needed) is None:
            raise ToolMissingError(f"install {package}: this machine has no {needed} to fetch it")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "debs").mkdir(parents=True)
    options = _lists(package, folder)
    planned = _run([
        "apt-get", *options, "--simulate", "--quiet=2", "--no-install-recommends", "install",
        package,
    ], package, folder)  # fmt: skip
    names = sorted({package, *_INSTALLED.findall(planned)})
    _run(["apt-get", *options, "--quiet=2", "download", *names], package, folder / "debs")
    for archive in sorted((folder / "debs").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(archive), str(folder / "root")], package, folder)
    shutil.rmtree(folder / "debs")
    (folder / "complete").touch()


def _lists(package: str, folder: Path) -> list[str]:
    """apt's options: the system's package lists, else lists of our own, fetched without root."""
    shown = subprocess.run(
        ["apt-cache", "policy", package], capture_output=True, text=True, check=False
    ).stdout
    if re.search(r"Candidate: \d", shown):
        return []
    state = folder.parent / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"]
    with _alone(folder.parent / "apt.lock"):
        _run(["apt-get", *options, "--quiet=2", "update"], package, folder)
    return options


def _run(command: list[str], package: str, folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=FETCH_S,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolMissingError(f"cannot get Debian package {package}: {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1000:]
        raise ToolMissingError(
            f"cannot get Debian package {package} ({' '.join(command[:3])} …): {said}"
        )
    return done.stdout


def main(wanted: list[str]) -> None:
    """Fetch ahead: each argument is PROGRAM or PROGRAM=PACKAGE."""
    for each in wanted:
        program, _, package = each.partition("=")
        found = tool(program, package or None)
        sys.stdout.write(f"{program}: {found.path}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
