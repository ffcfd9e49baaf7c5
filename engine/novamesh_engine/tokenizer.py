"""A model's tokenizer: text to ids, a conversation to ids, an id to the bytes it stands for.

Rules: `tokenizer.json` is read by Hugging Face's tokenizers, the same everywhere. The bytes of a
token do not depend on its neighbours, so text can be put together byte by byte; special tokens have
none. Tokenizers whose decoder we cannot express that way are refused when they are loaded. Text of
an answer continues the prompt: a leading space is kept. What a chat message holds is text, whatever
it looks like: control tokens of a conversation come from the template alone. A plain prompt is the
sender's own markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import tokenizers

from novamesh_engine.chat_template import ChatTemplate, Message
from novamesh_engine.errors import RequestError
from novamesh_engine.files import corrupt, parse_object, read_bytes
from novamesh_engine.markup import Markup
from novamesh_proto.errors import Code, NovaMeshError

TOKENIZER_FILE: Final = "tokenizer.json"
SETTINGS_FILE: Final = "tokenizer_config.json"
GENERATION_FILE: Final = "generation_config.json"
TEMPLATE_FILE: Final = "chat_template.jinja"
TOKENIZER_BYTES_MAX: Final = 1 << 26
SETTINGS_BYTES_MAX: Final = 1 << 22
TEXT_CHARS_MAX: Final = 1 << 22

_SPECIALS: Final = ("bos_token", "eos_token", "unk_token", "pad_token")
_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")

Piece = Callable[[str], bytes]


class Tokenizer:
    """Encodes and decodes for one model. Immutable once loaded."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        piece: Piece,
        template: ChatTemplate | None,
        markup: Markup,
        eos_ids: tuple[int, ...] = (),
    ) -> None:
        self.eos_ids = eos_ids
        self._backend = backend
        self._piece = piece
        self._template = template
        self._markup = markup
        self._control_ids = frozenset(markup.ids.values())

    @classmethod
    def load(cls, folder: Path, names: frozenset[str] | None = None) -> Tokenizer:
        """Read tokenizer.json and, where there are any, its settings and chat template.

        Only files in `names` are read, if given: those a profile's manifest vouches for.
        Raises: NovaMeshError (model_not_found, corrupt, unsupported) naming the file.
        """
        if names is not None and TOKENIZER_FILE not in names:
            raise corrupt(folder / TOKENIZER_FILE, "is not in the profile's manifest")
        raw = _read(folder / TOKENIZER_FILE, TOKENIZER_BYTES_MAX)
        definition = parse_object(raw, folder / TOKENIZER_FILE)
        settings = _settings(folder, SETTINGS_FILE, names)
        specials = _specials(settings)
        backend, markup = _backend(definition, specials.values(), folder / TOKENIZER_FILE)
        template = _template(folder, names, settings, specials)
        piece = _piece_reader(definition.get("decoder"), folder / TOKENIZER_FILE)
        eos_id = backend.token_to_id(markup.spelling(specials.get("eos_token", "")))
        ends = _end_ids(folder, names) if eos_id is None else (eos_id, *_end_ids(folder, names))
        return cls(backend, piece, template, markup, ends)

    @property
    def vocab_size(self) -> int:
        """Ids it can produce, added tokens included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str, special: bool = True) -> tuple[int, ...]:
        """Ids of a text, control tokens in it included.

        `special` adds what the model wants around a text, like a beginning mark.


        Raises: RequestError (too_large), or (bad_request) for what is not Unicode text.
        """
        if len(text) > TEXT_CHARS_MAX:
            message = f"the text is longer than {TEXT_CHARS_MAX} characters"
            raise RequestError(message, "shorten it", Code.TOO_LARGE)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = "the text holds half a surrogate pair"
            raise RequestError(message, "send whole characters") from error
        spelled = self._markup.respell(text)
        return tuple(self._backend.encode(spelled, add_special_tokens=special).ids)

    def encode_chat(self, messages: Sequence[Message], generate: bool = True) -> tuple[int, ...]:
        """Ids of a conversation; with `generate` they end where the answer begins.

        Nothing in a message becomes a control token, so no message can end its own turn.
        Raises: RequestError (unsupported) if the model has no template, and what the template
        refuses.
        """
        if self._template is None:
            hint = "send a plain prompt, or choose a model that was trained to chat"
            raise RequestError("this model has no chat template", hint, Code.UNSUPPORTED)
        quoted = [
            {name: self._markup.quote(text) for name, text in message.items()}
            for message in messages
        ]
        return self.encode(self._template.render(quoted, generate), special=False)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of whole tokens; bytes that are no character become U+FFFD."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for: none for control tokens and unknown ids."""
        if token_id in self._control_ids:
            return b""
        text = self._backend.id_to_token(token_id)
        return b"" if text is None else self._piece(text)


