"""llama.cpp, built for this machine as its documentation says, with a random model of our shape.

The source is the copy inside the llama-cpp-python distribution; what is built is libllama and a
driver that does what llama-bench does, a turn at a time.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from typing import Final

from cpu.gguf_model import write_gguf
from cpu.peers import PEERS, find_tool, run
from cpu.turns import Player

LLAMA: Final = "llama_cpp_python==0.3.36"
CONTEXT: Final = 1024

_DRIVER: Final = Path(__file__).parent / "llama_turns.cpp"


def llama_player(jobs: int, log: Path) -> Player:
    """llama.cpp with the model loaded; everything that is lacking is made first."""
    driver, model = build_llama(jobs), write_gguf()
    return Player("llama.cpp", [str(driver), str(model), str(CONTEXT)], log)


def build_llama(jobs: int = 1) -> Path:
    """The driver beside libllama, compiled with -march=native."""
    built = PEERS / "llama-build"
    driver = built / "bin" / "llama_turns"
    if driver.exists() and driver.stat().st_mtime > _DRIVER.stat().st_mtime:
        return driver
    source, cmake = _llama_source(), find_tool("cmake")
    find_tool("ninja")
    options = [
        "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=ON",
        "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_TOOLS=OFF",
        "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_CURL=OFF",
    ]  # fmt: skip
    run([cmake, "-S", str(source), "-B", str(built), "-G", "Ninja", *options])
    run([cmake, "--build", str(built), "--target", "llama", "-j", str(jobs)])
    include = [f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}"]
    libraries = ["-lllama", "-lggml", "-lggml-cpu", "-lggml-base"]
    where = [f"-L{built / 'bin'}", f"-Wl,-rpath,{built / 'bin'}"]
    run(["g++", "-O2", "-std=c++17", *include, str(_DRIVER), *where, *libraries, "-o", str(driver)])
    return driver


def _llama_source() -> Path:
    """llama.cpp's folder in the unpacked source distribution."""
    folder = PEERS / LLAMA.replace("==", "-")
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        run([*pip, "--no-binary", "llama_cpp_python", "-d", str(PEERS), LLAMA])
        with tarfile.open(PEERS / f"{folder.name}.tar.gz") as archive:
            archive.extractall(PEERS, filter="data")
    return folder / "vendor" / "llama.cpp"
