"""The systemd unit of one person's node: its text, and how its file comes and goes.

Rules: a file of ours says so in its first line, with a digest of the rest; one that says nothing,
or was edited since, is neither replaced nor removed. What is hardened is what an unprivileged
manager can do without namespaces of its own and what CUDA bears; the reasons stand at the lines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from novamesh.private_file import write_private
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError

NAME: Final = "novamesh-node.service"
# What a restart would only meet again: a wrong flag, a refused key, a wrong configuration.
PREVENTED: Final = sorted(
    {MEANINGS[code].exit for code in (Code.BAD_REQUEST, Code.BAD_KEY, Code.BAD_CONFIG)}
)
STOP_S: Final = 90  # the work at hand, the farewell, the engines; a test adds them up
_HEAD: Final = "# Written by `novamesh node install`; `novamesh node uninstall` removes it. sha256:"
_UNIT: Final = """\
# Changes of yours belong beside it:  systemctl --user edit novamesh-node
[Unit]
Description=novamesh node: this machine, lent to a pool
# A crash that comes again at once is not tried for ever.
StartLimitIntervalSec=600
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
{environment}\
Restart=on-failure
RestartSec=10
# Nobody mends a flag, a key or a configuration by starting again.
RestartPreventExitStatus={prevented}
# Ready means loaded: a large model on a slow disk takes minutes.
TimeoutStartSec=900
# First the work at hand ends, then the pool is told, then the GPU is given back.
TimeoutStopSec={stop_s}
KillMode=mixed
# The node's loop says every second that it runs.
WatchdogSec=120
WatchdogSignal=SIGKILL

# Whoever sits at this machine comes first.
Nice=10
IOSchedulingPriority=7
OOMScoreAdjust=500

# A dump of its memory would hold what strangers asked.
LimitCORE=0
UMask=0077
# Without this none of the rest is allowed to a user's manager. nvidia-modprobe, which is setuid,
# then makes no device files: where /dev/nvidia-uvm is missing, run  sudo nvidia-modprobe -u -c0
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
LockPersonality=yes
# AF_UNIX: CUDA's services and our own socket; AF_NETLINK: which addresses this machine has.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
# Refused and not killed: drivers try what they can do without.
SystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
# Left out on purpose: MemoryDenyWriteExecute breaks kernels made at run time, PrivateDevices hides
# the GPU, ProtectSystem and ProtectHome need namespaces that many machines deny to users.

[Install]
WantedBy=default.target
"""


def render(command: Sequence[str | Path], home: Path | None) -> str:
    """The whole unit; `home` is what NOVAMESH_HOME is to be, None for the usual places.

    Raises:
        NovaMeshError: BAD_REQUEST for a word that no unit can hold.
    """
    words = [quote(str(word)) for word in command]
    if "$" in "".join(words):  # systemd would fill in a variable, in some words and not in others
        raise _unspeakable(" ".join(words))
    environment = f"Environment={quote(f'NOVAMESH_HOME={home}')}\n" if home else ""
    body = _UNIT.format(
        command=" ".join(words),
        environment=environment,
        prevented=" ".join(map(str, PREVENTED)),
        stop_s=STOP_S,
    )
    return f"{_HEAD}{_digest(body)}\n{body}"


def quote(word: str) -> str:
    """A word as systemd reads it back.

    Raises:
        NovaMeshError: BAD_REQUEST for control characters.
    """
    if not word.isprintable():
        raise _unspeakable(word)
    safe = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return safe if re.fullmatch(r"[\w./:=+@%-]+", safe) else f'"{safe}"'


def write_unit(path: Path, text: str) -> bool:
    """Put the unit in its place; whether anything changed.

    Raises:
        NovaMeshError: CONFLICT if the file there is not as we wrote it, STORAGE.
    """
    found = _read(path)
    if found == text:
        return False
    if found is not None:
        _require_ours(path, found)
    write_private(path, text.encode())
    return True


def remove_unit(path: Path) -> bool:
    """Take the unit away; whether there was one.

    Raises:
        NovaMeshError: CONFLICT if the file there is not as we wrote it, STORAGE.
    """
    found = _read(path)
    if found is None:
        return False
    _require_ours(path, found)
    try:
        path.unlink()
    except OSError as error:
        raise NovaMeshError(Code.STORAGE, f"cannot remove {path}: {error.strerror}") from error
    return True


def check_unit(path: Path) -> bool:
    """Whether there is a unit of ours.

    Raises:
        NovaMeshError: CONFLICT if the file there is not as we wrote it, STORAGE.
    """
    found = _read(path)
    if found is not None:
        _require_ours(path, found)
    return found is not None


def _unspeakable(text: str) -> NovaMeshError:
    return NovaMeshError(
        Code.BAD_REQUEST,
        f"{text!r} has characters that a unit cannot hold",
        "move that folder to a plainer name",
    )


def _require_ours(path: Path, found: str) -> None:
    head, _, body = found.partition("\n")
    if head != f"{_HEAD}{_digest(body)}":
        problem = "was edited by hand" if head.startswith(_HEAD) else "is not one of ours"
        raise NovaMeshError(Code.CONFLICT, f"{path} {problem}", "move it away first")


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        return ""  # nothing that we would write
    except OSError as error:
        raise NovaMeshError(Code.STORAGE, f"cannot read {path}: {error.strerror}") from error
