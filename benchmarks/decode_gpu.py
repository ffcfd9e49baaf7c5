"""Our engine on a GPU at published models' shapes, beside what its memory allows and beside peers.

    python benchmarks/decode_gpu.py [--only PART,…] [--device cuda:0] [--minutes 7] [--out FILE]
    python benchmarks/decode_gpu.py --tiny --interpret

Always first: the bandwidth of a copy, then every kernel against float64 on random inputs; nothing
else is timed if one is wrong. Then for each model, as far as it fits:

kernels   each kernel's bytes over its time, beside a copy: the L2 cache flushed, CUDA events
decode    single tokens at batch 1, 4, 16 and 32, as the engine runs them, with CUDA graphs
prefill   prompts of 512 and 4,096 tokens
energy    joules a token, by NVML's counter
bf16      single tokens beside our own bfloat16 weights
bnb       single tokens beside transformers + bitsandbytes (Phi-mini's shape)

All weights are random and all shapes true. Beside each figure stands what the bytes that it must
move allow. Gates are those of this card; verdicts are on medians. Exits 1 when a gate is missed or
a kernel is wrong, 2 without a GPU. --tiny --interpret runs all of it on a CPU, at tiny shapes: it
shows that the script works, and none of its figures is a result.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import Final

PARTS: Final = ("kernels", "decode", "prefill", "energy", "bf16", "bnb")
MODELS: Final = ("Phi-mini", "OLMoE", "Qwen3-30B-A3B")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--models", default=",".join(MODELS), help="the same, of models")
    parser.add_argument("--device", default="cuda:0", help="as torch names it")
    parser.add_argument("--minutes", type=float, default=7.0, help="no part begins after these")
    parser.add_argument("--untuned", action="store_true", help="every kernel at its default cut")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: only whether it works")
    parser.add_argument("--interpret", action="store_true", help="without a GPU; needs --tiny")
    parser.add_argument("--out", type=Path, help="the file, instead of one in benchmarks/results")
    options = parser.parse_args()
    for asked, known in ((options.only, PARTS), (options.models, MODELS)):
        if unknown := set(asked.split(",")) - set(known):
            parser.error(f"no such part or model: {', '.join(sorted(unknown))}")
    if options.interpret and not options.tiny:
        parser.error("the interpreter takes days for a true shape: --tiny --interpret")
    return options


def main() -> int:
    """Measure, print the table, write the file."""
    options = _parse()
    # Triton asks when it is imported, so that nothing that imports it may stand above.
    os.environ["TRITON_INTERPRET"] = "1" if options.interpret else "0"
    return int(importlib.import_module("gpu.parts").measure(options))


if __name__ == "__main__":
    sys.exit(main())
