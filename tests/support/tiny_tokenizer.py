"""A real byte-level BPE of 384 ids with two special tokens and a chat template, made in place."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from novamesh_engine.tokenizer import Tokenizer

VOCAB = 384
BOS, EOS = 0, 1
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role') }}{% endif %}"
    "{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = (
    "Anna has twelve apples and gives five to Ben. How many apples has Anna now? "
    "Zoë zählt sieben Äpfel, Παύλος τρία, 光 四個 and a 🦊 none. The answer is seven. "
)


def byte_level() -> tokenizers.Tokenizer:
    """The tokenizer itself: every byte is a token, the commonest pairs are merged."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 4, trainer)
    return backend


def write_tokenizer(folder: Path) -> Path:
    """Put tokenizer.json and tokenizer_config.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level().save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_tokenizer(folder: Path) -> Tokenizer:
    """Written to a folder and loaded from it, as an engine would."""
    return Tokenizer.load(write_tokenizer(folder))
