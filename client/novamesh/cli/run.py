"""`novamesh run`: one prompt, one answer on stdout as it arrives, who and how fast on stderr."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from novamesh.cli.output import format_fields, mark, plural, say, write, write_json
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.client import Run
from novamesh.completion import Completion
from novamesh.model_choice import SHOWN_CHARS
from novamesh.private_file import write_private
from novamesh_broker.flags import NOT_GIVEN, BrokerFlags
from novamesh_proto.attestation import BURST_TOKENS_MIN, BURST_US_MIN
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id, short
from novamesh_proto.limits import BODY_BYTES_MAX
from novamesh_proto.receipt import encode_receipt

# What is not the ordinary way, through the coordinator.
WAYS: Final = {"direct": "direct, from the node itself", "tunnel": "tunnel to the node"}


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
    receipt: Annotated[Path | None, Parameter(help="Write the receipt to this file too.")] = None,
    mesh: Annotated[
        bool, Parameter(negative=(), help="Find a node without the coordinator, and ask it.")
    ] = False,
    broker: BrokerFlags = NOT_GIVEN,
    json: Json = False,
    scope: Scope = HERE,
) -> None:
    """Ask a model of the pool; the answer streams to stdout.

    The prompt is sealed for the node that answers; the pool's coordinator cannot read it. A receipt
    that verifies offline is kept: `novamesh receipt ls`.

    Parameters
    ----------
    model
        A name of `novamesh pool models`, or name@digestprefix.
    prompt
        What to ask; read from stdin where it is absent.
    """
    asked = prompt if prompt is not None else _read_prompt()
    options: dict[str, Any] = dataclasses.asdict(choices or Choices())
    async with scope.client(**broker.flags()) as client:
        await print_answer(client.run(model, asked, mesh=mesh, **options), json, receipt)


async def print_answer(answer: Run, json: bool, receipt: Path | None = None) -> None:
    """Stream an answer to stdout and say on stderr what its receipt proves.

    Whatever ends the answer, its line is ended: what is said next must not be glued to it.
    """
    line_ended = True
    try:
        async with contextlib.aclosing(answer.__aiter__()) as pieces:
            async for piece in pieces:
                if piece.text and not json:
                    write(piece.text)
                    line_ended = piece.text.endswith("\n")
    finally:
        if not line_ended:
            write("\n")
    done = await answer.completion()
    if receipt is not None:
        write_private(receipt, encode_receipt(done.receipt))
    if json:
        write_json(document(done))
    else:
        _summarise(done, receipt or done.receipt_path)


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
        "resumed": done.resumed,
        "findings": [
            {"rule": one.rule, "severity": one.severity.name.lower(), "message": one.message}
            for one in done.findings
        ],
        "parts": [
            {
                "job": part.job.hex(),
                "node": format_node_id(part.node),
                "path": part.path,
                "donated": part.donated,
                "start": part.start,
                "signed": part.signed,
                "end": part.end,
            }
            for part in done.parts
        ],
        "receipt": str(done.receipt_path),
    }


def speed_of(tokens_per_s: float | None, tokens: int, total_us: int) -> str:
    """What follows the time of the first token: a witnessed speed, or all of it and why not."""
    if tokens_per_s:
        return f", then {tokens_per_s:.1f} tokens/s"
    whole = f", all {tokens} after {total_us / 1e6:.3f} s"
    if tokens < BURST_TOKENS_MIN or total_us < BURST_US_MIN:
        return f"{whole}: too short to tell a speed"
    return f"{whole}: in one burst, which tells no speed"


def _summarise(done: Completion, receipt: Path) -> None:
    seen = "nothing: it was read afterwards, not as it arrived"
    if not done.resumed:
        speed = speed_of(done.tokens_per_s, done.completion_tokens, round(done.total_s * 1e6))
        seen = f"first token after {done.ttft_s:.2f} s{speed}"
    tokens = f"{done.prompt_tokens} read, {plural(done.completion_tokens, 'token')} answered"
    fields = {
        "node": short(done.node),
        "model": f"{done.model}@{done.model_profile.hex()[:SHOWN_CHARS]}",
        "tokens": f"{tokens}, ended by {done.finish.name.lower()}",
        "witnessed": seen,
        "receipt": receipt,
    }
    path = done.parts[-1].path if done.parts else ""
    if path in WAYS:
        fields["path"] = WAYS[path]
    if done.donated:
        fields["donated"] = "no coordinator took part, and nobody pays for it"
    if len(done.parts) > 1:
        fields["parts"] = _parts(done)
    say()
    sys.stderr.write(format_fields(fields, indent="  "))
    for finding in done.findings:
        mark("note", finding.message)


def _parts(done: Completion) -> str:
    """Who answered which tokens, where nodes were lost on the way."""
    told = []
    for part in done.parts:
        tail = f", {part.unattested} unattested" if part.unattested else ""
        told.append(f"{part.start} to {part.end} by {short(part.node)}{tail}")
    return f"{len(done.parts)}: tokens {'; '.join(told)}"


def _read_prompt() -> str:
    if sys.stdin.isatty():
        say("type the prompt, then Ctrl-D")
    try:
        text = sys.stdin.read(BODY_BYTES_MAX + 1).strip("\n")
    except UnicodeDecodeError:
        raise NovaMeshError(
            Code.BAD_REQUEST,
            "the prompt on stdin is not UTF-8 text",
            "convert it first:  iconv -t utf-8 FILE | novamesh run MODEL",
        ) from None
    if not text:
        raise NovaMeshError(
            Code.BAD_REQUEST, "there is no prompt", "novamesh run MODEL 'your question'"
        )
    return text
