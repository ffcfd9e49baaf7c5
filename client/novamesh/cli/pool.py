"""`novamesh pool …`: join, look at and leave the pool this machine belongs to."""

from __future__ import annotations

import time

from cyclopts import App

from novamesh.cli.output import moment, plural, say, write_fields, write_json, write_table
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.client import Client
from novamesh.config import Config, Pool, forget_pool, save_pool
from novamesh.model_choice import show as show_model
from novamesh_proto.envelope import Verified
from novamesh_proto.identity import parse_node_id, short
from novamesh_proto.join_code import parse_join_code
from novamesh_proto.messages import PoolCard

app = App(name="pool", help="The pool this machine belongs to.")


@app.command
async def join(code: str, /, *, scope: Scope = HERE) -> None:
    """Become a member of the pool a join code names.

    Parameters
    ----------
    code
        The code its owner gave you, one line that begins with nm1.
    """
    config = scope.config()
    pool = Pool.from_join_code(parse_join_code(code))
    async with Client(config=Config(config.places, pool, config.client)) as client:
        await client.join()
    save_pool(config.places, pool)
    say(f"joined pool {pool.network} at {pool.address}, coordinator {_short(pool)}")
    say("next:  novamesh pool models    novamesh run MODEL 'your question'")


@app.command(name="ls")
async def list_pools(*, json: Json = False, scope: Scope = HERE) -> None:
    """List the pool of this machine, as it is configured."""
    pool = scope.config().pool
    pools = [pool] if pool is not None else []
    if json:
        write_json([_document(one) for one in pools])
        return
    if not pools:
        say("no pool yet; join one:  novamesh pool join CODE")
        return
    write_table(
        ("POOL", "ADDRESS", "COORDINATOR"),
        [(one.network, one.address, one.coordinator) for one in pools],
    )


@app.command
async def show(*, json: Json = False, scope: Scope = HERE) -> None:
    """Ask the pool what it is and what time it has."""
    pool = scope.config().require_pool()
    async with scope.client() as client:
        started = time.monotonic()
        card = await client.card()
        took_s = time.monotonic() - started
        models = await client.models()
    shown: dict[str, object] = {
        **_document(pool),
        "version": card.message.version,
        "open": card.message.open,
        "answered_ms": round(took_s * 1000, 1),
        "clock_offset_ms": clock_offset_ms(card, took_s),
        "models": len(models),
    }
    if json:
        write_json(shown)
        return
    write_fields(
        {
            "pool": pool.network,
            "address": pool.address,
            "coordinator": pool.coordinator,
            "version": card.message.version,
            "entry": "open to anybody" if card.message.open else "by join code",
            "answered": f"within {took_s * 1000:.0f} ms, {moment(card.message.now_ms)} UTC there",
            "models": plural(len(models), "model") + " served now",
        }
    )


@app.command
async def models(*, json: Json = False, scope: Scope = HERE) -> None:
    """List what the pool serves now."""
    async with scope.client() as client:
        served = await client.models()
    if json:
        write_json(
            [
                {
                    "name": one.name,
                    "model_profile": one.model_profile.hex(),
                    "nodes": one.nodes,
                    "free_slots": one.free_slots,
                    "context_max": one.context_max,
                }
                for one in served
            ]
        )
        return
    if not served:
        say("no node offers any model now; lend your machine:  novamesh node start")
        return
    write_table(
        ("MODEL", "NODES", "FREE", "CONTEXT"),
        [(show_model(one), one.nodes, one.free_slots, one.context_max) for one in served],
    )


@app.command
def leave(*, scope: Scope = HERE) -> None:
    """Forget the pool; keys and receipts stay."""
    config = scope.config()
    if forget_pool(config.places):
        name = config.pool.network if config.pool is not None else "the pool"
        say(f"left {name}; keys and receipts are kept in {config.places.data}")
    else:
        say("this machine belongs to no pool")


def clock_offset_ms(card: Verified[PoolCard], took_s: float) -> int:
    """How far this machine's clock is ahead of the pool's, ms, half the round trip allowed for."""
    now_ms = time.time_ns() // 1_000_000
    return round(now_ms - took_s * 500 - card.message.now_ms)


def _document(pool: Pool) -> dict[str, object]:
    return {"network": pool.network, "address": pool.address, "coordinator": pool.coordinator}


def _short(pool: Pool) -> str:
    return short(parse_node_id(pool.coordinator))
