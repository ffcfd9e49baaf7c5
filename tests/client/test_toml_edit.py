"""Editing TOML: one value changes, nothing else does."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh.toml_edit import remove_table, set_value
from novamesh_proto.errors import NovaMeshError

TEXT = """# mine
[client]  # who asks
deadline_s = 60.0   # long

[node]
slots = 2
"""


def test_value_is_replaced_and_the_rest_stays() -> None:
    edited = set_value(TEXT, "node", "slots", 4)
    assert edited == TEXT.replace("slots = 2", "slots = 4")


def test_value_is_added_at_the_end_of_its_table() -> None:
    edited = set_value(TEXT, "client", "max_tokens", 9)
    assert edited == TEXT.replace("# long\n", "# long\nmax_tokens = 9\n")


def test_table_is_added() -> None:
    assert set_value("", "pool", "network", "nm") == '[pool]\nnetwork = "nm"\n'
    assert set_value(TEXT, "pool", "network", "nm") == TEXT + '\n[pool]\nnetwork = "nm"\n'


def test_table_is_removed() -> None:
    assert remove_table(TEXT, "node") == TEXT.split("\n[node]")[0]
    assert remove_table(TEXT, "none") == TEXT
    assert remove_table("[pool]\na = 1\n", "pool") == ""


@pytest.mark.parametrize(
    "text", ["[pool", 'pool.network = "x"\n', 'pool = {network = "x"}\n', '[pool]\nk = """\na\n"""']
)
def test_what_cannot_be_edited_is_refused(text: str) -> None:
    with pytest.raises(NovaMeshError):
        set_value(text, "pool", "k" if '"""' in text else "network", "y")


KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False),
    st.booleans(),
)


@given(edits=st.lists(st.tuples(st.sampled_from(["client", "pool"]), KEYS, VALUES), max_size=8))
def test_any_edits_are_read_back(edits: list[tuple[str, str, str | int | float | bool]]) -> None:
    text = TEXT
    expected = tomllib.loads(TEXT)
    for table, key, value in edits:
        text = set_value(text, table, key, value)
        expected.setdefault(table, {})[key] = value
    assert tomllib.loads(text) == expected
    assert tomllib.loads(remove_table(text, "pool")).keys() == expected.keys() - {"pool"}
