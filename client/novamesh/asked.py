"""What a call may ask, and whether it makes sense: answered here, in the words of the caller.

Rules: everything is checked before anything is sealed or sent; a refusal names the option as the
caller wrote it and says what would be taken. The bounds are those of the wire, written there once.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import (
    BODY_BYTES_MAX,
    CHAT_MESSAGES_MAX,
    CONTEXT_TOKENS_MAX,
    JOB_TIMEOUT_MS_MAX,
    KIB,
    STOP_STRING_BYTES_MAX,
    STOP_STRINGS_MAX,
    STOP_TOKENS_MAX,
    Range,
)
from novamesh_proto.messages import ChatMessage, Sampling

SEED_BYTES: Final = 32
PROMPT_BYTES_MAX: Final = BODY_BYTES_MAX - 32 * KIB  # the rest: framing, stop strings, padding
_ROLES: Final = ("system", "user", "assistant")
_CONTENT: Final = frozenset({"prompt", "messages", "system", "text"})
_TOKEN_ID_MAX: Final = 2**32 - 1

Message = Mapping[str, str] | ChatMessage


class Asked(TypedDict, total=False):
    """Everything a call may say besides the model and the prompt."""

    messages: Sequence[Message]  # a conversation, each {"role": …, "content": …}
    system: str  # what the model should be; goes before a prompt or messages
    text: str  # plain text to continue, without a chat template
    token_ids: Sequence[int]  # token ids to continue
    deadline_s: float  # seconds until the whole answer is here
    max_tokens: int  # completion tokens at most
    temperature: float  # 0 takes the best token
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | bytes  # the same seed, model and prompt give the same answer
    stop: str | Sequence[str]  # strings that end the answer
    stop_token_ids: Sequence[int]
    logprobs: int  # log probabilities of this many candidates come with each token
    ignore_eos: bool
    mesh: bool  # find a node without the coordinator, and ask it directly; nobody pays for it


def check_asked(model: object, prompt: object, given: Mapping[str, Any]) -> None:
    """Return if every part of a call makes sense.

    Args:
        model: The model's name.
        prompt: What the user says; None where something else stands in its place.
        given: The options that are not None.

    Raises:
        NovaMeshError: BAD_REQUEST or TOO_LARGE, naming the option.
    """
    for name in given:
        if name not in Asked.__annotations__:
            known = ", ".join(Asked.__annotations__)
            raise NovaMeshError(Code.BAD_REQUEST, f"unknown option {name!r}", f"known are {known}")
    _check_text("model", model)
    for name, text in {"prompt": prompt, **given}.items():
        if name in ("prompt", "system", "text") and text is not None:
            _check_text(name, text)
    _check_messages(given.get("messages", ()))
    for name in ("token_ids", "stop_token_ids"):
        most = CONTEXT_TOKENS_MAX if name == "token_ids" else STOP_TOKENS_MAX
        _check_tokens(name, given.get(name, ()), most)
    _check_numbers(given)
    _check_seed(given.get("seed"))
    _check_stop(given.get("stop", ()))
    if "deadline_s" in given:
        check_deadline(given["deadline_s"])


def check_deadline(deadline_s: float) -> float:
    """Seconds a job may take, if they make sense. Raises BAD_REQUEST."""
    most = JOB_TIMEOUT_MS_MAX / 1000
    if not _is_number(deadline_s):
        raise _wrong("deadline_s", deadline_s, f"give a number of seconds up to {most:g}")
    if not 0 < deadline_s <= most:
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"a deadline of {deadline_s:g} s is not possible",
            f"choose up to {most:g} seconds",
        )
    return deadline_s


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Options that are numbers on the wire, within the wire's own bounds."""
    for name, hint in typing.get_type_hints(Sampling, include_extras=True).items():
        value = given.get(name)
        if value is None:
            continue
        if hint is bool:
            if not isinstance(value, bool):
                raise _wrong(name, value, "give True or False")
            continue
        kind, *bounds = typing.get_args(hint)
        if not bounds or not isinstance(bounds[0], Range):
            continue
        least, greatest = bounds[0].least, bounds[0].greatest
        whole = "a whole number" if kind is int else "a number"
        fits = _is_number(value) and (kind is float or isinstance(value, int))
        if not fits or not least <= value <= greatest:
            raise _wrong(name, value, f"choose {whole} from {least:.12g} to {greatest:.12g}")


