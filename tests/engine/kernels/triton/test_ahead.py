"""Every kernel at every cut compiles for cards that are not here, within what they have.

In a process of its own for each card, as Triton interprets in this one. `make kernels` compiles for
more cards, and the shapes of more models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from novamesh_engine.kernels.tuning import CUTS

TESTS = Path(__file__).parents[3]
KERNELS = {
    "rows_kernel", "tile_kernel", "norm_kernel", "unpack_kernel", "scores_kernel", "route_kernel",
    "count_kernel", "order_kernel", "gate_up_kernel", "down_kernel", "grouped_gate_up_kernel",
    "grouped_down_kernel", "combine_kernel", "place_kernel", "attend_kernel", "merge_kernel",
}  # fmt: skip


@pytest.mark.timeout(400)
# sm_80, sm_86 and sm_89 compute as sm_120 does, which has the least shared memory of them.
@pytest.mark.parametrize("card", ["sm_75", "sm_90", "sm_120", "gfx1100"])
def test_every_kernel_compiles_for(card: str, tmp_path: Path) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
    } | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(TESTS)}
    told = subprocess.run(
        [sys.executable, "-m", "support.ahead", "--one", card],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert told.returncode == 0, f"{told.stderr[-3000:]}{told.stdout[-3000:]}"
    found = [json.loads(line) for line in told.stdout.splitlines()]
    assert {one["kernel"] for one in found} == KERNELS
    assert all(one["code"] > 0 for one in found)
    cuts = max(map(len, CUTS.values()))
    assert {one["cut"] for one in found} == set(range(cuts))
