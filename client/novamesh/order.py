"""What a caller asks for, and the sealed job that says so to a pool. Pure: no clock, no network.

Rules: the prompt, the seed and the response key go into the sealed body only; a digest is what is
signed, a model's name is a label; the same terms may be wrapped for other candidates, they stay
the same job.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from novamesh.asked import Asked, Message, check_asked, check_deadline
from novamesh_proto import sealing, wire
from novamesh_proto.envelope import Verified, seal
from novamesh_proto.envelope import open as open_envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import JOB_TIMEOUT_MS_MAX
from novamesh_proto.matching import BYTES_PER_TOKEN
from novamesh_proto.messages import (
    ChatMessage,
    ChatPrompt,
    Header,
    JobBody,
    JobId,
    JobTerms,
    NodeDescriptor,
    PoolModel,
    Sampling,
    SealedJob,
    TokenPrompt,
)

SECRET_BYTES: Final = 32
_SAID_AGAIN: Final = frozenset({"messages", "system", "text", "token_ids", "deadline_s"})
_SEED_LABEL: Final = b"novamesh/v1/client-seed\0"
_PROMPT_LABEL: Final = b"novamesh/v1/prompt\0"


@dataclass(frozen=True, slots=True)
class Options:
    """How the answer is chosen; None leaves it to the configuration or to chance."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | bytes | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model is asked; exactly one is set."""

    chat: ChatPrompt | None = None
    text: str | None = None
    tokens: TokenPrompt | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One answer wanted: from which model, to what, how, within how many seconds."""

    model: str
    prompt: Prompt
    options: Options
    deadline_s: float
    mesh: bool = False  # ask nodes themselves, not the coordinator


@dataclass(frozen=True, slots=True)
class Continuation:
    """What a job that goes on with an answer takes over; `token_ids` are the forced prefix."""

    client_seed: bytes = field(repr=False)
    sampling: Sampling
    parent_job: JobId
    token_ids: tuple[int, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Draft:
    """A signed and sealed job before it is wrapped for anybody, and what only we know of it."""

    terms: Verified[JobTerms]
    sealed: sealing.SealedBody = field(repr=False)
    body: JobBody = field(repr=False)

    @property
    def job(self) -> JobId:
        """Its id."""
        return JobId(self.terms.id)

    def wrap(self, candidates: Sequence[Verified[NodeDescriptor]]) -> SealedJob:
        """The job as these candidates, and nobody else, can open it."""
        wraps = tuple(sealing.wrap_key(self.sealed.key, self.job, one) for one in candidates)
        return SealedJob(self.terms.envelope, self.sealed.ciphertext, wraps)


def prompt_of(
    prompt: str | None = None,
    messages: Sequence[Message] | None = None,
    *,
    system: str | None = None,
    text: str | None = None,
    token_ids: Sequence[int] | None = None,
) -> Prompt:
    """The one prompt that a call names.

    Raises:
        NovaMeshError: BAD_REQUEST for none or several.
    """
    given = [one for one in (prompt, messages, text, token_ids) if one is not None]
    if len(given) != 1 or not given[0]:
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"a job needs one prompt, {'none' if not given or not given[0] else 'several'} given",
            "pass a prompt, messages, text or token_ids",
        )
    if text is not None:
        return Prompt(text=text)
    if token_ids is not None:
        return Prompt(tokens=TokenPrompt(tuple(token_ids)))
    turns = [ChatMessage("user", prompt)] if prompt is not None else _turns(messages or ())
    if system:
        turns.insert(0, ChatMessage("system", system))
    return Prompt(chat=ChatPrompt(tuple(turns)))


def order_of(model: str, prompt: str | None, asked: Asked, deadline_s: float) -> Order:
    """The order that a call makes; `deadline_s` where it names none.

    Raises:
        NovaMeshError: BAD_REQUEST for no prompt, several, or what `asked.check_asked` refuses.
    """
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    check_asked(model, prompt, given)
    choices = {name: given[name] for name in Options.__dataclass_fields__ if name in given}
    for name in ("stop", "stop_token_ids"):
        value = choices.get(name, ())
        choices[name] = (value,) if isinstance(value, str) else tuple(value)
    return Order(
        model,
        prompt_of(
            prompt,
            given.get("messages"),
            system=given.get("system"),
            text=given.get("text"),
            token_ids=given.get("token_ids"),
        ),
        Options(**choices),
        check_deadline(given.get("deadline_s", deadline_s)),
        bool(given.get("mesh", False)),
    )


def prompt_again(
    prompt: str | None, asked: Asked, deadline_s: float
) -> tuple[Prompt | None, float]:
    """The prompt of an answer that goes on, None if there is none, and its deadline in seconds.

    Raises:
        NovaMeshError: BAD_REQUEST for what was settled when it began, or as `order_of`.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    settled = sorted(given.keys() - _SAID_AGAIN)
    if settled:
        raise NovaMeshError(
            Code.BAD_REQUEST, f"an answer goes on as it began; {settled[0]} is settled", "leave it"
        )
    if prompt is None and not given.keys() & {"messages", "text", "token_ids"}:
        return None, check_deadline(asked.get("deadline_s") or deadline_s)
    order = order_of("", prompt, asked, deadline_s)
    return order.prompt, order.deadline_s


