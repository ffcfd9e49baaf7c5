"""transformers + bitsandbytes as shipped, as a player: models of our width with 1 and 4 layers.

    python -m cpu.bnb THREADS

decode LAYERS TOKENS DEPTH      single tokens after a prompt of DEPTH

`from_pretrained` with a BitsAndBytesConfig for NF4 packs q, k, v and o, and leaves the stacked
experts in bfloat16, which is what a user gets. The whole model does not fit beside ours, so the
depth of 32 is reckoned from the two: a layer's time, and what a token takes beside its layers.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from cpu import shape
from cpu.peers import MODELS, require
from cpu.turns import Player, Verb, play, start_module

DEPTHS: Final = (1, 4)
ACCELERATE: Final = "accelerate==1.15.0"


def bnb_player(threads: int, log: Path) -> Player:
    """The process, loaded; its models are made first where they are lacking."""
    for layers in DEPTHS:
        write_model(layers)
    return start_module("cpu.bnb", log, str(threads))


def whole(one_s: float, four_s: float) -> float:
    """Seconds a token of 32 layers, from those of 1 and 4."""
    return one_s + (shape.LAYERS - 1) * (four_s - one_s) / 3


def transformers() -> Any:
    """The library, which looks for accelerate once, when it is imported."""
    require(ACCELERATE, "accelerate")
    return importlib.import_module("transformers")


def write_model(
    layers: int, shaped: Mapping[str, Any] | None = None, name: str = "phi-mini"
) -> Path:
    """A random model in bfloat16, as Hugging Face keeps it, of our shape or of another one."""
    peer, folder = transformers(), MODELS / f"{name}-{layers}-layers"
    if (folder / "config.json").exists():
        return folder
    given = shape.hf_config(layers) if shaped is None else shaped
    fields = {k: v for k, v in given.items() if k not in ("model_type", "architectures")}
    with torch.device("meta"):
        model = peer.PhimoeForCausalLM(peer.PhimoeConfig(**fields))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    torch.manual_seed(shape.SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    model.save_pretrained(folder)
    return folder


def _load(layers: int) -> Any:
    peer = transformers()
    wanted = peer.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = peer.AutoModelForCausalLM.from_pretrained(
        write_model(layers), quantization_config=wanted, dtype=torch.bfloat16, device_map="cpu"
    )
    return model.eval()


def prepare() -> tuple[Mapping[str, object], Mapping[str, Verb]]:
    """Load both models."""
    torch.set_num_threads(int(sys.argv[1]))
    models = {layers: _load(layers) for layers in DEPTHS}

    def decode(layers: int, tokens: int, depth: int) -> dict[str, object]:
        with torch.inference_mode():
            model = models[layers]
            state = model(torch.randint(shape.VOCAB, (1, depth)), use_cache=True)
            cache = state.past_key_values
            begun = time.perf_counter()
            for _ in range(tokens):
                token = state.logits[:, -1:].argmax(-1)
                state = model(token, past_key_values=cache, use_cache=True)
            took = time.perf_counter() - begun
        return {"seconds": took, "tokens": tokens}

    return {"experts": str(_expert_type(models[1]))}, {"decode": decode}


def _expert_type(model: Any) -> torch.dtype:
    """The element type that the experts were left in."""
    types = {name: p.dtype for name, p in model.named_parameters() if "experts" in name}
    return next(iter(types.values()))


if __name__ == "__main__":
    play(prepare)
