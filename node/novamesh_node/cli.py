"""`novamesh node …` and `novamesh models …`: a volunteer's commands.

Reading commands print to stdout, as text or with --json; everything else is talk on stderr. Rules:
this module loads in a blink, so torch, gRPC and the engine are imported inside the commands that
need them; errors are raised and printed by whoever runs the command line. No rule about nodes is
made here.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from novamesh_broker.flags import NOT_GIVEN, BrokerFlags
from novamesh_proto.errors import Code, NovaMeshError

app = App(name="node", help="Lend this machine to a pool.")
models_app = App(name="models", help="The models on this machine's shelf.")

Home = Annotated[
    Path | None, Parameter(help="Folder of all files, instead of the usual places; NOVAMESH_HOME.")
]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]

for _name, _text in (
    ("install", "Let systemd run the node as config.toml says: as you, without root."),
    ("uninstall", "Stop that service and take its unit away; keys and models stay."),
):
    app.command(f"novamesh_node.service_cli:{_name}", name=_name, help=_text)

STOP_S: Final = 75.0
_POLL_S: Final = 0.1


@app.command
def start(
    *,
    home: Home = None,
    join: Annotated[
        str | None, Parameter(help="Join the pool of this code first; NOVAMESH_JOIN.")
    ] = None,
    model: Annotated[
        list[str] | None,
        Parameter(help="Model to serve, by name or folder; repeat it.", negative=()),
    ] = None,
    slots: Annotated[int | None, Parameter(help="Jobs at the same time on each device.")] = None,
    threads: Annotated[int | None, Parameter(help="Processor threads; default half.")] = None,
    device: Annotated[
        str | None,
        Parameter(help="cpu, cuda, cuda:N, a GPU's id; several with commas; or all, every GPU."),
    ] = None,
    log_format: Annotated[str | None, Parameter(help="text or json.")] = None,
    broker: BrokerFlags = NOT_GIVEN,
    listen: Annotated[
        str | None, Parameter(help="HOST:PORT at which clients reach this node themselves.")
    ] = None,
    endpoint: Annotated[
        str | None, Parameter(help="HOST:PORT that clients are told, where it is another one.")
    ] = None,
    map_port: Annotated[
        bool | None, Parameter(negative=(), help="Ask the home router to pass our port on.")
    ] = None,
    mesh: Annotated[bool | None, Parameter(negative=(), help="Take part in the mesh.")] = None,
    donate: Annotated[
        bool | None,
        Parameter(negative=(), help="Work unpaid, in half the slots, without the pool."),
    ] = None,
) -> None:
    """Work for the pool until stopped. Ctrl-C ends the work at hand first; twice stops at once."""
    from novamesh_node import daemon, logs
    from novamesh_node.config import load_node_config

    flags = {
        "models": ",".join(model) if model else None,
        "slots": slots,
        "threads": threads,
        "device": device,
        "log_format": log_format,
        **broker.flags(),
        "listen": listen,
        "endpoint": endpoint,
        "donate": donate,
        "map_port": map_port,
    }
    config = load_node_config(home, flags=flags, join=join, mesh=mesh)
    logs.configure(config.log_format)
    asyncio.run(daemon.serve(config, daemon.Voice(_say, _ready)))


@app.command
def stop(
    *,
    now: Annotated[bool, Parameter(negative=(), help="Give up the work at hand.")] = False,
    home: Home = None,
) -> None:
    """End the work at hand, for a minute at most, then stop the node."""
    asyncio.run(_stop(_socket(home), now))


@app.command
def finish(*, home: Home = None) -> None:
    """Take no more work; the node stops by itself when what it has is done."""
    from novamesh_node.notices import jobs

    reply = _ask(home, "finish")
    _tell(f"the node ends {jobs(reply['running'])} and stops")


@app.command
def pause(
    *,
    for_: Annotated[
        str | None, Parameter(name="--for", help="Until then, such as 2h or 45m.")
    ] = None,
    now: Annotated[bool, Parameter(negative=(), help="Give up the work at hand too.")] = False,
    home: Home = None,
) -> None:
    """Take no more work until resumed."""
    from novamesh_node.durations import parse_duration

    for_s = 0 if for_ is None else parse_duration(for_)
    reply = _ask(home, "pause", {"for_s": for_s, "now": now})
    _tell(f"{reply['reason']}; go on:  novamesh node resume")


@app.command
def resume(*, home: Home = None) -> None:
    """Take work again; also calls off a finish."""
    reply = _ask(home, "resume")
    _tell(f"the node takes work: {reply['free_slots']} of {reply['slots']} slots are free")


@app.command
def status(*, json: Json = False, home: Home = None) -> None:
    """What the node does now."""
    from novamesh_node import screens

    reply = _ask(home, "status")
    _print(_json(reply) if json else screens.describe_status(reply))


@app.command
def why(*, json: Json = False, home: Home = None) -> None:
    """Ask the pool why this node gets no work."""
    from novamesh_node import screens

    reply = _ask(home, "why")
    _print(_json(reply) if json else screens.explain_idle(reply))


@models_app.command
def pull(
    model: str,
    /,
    *,
    name: Annotated[str | None, Parameter(help="What it is called on the shelf.")] = None,
    revision: Annotated[
        str | None, Parameter(help="Branch, tag or commit; default the newest commit.")
    ] = None,
    force: Annotated[
        bool, Parameter(negative=(), help="Make it anew, in place of one of that name.")
    ] = False,
    keep_download: Annotated[
        bool, Parameter(negative=(), help="Keep what was downloaded when it is converted.")
    ] = False,
    json: Json = False,
    home: Home = None,
) -> None:
    """Get a model and make its NF4 profile; prints its name and digest.

    MODEL is a name of the catalogue, auto for the one that fits this machine's memory, org/name or
    org/name@revision on Hugging Face (HF_TOKEN, HF_HOME and HF_ENDPOINT count), or a folder with a
    checkpoint or a profile. Interrupted, it goes on where it stopped.
    """
    _hush()
    from novamesh.config import find_places
    from novamesh_node import meters, screens
    from novamesh_node.pull import Puller, Wish

    chosen = _recommend() if model == "auto" else model
    wish = Wish(chosen, name, revision, force, keep_download)
    try:
        with meters.meter(_tell) as audience:
            profile = Puller(find_places(home).models, audience).pull(wish)
    except KeyboardInterrupt:
        again = _command(
            "models", "pull", wish.reference, name=name, revision=revision, force=force,
            keep_download=keep_download, json=json, home=home,
        )  # fmt: skip
        hint = f"go on where it stopped:  {again}"
        raise NovaMeshError(Code.CANCELLED, "stopped", hint) from None
    fields = screens.profile_fields(profile)
    _print(_json(fields) if json else f"{profile.path.name}  {profile.digest_text}")
    serve = _command("node", "start", model=profile.path.name, home=home)
    _tell(f"serve it:  {serve}")


@models_app.command(name="ls")
def list_(*, json: Json = False, home: Home = None) -> None:
    """Models on this machine."""
    from novamesh.config import find_places
    from novamesh_node import screens
    from novamesh_node.shelf import list_models

    entries = list_models(find_places(home).models)
    if json:
        _print(_json([screens.entry_fields(each) for each in entries]))
    else:
        _print(screens.list_entries(entries))


@models_app.command
def show(name: str, /, *, json: Json = False, home: Home = None) -> None:
    """One model: its digest, what it can do, where it came from, its files, who serves it."""
    from novamesh.config import find_places
    from novamesh_node import screens
    from novamesh_node.shelf import find_missing, find_model
    from novamesh_node.workspace import read_origin

    profile = find_model(name, find_places(home).models)
    damage, origin = find_missing(profile), read_origin(profile.path)
    user = _served(home).get(profile.digest_text, "")
    if json:
        fields = screens.profile_fields(profile)
        _print(_json(fields | {"damaged": list(damage), "origin": origin, "used_by": user}))
    else:
        _print(screens.show_profile(profile, damage, screens.describe_origin(origin), user))
    _complain(damage)


@models_app.command
def verify(name: str, /, *, json: Json = False, home: Home = None) -> None:
    """Hash every file of a model; the exit status says whether it is whole."""
    from novamesh.config import find_places
    from novamesh_node import screens
    from novamesh_node.shelf import find_damage, find_model

    profile = find_model(name, find_places(home).models)
    damage = find_damage(profile)
    fields = screens.profile_fields(profile) | {"damaged": list(damage)}
    _print(_json(fields) if json else screens.verify_report(profile, damage))
    _complain(damage)


@models_app.command
def rm(
    name: str,
    /,
    *,
    yes: Annotated[bool, Parameter(negative=(), help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Take a model, or what is left of a pull of it, off the shelf."""
    from novamesh.config import find_places
    from novamesh_node.shelf import find_removable, remove_model
    from novamesh_node.workspace import gigabytes

    shelf, served = find_places(home).models, _served(home)
    find_removable(name, shelf, served)  # nobody is asked about what is not there, or stays
    if not yes and not _agreed(f"remove {name}? [y/N] "):
        again = _command("models", "rm", name, yes=True, home=home)
        raise NovaMeshError(Code.CANCELLED, f"{name} stays", f"without a question:  {again}")
    size = remove_model(name, shelf, served)
    _tell(f"removed {name}: {gigabytes(size)}")


