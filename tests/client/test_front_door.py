"""`from novamesh import …`: what is there, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import novamesh

PACKAGES = (
    "novamesh",
    "novamesh_proto",
    "novamesh_broker",
    "novamesh_engine",
    "novamesh_node",
    "novamesh_coordinator",
)
HEAVY = (
    "torch",
    "sqlalchemy",
    "starlette",
    "novamesh_node",
    "novamesh_coordinator",
    "psutil",
    "aiomqtt",
)


def test_public_names_are_there() -> None:
    for name in novamesh.__all__:
        assert getattr(novamesh, name).__name__ == name
    assert set(novamesh.__all__) <= set(dir(novamesh))


@pytest.mark.parametrize("package", PACKAGES)
def test_types_reach_whoever_imports_us(package: str) -> None:
    """Without its marker file every type checker takes a package for untyped (PEP 561)."""
    found = find_spec(package)
    assert found is not None
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    assert any((folder / "py.typed").is_file() for folder in folders), package


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
