"""Every way in, by name."""

from __future__ import annotations

import functools

from support.fuzz.methods import method_targets
from support.fuzz.parsers import parser_targets
from support.fuzz.target import Target
from support.fuzz.to_clients import client_targets
from support.fuzz.to_nodes import node_targets


@functools.cache
def targets() -> dict[str, Target]:
    """All of them, by the name of their folder in the corpus."""
    found = (*parser_targets(), *method_targets(), *node_targets(), *client_targets())
    named = {target.folder: target for target in found}
    assert len(named) == len(found), "two targets have one name"
    return named
