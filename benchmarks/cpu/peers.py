"""What peers need, kept below build/, so that no environment changes, nothing is fetched twice."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

BUILD: Final = Path(__file__).parents[2] / "build"
PEERS: Final = BUILD / "peers"
MODELS: Final = BUILD / "models"


def find_tool(name: str) -> str:
    """A build tool: the system's, else one from PyPI."""
    found = shutil.which(name) or shutil.which(name, path=str(PEERS / "tools" / "bin"))
    return found or str(_install("tools", name) / "bin" / name)


def _install(place: str, *packages: str) -> Path:
    """Packages in a folder of their own, so that no environment changes."""
    folder = PEERS / place
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    run([*pip, "--target", str(folder), *packages])
    return folder


def require(package: str, module: str) -> Any:
    """A module of a package that only a peer needs, the environment's own where it has one."""
    folder = PEERS / "python"
    if importlib.util.find_spec(module) is None and not (folder / module).is_dir():
        _install("python", package)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return importlib.import_module(module)


def run(command: list[str]) -> None:
    """Run a command; what it says goes to stderr."""
    PEERS.mkdir(parents=True, exist_ok=True)
    subprocess.run(command, check=True, stdout=sys.stderr)
