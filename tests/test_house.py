"""The house rules that no linter knows: sizes, names, layers, and documents that stay true."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "proto": "novamesh_proto",
    "broker": "novamesh_broker",
    "engine": "novamesh_engine",
    "node": "novamesh_node",
    "coordinator": "novamesh_coordinator",
    "client": "novamesh",
}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
# Where protobuf classes may be known: the codec and the gRPC services at both ends.
DOORS = ("wire.py", "service.py", "server.py", "link.py", "transport.py", "novamesh/pool.py")
# Modules without a test file of their name, and the file that tests them instead, with the reason.
TESTED_ELSEWHERE = {
    "client/novamesh/cli/": ("tests/cli/test_transcripts.py", "every screen is a transcript"),
    "client/novamesh/mesh/config.py": ("tests/client/mesh/test_mesh.py", "values"),
    "client/novamesh/clock.py": ("tests/client/test_client.py", "two lines that read a clock"),
    "client/novamesh/completion.py": ("tests/client/test_client.py", "values and no logic"),
    "coordinator/novamesh_coordinator/effects.py": ("tests/coordinator/test_floor.py", "values"),
    "coordinator/novamesh_coordinator/events.py": ("tests/coordinator/test_store.py", "values"),
    "coordinator/novamesh_coordinator/inputs.py": ("tests/coordinator/test_core.py", "values"),
    "coordinator/novamesh_coordinator/migrations/": (
        "tests/coordinator/test_store.py", "run whenever a store is opened",
    ),
    "engine/novamesh_engine/recipe/corpus/item.py": (
        "tests/engine/recipe/corpus/test_mixture.py", "one value",
    ),
    "engine/novamesh_engine/recipe/corpus/phrases.py": (
        "tests/engine/recipe/corpus/test_chains.py", "word lists",
    ),
    "engine/novamesh_engine/recipe/corpus/situations.py": (
        "tests/engine/recipe/corpus/test_problems.py", "sentences and their plans",
    ),
    "engine/novamesh_engine/recipe/corpus/world.py": (
        "tests/engine/recipe/corpus/test_facts.py", "lists of facts",
    ),
    "proto/novamesh_proto/messages/": ("tests/proto/test_wire.py", "frozen values"),
}  # fmt: skip
# Imports inside a function are allowed here and nowhere else, with the reason.
LAZY_IMPORTS = {
    "broker_wiring": "the small broker's library is in an extra of its own",
    "choice": "Triton is missing where only a CPU computes",
    "cli": "a sub-app must load without its heavy extras",
    "demo": "runs only when asked for",
    "doctor": "asks each installed part by import string",
    "mesh": "libp2p is an extra, and takes seconds to import",
    "search": "the library of brokers is an extra",
}


def _tracked(*patterns: str) -> list[Path]:
    """Files that git knows or will know, so that a stray build folder is never checked."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def _sources() -> list[Path]:
    found = [path for root in PACKAGES for path in _tracked(f"{root}/*.py")]
    return [path for path in found if "_pb2" not in path.name]


def _identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


SOURCES = _sources()
PYTHON = [path for path in _tracked("*.py") if "_pb2" not in path.name]


@pytest.mark.parametrize("path", PYTHON, ids=_identify)
def test_file_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert _body_lines(node) <= FUNCTION_LINES_MAX, f"{node.name} at line {node.lineno}"


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    docstring = 0
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        docstring = (first.end_lineno or first.lineno) - first.lineno + 1
    return (node.end_lineno or node.lineno) - node.lineno + 1 - docstring


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_module_has_a_noun_for_a_name_and_opens_with_its_job(path: Path) -> None:
    assert not _vague(path)
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body


def _vague(path: Path) -> set[str]:
    """Parts of a path that are no name of a thing: utils/text.py hides as much as utils.py."""
    return {part.partition(".")[0] for part in path.relative_to(ROOT).parts} & FORBIDDEN_NAMES


def test_no_folder_and_no_test_support_has_a_name_that_says_nothing() -> None:
    assert _vague(ROOT / "engine/novamesh_engine/utils/packing.py") == {"utils"}
    assert _vague(ROOT / "tests/support/helpers.py") == {"helpers"}
    assert [_identify(path) for path in PYTHON if _vague(path)] == []


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_imports_stand_at_the_top(path: Path) -> None:
    relative = path.relative_to(ROOT)
    excused = {*relative.parts, path.stem} & set(LAZY_IMPORTS)
    if excused or relative.as_posix().endswith("kernels/__init__.py"):
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lazy = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not lazy, f"{node.name} imports at line {lazy[0].lineno}"


def test_imports_point_the_way_that_the_contracts_say() -> None:
    """The layers of the house and the doors between them, as pyproject.toml draws them."""
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("imports point one way", "the command line above the SDK"):
        assert f"{name} KEPT" in done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_no_global_state_and_no_unfinished_marks(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Global)


def test_every_broad_except_says_why() -> None:
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.search(r"except( \(?(Base)?Exception\b|:)", line):
                near = "\n".join(lines[max(0, number - 2) : number + 3])
                assert "#" in near, f"{_identify(path)}:{number + 1} catches everything silently"


def test_protobuf_types_stay_at_the_door() -> None:
    for path in SOURCES:
        relative, text = _identify(path), path.read_text()
        if relative.endswith(("mesh/gossip.py", "mesh/hardening.py")):
            # libp2p hands its own messages to whoever checks what it heard; they go no further.
            text = text.replace("rpc_pb2", "")
        if "_pb2" in text:
            assert relative.endswith(DOORS), f"{relative} knows protobuf classes"


