"""`novamesh jobs …`: where your jobs are, stop one, read an answer that was left behind."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from novamesh.asked import Asked
from novamesh.cli.output import moment, say, write_fields, write_json, write_table
from novamesh.cli.run import print_answer
from novamesh.cli.scope import HERE, Json, Scope, find_job
from novamesh.model_choice import SHOWN_CHARS
from novamesh.receipts import Receipts
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id, short
from novamesh_proto.messages import JobView, NodeId

app = App(name="jobs", help="Your jobs in the pool.")


@app.command(name="ls")
async def list_jobs(*, count: int = 20, json: Json = False, scope: Scope = HERE) -> None:
    """List your jobs, newest first.

    Parameters
    ----------
    count
        How many at most, 1 to 200.
    """
    async with scope.client() as client:
        views = await client.jobs(count)
    if json:
        write_json([document(view) for view in views])
        return
    if not views:
        say("no jobs yet; ask something:  novamesh run MODEL 'your question'")
        return
    write_table(
        ("JOB", "STATE", "MODEL", "NODE", "TOKENS", "ADMITTED (UTC)"),
        [
            (
                view.job.hex()[:SHOWN_CHARS],
                view.state.name.lower(),
                view.model_profile.hex()[:SHOWN_CHARS],
                short(NodeId(view.node)) if view.node else "-",
                view.tokens,
                moment(view.admitted_at_ms),
            )
            for view in views
        ],
    )


@app.command
async def show(job: str, /, *, json: Json = False, scope: Scope = HERE) -> None:
    """Show where a job is.

    Parameters
    ----------
    job
        Its id, or the beginning of it.
    """
    receipts = Receipts(scope.places.receipts)
    try:
        async with scope.client() as client:
            view = await find_job(client, job)
    except NovaMeshError as error:
        if error.code is not Code.NOT_FOUND or not (kept := _receipt(receipts, job)):
            raise
        hint = f"you have its receipt:  novamesh receipt show {kept}"
        raise NovaMeshError(error.code, error.message, hint) from None
    told = document(view) | {"receipt": _receipt(receipts, view.job.hex())}
    if json:
        write_json(told)
    else:
        write_fields({name: value for name, value in told.items() if value != ""})


@app.command
async def cancel(job: str, /, *, scope: Scope = HERE) -> None:
    """Stop a job.

    Parameters
    ----------
    job
        Its id, or the beginning of it.
    """
    async with scope.client() as client:
        view = await find_job(client, job)
        after = await client.cancel(view.job)
    say(f"job {view.job.hex()[:SHOWN_CHARS]} is {after.state.name.lower()}")


@app.command
async def resume(
    job: str = "",
    prompt: str | None = None,
    /,
    *,
    system: Annotated[str | None, Parameter(help="What the model was told to be.")] = None,
    json: Json = False,
    scope: Scope = HERE,
) -> None:
    """Read the answer of a job whose client was cut off, from its beginning.

    A prompt is kept nowhere. Given again, an answer whose node was lost goes on at another one.

    Parameters
    ----------
    job
        Its id, that of any part of its answer, or the beginning of one; the newest one left behind
        where it is absent.
    prompt
        What it was asked.
    """
    async with scope.client() as client:
        left = client.resumable(job)
        if not left:
            raise NovaMeshError(
                Code.NOT_FOUND,
                f"this machine left no job {job}".rstrip() + " behind",
                "answers stay readable for ten minutes:  novamesh jobs ls",
            )
        asked: Asked = {"system": system} if system else {}
        await print_answer(client.resume(left[-1], prompt, **asked), json)


def _receipt(receipts: Receipts, job: str) -> str:
    """The file of the receipt that a job belongs to; nothing where there is none."""
    try:
        return str(receipts.find_job(job))
    except NovaMeshError:
        return ""


def document(view: JobView) -> dict[str, object]:
    """A job's state as JSON."""
    return {
        "job": view.job.hex(),
        "state": view.state.name.lower(),
        "attempt": view.attempt,
        "node": format_node_id(NodeId(view.node)) if view.node else "",
        "model_profile": view.model_profile.hex(),
        "admitted_at": moment(view.admitted_at_ms),
        "tokens": view.tokens,
        "code": view.code,
        "message": view.message,
    }
