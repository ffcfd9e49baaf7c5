"""What a broker's settings name is read once, at the start, and refused there if it is no use."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from novamesh_broker.entrance import open_entrance
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError

BROKER = Broker("b.example", 8883, True)


def test_a_password_is_the_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(" pass word \r\n")
    entrance = open_entrance(replace(BROKER, password_file=str(tmp_path / "secret")))
    assert entrance.password == " pass word "
    assert entrance.tls is not None
    assert entrance.tls.verify_mode is ssl.CERT_REQUIRED
    assert entrance.tls.check_hostname


def test_no_file_is_no_password_and_no_tls_is_none() -> None:
    entrance = open_entrance(Broker("127.0.0.1", 1883, False))
    assert (entrance.password, entrance.tls) == (None, None)


@pytest.mark.parametrize("what", ["password", "authority"])
def test_files_that_are_not_there_or_nonsense_are_refused_at_the_start(
    what: str, tmp_path: Path
) -> None:
    (tmp_path / "nonsense").write_text("no certificate")
    if what == "password":
        broker = replace(BROKER, password_file=str(tmp_path / "gone"))
    else:
        broker = replace(BROKER, ca_file=str(tmp_path / "nonsense"))
    with pytest.raises(NovaMeshError) as caught:
        open_entrance(broker)
    assert caught.value.code is Code.BAD_CONFIG
    assert str(tmp_path) in caught.value.message
