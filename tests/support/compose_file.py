"""compose.yaml and the Dockerfile, as tests read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

ROOT: Final = Path(__file__).parent.parent.parent
TEXT: Final = (ROOT / "compose.yaml").read_text()
DOCKERFILE: Final = (ROOT / "Dockerfile").read_text()
COMPOSE: Final[dict[str, Any]] = json.loads(json.dumps(YAML(typ="safe", pure=True).load(TEXT)))
SERVICES: Final[dict[str, dict[str, Any]]] = COMPOSE["services"]
