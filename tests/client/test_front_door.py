"""`from novamesh import …`: what is there, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import novamesh

HEAVY = ("torch", "sqlalchemy", "starlette", "novamesh_node", "novamesh_coordinator", "psutil")


def test_public_names_are_there() -> None:
    for name in novamesh.__all__:
        assert getattr(novamesh, name).__name__ == name


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Server'"):
        _ = novamesh.Server  # type: ignore[attr-defined]


def test_sdk_needs_the_base_installation_only() -> None:
    code = (
        "import sys, novamesh; novamesh.Client;"
        f"found = set({HEAVY!r}) & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_package_alone_loads_next_to_nothing() -> None:
    code = "import sys, novamesh; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
