"""Do a module's own tests notice when it is changed? `python -m support.mutants sealing ledger`.

mutmut makes the mutants and runs, for each, the own tests that reach the changed function. Every
module gets a tree of its own under build/mutants/, as mutmut wants it: sources under src/, and no
other copy of them in the way of imports. Random examples are few and the same in every run.

Prints a line a module and a sum a part; survivors are written to build/mutants/NAME/survivors.diff.
Exits with 1 if a part that was run whole stays below the bar.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Final

from support.own_tests import CONTRACT, COORDINATOR, ROOT, Module, modules

BAR: Final = 0.85
TREES: Final = ROOT / "build/mutants"
MUTMUT: Final = Path(sys.executable).with_name("mutmut")
# A mutant that never ends is noticed too.
NOTICED: Final = {"killed", "timeout", "segfault", "caught by type check"}
CONFTEST: Final = '''\
"""What the tests need to see the mutants: no editable install, few examples, and item._nodeid."""
import sys

import hypothesis
import pytest

sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__name__.startswith("ScikitBuild")]
pytest.Item._nodeid = property(lambda item: item.nodeid)  # mutmut 3.8 reads it, pytest 9.2 lost it
as_many = hypothesis.settings.__init__


def few(self, *args, max_examples=EXAMPLES, **wanted):
    wanted |= {"max_examples": min(max_examples, EXAMPLES), "derandomize": True, "database": None}
    as_many(self, *args, **wanted)


hypothesis.settings.__init__ = few


@pytest.fixture(autouse=True)
def anew():
    """What was worked out once, before there was a mutant, is worked out again."""
    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.startswith("novamesh_") else ():
            if callable(getattr(value, "cache_clear", None)):
                value.cache_clear()
'''


def grow(module: Module, examples: int) -> Path:
    """Make the tree that mutmut works in."""
    tree = TREES / module.name
    shutil.rmtree(tree, ignore_errors=True)
    for package in (CONTRACT, COORDINATOR):
        shutil.copytree(package, tree / "src" / package.name)
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("e2e"))
    (tree / "conftest.py").write_text(CONFTEST.replace("EXAMPLES", str(examples)))
    pytest_options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    options = pytest_options["ini_options"] | {"pythonpath": ["src", "tests"]}
    mutated = _mutated(tree, module).relative_to(tree / "mutants")
    tests = [str(path.relative_to(ROOT)) for path in module.tests]
    lines = ["[tool.pytest.ini_options]", *_toml(options), "[tool.mutmut]"]
    lines += _toml({"source_paths": ["src"], "also_copy": ["conftest.py"]})
    lines += _toml({"only_mutate": [str(mutated)], "use_git_change_detection": False})
    lines += _toml({"pytest_add_cli_args_test_selection": tests})
    (tree / "pyproject.toml").write_text("\n".join(lines))
    return tree


def _mutated(tree: Path, module: Module) -> Path:
    """The file with all mutants of a module."""
    package = CONTRACT if module.part == "contract" else COORDINATOR
    return tree / "mutants/src" / package.name / module.path.relative_to(package)


def _toml(table: dict[str, object]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in table.items()]


def try_out(module: Module, examples: int, children: int) -> Counter[str]:
    """Run all mutants of a module; returns how many ended how."""
    tree = grow(module, examples)
    (tree / "mutmut.log").write_text(_mutmut(tree, "run", "--max-children", str(children)))
    listing = _mutmut(tree, "results", "--all", "true")
    ends = re.findall(r"^\s+(\S+__mutmut_\d+): (.+)$", listing, re.MULTILINE)
    alive = [name.rpartition(".")[2] for name, end in ends if end not in NOTICED]
    (tree / "survivors.diff").write_text(_diffs(_mutated(tree, module), alive))
    if any(end == "not checked" for _, end in ends):
        raise SystemExit(f"{module.name}: mutmut stopped; see {tree / 'mutmut.log'}")
    return Counter(end for _, end in ends)


def _diffs(mutated: Path, names: list[str]) -> str:
    """How mutants differ from the original; all stand side by side in the file that mutmut made."""
    tree = ast.parse(mutated.read_text())
    functions = {
        node.name: ast.unparse(node).splitlines()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    told = []
    for name in names:
        original = functions[re.sub(r"_\d+$", "_orig", name)]
        lines = difflib.unified_diff(original, functions[name], n=1, lineterm="")
        told += [name, *(line for line in lines if not line.startswith(("---", "+++"))), ""]
    return "\n".join(told)


def _mutmut(tree: Path, *arguments: str) -> str:
    command = [str(MUTMUT), *arguments]
    ran = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    return ran.stdout + ran.stderr


def main() -> int:
    """Try the modules out; 1 if a part stays below the bar."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="only these, such as sealing or dispatcher")
    parser.add_argument("--examples", type=int, default=25, help="of each random test, at most")
    parser.add_argument("--children", type=int, default=os.cpu_count(), help="at once")
    options = parser.parse_args()
    sums: dict[str, Counter[str]] = {}
    for module in modules(tuple(options.modules)):
        ends = try_out(module, options.examples, options.children)
        sums.setdefault(module.part, Counter()).update(ends)
        print(f"{module.part:9} {module.name:24} {_score(ends)}", flush=True)
    for part, ends in sums.items():
        print(f"{part:9} {'':24} {_score(ends)}")
    return any(_noticed(ends) < BAR * ends.total() for ends in sums.values())


def _noticed(ends: Counter[str]) -> int:
    return sum(count for end, count in ends.items() if end in NOTICED)


def _score(ends: Counter[str]) -> str:
    how = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    return f"{_noticed(ends)} of {ends.total()} noticed ({how})"


if __name__ == "__main__":
    sys.exit(main())
