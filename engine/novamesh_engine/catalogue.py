"""What a model's name means: a folder that comes with the engine, a path, a checkpoint to pull.

Built-in names win over paths without a separator. The catalogue holds models that this engine runs
and that we would name to a friend, and for some sizes of memory the one we would name first; a
size whose best model we do not run has none. Nothing is downloaded and nothing is read here;
shelves and pulling are the node's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import novamesh_engine
from novamesh_engine.models.config import CONFIG_FILE
from novamesh_engine.weights.footprint import Footprint
from novamesh_proto.errors import Code, NovaMeshError

BUILTINS: Final = ("nova-pico",)
GB: Final = 10**9
_HINT: Final = (
    f"name a folder with {CONFIG_FILE}, or a built-in model: {', '.join(BUILTINS)}; "
    "the folders of pulled models:  novamesh models ls"
)
# A card sold as 8 GB reports a little less, a machine's RAM too.
_NOMINAL: Final = 0.95


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A checkpoint worth pulling. `memory_gb` is the tier of memory it is for, in 10**9 bytes.

    `footprint` is what its published config.json makes of it, in bytes.
    """

    name: str
    repository: str
    model_type: str
    parameters: int
    active_parameters: int
    max_context: int
    licence: str
    memory_gb: int
    default: bool
    footprint: Footprint

    @property
    def profile_bytes(self) -> int:
        """What its NF4 profile takes, on the disk and in memory."""
        return self.footprint.total


CATALOGUE: Final = (
    CatalogueEntry(
        "phi-tiny-moe-instruct", "microsoft/Phi-tiny-MoE-instruct", "phimoe",
        3_755_000_000, 1_289_000_000, 4096, "MIT", 6, True,
        Footprint(262_668_288, 437_851_392, 2_924_544, 32, 16, 2, 256, 128),
    ),
    CatalogueEntry(
        "phi-mini-moe-instruct", "microsoft/Phi-mini-MoE-instruct", "phimoe",
        7_648_000_000, 2_363_000_000, 4096, "MIT", 8, True,
        Footprint(262_668_288, 794_760_448, 6_266_880, 32, 16, 2, 512, 128),
    ),
    CatalogueEntry(
        "olmoe-1b-7b-0125-instruct", "allenai/OLMoE-1B-7B-0125-Instruct", "olmoe",
        6_919_000_000, 1_280_000_000, 4096, "Apache-2.0", 8, False,
        Footprint(206_045_184, 206_258_176, 3_342_336, 16, 64, 8, 512, 128),
    ),
    CatalogueEntry(
        "qwen1.5-moe-a2.7b-chat", "Qwen/Qwen1.5-MoE-A2.7B-Chat", "qwen2_moe",
        14_316_000_000, 2_690_000_000, 8192, "tongyi-qianwen", 12, False,
        Footprint(622_329_856, 833_388_544, 4_595_712, 24, 60, 4, 768, 128),
    ),
    CatalogueEntry(
        "qwen3-30b-a3b-instruct-2507", "Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3_moe",
        30_532_000_000, 3_350_000_000, 262_144, "Apache-2.0", 24, True,
        Footprint(622_329_856, 697_778_176, 2_506_752, 48, 128, 8, 384, 128),
    ),
)  # fmt: skip


def find_entry(name: str) -> CatalogueEntry | None:
    """The catalogue's entry of that name."""
    return next((entry for entry in CATALOGUE if entry.name == name), None)


def choose_entry(memory_bytes: int) -> CatalogueEntry | None:
    """The first choice for so much memory: the default of the largest tier that it reaches."""
    fitting = [
        entry
        for entry in CATALOGUE
        if entry.default and memory_bytes >= entry.memory_gb * GB * _NOMINAL
    ]
    return max(fitting, key=lambda entry: entry.memory_gb, default=None)


def locate(model: str | Path) -> Path:
    """The folder of a built-in model's name or of a path.

    Raises: NovaMeshError (model_not_found).
    """
    built_in = str(model) in BUILTINS
    folder = _builtin_root() / str(model) if built_in else find_path(model, _HINT)
    if model != "" and (folder / CONFIG_FILE).is_file():
        return folder
    if built_in:
        message = f"there is no model {model} in this installation"
    elif model == "":
        message = "no model is named"
    elif folder.is_dir():
        message = f"there is no model in the folder {folder}: it has no {CONFIG_FILE}"
    elif folder.exists():
        message = f"{folder} is a file, and a model is a folder"
    else:
        message = f"there is no model {model} in {folder.parent}"
    raise NovaMeshError(Code.MODEL_NOT_FOUND, message, _HINT)


def find_path(model: str | Path, hint: str) -> Path:
    """The path that somebody named, with ~ expanded; nothing need be there.

    Raises: NovaMeshError (model_not_found) with the hint, if nothing can be there or be read.
    """
    try:
        path = Path(model).expanduser()
        (path / CONFIG_FILE).stat()  # a look inside, so that nobody meets these refusals later
    except (FileNotFoundError, NotADirectoryError):
        return path
    except RuntimeError:  # of ~somebody
        why = "nobody on this machine has that home folder"
    except OSError as error:
        why = error.strerror or str(error)
    except ValueError:
        why = "that is no path"
    else:
        return path
    raise NovaMeshError(Code.MODEL_NOT_FOUND, f"there is no model {str(model)[:80]!r}: {why}", hint)


def _builtin_root() -> Path:
    """An editable install spreads the package over several folders: take the one that has it."""
    roots = [Path(root) / "builtin" for root in novamesh_engine.__path__]
    return next((root for root in roots if root.is_dir()), roots[0])
