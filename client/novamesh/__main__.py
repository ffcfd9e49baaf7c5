"""`python -m novamesh` is the `novamesh` command."""

from __future__ import annotations

import sys

from novamesh.cli import main

if __name__ == "__main__":
    sys.exit(main())
