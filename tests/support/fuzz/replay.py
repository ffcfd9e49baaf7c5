"""Feed one file to one target, as after a crash: python -m support.fuzz.replay TARGET FILE"""

from __future__ import annotations

import sys
from pathlib import Path

from novamesh_proto.errors import NovaMeshError
from support.fuzz.targets import targets


def main() -> None:
    """Say what comes out; what is no refusal ends it with its traceback."""
    name, path = sys.argv[1:]
    target = targets()[name]
    try:
        target.feed(Path(path).read_bytes())
    except NovaMeshError as refusal:
        print(f"refused: {refusal.code.value}: {refusal.message}")
    else:
        print("taken")
    target.close()


if __name__ == "__main__":
    main()