def doctor_checks() -> list[Any]:
    """What `novamesh doctor` asks of this part."""
    from novamesh_node.doctor import doctor_checks as checks

    return list(checks())


def _recommend() -> str:
    """The catalogue's first choice for this machine, said and not asked."""
    import torch

    from novamesh_node.recommend import choose, measure_memory

    choice = choose(measure_memory(torch.cuda))
    _tell(choice.reason)
    return choice.name


def _served(home: Path | None) -> dict[str, str]:
    """The digests that a node of this machine serves now, and that node."""
    try:
        reply = _ask(home, "status")
    except NovaMeshError as error:
        if error.code is Code.NOT_FOUND:
            return {}
        raise
    return {model["digest"]: f"node {reply['node']}" for model in reply["models"]}


def _complain(damage: Mapping[str, NovaMeshError]) -> None:
    """The first fault, as the command's own."""
    for error in damage.values():
        raise NovaMeshError(error.code, f"damaged: {error.message}", error.hint)


def _agreed(question: str) -> bool:
    """What somebody at a terminal says; nobody there is a no."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _hush() -> None:
    """What libraries would say to developers; refusals are raised anyway.

    bitsandbytes talks while it is imported, so this comes first; the other one sets its own level
    when it is imported, so that is done here.
    """
    import logging

    from huggingface_hub.utils.logging import get_logger

    for logger in (logging.getLogger("bitsandbytes"), get_logger("huggingface_hub")):
        logger.setLevel(logging.ERROR)


def _command(*words: str, **flags: str | Path | bool | None) -> str:
    """What to type: the words and those of the flags that are set, quoted for a shell."""
    line = ["novamesh", *words]
    for flag, value in flags.items():
        if value is None or value is False:
            continue
        line.append(f"--{flag.replace('_', '-')}")
        if value is not True:
            line.append(str(value))
    return shlex.join(line)


async def _stop(socket: Path, now: bool) -> None:
    """Ask, then wait until nobody answers any more."""
    from novamesh_node import control
    from novamesh_node.notices import jobs

    for _ in range(1 + now):
        reply = await control.ask(socket, "stop")
    if reply["running"]:
        _tell(f"waiting for {jobs(reply['running'])} to end")
    try:
        async with asyncio.timeout(STOP_S):
            while True:
                await control.ask(socket, "status")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise NovaMeshError(
            Code.EXPIRED, "the node has not stopped yet", "novamesh node stop --now"
        ) from None
    except NovaMeshError as error:
        if error.code is not Code.NOT_FOUND:
            raise
    _tell("the node has stopped")


def _ask(home: Path | None, command: str, arguments: dict[str, Any] | None = None) -> Any:
    from novamesh_node import control

    return asyncio.run(control.ask(_socket(home), command, arguments))


def _socket(home: Path | None) -> Path:
    from novamesh.config import find_places

    return find_places(home).node_socket


def _json(value: object) -> str:
    return json.dumps(value, indent=2)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def _tell(text: str) -> None:
    from novamesh_node.screens import clean

    sys.stderr.write(clean(text) + "\n")


def _say(headline: str, text: str) -> None:
    _tell(f"  {headline:<9}{text}")


def _ready(node: str) -> None:
    sys.stdout.write(f"node ready {node}\n")
    sys.stdout.flush()
