"""Spans of time: what people type is understood or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.durations import format_duration, parse_duration
from novamesh_proto.errors import Code, NovaMeshError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("45m", 2700), ("1h30m", 5400), ("90s", 90), ("1d", 86400), (" 2H ", 7200)],
)
def test_spans(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "0h", "30m1h", "-2h", "2 hours", "1.5h", "9" * 99])
def test_what_is_no_span_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        parse_duration(text)
    assert caught.value.code is Code.BAD_REQUEST
    assert "2h" in caught.value.hint


@given(st.integers(1, 10**6))
def test_whole_minutes_survive_both_ways(minutes: int) -> None:
    seconds = minutes * 60
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        count, seconds = divmod(seconds, size)
        parts += [f"{count}{unit}"] * bool(count)
    assert parse_duration("".join(parts)) == minutes * 60


def test_shown_with_two_units() -> None:
    assert format_duration(11_520) == "3 h 12 m"
    assert format_duration(90_061) == "1 d 1 h"
    assert format_duration(0) == "0 s"
