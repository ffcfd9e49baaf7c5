"""Who we know: what is kept, what goes first, and what a broken file costs."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest

from novamesh.mesh.peers import (
    ADDRESSES_MAX,
    FILE_BYTES_MAX,
    PEERS_MAX,
    RETRY_MAX_S,
    RETRY_MIN_S,
    PeerList,
)
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.messages import NodeId
from support.clock import ManualClock

OWN = PrivateKey.generate().node_id
HERE = ("/ip4/127.0.0.1/tcp/1",)
RNG = random.Random(1)


def _node() -> NodeId:
    return PrivateKey.generate().node_id


def _peers(folder: Path, clock: ManualClock | None = None) -> PeerList:
    clock = clock or ManualClock()
    return PeerList(folder / "peers.json", OWN, lambda: clock.now_ms() / 1000, clock.monotonic)


def test_what_is_learnt_is_there_after_a_restart(tmp_path: Path) -> None:
    first, node = _peers(tmp_path), _node()
    first.learn(node, HERE)
    first.connected(node)
    first.save()
    again = _peers(tmp_path)
    assert again.addresses(node) == HERE
    assert again.choose(6, set(), RNG) == [node]
    assert stat.S_IMODE((tmp_path / "peers.json").stat().st_mode) == 0o600


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    peers, node = _peers(tmp_path), _node()
    peers.save()
    assert not (tmp_path / "peers.json").exists()
    peers.learn(node, HERE)
    peers.save()
    (tmp_path / "peers.json").unlink()
    peers.learn(node, HERE)
    peers.save()
    assert not (tmp_path / "peers.json").exists()


def test_crowd_of_names_does_not_push_out_who_was_connected(tmp_path: Path) -> None:
    peers, friend = _peers(tmp_path), _node()
    peers.learn(friend, HERE)
    peers.connected(friend)
    crowd = [_node() for _ in range(PEERS_MAX + 20)]
    for node in crowd:
        peers.learn(node, HERE)
    assert len(peers) == PEERS_MAX
    assert peers.addresses(friend) == HERE
    assert peers.addresses(crowd[0]) == ()
    assert peers.addresses(crowd[-1]) == HERE


def test_own_name_no_address_and_endless_addresses_are_not_taken(tmp_path: Path) -> None:
    peers, node = _peers(tmp_path), _node()
    peers.learn(OWN, HERE)
    peers.learn(node, ())
    peers.learn(node, ("x" * 1000,))
    assert len(peers) == 0
    peers.learn(node, [f"/ip4/127.0.0.1/tcp/{port}" for port in range(1, 100)])
    assert len(peers.addresses(node)) == ADDRESSES_MAX


def test_hint_never_replaces_what_is_known(tmp_path: Path) -> None:
    peers, node, stranger = _peers(tmp_path), _node(), _node()
    peers.learn(node, HERE)
    peers.hint(node, ("/ip4/10.0.0.1/tcp/2",))
    peers.hint(stranger, HERE)
    assert peers.addresses(node) == HERE
    assert peers.addresses(stranger) == HERE


def test_who_does_not_answer_is_left_alone_longer_each_time(tmp_path: Path) -> None:
    clock, node = ManualClock(), _node()
    peers = _peers(tmp_path, clock)
    peers.learn(node, HERE)
    pause_s = RETRY_MIN_S
    for _ in range(8):
        peers.failed(node)
        clock.advance(pause_s - 0.01)
        assert peers.choose(1, set(), RNG) == []
        clock.advance(0.02)
        assert peers.choose(1, set(), RNG) == [node]
        pause_s = min(2 * pause_s, RETRY_MAX_S)
    peers.failed(node)
    peers.learn(node, ("/ip4/127.0.0.1/tcp/9",))
    assert peers.choose(1, set(), RNG) == [node], "a new address is a new chance"


def test_choice_leaves_out_who_is_there(tmp_path: Path) -> None:
    peers, nodes = _peers(tmp_path), [_node() for _ in range(10)]
    for node in nodes:
        peers.learn(node, HERE)
    chosen = peers.choose(20, set(nodes[:4]), RNG)
    assert sorted(chosen) == sorted(nodes[4:])
    assert len(peers.choose(3, set(), RNG)) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"peers": 3}',
        b'{"peers": {"x": 1}}',
        b"\xff\xfe",
        b"x" * (FILE_BYTES_MAX + 1),
    ],
    ids=["empty", "cut", "list", "number", "entry", "bytes", "huge"],
)
def test_broken_file_costs_what_was_in_it(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "peers.json"
    file.write_bytes(content)
    file.chmod(0o600)
    peers = _peers(tmp_path)
    assert len(peers) == 0
    assert "known peers are lost" in caplog.text
    node = _node()
    peers.learn(node, HERE)
    peers.save()
    assert _peers(tmp_path).addresses(node) == HERE


def test_entries_that_are_no_peer_are_left_out(tmp_path: Path) -> None:
    good = format_node_id(_node())
    entry = {"addresses": list(HERE), "seen": 5}
    entries = {"nobody": entry, good: entry, format_node_id(_node()): {"addresses": [], "seen": 1}}
    file = tmp_path / "peers.json"
    file.write_text(json.dumps({"peers": entries}))
    file.chmod(0o600)
    assert len(_peers(tmp_path)) == 1


def test_disk_that_refuses_costs_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in the way").write_text("")
    peers = PeerList(tmp_path / "in the way" / "peers.json", OWN)
    peers.learn(_node(), HERE)
    peers.save()
    assert "peers are not kept" in caplog.text