def _check_seed(seed: object) -> None:
    if seed is None or (isinstance(seed, int) and not isinstance(seed, bool)):
        return
    if not isinstance(seed, bytes) or len(seed) != SEED_BYTES:
        raise _wrong("seed", seed, f"give a whole number, or {SEED_BYTES} bytes")


def _check_stop(stop: object) -> None:
    strings = [stop] if isinstance(stop, str) else stop
    hint = f"give up to {STOP_STRINGS_MAX} strings of 1 to {STOP_STRING_BYTES_MAX} bytes"
    if not isinstance(strings, list | tuple) or len(strings) > STOP_STRINGS_MAX:
        raise _wrong("stop", stop, hint)
    for text in strings:
        if not isinstance(text, str):
            raise _wrong("stop", stop, hint)
        if not 1 <= len(_encode("stop", text)) <= STOP_STRING_BYTES_MAX:
            raise _wrong("stop", text, hint)


def _check_tokens(name: str, tokens: object, most: int) -> None:
    hint = f"give a list of up to {most} token ids"
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Sequence) or len(tokens) > most:
        raise _wrong(name, tokens, hint)
    for token in tokens:
        whole = isinstance(token, int) and not isinstance(token, bool)
        if not whole or not 0 <= token <= _TOKEN_ID_MAX:
            raise _wrong(name, token, hint)


def _check_messages(messages: object) -> None:
    hint = 'give a list of {"role": …, "content": …}'
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise _wrong("messages", messages, hint)
    if len(messages) > CHAT_MESSAGES_MAX:
        raise NovaMeshError(
            Code.TOO_LARGE,
            f"there are {len(messages)} messages",
            f"give up to {CHAT_MESSAGES_MAX}; leave out the oldest",
        )
    size = 0
    for one in messages:
        turn = {"role": one.role, "content": one.content} if isinstance(one, ChatMessage) else one
        if not isinstance(turn, Mapping) or not isinstance(turn.get("content"), str):
            raise _wrong("messages", one, hint)
        if turn.get("role") not in _ROLES:
            raise NovaMeshError(
                Code.BAD_REQUEST,
                f"a message has the role {turn.get('role')!r}",
                f"roles are {', '.join(_ROLES)}",
            )
        size += len(_encode("messages", turn["content"]))
    _check_size("messages", size)


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        hint = "give a string"
        if name == "prompt":
            hint += "; a conversation goes into messages=[…], token ids into token_ids=[…]"
        raise _wrong(name, text, hint)
    _check_size(name, len(_encode(name, text)))


def _check_size(name: str, size: int) -> None:
    if size > PROMPT_BYTES_MAX:
        raise NovaMeshError(
            Code.TOO_LARGE,
            f"the {name} has more than {PROMPT_BYTES_MAX // KIB} KiB",
            "shorten it; CONTEXT in `novamesh pool models` is what a model can take",
        )


def _encode(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise NovaMeshError(
            Code.BAD_REQUEST, f"the {name} is not UTF-8 text", "convert it to UTF-8 first"
        ) from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, value: object, hint: str) -> NovaMeshError:
    shown = repr(value)
    if name in _CONTENT and not _is_number(value):
        shown = f"a {type(value).__name__}"  # errors get logged, and content must not be
    elif len(shown) > 60:
        shown = f"{type(value).__name__} {shown[:40]}…"
    return NovaMeshError(Code.BAD_REQUEST, f"{name} cannot be {shown}", hint)
