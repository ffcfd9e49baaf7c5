"""Names of models: the one that fits, or a refusal that says what to type."""

from __future__ import annotations

import pytest

from novamesh.model_choice import choose_model, show
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import PoolModel, ProfileDigest

A = ProfileDigest(bytes.fromhex("aabbcc") + bytes(29))
B = ProfileDigest(bytes.fromhex("aabbcd") + bytes(29))
C = ProfileDigest(bytes.fromhex("ddeeff") + bytes(29))
POOL = [PoolModel(A, "pico", 1, 1, 9), PoolModel(B, "pico", 1, 1, 9), PoolModel(C, "nano", 1, 1, 9)]


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("nano", C),
        ("pico@aabbcc", A),
        ("pico@AABBCD00", B),
        ("pico@sha256:aabbcc", A),
        (A.hex(), A),
        ("sha256:ddeeff", C),
        (f"nano@{C.hex()}", C),
    ],
)
def test_one_fits(text: str, digest: ProfileDigest) -> None:
    assert choose_model(text, POOL).model_profile == digest


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ("pico", Code.CONFLICT, f"{show(POOL[0])}  {show(POOL[1])}"),
        ("nanno", Code.MODEL_NOT_FOUND, "did you mean nano?"),
        ("gpt", Code.MODEL_NOT_FOUND, "novamesh pool models"),
        ("nano@aabbcc", Code.MODEL_NOT_FOUND, "did you mean nano?"),
        ("pico@aabb", Code.BAD_REQUEST, "at least 6"),
        ("pico@xyzxyz", Code.BAD_REQUEST, "at least 6"),
        ("pico@", Code.BAD_REQUEST, "at least 6"),
        ("sha256:zz", Code.BAD_REQUEST, "at least 6"),
    ],
)
def test_refusals(text: str, code: Code, hint: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        choose_model(text, POOL)
    assert caught.value.code is code
    assert hint in caught.value.hint


def test_empty_pool_asks_for_nodes() -> None:
    with pytest.raises(NovaMeshError) as caught:
        choose_model("pico", [])
    assert "novamesh node start" in caught.value.hint
