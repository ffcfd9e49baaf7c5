"""What is found, what is not, and that a name never stands for other tokens than it was made of."""

from __future__ import annotations

import pytest

from novamesh_engine.errors import IntegrityError
from novamesh_engine.prefix_cache import PrefixCache
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.sequence import Sequence

SIZE = 4


def sequence(tokens: str, arrival: int = 0, scope: bytes = b"a", regime: int = 0) -> Sequence:
    """A sequence over the bytes of a text."""
    request = Request(f"r{arrival}", tuple(tokens.encode()), SamplingParams(), (), scope)
    return Sequence(request, arrival, 0, regime)


def recorded(
    cache: PrefixCache, tokens: str, blocks: list[int], scope: bytes = b"a", regime: int = 0
) -> Sequence:
    """A sequence whose tokens are all computed, and known to the cache."""
    one = sequence(tokens, 0, scope, regime)
    one.blocks, one.computed = blocks, len(one.tokens)
    cache.record(one, 0)
    cache.check_integrity([one])
    return one


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ("abcdefghij", [5, 6]),
        ("abcdefgh", [5]),  # the last token is left, and its block with it
        ("abcdefghi", [5, 6]),
        ("abcdXfghij", [5]),
        ("Xbcdefghij", []),  # equal tokens behind another beginning are other keys
        ("abcd", []),
        ("efghabcdx", []),
    ],
)
def test_the_longest_known_beginning_in_full_blocks(tokens: str, found: list[int]) -> None:
    cache = PrefixCache(SIZE)
    recorded(cache, "abcdefghij", [5, 6, 7])
    assert len(cache) == 2
    assert 5 in cache
    assert 7 not in cache
    assert cache.find(sequence(tokens, 1)) == found


@pytest.mark.parametrize(("scope", "regime"), [(b"b", 0), (b"", 0), (b"a", 1)])
def test_scopes_and_regimes_never_meet(scope: bytes, regime: int) -> None:
    cache = PrefixCache(SIZE)
    recorded(cache, "abcdefghij", [5, 6, 7])
    assert cache.find(sequence("abcdefghij", 1, scope, regime)) == []


def test_without_a_scope_a_request_finds_only_what_it_computed_itself() -> None:
    cache = PrefixCache(SIZE)
    one = recorded(cache, "abcdefghij", [5, 6, 7], scope=b"")
    assert cache.find(one) == [5, 6]
    assert cache.find(sequence("abcdefghij", 1, b"")) == []
    assert cache.find(sequence("abcdefghij", 1, bytes(8))) == []


def test_what_is_overwritten_is_forgotten() -> None:
    cache = PrefixCache(SIZE)
    one = recorded(cache, "abcdefghijkl", [5, 6, 7])
    cache.forget([6, 9])
    assert cache.find(sequence("abcdefghijklm", 1)) == [5]
    one.blocks = [5, 8, 7]
    cache.record(one, 4)  # computed again into another block: the one behind it is of use again
    assert cache.find(sequence("abcdefghijklm", 1)) == [5, 8, 7]


def test_the_first_of_two_equal_blocks_keeps_its_name() -> None:
    cache = PrefixCache(SIZE)
    recorded(cache, "abcdefgh", [5, 6])
    recorded(cache, "abcdefgh", [1, 2])
    assert cache.find(sequence("abcdefghi", 1)) == [5, 6]
    assert 1 not in cache


def test_names_grow_with_the_answer() -> None:
    cache = PrefixCache(SIZE)
    one = recorded(cache, "abcdef", [5, 6])
    for token in b"ghi":
        one.append(token, 0)
    one.computed = 8
    cache.record(one, 6)
    assert cache.find(sequence("abcdefghXY", 1)) == [5, 6]


def test_two_caches_have_names_of_their_own() -> None:
    first, second = (recorded(PrefixCache(SIZE), "abcd", [0]).names for _ in range(2))
    assert first != second


def test_switched_off_it_knows_nothing() -> None:
    cache = PrefixCache(SIZE, enabled=False)
    one = recorded(cache, "abcdefgh", [5, 6])
    assert (len(cache), cache.find(one)) == (0, [])


@pytest.mark.parametrize("damage", ["tokens", "early", "names"])
def test_integrity_sees_damage(damage: str) -> None:
    cache = PrefixCache(SIZE)
    one = recorded(cache, "abcdefgh", [5, 6])
    if damage == "tokens":
        one.tokens[5] = 0
    elif damage == "early":
        one.computed = 7
    else:
        cache._names[9] = bytes(16)
    with pytest.raises(IntegrityError):
        cache.check_integrity([one])
