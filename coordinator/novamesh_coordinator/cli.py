"""novamesh coordinator …: make a pool, serve it, invite to it, look after it.

stdout is data, stderr is talk; errors are raised and shown by whoever mounted this app. gRPC and
the database are imported inside the commands: `novamesh --help` must not pay for them, and a client
without the extra must be able to load this module.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import App, Parameter

from novamesh_coordinator.broker_flags import NOT_GIVEN, ServeBrokerFlags
from novamesh_coordinator.config import (
    CoordinatorConfig,
    Folder,
    check_dialled,
    find_database,
    find_folder,
    is_wildcard,
    load_config,
    split_address,
    write_config,
)
from novamesh_coordinator.database_flags import USUAL, DatabaseFlags
from novamesh_coordinator.invite import (
    ID_BYTES,
    USES_MAX,
    Invite,
    invite_secret,
    plural,
    write_invite,
)
from novamesh_coordinator.key_file import create_key, load_key, write_text
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id, parse_node_id, short
from novamesh_proto.join_code import format_join_code
from novamesh_proto.messages import JoinCode

if TYPE_CHECKING:
    from novamesh_coordinator.owner_link import OwnerLink
    from novamesh_coordinator.server import Running
    from novamesh_proto.messages import NodeView

app = App(name="coordinator", help="Run the table that a pool meets at.")

_LOOPBACK: Final = ("127.", "[::1]", "localhost:")
EXTRA_HINT: Final = "pip install 'novamesh[coordinator]'"
DAY_MS: Final = 86_400_000
DAYS_MAX: Final = 3650

Home = Annotated[Path | None, Parameter(help="Folder of all files, instead of NOVAMESH_HOME.")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON.")]


@app.command
def init(
    *,
    name: Annotated[str, Parameter(help="Name of the pool.")] = "pool",
    open: Annotated[bool, Parameter(help="Let anybody join without an invite.")] = False,
    address: Annotated[
        str,
        Parameter(help="HOST:PORT that members dial, if not --listen; up to 4, commas between."),
    ] = "",
    listen: Annotated[str | None, Parameter(help="HOST:PORT to listen on.")] = None,
    where: DatabaseFlags = USUAL,
    home: Home = None,
) -> None:
    """Make a new pool: its key and its configuration."""
    folder = find_folder(home)
    flags = {"network": name, "open": open, "address": address or None, "listen": listen}
    if not name:
        raise NovaMeshError(Code.BAD_REQUEST, "a pool needs a name", "--name NAME")
    config = load_config(folder, flags | where.flags())
    key = create_key(folder.key)
    write_text(folder.config, write_config(config))
    _say(f"made pool {name!r} in {folder.path}")
    _say("next: novamesh coordinator serve, then novamesh coordinator invite")
    _out(format_node_id(key.node_id))


@app.command
def serve(
    *,
    listen: Annotated[str | None, Parameter(help="HOST:PORT of the gRPC service.")] = None,
    http: Annotated[str | None, Parameter(help="HOST:PORT of /metrics and /healthz.")] = None,
    log_format: Annotated[str | None, Parameter(help="text or json.")] = None,
    broker: ServeBrokerFlags = NOT_GIVEN,
    where: DatabaseFlags = USUAL,
    standby: Annotated[
        bool, Parameter(negative="", help="Wait until no other coordinator serves the database.")
    ] = False,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Serve the pool until Ctrl-C or SIGTERM."""
    folder = find_folder(home)
    flags: dict[str, object] = {"listen": listen, "http": http, "log_format": log_format}
    flags |= broker.flags() | where.flags()
    config = _config(folder, flags)
    if standby and not config.database:
        problem = "a coordinator stands by at a database that several reach"
        raise NovaMeshError(Code.BAD_CONFIG, problem, "--database postgresql+psycopg://…")
    # gRPC's own log has a line for each connection that strangers break, and tells nothing else.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import uvloop

        from novamesh_coordinator.logs import configure_logs
        from novamesh_coordinator.server import serve as serve_folder
    except ImportError as error:
        raise _missing(error) from error
    configure_logs(config.log_format)
    waiting = (lambda http_port: _standing_by(http_port, json)) if standby else None
    uvloop.run(serve_folder(folder, config, lambda running: _ready(config, running, json), waiting))


