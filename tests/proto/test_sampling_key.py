"""Known answers, the definition written out again, and the shape of the noise."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.sampling_key import SamplingKey, derive, gumbel

SEED = bytes(range(32))
PROFILE = bytes(range(100, 132))

# Derived with a second implementation of the definition (struct and math, one token at a time).
KEY_HEX = "596d2d37e853b4bfa9762c9149fb4881ef28944ea09258cbe1bb414b88848c1d"
KNOWN = [
    (0, 0, 4.2118396636546755),
    (0, 1, -0.17336951788778432),
    (1, 0, -0.3906068664813732),
    (7, 42, -0.7225558058588812),
    (4095, 151935, 0.37516141183942847),
    (4294967295, 4294967295, -0.7038400340219424),
]


def spelled_out(key: bytes, position: int, token: int) -> float:
    data = position.to_bytes(4, "little") + token.to_bytes(4, "little")
    digest = hashlib.blake2b(data, key=key, digest_size=8).digest()
    uniform = (int.from_bytes(digest, "little") >> 11) * 2.0**-53 + 2.0**-54
    return -math.log(-math.log(uniform))


def test_key_known_answer() -> None:
    assert derive(SEED, PROFILE).data.hex() == KEY_HEX


@pytest.mark.parametrize(("position", "token", "noise"), KNOWN)
def test_noise_known_answer(position: int, token: int, noise: float) -> None:
    got = gumbel(derive(SEED, PROFILE), position, [token])
    assert got.dtype == np.float64
    assert got[0] == pytest.approx(noise, rel=1e-14)


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_noise_is_the_definition_and_ignores_its_neighbours(
    key: bytes, position: int, tokens: list[int]
) -> None:
    got = gumbel(SamplingKey(key), position, tokens)
    assert got.tolist() == pytest.approx([spelled_out(key, position, t) for t in tokens], rel=1e-12)


def test_no_candidates_give_no_noise() -> None:
    assert gumbel(derive(SEED, PROFILE), 0, []).shape == (0,)


def test_the_largest_hash_stays_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    class AllOnes:
        def copy(self) -> AllOnes:
            return self

        def update(self, data: bytes) -> None:
            del data

        def digest(self) -> bytes:
            return b"\xff" * 8

    monkeypatch.setattr(hashlib, "blake2b", lambda *a, **k: AllOnes())
    assert math.isfinite(gumbel(SamplingKey(bytes(32)), 0, [1])[0])


def test_noise_has_the_gumbel_mean_and_variance() -> None:
    key = derive(SEED, PROFILE)
    noise = np.concatenate([gumbel(key, position, range(64)) for position in range(200)])
    assert noise.mean() == pytest.approx(0.5772, abs=0.05)
    assert noise.var() == pytest.approx(math.pi**2 / 6, abs=0.1)


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_seed_and_profile_both_matter(seed: bytes, profile: bytes) -> None:
    key = derive(seed, profile)
    assert derive(bytes([seed[0] ^ 1]) + seed[1:], profile) != key
    assert derive(seed, bytes([profile[0] ^ 1]) + profile[1:]) != key


@pytest.mark.parametrize(("seed", "profile"), [(b"", PROFILE), (SEED + b"x", PROFILE), (SEED, b"")])
def test_wrong_lengths_are_refused(seed: bytes, profile: bytes) -> None:
    with pytest.raises(NovaMeshError, match="bytes, not 32") as refused:
        derive(seed, profile)
    assert refused.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize(("position", "token"), [(-1, 0), (2**32, 0), (0, -1), (0, 2**32)])
def test_what_does_not_fit_32_bits_is_refused(position: int, token: int) -> None:
    with pytest.raises(NovaMeshError, match="outside"):
        gumbel(SamplingKey(bytes(32)), position, [token])


def test_the_key_is_never_printed() -> None:
    assert "data" not in repr(derive(SEED, PROFILE))
