"""The plan of a profile: every weight once, in order, with the sizes that the file will have."""

from __future__ import annotations

import math

import pytest

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.tensors import Part, ProfileTensor, profile_tensors
from support.tiny_moe import nova_config, nova_tensors


def test_every_tensor_of_a_checkpoint_is_a_part_once() -> None:
    raw = nova_config(num_hidden_layers=3, num_key_value_heads=1)
    tensors = nova_tensors(raw)
    plan = profile_tensors(ModelConfig.from_dict(raw), tensors)
    parts = [part for tensor in plan for part in tensor.parts]
    assert sorted(part.name for part in parts) == sorted(tensors)
    assert all(part.shape == tuple(tensors[part.name].shape) for part in parts)


def test_an_untied_head_is_packed_and_a_tied_one_is_not_there() -> None:
    tied = ModelConfig.from_dict(nova_config())
    untied = ModelConfig.from_dict(nova_config(tie_word_embeddings=False))
    assert "lm_head.weight" not in {tensor.name for tensor in profile_tensors(tied, ())}
    assert profile_tensors(untied, ())[-1].form == "nf4"


@pytest.mark.parametrize(
    ("tensor", "sizes"),
    [
        (ProfileTensor("a", "float32", (10,), (Part("a", (10,)),)), [("a", "F32", 40)]),
        (ProfileTensor("e", "float16", (3, 8), (Part("e", (3, 8)),)), [("e", "F16", 48)]),
        (
            ProfileTensor("w", "nf4", (2, 3, 128), (Part("x", (3, 128)), Part("y", (3, 128)))),
            [("w", "U8", 384), ("w.absmax", "F16", 24)],
        ),
    ],
)
def test_what_the_file_holds_of_a_tensor(
    tensor: ProfileTensor, sizes: list[tuple[str, str, int]]
) -> None:
    assert [(each.name, each.dtype, each.size) for each in tensor.stored] == sizes
    width = {"U8": 1, "F16": 2, "F32": 4}
    assert all(each.size == math.prod(each.shape) * width[each.dtype] for each in tensor.stored)
