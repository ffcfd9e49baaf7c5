"""From signed terms and an opened body to what the engine runs: one pure mapping.

Rules: the tokens a client sends are taken as they are, text is encoded and a conversation is
rendered by the model's own template; the forced prefix is part of the completion, so positions and
`max_tokens` count it; the client's seed goes to the engine, which keys the noise with it and the
model's digest. What was computed for a client is reused for that client's later jobs only, whose
key is the scope. Errors never hold any content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from novamesh_engine.request import Request, SamplingParams
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobBody, JobTerms, Sampling


class Encoder(Protocol):
    """The part of a tokenizer that turns a prompt into token ids."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of a plain text."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Ids of a conversation, up to where the answer begins."""
        ...


@dataclass(frozen=True, slots=True)
class Shape:
    """What a loaded model can take: tokens of prompt plus answer, and token ids below a bound."""

    context_max: int
    vocab_size: int


def render_prompt(body: JobBody, encoder: Encoder) -> tuple[int, ...]:
    """The prompt's token ids, the forced prefix not included.

    Raises:
        NovaMeshError: what the tokenizer or the template refuses.
    """
    if body.tokens is not None:
        return body.tokens.token_ids
    if body.text is not None:
        return encoder.encode(body.text)
    turns = body.chat.messages if body.chat is not None else ()
    return encoder.encode_chat([{"role": turn.role, "content": turn.content} for turn in turns])


def build_request(
    name: str, terms: JobTerms, body: JobBody, prompt: tuple[int, ...], shape: Shape
) -> Request:
    """The engine's request for an opened job.

    Raises:
        NovaMeshError: TOO_LARGE if prompt and prefix leave no room for a token, unless the prefix
            is the whole answer, BAD_REQUEST for unknown token ids, a start that is not the
            prefix's length, or a bad sampling value.
    """
    if terms.start_position != len(body.prefix_token_ids):
        raise NovaMeshError(Code.BAD_REQUEST, "the start is not the length of the forced prefix")
    if not prompt:
        raise NovaMeshError(Code.BAD_REQUEST, "the prompt is empty", "send at least one token")
    used = len(prompt) + len(body.prefix_token_ids)
    # A prefix that ends where the context does ends the answer: it is still to be attested.
    if used + (not body.prefix_token_ids) > shape.context_max:
        raise NovaMeshError(
            Code.TOO_LARGE,
            f"prompt and prefix have {used} tokens, this node takes under {shape.context_max}",
            "shorten the prompt, or choose a model with a longer context",
        )
    if any(token >= shape.vocab_size for token in (*prompt, *body.prefix_token_ids)):
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"a token id is outside the model's {shape.vocab_size}",
            "encode the prompt with this model's own tokenizer",
        )
    sampling = map_sampling(terms.sampling, body)
    return Request(name, prompt, sampling, body.prefix_token_ids, terms.header.issuer)


def map_sampling(sampling: Sampling, body: JobBody) -> SamplingParams:
    """The engine's sampling parameters; the seed itself comes from the sealed body."""
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=body.client_seed,
        stop=body.stop,
        stop_token_ids=sampling.stop_token_ids,
        logprobs=sampling.logprobs,
        ignore_eos=sampling.ignore_eos,
    )
