"""`novamesh node install` and `uninstall`: the node as a service of whoever types it, by systemd.

Rules: the unit's text goes to stdout only where --dry-run asks for it; typing a command again
changes nothing; what cannot be done here is said with the command that does it. No root is needed
or asked for.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Final

import platformdirs
from cyclopts import Parameter

from novamesh.config import HOME_VARIABLE
from novamesh_node.user_unit import NAME, check_unit, remove_unit, render, write_unit
from novamesh_proto.errors import Code, NovaMeshError

SYSTEMCTL_S: Final = 1000.0  # longer than the unit's TimeoutStartSec
LINGERING: Final = Path("/var/lib/systemd/linger")
_SHOW: Final = f"journalctl --user -u {NAME} -n 20"

Home = Annotated[
    Path | None, Parameter(help="Folder of all files, instead of the usual places; NOVAMESH_HOME.")
]


def install(
    *,
    home: Home = None,
    dry_run: Annotated[
        bool, Parameter(negative=(), help="Print the unit and change nothing.")
    ] = False,
    start: Annotated[bool, Parameter(help="Start it now, and at every log-in.")] = True,
) -> None:
    """Let systemd run the node: a unit among your own."""
    _require_linux()
    text = render([sys.executable, "-m", "novamesh", "node", "start"], _fixed_home(home))
    if dry_run:
        sys.stdout.write(text)
        return
    path = _unit_path()
    changed = write_unit(path, text)
    _tell(f"wrote {path}" if changed else f"{path} is there already, and the same")
    if not start:
        _tell(f"start it:  systemctl --user daemon-reload && systemctl --user enable --now {NAME}")
        return
    _systemctl("daemon-reload")
    _tell("starting it; a large model takes its time")
    _systemctl("enable", NAME)
    _systemctl("restart" if changed else "start", NAME)
    _tell("it runs; look at it:  novamesh node status")
    if not (LINGERING / getpass.getuser()).exists():
        _tell("it stops when you log out; to keep it:  loginctl enable-linger")


def uninstall() -> None:
    """Stop the service and take its unit away."""
    _require_linux()
    path = _unit_path()
    if not check_unit(path):
        _tell(f"there is no {path}")
        return
    _systemctl("disable", "--now", NAME)
    remove_unit(path)
    _systemctl("daemon-reload")
    _tell(f"removed {path}")


def _fixed_home(home: Path | None) -> Path | None:
    """What NOVAMESH_HOME is to be in the service, whatever folder this is typed in."""
    chosen = home or os.environ.get(HOME_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else None


def _unit_path() -> Path:
    return platformdirs.user_config_path() / "systemd" / "user" / NAME


def _require_linux() -> None:
    if sys.platform != "linux":
        raise NovaMeshError(
            Code.UNSUPPORTED, "there is no systemd on this system",
            "let its own service manager run:  novamesh node start",
        )  # fmt: skip


def _systemctl(*words: str) -> None:
    """Run systemctl --user.

    Raises:
        NovaMeshError: UNSUPPORTED if it is not here or nobody answers it, UNAVAILABLE if the
            service did not come up.
    """
    command = ["systemctl", "--user", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=SYSTEMCTL_S
        )
    except FileNotFoundError:
        raise NovaMeshError(
            Code.UNSUPPORTED, "there is no systemctl here", "run it yourself:  novamesh node start"
        ) from None
    except subprocess.TimeoutExpired:
        raise NovaMeshError(Code.UNAVAILABLE, f"{' '.join(command)} does not end", _SHOW) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no reason given"]
        if "connect to bus" in said[0]:
            raise NovaMeshError(
                Code.UNSUPPORTED, f"no systemd runs for you here: {said[0]}",
                f"sudo loginctl enable-linger {getpass.getuser()}  and a log-in of its own (no su,"
                " no sudo) bring one; or run it yourself:  novamesh node start",
            )  # fmt: skip
        raise NovaMeshError(Code.UNAVAILABLE, f"{' '.join(command)}: {said[0]}", _SHOW)


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
