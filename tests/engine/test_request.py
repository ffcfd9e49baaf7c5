"""Every parameter has a range, and the refusal names it."""

from __future__ import annotations

from typing import Any

import pytest

from novamesh_engine.errors import RequestError
from novamesh_engine.request import Request, SamplingParams
from novamesh_proto.errors import Code


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", 1 << 21), ("temperature", -0.1), ("temperature", 101),
        ("temperature", float("nan")), ("top_k", -1), ("top_k", 65), ("top_p", 0.0),
        ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.1), ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")), ("logprobs", 21), ("logprobs", -1),
        ("seed", b"short"),
    ],
)  # fmt: skip
def test_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as refused:
        SamplingParams(**{field: value})
    assert refused.value.code is Code.BAD_REQUEST
    assert refused.value.hint


@pytest.mark.parametrize("stop", [("",), ("x" * 257,), ("x",) * 17])
def test_stop_strings_are_bounded(stop: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="stop string"):
        SamplingParams(stop=stop)


def test_stop_tokens_are_bounded() -> None:
    with pytest.raises(RequestError, match="stop tokens"):
        SamplingParams(stop_token_ids=tuple(range(65)))


def test_the_ends_of_each_range_are_allowed() -> None:
    SamplingParams(1, 0.0, 0, 1e-6, 0.0, 0.01, bytes(32), ("x" * 256,) * 16, (1,) * 64, 0, True)
    SamplingParams(1 << 20, 100.0, 64, 1.0, 1.0, 100.0, b"\xff" * 32, (), (), 20, False)


@pytest.mark.parametrize("id_", ["", "x" * 257])
def test_an_id_is_bounded(id_: str) -> None:
    with pytest.raises(RequestError, match="id"):
        Request(id_, (1,), SamplingParams())


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        Request("a", (), SamplingParams())
