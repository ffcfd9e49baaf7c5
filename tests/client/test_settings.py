"""Layers of settings: which wins, what is refused, and how the refusal reads."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh import settings
from novamesh.settings import option, resolve
from novamesh_proto.errors import Code, NovaMeshError


@dataclass(frozen=True, slots=True)
class Oven:
    heat: int = option(180, "how hot", unit="degrees", least=50, greatest=300)
    share: float = option(0.5, "how full", least=0, greatest=1)
    fan: bool = option(False, "whether the fan runs")
    name: str = option("plain", "what it is called", greatest=8)


def test_flag_wins_over_environment_over_file_over_default() -> None:
    table = {"heat": 100, "share": 0.1, "name": "file"}
    env = {"NOVAMESH_OVEN_HEAT": "200", "NOVAMESH_OVEN_SHARE": "0.2", "OTHER": "x"}
    oven = resolve(Oven, "oven", flags={"heat": 250, "share": None}, env=env, table=table)
    assert oven == Oven(heat=250, share=0.2, fan=False, name="file")


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ({"heet": 1}, "unknown key 'heet' in [oven] in config.toml", "did you mean heat?"),
        ({"qq": 1}, "unknown key 'qq'", "known are fan, heat, name, share"),
        ({"heat": 10}, "oven.heat in config.toml is 10", "whole number of degrees from 50 to 300"),
        ({"heat": 60.5}, "is 60.5", "a whole number"),
        ({"heat": True}, "is True", "a whole number"),
        ({"share": "much"}, "is 'much'", "a number from 0 to 1"),
        ({"share": float("nan")}, "is nan", "a number from 0 to 1"),
        ({"fan": "perhaps"}, "is 'perhaps'", "true or false"),
        ({"name": "too long a name"}, "oven.name", "text"),
        ({"name": 3}, "is 3", "text"),
        ({"name": []}, "is []", "text"),
    ],
)
def test_bad_file_is_refused_by_name(table: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        resolve(Oven, "oven", table=table)
    assert caught.value.code is Code.BAD_CONFIG
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_bad_environment_names_its_variable() -> None:
    with pytest.raises(NovaMeshError, match="NOVAMESH_OVEN_HEAT is 'hot'"):
        resolve(Oven, "oven", env={"NOVAMESH_OVEN_HEAT": "hot"})
    with pytest.raises(NovaMeshError, match="unknown key 'glow' in environment"):
        resolve(Oven, "oven", env={"NOVAMESH_OVEN_GLOW": "1"})


def test_bad_flag_is_bad_usage() -> None:
    with pytest.raises(NovaMeshError, match="--heat is 5") as caught:
        resolve(Oven, "oven", flags={"heat": 5})
    assert caught.value.code is Code.BAD_REQUEST


def test_text_is_parsed_for_config_set() -> None:
    assert settings.parse(Oven, "oven", "fan", "yes") is True
    assert settings.parse(Oven, "oven", "heat", "99") == 99
    with pytest.raises(NovaMeshError, match="unknown key"):
        settings.parse(Oven, "oven", "colour", "red")


@given(
    heat=st.integers(50, 300),
    share=st.floats(0, 1),
    fan=st.booleans(),
    name=st.text(max_size=8),
)
def test_environment_says_what_the_file_says(heat: int, share: float, fan: bool, name: str) -> None:
    table = {"heat": heat, "share": share, "fan": fan, "name": name}
    env = {settings.variable("oven", key): str(value) for key, value in table.items()}
    assert resolve(Oven, "oven", env=env) == resolve(Oven, "oven", table=table) == Oven(**table)
