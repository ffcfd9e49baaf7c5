"""`novamesh jobs …`: where your jobs are, stop one, read an answer that was left behind."""

from __future__ import annotations

from cyclopts import App

from novamesh.cli.output import moment, say, write_fields, write_json, write_table
from novamesh.cli.run import print_answer
from novamesh.cli.scope import HERE, Json, Scope, find_job
from novamesh.model_choice import SHOWN_CHARS
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
    async with scope.client() as client:
        view = await find_job(client, job)
    if json:
        write_json(document(view))
    else:
        write_fields({name: value for name, value in document(view).items() if value != ""})


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
async def resume(job: str = "", /, *, json: Json = False, scope: Scope = HERE) -> None:
    """Read the answer of a job whose client was cut off, from its beginning.

    Parameters
    ----------
    job
        Its id, or the beginning of it; the newest one left behind where it is absent.
    """
    async with scope.client() as client:
        left = [one for one in client.resumable() if one.hex().startswith(job.lower())]
        if not left:
            raise NovaMeshError(
                Code.NOT_FOUND,
                f"this machine left no job {job}".rstrip() + " behind",
                "answers stay readable for ten minutes:  novamesh jobs ls",
            )
        await print_answer(client.resume(left[-1]), json)


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
