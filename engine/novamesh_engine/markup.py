"""Keeps a tokenizer's control tokens apart from text that only spells them.

A chat template writes markers such as <|end|>; a message may hold the same characters. Rules: only
the template makes control tokens, a message never does. So the tokenizer is loaded with its control
tokens spelled in characters that no text may hold, and text is respelled on its way in: what the
template wrote becomes the secret spelling, what a message holds stays what it says. It renders no
template and encodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from novamesh_engine.errors import RequestError

CONTROLS_MAX: Final = 1 << 15

# Unicode reserves these two for a program's own use: they are no characters of any text.
_CONTROL: Final = "\ufdd0"
_QUOTED: Final = "\ufdd1"
_FIRST: Final = 0xF0000  # with one character of a private plane behind it to say which token


@dataclass(frozen=True, slots=True)
class Markup:
    """The control tokens of one tokenizer, text to id; the longest first, as matching wants."""

    ids: Mapping[str, int]

    @classmethod
    def find(cls, definition: Mapping[str, Any], named: Iterable[str]) -> Markup:
        """The control tokens of a tokenizer.json: those it calls special, and those `named`.

        Raises: ValueError if its added tokens are damaged, or more than CONTROLS_MAX.
        """
        names = frozenset(named)
        found: dict[str, int] = {}
        for token in _added(definition):
            text, id_ = token.get("content"), token.get("id")
            if not isinstance(text, str) or not text or type(id_) is not int:
                raise ValueError("its added tokens are damaged")
            if token.get("special") or text in names:
                found[text] = id_
        if len(found) > CONTROLS_MAX:
            raise ValueError(f"it has more than {CONTROLS_MAX} special tokens")
        return cls(dict(sorted(found.items(), key=lambda item: (-len(item[0]), item[0]))))

    def hide(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """The same tokenizer.json, its control tokens spelled as `respell` spells them.

        They are renamed in the model's vocabulary too, so that no merge can arrive at one.
        """
        spelling = {text: _CONTROL + mark for text, mark in self._marks()}
        model = dict(definition.get("model") or {})
        vocabulary = model.get("vocab")
        if isinstance(vocabulary, dict):
            model["vocab"] = {spelling.get(text, text): id_ for text, id_ in vocabulary.items()}
        elif isinstance(vocabulary, list):
            model["vocab"] = [[spelling.get(text, text), *rest] for text, *rest in vocabulary]
        if model.get("unk_token") in spelling:
            model["unk_token"] = spelling[model["unk_token"]]
        # Markup is matched as it stands: neither normalised first nor between words only.
        exact = {"normalized": False, "single_word": False}
        added = [
            token | exact | {"content": spelling[token["content"]]}
            if token["content"] in spelling
            else token
            for token in _added(definition)
        ]
        return {**definition, "model": model, "added_tokens": added}

    def spelling(self, text: str) -> str:
        """How the hidden tokenizer spells a control token, or any other text."""
        return next((_CONTROL + mark for name, mark in self._marks() if name == text), text)

    def quote(self, text: str) -> str:
        """A message's text as a template may see it: control tokens are replaced by stand-ins.

        Raises: RequestError (bad_request) for the two code points that this module keeps.
        """
        if _CONTROL in text or _QUOTED in text:
            message = "the text holds U+FDD0 or U+FDD1, which are no characters"
            raise RequestError(message, "leave them out")
        for name, mark in self._marks():
            text = text.replace(name, _QUOTED + mark)
        return text

    def respell(self, text: str) -> str:
        """What the hidden tokenizer reads: control tokens in their spelling, stand-ins as text."""
        for name, mark in self._marks():
            text = text.replace(name, _CONTROL + mark)
        # Only now: a stand-in that became text first would be taken for the template's.
        for name, mark in self._marks():
            text = text.replace(_QUOTED + mark, name)
        return text

    def _marks(self) -> Iterable[tuple[str, str]]:
        return ((text, chr(_FIRST + index)) for index, text in enumerate(self.ids))


def _added(definition: Mapping[str, Any]) -> list[dict[str, Any]]:
    added = definition.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("its added tokens are damaged")
    return added
