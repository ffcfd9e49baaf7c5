"""Random examples have no deadline: a slow machine is no bug, and pytest has a timeout.

Kernels for GPUs are interpreted, so that all machines test them: Triton asks when it is imported.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
os.environ.setdefault("TRITON_INTERPRET", "1")
