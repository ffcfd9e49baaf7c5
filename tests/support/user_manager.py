"""A systemd of one user, real, for one test: in namespaces and control groups of its own.

The machine's own service manager, if it has one, never hears of it: /run/systemd is another folder
there, so is every folder that XDG names, and all that it starts dies with it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.debian_packages import tool

GROUPS = Path("/sys/fs/cgroup")
MANAGER = Path("/lib/systemd/systemd")
# The shell is the namespace's first process, so that systemd need not be a system's init.
SETUP = """
for tree in {trees}; do echo $$ > $tree/{name}/cgroup.procs || exit 1; done
exec unshare --mount --pid --fork --mount-proc --kill-child=KILL sh -c '
  mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/system && {manager} --user; exit 1'
"""


@dataclass(frozen=True)
class UserManager:
    """A running manager: `run` is what somebody logged in there types."""

    pid: int
    env: dict[str, str]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """A command beside the manager."""
        inside = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--", *map(str, command)]
        return subprocess.run(
            inside, env=self.env, capture_output=True, text=True, check=False, timeout=120
        )

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """What the manager knows of a unit."""
        shown = self.run("systemctl", "--user", "show", unit, *(f"--property={n}" for n in names))
        assert shown.returncode == 0, shown.stderr
        return dict(line.split("=", 1) for line in shown.stdout.splitlines())

    def serves(self) -> bool:
        """Whether it answers yet."""
        said = self.run("systemctl", "--user", "is-system-running").stdout.strip()
        return said in ("running", "degraded")

    def until(self, condition: Callable[[], object], seconds: float = 90.0) -> None:
        """Wait for what the manager tells nobody of; an AssertionError says it did not come."""
        end_s = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end_s, (self.env["HOME"], "waited in vain")
            time.sleep(0.2)


def lacking() -> str:
    """What this machine lacks for a manager of its own; empty if nothing."""
    if os.geteuid() != 0:
        return "a systemd in namespaces of its own needs root"
    if not MANAGER.exists() or not _trees():
        return "a systemd in namespaces of its own needs Debian's systemd and control groups"
    return ""


@contextlib.contextmanager
def user_manager(folder: Path) -> Iterator[UserManager]:
    """A manager with its files below `folder`, whose path is short: sockets lie in it."""
    name, trees = f"novamesh-{secrets.token_hex(6)}", _trees()
    env = os.environ | {
        "XDG_RUNTIME_DIR": str(folder / "run"), "XDG_CONFIG_HOME": str(folder / "config"),
        "HOME": str(folder), "SYSTEMD_LOG_TARGET": "console", "SYSTEMD_COLORS": "0",
    }  # fmt: skip
    (folder / "run").mkdir(mode=0o700)
    for tree in trees:
        (tree / name).mkdir()
    setup = SETUP.format(trees=" ".join(map(str, trees)), name=name, manager=MANAGER)
    unshare = tool("unshare", "util-linux").path
    with (folder / "manager.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", setup], env=env | {"PATH": f"{env['PATH']}:{unshare.parent}"},
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        yield UserManager(_first_child(process), env)
    finally:
        process.kill()  # unshare hears no SIGTERM; with it the namespace's first process dies
        process.wait(20)
        _remove_groups(name)


def _trees() -> list[Path]:
    """The hierarchies in which systemd looks for itself: the unified one, and its own if mixed."""
    if (GROUPS / "cgroup.procs").exists():
        return [GROUPS]
    return [GROUPS / each for each in ("systemd", "unified") if (GROUPS / each).is_dir()]


def _first_child(process: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None:
        found = children.read_text().split()
        if found:
            return int(found[0])
    raise AssertionError(f"no namespace could be made: exit status {process.returncode}")


def _remove_groups(name: str) -> None:
    """Whatever the manager made, in every hierarchy, innermost first, once its processes ended."""
    end_s = time.monotonic() + 20
    for top in (GROUPS / name, *GROUPS.glob(f"*/{name}")):
        made = sorted((path for path in top.rglob("*") if path.is_dir()), reverse=True)
        for group in (*made, top):
            while group.exists():
                try:
                    group.rmdir()
                except OSError:
                    assert time.monotonic() < end_s, f"{group} is still in use"
                    time.sleep(0.1)
