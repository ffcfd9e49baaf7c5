"""Bytes of tokens agree with the library's own decoding; damaged files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from novamesh_engine.errors import RequestError
from novamesh_engine.markup import Markup
from novamesh_engine.tokenizer import TEXT_CHARS_MAX, Tokenizer
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_tokenizer import BOS, EOS, TEXT, byte_level, tiny_tokenizer, write_tokenizer

MESSAGES = [{"role": "user", "content": " Hello "}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_text_survives(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_it_knows_its_end_and_hides_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_ids == (EOS,)
    assert tokenizer.token_bytes(BOS) == tokenizer.token_bytes(EOS) == b""
    assert tokenizer.token_bytes(tokenizer.vocab_size + 5) == b""


def test_a_conversation_is_encoded_by_its_template(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_chat(MESSAGES)
    assert ids[0] == BOS
    assert tokenizer.decode(ids) == "user: Hello\nassistant: "
    assert tokenizer.decode(tokenizer.encode_chat(MESSAGES, generate=False)) == "user: Hello\n"


BACKEND = byte_level()


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_survives(text: str) -> None:
    ids = BACKEND.encode(text).ids
    reader = _reader(BACKEND)
    assert b"".join(map(reader.token_bytes, ids)) == text.encode()


def _reader(backend: tokenizers.Tokenizer) -> Tokenizer:
    from novamesh_engine.tokenizer import _piece_reader

    decoder = json.loads(backend.to_str())["decoder"]
    return Tokenizer(backend, _piece_reader(decoder, Path("tokenizer.json")), None, Markup({}))


@given(st.lists(st.integers(2, BACKEND.get_vocab_size() - 1), max_size=20))
@settings(deadline=None)
def test_any_tokens_decode_as_the_library_says(ids: list[int]) -> None:
    assert _reader(BACKEND).decode(ids) == BACKEND.decode(ids)


def byte_fallback() -> tokenizers.Tokenizer:
    """The shape of Mixtral's tokenizer: pieces with ▁ for a space, bytes as <0xNN>."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁Hello", "▁world", "é"]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], byte_fallback=True)
    )
    backend.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return backend


def test_byte_fallback_pieces_are_bytes() -> None:
    reader = _reader(byte_fallback())
    ids = [257, 258, 259, 1 + 0xF0, 1 + 0x9F, 1 + 0xA6, 1 + 0x8A]
    assert reader.decode(ids) == " Hello worldé🦊"
    assert byte_fallback().decode(ids) == reader.decode(ids).lstrip()


def test_metaspace_pieces_have_spaces() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"▁a": 0, "b": 1, "<0x41>": 2}, []))
    backend.decoder = decoders.Metaspace()
    assert _reader(backend).decode([0, 1, 2]) == " ab<0x41>"  # no byte fallback declared


def test_an_added_token_outside_the_alphabet_is_plain_text() -> None:
    backend = byte_level()
    backend.add_tokens(["two words"])
    reader = _reader(backend)
    assert reader.decode(backend.encode("two words").ids) == "two words"


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.BPEDecoder(), None])
def test_other_decoders_are_refused(tmp_path: Path, decoder: Any) -> None:
    backend = byte_level()
    raw = json.loads(backend.to_str())
    raw["decoder"] = None if decoder is None else json.loads(decoder.__getstate__())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(NovaMeshError, match=r"tokenizer\.json: the decoder") as refused:
        Tokenizer.load(tmp_path)
    assert refused.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("tokenizer.json", b"{", "is not JSON"),
        ("tokenizer.json", b"[]", "is not a JSON object"),
        ("tokenizer.json", b"{}", "is not a tokenizer"),
        ("tokenizer.json", b"\xff\xfe", "is not UTF-8"),
        ("tokenizer_config.json", b"nope", "is not JSON"),
        ("generation_config.json", b'{"eos_token_id": "</s>"}', "eos_token_id is not a token id"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "chat_template is not text"),
        ("tokenizer_config.json", b" " * ((1 << 22) + 1), "is larger than"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NovaMeshError, match=f"{name}: {what}") as refused:
        Tokenizer.load(tmp_path)
    assert refused.value.code is Code.CORRUPT


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match=r"tokenizer\.json: cannot be read") as refused:
        Tokenizer.load(tmp_path)
    assert refused.value.code is Code.MODEL_NOT_FOUND


def test_a_template_may_lie_beside(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode_chat(MESSAGES)) == " Hello "
    assert tokenizer.eos_ids == ()


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    with pytest.raises(RequestError, match="no chat template") as refused:
        tokenizer.encode_chat(MESSAGES)
    assert refused.value.code is Code.UNSUPPORTED


def test_a_text_is_bounded(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="longer than"):
        tokenizer.encode("x" * (TEXT_CHARS_MAX + 1))


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        tokenizer.encode("a\ud83e")


def test_a_prompt_is_never_cut_or_filled_up(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode("a")) == 1


@pytest.mark.parametrize(("declared", "ends"), [("7", (EOS, 7)), ("[7, 8]", (EOS, 7, 8))])
def test_a_chat_model_may_have_several_ends(
    tmp_path: Path, declared: str, ends: tuple[int, ...]
) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {declared}}}')
    assert Tokenizer.load(tmp_path).eos_ids == ends


def test_only_files_that_the_manifest_names_are_read(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path, frozenset({"tokenizer.json"}))
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.encode_chat(MESSAGES)
    with pytest.raises(NovaMeshError, match="not in the profile's manifest"):
        Tokenizer.load(tmp_path, frozenset({"tokenizer_config.json"}))
