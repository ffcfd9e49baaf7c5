"""Which folder a model's name means: one that comes with the engine, or a path.

Built-in names win over paths without a separator. Nothing is downloaded and nothing is read here;
shelves and pulling are the node's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import novamesh_engine
from novamesh_proto.errors import Code, NovaMeshError

BUILTINS: Final = ("nova-pico",)


def locate(model: str | Path) -> Path:
    """The folder of a built-in model's name or of a path.

    Raises: NovaMeshError (model_not_found).
    """
    built_in = str(model) in BUILTINS
    folder = _builtin_root() / str(model) if built_in else Path(model).expanduser()
    if not (folder / "config.json").is_file():
        where = "this installation" if built_in else str(folder.parent)
        message = f"there is no model {model} in {where}"
        hint = f"name a folder with config.json, or a built-in model: {', '.join(BUILTINS)}"
        raise NovaMeshError(Code.MODEL_NOT_FOUND, message, hint)
    return folder


def _builtin_root() -> Path:
    """An editable install spreads the package over several folders: take the one that has it."""
    roots = [Path(root) / "builtin" for root in novamesh_engine.__path__]
    return next((root for root in roots if root.is_dir()), roots[0])
