"""Installed as docs/mesh.md says for machines without a compiler, on one that has none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).parents[3]
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "clang++")
NEEDED = ("sh", "env", "uname")
DIAL = """
import trio
from novamesh.mesh.host import HostConfig, announced, dial, open_host
from novamesh.mesh.installed import require
from novamesh_proto.identity import PrivateKey

async def main():
    require()
    here, there = PrivateKey.generate(), PrivateKey.generate()
    async with open_host(HostConfig(here, ("/ip4/127.0.0.1/tcp/0",))) as host:
        async with open_host(HostConfig(there, ())) as guest:
            await dial(guest, here.node_id, announced(host))
            print(len(host.get_connected_peers()))

trio.run(main)
"""


def _documented() -> tuple[str, str]:
    """The lines of the document after the one that brings uv."""
    text = (ROOT / "docs/mesh.md").read_text().partition("Without a compiler")[2]
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None
    first, override, install = block[1].splitlines()
    assert first == "pip install uv"
    return override, install


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A machine with uv, a shell and no compiler, whose caches are empty."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed:  make test  brings it")
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in (uv, *filter(None, map(shutil.which, NEEDED))):
        (programs / Path(program).name).symlink_to(program)
    assert not any(shutil.which(compiler, path=str(programs)) for compiler in COMPILERS)
    # A user's own index stays told.
    kept = {name: value for name, value in os.environ.items() if name.startswith(("UV_", "SSL_"))}
    return kept | {
        "PATH": str(programs),
        "HOME": os.environ.get("HOME", str(tmp_path)),
        "CC": "/nonexistent",
        "CXX": "/nonexistent",
        "VIRTUAL_ENV": str(tmp_path / "venv"),
        "UV_CACHE_DIR": str(tmp_path / "cache"),
        "UV_CONSTRAINT": str(ROOT / "constraints.txt"),
    }


def test_mesh_is_installed_and_works_without_a_compiler(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    def run(command: str) -> str:
        done = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "Failed to fetch" in done.stderr and "CI" not in os.environ:
            pytest.skip("no package index is reached from here")
        assert done.returncode == 0, done.stderr
        return done.stdout

    override, install = _documented()
    run(f"uv venv --python '{sys.executable}' venv")
    run(override)
    run(install.replace("'novamesh[p2p]'", f"'{ROOT}[p2p]'"))
    assert run(f"cd / && {tmp_path}/venv/bin/python -c '{DIAL}'") == "1\n"
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    compiled = [each for each in distributions(path=[str(packages)]) if _was_compiled_here(each)]
    assert [each.name for each in compiled] == []


def _was_compiled_here(package: Distribution) -> bool:
    """Wheels of an index say which Linux they fit; one that was built says "linux" alone."""
    return "-linux_" in (package.read_text("WHEEL") or "")
