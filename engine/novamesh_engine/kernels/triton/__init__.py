"""The kernels for CUDA and ROCm, in Triton: device code only, launched by `kernels.gpu`.

Rules: each kernel is held to a function of `reference.py`; shapes and types are constexpr, so that
a model's shape is compiled once; numbers that change from step to step are not specialised, so
that no step waits for a compiler; sums are float32; COMPUTE is the type that tensor cores multiply
in. The interpreter runs all of it without a GPU, with COMPUTE float32 or float16: its bfloat16
products are wrong.
"""

import os

# A product and the sum after it are one instruction, whatever a version's default (3.10 flips it).
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
