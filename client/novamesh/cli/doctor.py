"""`novamesh doctor`: check everything novamesh needs on this machine, each with a way out.

Rules: a check never raises and changes nothing; a part that is not installed is no failure, since a
client needs none; the parts' own checks come by import string.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from novamesh.cli.output import clean, mark, write_json, write_status
from novamesh.cli.pool import clock_offset_ms
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.clock import Clock
from novamesh.config import Config, Places
from novamesh.mesh import installed
from novamesh.pool import PoolConnection
from novamesh.private_file import OTHERS
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import CLOCK_SKEW_MS

DISK_BYTES_MIN: Final = 1 << 30
_CLOCK_WARN_MS: Final = 2_000
_PACKAGES: Final = (
    "cryptography", "cyclopts", "grpcio", "numpy", "platformdirs",
    "protobuf", "pynacl", "rich", "structlog", "tenacity",
)  # fmt: skip
# Checks of the parts: module, what must be importable for it, which extra brings that.
_PARTS: Final = (
    ("novamesh_engine.cli", "torch", "node"),
    ("novamesh_node.cli", "pynvml", "node"),
    ("novamesh_coordinator.cli", "sqlalchemy", "coordinator"),
    ("novamesh_broker.connection", "aiomqtt", "mqtt"),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line; `status` is ok, warn or fail, the hint is empty when nothing need be done."""

    name: str
    status: str
    detail: str
    hint: str = ""


async def doctor(*, json: Json = False, scope: Scope = HERE) -> int:
    """Check everything novamesh needs here: libraries, kernels, disk, keys, clock, pool.

    The exit status is 1 if anything fails.
    """
    parts = [_python(), _packages(), *_parts(), _mesh()]
    checks = [*parts, *_files(scope.places), *await _pool(scope)]
    if json:
        write_json([asdict(check) for check in checks])
    else:
        for check in checks:
            write_status(check.status, f"{check.name.ljust(11)}  {check.detail}")
            if check.hint:
                mark("hint", check.hint, sys.stdout)
    return int(any(check.status == "fail" for check in checks))


def _python() -> Check:
    version = f"{platform.python_version()}, novamesh {importlib.metadata.version('novamesh')}"
    return Check("python", "ok", version)


def _packages() -> Check:
    """The base installation, without importing any of it."""
    missing = [name for name in _PACKAGES if _version(name) is None]
    if missing:
        hint = "pip install --force-reinstall novamesh"
        return Check("packages", "fail", f"missing: {', '.join(missing)}", hint)
    found = ", ".join(f"{name} {_version(name)}" for name in ("grpcio", "protobuf", "cryptography"))
    return Check("packages", "ok", found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _parts() -> Iterator[Check]:
    """What each installed part says of itself; a name is told once."""
    told: set[str] = set()
    for module, needs, extra in _PARTS:
        part = module.partition(".")[0].removeprefix("novamesh_")
        if importlib.util.find_spec(needs) is None:
            detail = "not installed; this machine can ask without it"
            yield Check(part, "ok", detail, f"pip install 'novamesh[{extra}]'")
            continue
        for check in _ask(module, part, extra):
            if check.name not in told:
                told.add(check.name)
                yield check


def _mesh() -> Check:
    """libp2p, without importing it."""
    found = installed.version()
    if found == installed.EXAMINED:
        return Check("mesh", "ok", f"libp2p {found}")
    if found is not None:
        detail = f"libp2p {found} was not examined, and is not used"
        return Check("mesh", "fail", detail, f"pip install 'libp2p=={installed.EXAMINED}'")
    lacks = installed.build_lacks()
    detail = "libp2p is not installed; this machine can ask without it"
    if lacks:
        detail += f" (to build it, {' and '.join(lacks)} would be missing)"
    hint = installed.HINT_NO_COMPILER if lacks else installed.HINT
    return Check("mesh", "ok", detail, hint)


def _ask(module: str, part: str, extra: str) -> list[Check]:
    try:
        ask: Callable[[], list[Any]] | None = getattr(
            importlib.import_module(module), "doctor_checks", None
        )
        found = ask() if ask is not None else []
        return [Check(c.name, str(c.status), c.detail, c.hint) for c in found]
    except Exception as error:  # a broken library of a part is exactly what doctor must report
        detail = f"{type(error).__name__}: {clean(str(error))}"
        return [Check(part, "fail", detail, f"pip install --force-reinstall 'novamesh[{extra}]'")]


def _files(places: Places) -> Iterator[Check]:
    """Disk and keys."""
    folder = next(path for path in (places.data, *places.data.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / (1 << 30):.1f} GiB free at {folder}"
    hint = "" if free >= DISK_BYTES_MIN else "free some space"
    yield Check("disk", "warn" if hint else "ok", detail, hint)
    for name, path in (("client key", places.client_key), ("node key", places.node_key)):
        if path.exists():
            yield _key(name, path)


def _key(name: str, path: Path) -> Check:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & OTHERS:
        detail = f"{path} can be read by others (mode {mode:03o})"
        return Check(name, "fail", detail, f"chmod 600 {path}")
    return Check(name, "ok", str(path))


async def _pool(scope: Scope) -> list[Check]:
    """Configuration, reachability and clock."""
    try:
        config = scope.config()
    except NovaMeshError as error:
        return [Check("config", "fail", error.message, error.hint)]
    if config.pool is None:
        return [Check("pool", "warn", "none joined yet", "novamesh pool join CODE")]
    try:
        return await _reach(config)
    except NovaMeshError as error:
        away = error.code is Code.UNAVAILABLE
        hint = "ask the pool's owner whether it runs; its address:  novamesh pool ls"
        return [Check("pool", "fail", error.message, hint if away else error.hint)]


async def _reach(config: Config) -> list[Check]:
    pool = config.require_pool()
    # A key for this call only: looking makes no files, and the card is for anybody.
    connection = PoolConnection(
        pool, PrivateKey.generate(), Clock.system(), config.client.connect_timeout_s
    )
    try:
        await connection.hello()  # dials
        started = time.monotonic()
        card = await connection.hello()
        took_s = time.monotonic() - started
    finally:
        await connection.close()
    answered = Check("pool", "ok", f"{pool.network} at {pool.address}, {took_s * 1000:.0f} ms")
    offset_ms = clock_offset_ms(card, took_s)
    detail = f"{abs(offset_ms) / 1000:.1f} s {'ahead of' if offset_ms > 0 else 'behind'} the pool"
    if abs(offset_ms) > CLOCK_SKEW_MS:
        hint = f"the pool refuses more than {CLOCK_SKEW_MS // 1000} s: timedatectl set-ntp true"
        return [answered, Check("clock", "fail", detail, hint)]
    if abs(offset_ms) > _CLOCK_WARN_MS:
        return [answered, Check("clock", "warn", detail, "timedatectl set-ntp true")]
    return [answered, Check("clock", "ok", f"offset {offset_ms} ms")]