def draft(
    order: Order,
    model: PoolModel,
    header: Header,
    key: PrivateKey,
    limit: int,
    after: Continuation | None = None,
) -> Draft:
    """Seal the body and sign the terms.

    Args:
        order: What is wanted.
        model: The pool's model it names.
        header: Ours, to the coordinator; its life bounds how long the job may be handed in.
        key: The client's.
        limit: Completion tokens where the order does not say.
        after: The parts of the answer that this job goes on from; None begins it.

    Raises:
        NovaMeshError: BAD_REQUEST or TOO_LARGE, naming the field.
    """
    options = order.options
    body = JobBody(
        client_seed=after.client_seed if after else client_seed(options.seed),
        response_key=secrets.token_bytes(SECRET_BYTES),
        chat=order.prompt.chat,
        text=order.prompt.text,
        tokens=order.prompt.tokens,
        stop=options.stop,
        prefix_token_ids=after.token_ids if after else (),
    )
    parent = after.parent_job if after and after.token_ids else b""
    sealed = sealing.seal_body(body)
    terms = JobTerms(
        header=header,
        model_profile=model.model_profile,
        sampling=after.sampling
        if after
        else _sampling(options, body, max_tokens(order, model, limit)),
        timeout_ms=min(max(1, round(order.deadline_s * 1000)), JOB_TIMEOUT_MS_MAX),
        body_digest=sealed.digest,
        body_bytes=len(sealed.ciphertext),
        key_commitment=sealed.commitment,
        idempotency_key=secrets.token_hex(16),
        parent_job=parent,
        start_position=len(body.prefix_token_ids),
        prefix_digest=sealing.forced_prefix_digest(body, JobId(parent)),
    )
    signed = open_envelope(seal(terms, key), JobTerms, network=header.network)
    return Draft(signed, sealed, body)


def client_seed(seed: int | bytes | None) -> bytes:
    """The 32 bytes that key the sampling noise: random, given, or made from a number."""
    if seed is None:
        return secrets.token_bytes(SECRET_BYTES)
    if isinstance(seed, bytes):
        return seed
    return hashlib.sha256(_SEED_LABEL + str(seed).encode()).digest()


def digest_prompt(prompt: Prompt, seed: bytes) -> bytes:
    """What tells whether a prompt is the same as before.

    Its key is in the same record: no list made beforehand tells the prompt, but whoever has the
    file can try prompts. They have the answer too.
    """
    body = JobBody(seed, bytes(SECRET_BYTES), prompt.chat, prompt.text, prompt.tokens)
    return hashlib.sha256(_PROMPT_LABEL + wire.encode(body)).digest()


def prompt_bytes(prompt: Prompt) -> int:
    """An upper bound of the prompt's tokens, by its bytes."""
    if prompt.tokens is not None:
        return math.ceil(len(prompt.tokens.token_ids) * BYTES_PER_TOKEN)
    if prompt.chat is not None:
        return len(wire.encode(prompt.chat))
    return len((prompt.text or "").encode())


def max_tokens(order: Order, model: PoolModel, limit: int) -> int:
    """Completion tokens at most: as ordered, else what is usual and fits the context."""
    if order.options.max_tokens is not None:
        return order.options.max_tokens
    room = model.context_max - math.ceil(prompt_bytes(order.prompt) / BYTES_PER_TOKEN)
    return max(1, min(limit, room))


def _sampling(options: Options, body: JobBody, tokens: int) -> Sampling:
    return Sampling(
        seed_commitment=sealing.seed_commitment(body.client_seed),
        max_tokens=tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        stop_token_ids=options.stop_token_ids,
        logprobs=options.logprobs,
        ignore_eos=options.ignore_eos,
    )


def _turns(messages: Sequence[Message]) -> list[ChatMessage]:
    return [
        one if isinstance(one, ChatMessage) else ChatMessage(one["role"], one["content"])
        for one in messages
    ]
