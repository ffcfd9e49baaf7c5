"""transformers + bitsandbytes as shipped, on the same card, beside ours in turn.

`from_pretrained` with a BitsAndBytesConfig for NF4 packs q, k, v and o, and leaves the stacked
experts in bfloat16, which is what a user gets. Full depth is reckoned from 1 layer and from 4, as
on the CPU; what reads a token back each step is left out, in their favour.
"""

from __future__ import annotations

import subprocess
import time
from typing import Any, Final

import torch
from cpu.bnb import DEPTHS, transformers, whole, write_model
from cpu.figures import Figure

from gpu.shapes import PHI_MINI, raw_config
from gpu.speaker import Speaker
from gpu.stage import Stage
from gpu.whole import floor_s

NAME: Final = f"{PHI_MINI}: decode vs transformers + bitsandbytes"
_UNUSABLE: Final = (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError)


def beside_bnb(stage: Stage, speaker: Speaker, tiny: bool) -> None:
    """Single tokens of ours and of theirs; skipped where the packages cannot be had."""
    ratio = Figure(NAME, "x", **stage.bar("vs bitsandbytes"))
    try:
        _in_turn(stage, speaker, tiny, ratio)
    except _UNUSABLE as error:  # not installed and not to be had, no room, no kernel for this card
        stage.skip(NAME, f"it does not run: {error}")
        return
    stage.facts.setdefault("reckoned", {})[NAME] = "32 layers from those of 1 and 4"
    stage.show(ratio)


def _in_turn(stage: Stage, speaker: Speaker, tiny: bool, ratio: Figure) -> None:
    models = {layers: _load(layers, stage.device.name, tiny) for layers in DEPTHS}
    experts = next(p.dtype for n, p in models[1].named_parameters() if "experts" in n)
    stage.facts["bitsandbytes: experts"] = str(experts)
    allowed = 1 / floor_s(stage, speaker, 1)

    def theirs() -> float:
        return whole(*(_token_s(stage, models[layers]) for layers in DEPTHS))

    speaker.warm(1)
    theirs()
    for turn in range(stage.extent.rounds):
        mine = speaker.step_s(1) if turn % 2 == 0 else 0.0
        other = theirs()
        mine = mine or speaker.step_s(1)
        ratio.add(other / mine, ours=1 / mine, bnb=1 / other, bytes_allow=allowed)


def _load(layers: int, device: str, tiny: bool) -> Any:
    peer = transformers()
    fields = raw_config(PHI_MINI, tiny) | {"num_hidden_layers": layers}
    folder = write_model(layers, fields, "phi-tiny-shape" if tiny else "phi-mini")
    wanted = peer.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    return peer.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=wanted, dtype=torch.bfloat16, device_map=device
    ).eval()


@torch.inference_mode()
def _token_s(stage: Stage, model: Any) -> float:
    """Seconds of one more token, as short a context as ours."""
    device, extent = stage.device, stage.extent
    prompt = torch.randint(model.config.vocab_size, (1, extent.depth), device=device.name)
    state = model(prompt, use_cache=True)
    cache = state.past_key_values
    device.wait()
    begun = time.perf_counter()
    for _ in range(extent.steps):
        state = model(state.logits[:, -1:].argmax(-1), past_key_values=cache, use_cache=True)
    device.wait()
    return (time.perf_counter() - begun) / extent.steps
