"""Text leaves in whole characters, up to a stop string, and depends on the tokens alone."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from novamesh_engine.completion import Completion, StopScanner
from novamesh_engine.request import FinishReason, SamplingParams

END = 256


def token_bytes(token: int) -> bytes:
    """A token is a byte; END has none."""
    return bytes([token]) if token < END else b""


def completion(room: int = 1000, **params: object) -> Completion:
    sampling = SamplingParams(**{"max_tokens": 1000, **params})  # type: ignore[arg-type]
    return Completion(token_bytes, sampling, (END,), room)


def feed(one: Completion, tokens: bytes | list[int]) -> tuple[str, FinishReason | None, int]:
    text, finish, count = "", None, 0
    for token in tokens:
        delta, finish = one.accept(token)
        text += delta
        count += 1
        if finish:
            break
    return text, finish, count


def test_a_character_leaves_with_its_last_byte() -> None:
    one = completion()
    deltas = [one.accept(byte)[0] for byte in "aé🦊b".encode()]
    assert deltas == ["a", "", "é", "", "", "", "🦊", "b"]


def test_bytes_that_are_no_character_are_replaced() -> None:
    assert feed(completion(), b"a\xff\xe2\x82b")[0] == "a\ufffd\ufffdb"


def test_a_character_that_the_end_cuts_is_dropped() -> None:
    assert feed(completion(max_tokens=3), "a🦊".encode())[:2] == ("a", FinishReason.LENGTH)


def test_a_stop_string_is_cut_off_with_what_follows() -> None:
    text, finish, count = feed(completion(stop=("END",)), b"one ENDless")
    assert (text, finish, count) == ("one ", FinishReason.STOP, 7)


def test_the_start_of_a_stop_string_is_held_until_it_cannot_be_one() -> None:
    one = completion(stop=("abcd",))
    deltas = [one.accept(byte)[0] for byte in b"xababcx"]
    assert deltas == ["x", "", "", "ab", "", "", "abcx"]


def test_what_was_held_leaves_at_the_end() -> None:
    assert feed(completion(stop=("abcd",), max_tokens=3), b"abc")[:2] == (
        "abc",
        FinishReason.LENGTH,
    )
    assert feed(completion(stop=("abcd",)), [*b"abc", END])[:2] == ("abc", FinishReason.STOP)


def test_the_models_end_token_can_be_ignored_and_others_added() -> None:
    assert feed(completion(), [65, END, 66]) == ("A", FinishReason.STOP, 2)
    assert feed(completion(ignore_eos=True), [65, END, 66]) == ("AB", None, 3)
    assert feed(completion(stop_token_ids=(66,)), b"ABC") == ("A", FinishReason.STOP, 2)


@pytest.mark.parametrize(("room", "most", "count"), [(3, 10, 3), (10, 2, 2)])
def test_length_is_the_smaller_of_limit_and_room(room: int, most: int, count: int) -> None:
    assert feed(completion(room, max_tokens=most), b"abcdef")[1:] == (FinishReason.LENGTH, count)


def test_a_stop_wins_over_length_on_the_same_token() -> None:
    assert feed(completion(stop=("c",), max_tokens=3), b"abc")[:2] == ("ab", FinishReason.STOP)


def test_of_two_stops_that_end_together_the_earlier_begins() -> None:
    assert feed(completion(stop=("b", "ab")), b"xxab")[0] == "xx"


@given(st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=6), max_size=3))
@settings(deadline=None)
def test_the_scanner_passes_exactly_what_precedes_the_first_stop(
    text: str, stops: list[str]
) -> None:
    scanner, passed, stopped = StopScanner(tuple(stops)), "", False
    for index, character in enumerate(text):
        delta, stopped = scanner.push(character)
        passed += delta
        if stopped:
            text = text[: index + 1]
            break
    ends = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(ends)
    assert passed + scanner.flush() * (not stopped) == text[: min(ends, default=len(text))]


@given(
    st.one_of(st.binary(max_size=30), st.text(max_size=12).map(str.encode)),
    st.lists(st.text(min_size=1, max_size=3), max_size=2),
    st.data(),
)
@settings(deadline=None)
def test_replaying_any_prefix_reaches_the_same_state(
    tokens: bytes, stops: list[str], data: st.DataObject
) -> None:
    whole = completion(stop=tuple(stops))
    deltas: list[str] = []
    for token in tokens:
        delta, finish = whole.accept(token)
        deltas.append(delta)
        if finish:
            break
    cut = data.draw(st.integers(0, max(0, len(deltas) - 1)))
    again = completion(stop=tuple(stops))
    for token in tokens[:cut]:
        again.accept(token)
    rest = [again.accept(token)[0] for token in tokens[cut : len(deltas)]]
    assert rest == deltas[cut:]


@given(st.binary(max_size=60))
@example(b"\xed\xa0")
@settings(deadline=None)
def test_without_stops_the_text_is_the_decoded_bytes(tokens: bytes) -> None:
    text = feed(completion(), tokens)[0]
    decoded = tokens.decode("utf-8", errors="replace")
    unfinished = decoded.removeprefix(text)  # at the end: of a surrogate each byte is replaced
    assert decoded == text + unfinished
    assert unfinished in ("", "\ufffd", "\ufffd" * 2)