@app.command
def invite(
    *,
    uses: Annotated[int, Parameter(help="How many may join with it.")] = 100,
    days: Annotated[float, Parameter(help="How long it is good.")] = 7.0,
    address: Annotated[
        str, Parameter(help="HOST:PORT to put into it; up to 4, commas between.")
    ] = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Print a join code. The server need not run."""
    folder = find_folder(home)
    config = _config(folder, {})
    key = load_key(folder.key)
    if not 1 <= uses <= USES_MAX:
        problem = f"an invite is good for 1 to {USES_MAX} members, not for {uses}"
        raise NovaMeshError(Code.BAD_REQUEST, problem, "--uses 100")
    if not 0 < days <= DAYS_MAX:
        problem = f"an invite is good for more than 0 and at most {DAYS_MAX} days, not for {days:g}"
        raise NovaMeshError(Code.BAD_REQUEST, problem, "--days 7")
    dialled = address or _public_address(folder, config)
    check_dialled(dialled, "address")
    expires_ms = time.time_ns() // 1_000_000 + int(days * DAY_MS)
    token = write_invite(invite_secret(key), Invite(os.urandom(ID_BYTES), expires_ms, uses))
    code = format_join_code(JoinCode(dialled, key.node_id, config.network, token))
    if json:
        shown = {"code": code, "address": dialled, "network": config.network, "uses": uses}
        _print_json(shown | {"expires_at_ms": expires_ms})
        return
    good_for = f"{uses} {plural('member', uses)} and {days:g} {plural('day', days)}"
    _say(f"good for {good_for}; to join: novamesh pool join CODE")
    if dialled.startswith(_LOOPBACK):
        _say("it works on this machine only; for others: --address HOST:PORT")
    _out(code)


@app.command
def nodes(*, home: Home = None, json: AsJson = False) -> None:
    """List the pool's nodes."""
    with _owner_link(home) as link:
        views = link.nodes()
    if json:
        _print_json([_node_row(view) for view in views])
    else:
        _print_nodes(views)


@app.command
def ban(
    member: Annotated[str, Parameter(help="PeerId of a node or a client.")],
    *,
    reason: Annotated[str, Parameter(help="Why; the member is told.")] = "",
    lift: Annotated[bool, Parameter(negative="", help="Let it in again.")] = False,
    home: Home = None,
) -> None:
    """Keep a member out, or let it in again."""
    try:
        node = parse_node_id(member)
    except NovaMeshError as error:
        raise NovaMeshError(Code.BAD_REQUEST, error.message, error.hint) from None
    with _owner_link(home) as link:
        link.ban(node, reason, lift)
    _say(f"{short(node)} {'may come in again' if lift else 'is banned'}")


@app.command
def check(
    *,
    where: DatabaseFlags = USUAL,
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Look the whole database over, while the coordinator does not run. Nothing is mended."""
    folder = find_folder(home)
    config, key = _config(folder, where.flags()), load_key(folder.key)
    place = find_database(folder, config)
    if isinstance(place, Path) and not place.exists():
        raise NovaMeshError(
            Code.NOT_FOUND, f"there is no database in {folder.path}", "novamesh coordinator serve"
        )
    try:
        import asyncio

        from novamesh_coordinator.check import check_database
        from novamesh_coordinator.core import PoolIdentity
    except ImportError as error:
        raise _missing(error) from error
    identity = PoolIdentity(key, config.network, config.open)
    report = asyncio.run(check_database(identity, place))
    if json:
        _print_json(asdict(report))
    else:
        for name, count in asdict(report).items():
            if name != "problems":
                _out(f"{name.replace('_', ' '):12} {count}")
    for problem in report.problems:
        _say(f"problem: {problem}")
    if report.problems:
        raise NovaMeshError(
            Code.CORRUPT,
            f"the database has {len(report.problems)} {plural('problem', len(report.problems))}",
            "nothing was mended: restore the coordinator's folder from a backup",
        )
    _say("all is well")


@app.command
def health(
    *,
    http: Annotated[str, Parameter(help="Ask /healthz at HOST:PORT; one may stand by.")] = "",
    home: Home = None,
    json: AsJson = False,
) -> None:
    """Ask the running coordinator whether it serves."""
    if http:
        from novamesh_coordinator.health_page import read_health

        state = read_health(http)
        _print_json({"serving": state == "serving"}) if json else _out(state)
        return
    began_s = time.monotonic()
    with _owner_link(home) as link:
        card = link.health()
    took_ms = round((time.monotonic() - began_s) * 1000)
    if json:
        shown = {"serving": True, "network": link.network, "version": card.version}
        _print_json(shown | {"open": card.open, "took_ms": took_ms})
    else:
        _out(f"serving  pool {link.network}  version {card.version}  {took_ms} ms")


def _config(folder: Folder, flags: dict[str, object]) -> CoordinatorConfig:
    config = load_config(folder, flags)
    if not config.network:
        load_key(folder.key)
        raise NovaMeshError(
            Code.BAD_CONFIG, f"{folder.config} names no network", 'add: network = "NAME"'
        )
    return config


def _owner_link(home: Path | None) -> AbstractContextManager[OwnerLink]:
    """A context manager that gives an OwnerLink to the running coordinator."""
    folder = find_folder(home)
    config = _config(folder, {})
    key = load_key(folder.key)
    try:
        from novamesh_coordinator.owner_link import open_owner_link
    except ImportError as error:
        raise _missing(error) from error
    return open_owner_link(_local_address(folder, config), key, config.network)


def _listening(folder: Folder, config: CoordinatorConfig) -> str:
    """Where the coordinator listens: since its last start, else as it is set to."""
    try:
        return folder.address.read_text().strip()
    except OSError:
        return config.listen


def _local_address(folder: Folder, config: CoordinatorConfig) -> str:
    """Where the running coordinator listens, as seen from this machine."""
    address = _listening(folder, config)
    host, port = split_address(address, "address")
    if is_wildcard(address):
        host = "[::1]" if host.startswith("[") else "127.0.0.1"
    return f"{host}:{port}"


def _public_address(folder: Folder, config: CoordinatorConfig) -> str:
    """What members dial: as configured, else where it listens."""
    if config.address:
        return config.address
    address = _listening(folder, config)
    _, port = split_address(address, "address")
    if is_wildcard(address):
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"it listens on every address ({address}); by which one do members reach it?",
            f"say so: --address HOST:{port or 'PORT'}",
        )
    if port == 0:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            "the port is not known before the first start",
            "start it with: novamesh coordinator serve, or give --address HOST:PORT",
        )
    return address


def _ready(config: CoordinatorConfig, running: Running, as_json: bool) -> None:
    host, _ = split_address(config.listen, "listen")
    address = f"{host}:{running.grpc_port}"
    if as_json:
        _print_json({"ready": True, "address": address, "http_port": running.http_port})
    else:
        _out(f"coordinator ready on {address}")


def _standing_by(http_port: int, as_json: bool) -> None:
    if as_json:
        _print_json({"ready": False, "standby": True, "http_port": http_port})
    else:
        _out("coordinator stands by")


def _node_row(view: NodeView) -> dict[str, Any]:
    return {
        "node": format_node_id(view.node),
        "attached": view.attached,
        "models": list(view.models),
        "hardware": view.hardware,
        "slots": view.slots,
        "free_slots": view.free_slots,
        "jobs_settled": view.jobs_settled,
        "tokens_settled": view.tokens_settled,
        "jobs_donated": view.jobs_donated,
        "tokens_donated": view.tokens_donated,
        "witnessed_tokens_per_s": view.witnessed_tokens_per_s,
        "seen_at_ms": view.seen_at_ms,
        "note": view.note,
    }


def _print_nodes(views: tuple[NodeView, ...]) -> None:
    if not views:
        _say("no node has attached yet; invite one with: novamesh coordinator invite")
        return
    row = "{:<14} {:<8} {:>5} {:>6} {:>9} {:>8}  {:<24} {}"
    _out(row.format("NODE", "STATE", "FREE", "JOBS", "TOKENS", "TOK/S", "MODELS", "NOTE").rstrip())
    for view in views:
        state = "attached" if view.attached else "away"
        free = f"{view.free_slots}/{view.slots}"
        speed = f"{view.witnessed_tokens_per_s:.1f}" if view.witnessed_tokens_per_s else "-"
        models = ",".join(view.models) or "-"
        cells = (short(view.node), state, free, view.jobs_settled, view.tokens_settled, speed)
        _out(row.format(*cells, models, view.note).rstrip())


def _print_json(value: object) -> None:
    _out(dumps(value, ensure_ascii=False))


def _out(text: str) -> None:
    """Data, at once: whoever reads a pipe waits for this line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _say(text: str) -> None:
    """Talk."""
    sys.stderr.write(f"{text}\n")


def _missing(error: ImportError) -> NovaMeshError:
    return NovaMeshError(
        Code.UNSUPPORTED, f"there is no coordinator here: {error.name} is missing", EXTRA_HINT
    )
