"""Addresses outlive the process, within a bound, and a damaged file is as good as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from novamesh import known_nodes
from novamesh.known_nodes import KnownNodes
from novamesh_proto.identity import format_node_id
from support.parties import party

NODES = [party(f"node {number}").node_id for number in range(6)]


def test_what_was_met_is_known_after_a_restart_seen_last_first(tmp_path: Path) -> None:
    known = KnownNodes(tmp_path / "nodes.json")
    known.learn(NODES[0], ("198.51.100.1:7702",))
    known.learn(NODES[1], ("198.51.100.2:7702", "[::1]:7702"))
    known.learn(NODES[0], ("198.51.100.9:7702",))
    known.save()
    assert KnownNodes(tmp_path / "nodes.json").addresses() == (
        (NODES[0], ("198.51.100.9:7702",)),
        (NODES[1], ("198.51.100.2:7702", "[::1]:7702")),
    )
    assert (tmp_path / "nodes.json").stat().st_mode & 0o777 == 0o600


def test_who_listens_nowhere_is_not_kept(tmp_path: Path) -> None:
    known = KnownNodes(tmp_path / "nodes.json")
    known.learn(NODES[0], ("198.51.100.1:7702",))
    known.learn(NODES[0], ())
    assert known.addresses() == ()


def test_the_one_seen_longest_ago_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_nodes, "KNOWN_MAX", 3)
    known = KnownNodes(tmp_path / "nodes.json")
    for number, node in enumerate([*NODES, NODES[3]]):
        known.learn(node, (f"198.51.100.{number}:1",))
    assert [node for node, _ in known.addresses()] == [NODES[3], NODES[5], NODES[4]]


def test_only_what_changed_is_written(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    known = KnownNodes(path)
    known.save()
    assert not path.exists()
    known.learn(NODES[0], ("198.51.100.1:1",))
    known.save()
    path.unlink()
    known.learn(NODES[0], ("198.51.100.1:1",))
    known.save()
    assert not path.exists()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", "null", "[1]", '[{"node": "no peer id", "endpoints": []}]',
        '[{"endpoints": []}]', '[{"node": 7, "endpoints": 7}]',
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(text)
    path.chmod(0o600)
    known = KnownNodes(path)
    assert known.addresses() == ()
    known.learn(NODES[0], ("198.51.100.1:1",))
    known.save()
    assert len(KnownNodes(path).addresses()) == 1


def test_addresses_of_a_file_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    endpoints = ["", "x" * 1000, *(f"198.51.100.1:{port}" for port in range(1, 100))]
    path.write_text(json.dumps([{"node": format_node_id(NODES[0]), "endpoints": endpoints}]))
    path.chmod(0o600)
    ((_, kept),) = KnownNodes(path).addresses()
    assert len(kept) == 8
    assert kept[0] == "198.51.100.1:1"