def _mirror(path: Path) -> str:
    """Where the test of a module belongs."""
    part, _, *folders = path.relative_to(ROOT).parts[:-1]
    here = ["cli"] if (part, folders[:1]) == ("client", ["cli"]) else [part, *folders]
    return "/".join(["tests", *here, f"test_{path.stem}.py"])


@pytest.mark.parametrize("path", SOURCES, ids=_identify)
def test_module_has_a_test_file_of_its_name(path: Path) -> None:
    if path.stem in {"__init__", "__main__"} or (ROOT / _mirror(path)).exists():
        return
    name = _identify(path)
    excuses = [excuse for key, excuse in TESTED_ELSEWHERE.items() if name.startswith(key)]
    assert excuses, f"{name} has no {_mirror(path)}"
    assert (ROOT / excuses[0][0]).exists(), f"{name}: {excuses[0][0]} is gone"


def test_no_module_is_excused_that_has_its_own_test() -> None:
    for key in TESTED_ELSEWHERE:
        excused = [path for path in SOURCES if _identify(path).startswith(key)]
        assert any(not (ROOT / _mirror(path)).exists() for path in excused), f"{key} needs none"


def test_mock_is_not_used() -> None:
    for path in _tracked("tests/*.py"):
        if path.name != "test_house.py":
            assert "unittest.mock" not in path.read_text(), _identify(path)


def test_tests_have_no_packages() -> None:
    assert not _tracked("tests/**/__init__.py")
    assert not [root for root in PACKAGES if (ROOT / root / "__init__.py").exists()]


@pytest.mark.parametrize("document", ["README.md", "docs/ARCHITECTURE.md", "docs/threat-model.md"])
def test_every_path_named_in_a_document_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    tops = {path.name for path in ROOT.iterdir()} - {".git", ".venv"}
    named = set(re.findall(r"`([\w.][\w./-]*)`", text)) | set(
        re.findall(r"\]\(((?!http)[\w./-]+)\)", text)
    )
    paths = {name for name in named if name.split("/")[0] in tops and ("/" in name or "." in name)}
    mapped = _map_lines(text)
    assert paths
    assert mapped or document != "README.md"
    for name in sorted(paths | mapped):
        base = (ROOT / document).parent if name.startswith("..") else ROOT
        assert (base / name).exists() or ((ROOT / document).parent / name).exists(), name


def _map_lines(document: str) -> set[str]:
    """The paths that begin the lines of code fences without a language: a map of folders."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)
    pattern = re.compile(r"^([\w.-]+/[\w./-]*)(?=\s|$)", re.MULTILINE)
    return {name for kind, text in fences if not kind for name in pattern.findall(text)}


def test_map_in_a_fence_is_read() -> None:
    fence = "```\ngone/     a folder\n  seen/x\ngone/deep/a.py\n```\n"
    text = f"{fence}loose/ text\n```sh\nno/\n```\n"
    assert _map_lines(text) == {"gone/", "gone/deep/a.py"}


def test_every_defence_in_the_threat_model_names_tests_that_exist() -> None:
    text = (ROOT / "docs/threat-model.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    for wish, defence, shown in (row for row in rows if row[0].strip() != "wants to"):
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", shown)
        assert named or "not stopped" in defence, wish
        for path, name in named:
            assert (ROOT / path).exists(), path
            source = (ROOT / path).read_text()
            assert re.search(rf"(def|class) {name}\b", source), f"{path}::{name}"


def test_architecture_names_every_module() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w./-]+)`", text))
    for path in SOURCES:
        relative = path.relative_to(ROOT)
        folders = {f"{parent}/" for parent in relative.parents}
        known = _identify(path) in named or path.stem in {"__init__", "__main__"}
        assert known or folders & named, f"{relative} has no line in the code map"


def _console_commands(document: str) -> list[str]:
    """Every `novamesh …` and `make …` line of a document's console blocks."""
    blocks = re.findall(r"```(?:console|sh|shell|bash)\n(.*?)```", document, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("novamesh ", "make "))]


def test_readme_commands_parse() -> None:
    from novamesh.cli import app

    commands = _console_commands((ROOT / "README.md").read_text())
    assert any(command.startswith("make demo") for command in commands)
    assert any(command.startswith("make test") for command in commands)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
        elif not {"--help", "--version"} & set(words):
            app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_light_parts_start_without_torch() -> None:
    code = (
        "import sys, novamesh, novamesh.cli, novamesh_coordinator.cli, novamesh_node.cli,"
        " novamesh_engine.cli; heavy = {'torch', 'bitsandbytes', 'transformers', 'libp2p'};"
        " found = heavy & set(sys.modules); sys.exit(f'imported {found}' if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_pickle_and_no_remote_code() -> None:
    for path in SOURCES:
        text = path.read_text()
        assert not re.search(r"\bimport pickle\b|torch\.load\(|trust_remote_code", text), _identify(
            path
        )


def test_stubs_are_those_of_the_proto_files(tmp_path: Path) -> None:
    """The checked-in stubs are what the pinned generator makes of the .proto files."""
    protos = sorted((ROOT / "proto/novamesh_proto/v1").glob("*.proto"))
    outputs = [
        f"--{kind}={tmp_path}"
        for kind in ("python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out")
    ]
    binaries = Path(sys.executable).parent
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'proto'}", *outputs]
    subprocess.run(
        [*command, *map(str, protos)],
        check=True,
        capture_output=True,
        env={"PATH": f"{binaries}:/usr/bin:/bin"},
    )
    made = sorted((tmp_path / "novamesh_proto/v1").iterdir())
    assert len(made) == 4 * len(protos)
    for path in made:
        checked_in = ROOT / "proto/novamesh_proto/v1" / path.name
        assert path.read_text() == checked_in.read_text(), f"{path.name} is stale: make proto"
