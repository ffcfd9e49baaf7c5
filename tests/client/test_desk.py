"""A client that looks for no nodes itself says so, where a call wants it."""

from __future__ import annotations

from typing import Any

import pytest

from novamesh.desk import Desk
from novamesh_proto.errors import Code, NovaMeshError


async def test_a_desk_without_a_search_refuses_to_leave_the_coordinator() -> None:
    unused: Any = None
    desk = Desk(unused, unused, unused, unused, unused)
    with pytest.raises(NovaMeshError) as refused:
        await desk.without_coordinator()
    assert refused.value.code is Code.UNSUPPORTED
