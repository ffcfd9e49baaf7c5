"""What a call may ask: every nonsense is refused in the caller's words, with a way out."""

from __future__ import annotations

from typing import Any

import pytest

from novamesh.asked import PROMPT_BYTES_MAX, Asked
from novamesh.order import order_of
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ChatMessage


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        ({"max_tokens": 0}, "max_tokens cannot be 0", "a whole number from 1 to 1048576"),
        ({"max_tokens": 1.5}, "max_tokens cannot be 1.5", "a whole number"),
        ({"max_tokens": True}, "max_tokens cannot be True", "a whole number"),
        ({"temperature": "hot"}, "temperature cannot be 'hot'", "a number from 0 to 100"),
        ({"temperature": float("nan")}, "temperature cannot be nan", "a number from 0 to 100"),
        ({"temperature": -1}, "temperature cannot be -1", "a number from 0 to 100"),
        ({"top_k": 65}, "top_k cannot be 65", "from 0 to 64"),
        ({"top_p": 0}, "top_p cannot be 0", "from 1e-06 to 1"),
        ({"min_p": 2}, "min_p cannot be 2", "from 0 to 1"),
        ({"logprobs": 21}, "logprobs cannot be 21", "from 0 to 20"),
        ({"repetition_penalty": 0}, "repetition_penalty cannot be 0", "from 0.01"),
        ({"ignore_eos": "no"}, "ignore_eos cannot be 'no'", "True or False"),
        ({"seed": "seven"}, "seed cannot be 'seven'", "32 bytes"),
        ({"seed": b"short"}, "seed cannot be b'short'", "32 bytes"),
        ({"stop": ""}, "stop cannot be ''", "1 to 256 bytes"),
        ({"stop": "x" * 257}, "stop cannot be str 'xxx", "1 to 256 bytes"),
        ({"stop": ["a"] * 17}, "stop cannot be list", "up to 16 strings"),
        ({"stop": [1]}, "stop cannot be [1]", "up to 16 strings"),
        ({"stop_token_ids": "12"}, "stop_token_ids cannot be '12'", "up to 64 token ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids cannot be -1", "up to 64 token ids"),
        ({"system": 7}, "system cannot be 7", "a string"),
        ({"system": "a\udcff"}, "the system is not UTF-8 text", "UTF-8"),
        ({"deadline_s": "soon"}, "deadline_s cannot be 'soon'", "seconds"),
        ({"colour": "red"}, "unknown option 'colour'", "known are messages"),
    ],
)
def test_option_that_makes_no_sense(asked: Any, message: str, hint: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        order_of("nova-pico", "hi", asked, 30.0)
    assert caught.value.code is Code.BAD_REQUEST
    assert caught.value.message.startswith(message)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("prompt", "asked", "code", "message"),
    [
        (["hi"], {}, Code.BAD_REQUEST, "prompt cannot be a list"),
        (b"hi", {}, Code.BAD_REQUEST, "prompt cannot be a bytes"),
        ("x" * 1_200_000, {}, Code.TOO_LARGE, "the prompt has more than 864 KiB"),
        (None, {"text": "x" * 1_200_000}, Code.TOO_LARGE, "the text has more"),
        (None, {"messages": "hi"}, Code.BAD_REQUEST, "messages cannot be a str"),
        (None, {"messages": ["hi"]}, Code.BAD_REQUEST, "messages cannot be a str"),
        (None, {"messages": [{"role": "user"}]}, Code.BAD_REQUEST, "messages cannot be a dict"),
        (None, {"messages": [ChatMessage("user", "a")] * 257}, Code.TOO_LARGE, "there are 257"),
        (None, {"token_ids": "12"}, Code.BAD_REQUEST, "token_ids cannot be '12'"),
        (None, {"token_ids": [2**32]}, Code.BAD_REQUEST, "token_ids cannot be 4294967296"),
    ],
)
def test_prompt_that_makes_no_sense(prompt: Any, asked: Any, code: Code, message: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        order_of("nova-pico", prompt, asked, 30.0)
    assert (caught.value.code, caught.value.message[: len(message)]) == (code, message)
    assert caught.value.hint


def test_model_is_a_name() -> None:
    with pytest.raises(NovaMeshError, match="model cannot be None"):
        order_of(None, "hi", {}, 30.0)  # type: ignore[arg-type]


def test_the_most_that_is_allowed_is_taken() -> None:
    asked: Asked = {
        "max_tokens": 1_048_576,
        "temperature": 100,
        "top_k": 64,
        "top_p": 1,
        "stop": ["x" * 256] * 16,
        "stop_token_ids": range(64),
        "seed": b"s" * 32,
        "logprobs": 20,
        "deadline_s": 600,
    }
    order = order_of("nova-pico", "x" * PROMPT_BYTES_MAX, asked, 30.0)
    assert order.options.stop_token_ids == tuple(range(64))
