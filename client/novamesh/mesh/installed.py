"""Whether this machine has libp2p, and what installing it would need here.

Rule: nothing of libp2p is imported to find out. libp2p 0.8.1 asks for one exact fastecdsa that
Linux must compile; a newer one that is ready to run does as well, but only uv can be told so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sysconfig
from pathlib import Path
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError

EXAMINED: Final = "0.8.1"  # the one version whose inside our measures fit
HINT: Final = "pip install 'novamesh[p2p]'"
HINT_NO_COMPILER: Final = (
    "without a compiler:  echo 'fastecdsa>=4,<5' > override.txt && "
    "uv pip install --override override.txt 'novamesh[p2p]'"
)
_INCLUDES: Final = (Path("/usr/include"), Path("/usr/local/include"))


def require() -> None:
    """Return if libp2p is installed.

    Raises:
        NovaMeshError: UNSUPPORTED, with the way to get it.
    """
    if version() is None:
        missing = build_lacks()
        raise NovaMeshError(
            Code.UNSUPPORTED, "libp2p is not installed", HINT_NO_COMPILER if missing else HINT
        )


def version() -> str | None:
    """The installed version of libp2p."""
    if importlib.util.find_spec("libp2p") is None:
        return None
    try:
        return importlib.metadata.version("libp2p")
    except importlib.metadata.PackageNotFoundError:
        return None


def build_lacks(includes: tuple[Path, ...] = _INCLUDES) -> tuple[str, ...]:
    """What pip would miss to compile fastecdsa here: gcc, Python's headers, GMP's."""
    folders = [*includes, *(folder / _triplet() for folder in includes)]
    python = Path(sysconfig.get_path("include")) / "Python.h"
    present = {
        "gcc": shutil.which("gcc") or shutil.which("cc"),
        "python headers": python.exists(),
        "gmp.h": any((folder / "gmp.h").exists() for folder in folders),
    }
    return tuple(name for name, found in present.items() if not found)


def _triplet() -> str:
    return str(sysconfig.get_config_var("MULTIARCH") or "lib")