def _backend(
    definition: dict[str, Any], named: Iterable[str], path: Path
) -> tuple[tokenizers.Tokenizer, Markup]:
    """The library's tokenizer with its control tokens hidden, and what they are."""
    try:
        markup = Markup.find(definition, named)
        backend = tokenizers.Tokenizer.from_str(json.dumps(markup.hide(definition)))
    except Exception as error:  # the library raises no narrower type
        raise corrupt(path, "is not a tokenizer") from error
    if any(backend.token_to_id(markup.spelling(text)) != id_ for text, id_ in markup.ids.items()):
        raise corrupt(path, "gives its special tokens other ids than it says")
    backend.no_truncation()  # a prompt is never cut or filled up behind its sender's back
    backend.no_padding()
    return backend, markup


def _optional(folder: Path, name: str, names: frozenset[str] | None) -> str | None:
    if names is not None and name not in names:
        return None
    return _read(folder / name, SETTINGS_BYTES_MAX) if (folder / name).exists() else None


def _settings(folder: Path, name: str, names: frozenset[str] | None) -> Mapping[str, Any]:
    text = _optional(folder, name, names)
    return {} if text is None else parse_object(text, folder / name)


def _end_ids(folder: Path, names: frozenset[str] | None) -> tuple[int, ...]:
    """Chat models declare the ends of a turn here, beside the end of a text."""
    value = _settings(folder, GENERATION_FILE, names).get("eos_token_id", [])
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(one, int) and one >= 0 for one in ids):
        raise corrupt(folder / GENERATION_FILE, "eos_token_id is not a token id")
    return tuple(ids)


def _template(
    folder: Path,
    names: frozenset[str] | None,
    settings: Mapping[str, Any],
    specials: Mapping[str, str],
) -> ChatTemplate | None:
    """The chat template: newer models keep it in a file of its own."""
    source = settings.get("chat_template")
    source = _optional(folder, TEMPLATE_FILE, names) if source is None else source
    if source is None:
        return None
    if not isinstance(source, str):
        raise corrupt(folder / SETTINGS_FILE, "chat_template is not text")
    return ChatTemplate(source, specials)


def _specials(settings: Mapping[str, Any]) -> dict[str, str]:
    """Names and texts of the special tokens a template may use; older files nest the text."""
    found: dict[str, str] = {}
    for name in _SPECIALS:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[name] = value
    return found


def _piece_reader(decoder: Any, path: Path) -> Piece:
    """How the bytes of one piece are read, from the decoder that tokenizer.json declares."""
    steps = [step for step in _flatten(decoder) if isinstance(step, dict)]
    kinds = {step.get("type") for step in steps}
    if kinds == {"ByteLevel"}:
        return _byte_level()
    replace: list[tuple[str, str]] = []
    for step in steps:
        if step.get("type") == "Metaspace":
            replace.append((str(step.get("replacement", "▁")), " "))
        elif step.get("type") == "Replace" and "String" in step.get("pattern", {}):
            replace.append((step["pattern"]["String"], str(step.get("content", ""))))
    # Fuse and Strip only matter between pieces and at the very start of a text.
    if not replace or kinds - {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        message = f"{path}: the decoder is {sorted(map(str, kinds))}"
        hint = "novamesh runs byte-level and byte-fallback tokenizers"
        raise NovaMeshError(Code.UNSUPPORTED, message, hint)
    return _sentence_piece(tuple(replace), "ByteFallback" in kinds)


def _flatten(decoder: Any) -> list[Any]:
    nested = decoder.get("decoders") if isinstance(decoder, dict) else None
    return list(nested) if isinstance(nested, list) else [decoder]


def _byte_level() -> Piece:
    """GPT-2's alphabet: each byte is one printable character."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    byte_of = {chr(byte): byte for byte in shown}
    byte_of |= {chr(256 + index): byte for index, byte in enumerate(hidden)}

    def read(piece: str) -> bytes:
        values = [byte_of.get(character) for character in piece]
        known = [value for value in values if value is not None]
        # An added token may hold characters outside the alphabet: then it is text as it stands.
        return bytes(known) if len(known) == len(values) else piece.encode()

    return read


def _sentence_piece(replace: tuple[tuple[str, str], ...], byte_fallback: bool) -> Piece:
    def read(piece: str) -> bytes:
        byte = _BYTE_PIECE.fullmatch(piece) if byte_fallback else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        for old, new in replace:
            piece = piece.replace(old, new)
        return piece.encode()

    return read


def _read(path: Path, bytes_max: int) -> str:
    try:
        return read_bytes(path, bytes_max).decode()
    except UnicodeDecodeError as error:
        raise corrupt(path, "is not UTF-8") from error
