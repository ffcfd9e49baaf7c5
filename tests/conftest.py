"""Random examples have no deadline: a slow machine is no bug, and pytest has a timeout."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
