"""What a coordinator's /healthz says of it: one that stands by answers there, and nowhere else.

Rules: asked over plain HTTP, so of a coordinator on this machine or in its own network; an answer
that is not one of ours counts as none.
"""

from __future__ import annotations

import http.client
from typing import Final

from novamesh_coordinator.config import split_address
from novamesh_proto.errors import Code, NovaMeshError

ASK_S: Final = 3.0
_ANSWER_BYTES_MAX: Final = 256
_STATES: Final = {"ok": "serving", "standby": "standing by"}
_HINT: Final = "start it with: novamesh coordinator serve --http HOST:PORT"


def read_health(address: str) -> str:
    """`serving` or `standing by`, as /healthz at HOST:PORT says.

    Raises:
        NovaMeshError: BAD_CONFIG for no HOST:PORT, UNAVAILABLE where nobody answers or the answer
            is bad.
    """
    host, port = split_address(address, "http")
    asked = http.client.HTTPConnection(host.strip("[]"), port, timeout=ASK_S)
    try:
        asked.request("GET", "/healthz")
        with asked.getresponse() as reply:
            status = reply.status
            said = reply.read(_ANSWER_BYTES_MAX).decode("utf-8", "replace").strip()
    except (OSError, http.client.HTTPException) as error:
        problem = f"no coordinator answers at {address}: {error}"
        raise NovaMeshError(Code.UNAVAILABLE, problem, _HINT) from None
    finally:
        asked.close()
    if status != http.client.OK or said not in _STATES:
        raise NovaMeshError(Code.UNAVAILABLE, f"the coordinator at {address} says: {said!r}", _HINT)
    return _STATES[said]
