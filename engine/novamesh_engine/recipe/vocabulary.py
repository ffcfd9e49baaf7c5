"""The tokenizer of the built-in model: byte-level BPE with single digits, and the chat form.

Rules: trained on the corpus alone, the same bytes for the same preset and seed; every byte has a
token, so nothing is out of vocabulary; the markers of the chat form are single tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer

from novamesh_engine.recipe.corpus.mixture import training_items
from novamesh_engine.recipe.preset import Preset

END: Final = "<|end|>"
PAD: Final = "<|pad|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIALS: Final = (PAD, END, SYSTEM, USER, ASSISTANT)
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def render_prompt(prompt: str, system: str = "") -> str:
    """One user turn in the chat form, up to where the answer begins; equals CHAT_TEMPLATE."""
    head = f"{SYSTEM}\n{system}{END}\n" if system else ""
    return f"{head}{USER}\n{prompt}{END}\n{ASSISTANT}\n"


def _texts(preset: Preset, seed: int) -> Iterator[str]:
    items = training_items(f"tokenizer/{seed}")
    for item in islice(items, preset.tokenizer_items):
        yield item.prompt
        yield item.answer


def train_tokenizer(preset: Preset, seed: int) -> Tokenizer:
    """Byte-level BPE of `preset.vocab` entries, special tokens first."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=preset.vocab,
        special_tokens=list(SPECIALS),
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(preset, seed), trainer=trainer)
    return tokenizer


def tokenizer_config(preset: Preset) -> dict[str, object]:
    """What goes into tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [SYSTEM, USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": preset.max_context,
    }
