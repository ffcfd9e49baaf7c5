"""`novamesh run`: one prompt, one answer on stdout as it arrives, who and how fast on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

from cyclopts import Parameter

from novamesh.cli.output import format_fields, mark, plural, say, write, write_json
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.client import Run
from novamesh.completion import Completion
from novamesh.model_choice import SHOWN_CHARS
from novamesh_proto.attestation import Finding
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id, short
from novamesh_proto.limits import BODY_BYTES_MAX

BURST_RULE: Final = 4  # of the witness rules: the speed cannot be told


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, slots=True)
class Choices:
    """How the answer is chosen."""

    max_tokens: Annotated[int | None, Parameter(help="Tokens of the answer at most.")] = None
    temperature: Annotated[float, Parameter(help="0 always takes the best token.")] = 0.0
    top_k: Annotated[int | None, Parameter(help="Choose among the k best tokens.")] = None
    top_p: Annotated[float | None, Parameter(help="Choose among this probability mass.")] = None
    min_p: Annotated[float | None, Parameter(help="Drop what is less likely than this.")] = None
    seed: Annotated[int | None, Parameter(help="The same seed gives the same answer.")] = None
    stop: Annotated[list[str] | None, Parameter(help="End before this text.", negative="")] = None
    system: Annotated[str | None, Parameter(help="What the model should be.")] = None
    deadline_s: Annotated[float | None, Parameter(help="Seconds the answer may take.")] = None


async def run(
    model: str,
    prompt: str | None = None,
    /,
    *,
    choices: Choices | None = None,
    json: Json = False,
    scope: Scope = HERE,
) -> None:
    """Ask a model of the pool; the answer streams to stdout.

    The prompt is sealed for the node that answers; the pool's coordinator cannot read it. A receipt
    that verifies offline is kept: `novamesh receipt verify FILE`.

    Parameters
    ----------
    model
        A name of `novamesh pool models`, or name@digestprefix.
    prompt
        What to ask; read from stdin where it is absent.
    """
    asked = prompt if prompt is not None else _read_prompt()
    options: dict[str, Any] = dataclasses.asdict(choices or Choices())
    async with scope.client() as client:
        await print_answer(client.run(model, asked, **options), json)


async def print_answer(answer: Run, json: bool) -> None:
    """Stream an answer to stdout and say on stderr what its receipt proves."""
    text = ""
    async with contextlib.aclosing(answer.__aiter__()) as pieces:
        async for piece in pieces:
            if not json:
                write(piece.text)
            text = piece.text or text
    done = await answer.completion()
    if json:
        write_json(document(done))
        return
    if not text.endswith("\n"):
        write("\n")
    _summarise(done)


def document(done: Completion) -> dict[str, object]:
    """A completion as JSON."""
    return {
        "job": done.job.hex(),
        "model": done.model,
        "model_profile": done.model_profile.hex(),
        "node": format_node_id(done.node),
        "text": done.text,
        "token_ids": done.token_ids,
        "finish": done.finish.name.lower(),
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "ttft_s": round(done.ttft_s, 6),
        "total_s": round(done.total_s, 6),
        "tokens_per_s": round(done.tokens_per_s, 3),
        "findings": [
            {"rule": one.rule, "severity": one.severity.name.lower(), "message": one.message}
            for one in done.findings
        ],
        "receipt": str(done.receipt_path),
    }


def speed_of(tokens_per_s: float, findings: Sequence[Finding]) -> str:
    """A witnessed speed in words; of a burst nobody can tell it, so it is not taken for one."""
    burst = any(finding.rule == BURST_RULE for finding in findings)
    return f"{tokens_per_s:.1f} tokens/s" + ", but in one burst" * burst


def _summarise(done: Completion) -> None:
    speed = f"first token after {done.ttft_s:.2f} s"
    if done.tokens_per_s:
        speed += f", then {speed_of(done.tokens_per_s, done.findings)}"
    tokens = f"{done.prompt_tokens} read, {plural(done.completion_tokens, 'token')} answered"
    fields = {
        "node": short(done.node),
        "model": f"{done.model}@{done.model_profile.hex()[:SHOWN_CHARS]}",
        "tokens": f"{tokens}, ended by {done.finish.name.lower()}",
        "witnessed": speed,
        "receipt": done.receipt_path,
    }
    say()
    sys.stderr.write(format_fields(fields, indent="  "))
    for finding in done.findings:
        mark("note", finding.message)


def _read_prompt() -> str:
    if sys.stdin.isatty():
        say("type the prompt, then Ctrl-D")
    text = sys.stdin.read(BODY_BYTES_MAX + 1).strip("\n")
    if not text:
        raise NovaMeshError(
            Code.BAD_REQUEST, "there is no prompt", "novamesh run MODEL 'your question'"
        )
    return text
