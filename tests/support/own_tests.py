"""Which test files are a module's own, for the contract and for the coordinator's core.

A module's own tests are `test_x.py` and `test_x_*.py` where tests/ mirrors x.py. Coverage and
mutation testing run a module against these alone: what only somebody else's test would notice is
not tested.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
CONTRACT: Final = ROOT / "proto/novamesh_proto"
COORDINATOR: Final = ROOT / "coordinator/novamesh_coordinator"
# The core is what core.py imports, and these, which services use and which do no I/O either.
BESIDE_THE_CORE: Final = (
    "audit", "body_cache", "log_chain", "snapshot_parts", "watch",
)  # fmt: skip
# Values without logic have no test file of their name (tests/test_house.py); these use them most.
VALUES: Final = {"effects": "floor", "events": "log_chain", "inputs": "core"}


@dataclass(frozen=True)
class Module:
    """A module and its own tests."""

    path: Path
    tests: tuple[Path, ...]

    @property
    def part(self) -> str:
        """`contract` or `core`."""
        return "contract" if self.path.is_relative_to(CONTRACT) else "core"

    @property
    def name(self) -> str:
        """Its dotted name inside its package."""
        package = CONTRACT if self.part == "contract" else COORDINATOR
        return ".".join(self.path.relative_to(package).with_suffix("").parts)


def modules(only: tuple[str, ...] = ()) -> list[Module]:
    """Every module that is held to the figures, or those of the names given.

    Raises:
        SystemExit: there is no module of such a name.
    """
    contract = [p for p in CONTRACT.rglob("*.py") if "v1" not in p.parts and _has_code(p)]
    core = [COORDINATOR / f"{stem}.py" for stem in sorted(_core_stems())]
    found = [Module(path, _own_tests(path)) for path in [*sorted(contract), *core]]
    unknown = set(only) - {module.name for module in found}
    if unknown:
        raise SystemExit(f"no such module: {', '.join(sorted(unknown))}")
    return [module for module in found if not only or module.name in only]


def _has_code(path: Path) -> bool:
    """Whether there is more in it than a docstring."""
    return len(ast.parse(path.read_text()).body) > 1


def _core_stems() -> set[str]:
    found: set[str] = set()
    ahead = ["core", *BESIDE_THE_CORE]
    while ahead:
        stem = ahead.pop()
        if stem not in found:
            found.add(stem)
            ahead += _imported(COORDINATOR / f"{stem}.py")
    return found


def _imported(path: Path) -> list[str]:
    """The coordinator's modules that one of them imports."""
    stems: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == COORDINATOR.name:
            stems += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, stem = node.module.partition(".")
            stems += [stem] if package == COORDINATOR.name else []
    return stems


def _own_tests(path: Path) -> tuple[Path, ...]:
    if path.is_relative_to(CONTRACT):
        folder = ROOT / "tests/proto"
        stem = "wire" if path.parent.name == "messages" else path.stem
    else:
        folder = ROOT / "tests/coordinator"
        stem = VALUES.get(path.stem, path.stem)
    return tuple(sorted({folder / f"test_{stem}.py", *folder.glob(f"test_{stem}_*.py")}))
