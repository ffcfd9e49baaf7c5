"""`novamesh receipt …`: the receipts you hold, and what they prove without anybody's help."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import App, Parameter

from novamesh.cli.output import (
    mark,
    moment,
    plural,
    say,
    write_fields,
    write_json,
    write_status,
    write_table,
)
from novamesh.cli.run import WAYS, speed_of
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.completion import parts_of
from novamesh.model_choice import SHOWN_CHARS
from novamesh.receipts import Receipts, verify_file
from novamesh_proto.evidence import Span
from novamesh_proto.identity import format_node_id, parse_node_id, short
from novamesh_proto.messages import NodeId
from novamesh_proto.receipt import VerifiedReceipt

DONATED: Final = "donated: no coordinator took part, and nobody pays for it"

app = App(name="receipt", help="Receipts you hold; they verify offline.")

Coordinator = Annotated[
    str | None, Parameter(help="PeerId: take receipts of this coordinator only.")
]
ByClient = Annotated[str | None, Parameter(help="PeerId: take receipts of this client only.")]


@app.command(name="ls")
def list_receipts(*, json: Json = False, scope: Scope = HERE) -> None:
    """List the receipts on this machine, newest first."""
    kept = Receipts(scope.places.receipts).list()
    if json:
        write_json(
            [
                {
                    "job": one.job,
                    "parts": one.parts,
                    "donated": one.donated,
                    "file": str(one.path),
                }
                for one in kept
            ]
        )
        return
    if not kept:
        say("no receipts yet; every answer of novamesh run leaves one")
        return
    write_table(
        ("JOB", "KEPT (UTC)", "PARTS", "DONATED", "FILE"),
        [
            (
                one.job[:SHOWN_CHARS],
                moment(one.kept_at_ms),
                one.parts,
                "yes" if one.donated else "",
                one.path,
            )
            for one in kept
        ],
    )


@app.command
def show(file: str, /, *, json: Json = False, scope: Scope = HERE) -> None:
    """Show what a receipt says; it is verified first.

    Parameters
    ----------
    file
        A receipt file, or the beginning of the id of any job of its answer.
    """
    path = Receipts(scope.places.receipts).find(file)
    verified = verify_file(path)
    if json:
        write_json(document(verified))
        return
    write_fields(facts(verified))
    _note_findings(verified)


@app.command
def verify(
    file: str,
    /,
    *,
    coordinator: Coordinator = None,
    client: ByClient = None,
    json: Json = False,
    scope: Scope = HERE,
) -> None:
    """Check every signature of a receipt and that all parts belong together, offline.

    The exit status is 0 only if everything fits; a refusal names the part that is wrong.

    Parameters
    ----------
    file
        A receipt file, or the beginning of the id of any job of its answer.
    """
    path = Receipts(scope.places.receipts).find(file)
    verified = verify_file(path, _peer(coordinator), _peer(client))
    if json:
        write_json(document(verified))
        return
    count = len(verified.parts)
    for number, one in enumerate(verified.parts, start=1):
        for part, signer in one.signatures:
            label = part if count == 1 else f"{number} {part}"
            write_status("ok", f"{label.ljust(14 + 2 * (count > 1))}  signed by {short(signer)}")
    for span in verified.spans:
        if span.unattested:
            mark("note", _tail(span))
    if any(one.donated for one in verified.parts):
        mark("note", DONATED)
    _note_findings(verified)
    signed = plural(sum(len(one.signatures) for one in verified.parts), "signature")
    if count == 1:
        say(f"{signed} ok; all parts belong to one job")
    else:
        say(f"{signed} ok; all belong to one answer of {count} parts")


def facts(verified: VerifiedReceipt) -> dict[str, object]:
    """What a verified receipt says, for a screen."""
    claim = verified.attestation.message if verified.attestation is not None else None
    fields: dict[str, object] = {
        "job": verified.job.hex(),
        "pool": verified.terms.message.header.network,
        "client": format_node_id(verified.client),
        "node": format_node_id(verified.node),
        "coordinator": DONATED if verified.donated else format_node_id(verified.coordinator),
        "model": f"{_model_name(verified)} sha256:{verified.terms.message.model_profile.hex()}",
        "asked": f"{moment(verified.terms.message.header.issued_at_ms)} UTC",
        "tokens": _tokens(verified),
        **_parts(verified),
        "witnessed": witnessed(verified),
    }
    path = parts_of(verified)[-1].path
    if path in WAYS:
        fields["path"] = WAYS[path]
    if claim is not None:
        fields["claimed"] = (
            f"first token after {claim.timing.ttft_us / 1e6:.3f} s, "
            f"all after {claim.timing.total_us / 1e6:.3f} s, {claim.engine_build}"
        )
        fields["hardware"] = f"{claim.hardware.name} ({claim.hardware.kind}), as claimed"
    if claim is not None and claim.energy_mj:
        fields["energy"] = f"{claim.energy_mj / 1000:.1f} J, as claimed"
    settled = _settled(verified)
    if settled is not None:
        fields["settled"] = f"{settled[0]} + {settled[1]} tokens"
    return fields


def _parts(verified: VerifiedReceipt) -> dict[str, object]:
    """Who answered which tokens; nothing of an answer of one part."""
    fields: dict[str, object] = {}
    if verified.earlier:
        for number, (part, span) in enumerate(zip(verified.parts, verified.spans, strict=True), 1):
            tail = f", {_tail(span)}" if span.unattested else ""
            job = part.job.hex()[:SHOWN_CHARS]
            fields[f"part {number}"] = (
                f"tokens {span.start} to {span.end} by {short(part.node)}, job {job}{tail}"
            )
    return fields


def _tail(span: Span) -> str:
    tokens = plural(span.unattested, "token")
    return f"{tokens} from position {span.signed} on: witnessed, unattested"


def witnessed(verified: VerifiedReceipt) -> str:
    """What the client saw on its own clock, in words."""
    if verified.client_receipt is None:
        return "nothing: no client receipt"
    seen = verified.client_receipt.message
    speed = speed_of(verified.tokens_per_s, seen.completion_tokens, seen.total_us)
    return f"first token after {seen.ttft_us / 1e6:.3f} s{speed}"


def document(verified: VerifiedReceipt) -> dict[str, object]:
    """A verified receipt as JSON."""
    claim = verified.attestation.message if verified.attestation is not None else None
    settled = _settled(verified)
    return {
        "job": verified.job.hex(),
        "network": verified.terms.message.header.network,
        "client": format_node_id(verified.client),
        "node": format_node_id(verified.node),
        "coordinator": None if verified.donated else format_node_id(verified.coordinator),
        "model": _model_name(verified),
        "model_profile": verified.terms.message.model_profile.hex(),
        "prompt_tokens": claim.prompt_tokens if claim is not None else None,
        "completion_tokens": _answered(verified),
        "finish": claim.finish.name.lower() if claim is not None else None,
        "witnessed_ttft_us": verified.ttft_us,
        "witnessed_tokens_per_s": verified.tokens_per_s,
        "engine_build": claim.engine_build if claim is not None else None,
        "energy_mj": claim.energy_mj if claim is not None else None,
        "settled_prompt_tokens": settled[0] if settled is not None else None,
        "settled_completion_tokens": settled[1] if settled is not None else None,
        "signatures": [
            {"section": number, "part": part, "signer": format_node_id(signer)}
            for number, one in enumerate(verified.parts, start=1)
            for part, signer in one.signatures
        ],
        "findings": [
            {"rule": one.rule, "severity": one.severity.name.lower(), "message": one.message}
            for part in verified.parts
            for one in part.findings
        ],
        "parts": [
            {
                "job": part.job.hex(),
                "node": format_node_id(part.node),
                "start": part.start,
                "signed": part.signed,
                "end": part.end,
                "path": part.path,
                "donated": part.donated,
            }
            for part in parts_of(verified)
        ],
        "ok": True,
    }


def _model_name(verified: VerifiedReceipt) -> str:
    return verified.offer.name if verified.offer is not None else "a model without a name"


def _tokens(verified: VerifiedReceipt) -> str:
    answered = f"{plural(_answered(verified), 'token')} answered"
    if verified.attestation is None:
        return f"{answered}, up to the last checkpoint"
    claim = verified.attestation.message
    return f"{claim.prompt_tokens} read, {answered}, ended by {claim.finish.name.lower()}"


def _settled(verified: VerifiedReceipt) -> tuple[int, int] | None:
    """Prompt and completion tokens that were settled, over all parts; None if none was yet."""
    paid = [part.settlement.message for part in verified.parts if part.settlement is not None]
    if not paid:
        return None
    return sum(one.prompt_tokens for one in paid), sum(one.completion_tokens for one in paid)


def _answered(verified: VerifiedReceipt) -> int:
    return verified.spans[-1].end - verified.spans[0].start


def _note_findings(verified: VerifiedReceipt) -> None:
    for one in verified.parts:
        for finding in one.findings:
            mark("note", finding.message)


def _peer(text: str | None) -> NodeId | None:
    return None if text is None else parse_node_id(text)
