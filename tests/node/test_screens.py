"""Screens: aligned, complete, and the same facts in JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from novamesh_node import screens
from novamesh_node.shelf import Entry
from support.tiny_profile import save_tiny_profile

STATUS: dict[str, Any] = {
    "node": "12D3KooWnode", "phase": "idle", "reason": "", "resumes_at_ms": 0, "slots": 4,
    "free_slots": 3, "running": 1, "taken": 9, "pool": "testnet", "address": "127.0.0.1:7700",
    "attached": True, "trouble": "", "next_try_s": 0, "clock_offset_ms": -3,
    "hardware": "a machine",
    "devices": [{"id": "cpu", "hardware": "a machine", "slots": 4, "running": 1, "fault": ""}],
    "models": [{"name": "tiny", "digest": "sha256:" + "ab" * 32, "decode_tokens_per_s": 12.5}],
    "version": "0.1.0", "pid": 7, "uptime_s": 11_520,
}  # fmt: skip


def test_status() -> None:
    assert screens.describe_status(STATUS) == (
        "node     12D3KooWnode\n"
        "state    idle\n"
        "pool     testnet at 127.0.0.1:7700, attached\n"
        "machine  a machine\n"
        "slots    3 of 4 free, 9 jobs taken\n"
        "clock    -3 ms from the coordinator's\n"
        "process  7, novamesh 0.1.0, up 3 h 12 m\n"
        "model    tiny abababababab, 12.5 tokens/s alone"
    )


def test_status_of_several_devices() -> None:
    ids = ("GPU-1a2b3c4d-0000-1111-2222-333344445555", "GPU-9f8e7d6c-0000-1111-2222-333344445555")
    first, second = (
        {"id": id_, "hardware": "a card", "slots": 4, "running": 1, "fault": ""} for id_ in ids
    )
    second |= {"slots": 0, "running": 0, "fault": "it failed"}
    shown = screens.describe_status(STATUS | {"devices": [first, second]}).splitlines()
    assert [line for line in shown if line.startswith("device")] == [
        "device   GPU-1a2b3c4d a card, 1 of 4 at work",
        "device   GPU-9f8e7d6c a card, it failed",
    ]


def test_status_of_a_node_in_trouble() -> None:
    away = STATUS | {"attached": False, "trouble": "cannot reach \x1b[31mit", "phase": "paused",
                     "reason": "the owner paused this node"}  # fmt: skip
    text = screens.describe_status(away)
    assert "not attached: cannot reach" in text
    assert "state    paused: the owner paused this node" in text
    assert "\x1b" not in text
    assert "clock    not measured yet\n" in screens.describe_status(
        away | {"clock_offset_ms": None}
    )
    assert "dialling" in screens.describe_status(away | {"trouble": ""})
    assert "it, next try in 3 s" in screens.describe_status(away | {"next_try_s": 3})


def test_why() -> None:
    reply = {"accepting": True, "reason": "", "considered": 3, "chosen": 1,
             "reasons": [{"reason": "slower than others", "count": 2}]}  # fmt: skip
    assert screens.explain_idle(reply) == (
        "3 requests looked at this node, 1 chose it\n     2 times  slower than others"
    )
    nobody = {"accepting": True, "reason": "", "considered": 0, "chosen": 0, "reasons": []}
    assert "nobody has asked" in screens.explain_idle(nobody)
    shut = nobody | {"accepting": False, "reason": "the owner paused this node"}
    assert screens.explain_idle(shut) == "this node takes no work: the owner paused this node"


def test_models(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    entries = (
        Entry("tiny", tmp_path / "tiny", True, profile),
        Entry("bad", tmp_path / "bad", False, None, "is damaged"),
    )
    header, good, bad = screens.list_entries(entries).splitlines()
    assert header.split() == [
        "NAME", "DIGEST", "FAMILY", "SIZE", "PARAMETERS", "CONTEXT", "QUANT", "WHERE",
    ]  # fmt: skip
    assert good.split()[:2] == ["tiny", profile.digest_short]
    assert good.endswith("built in")
    assert bad.endswith("is damaged")
    assert screens.entry_fields(entries[0])["digest"] == profile.digest_text
    assert screens.entry_fields(entries[1])["fault"] == "is damaged"
    shown = screens.show_profile(profile)
    assert profile.digest_text in shown
    assert "model.safetensors" in shown


def test_amounts() -> None:
    assert [screens.amount(n) for n in (12, 1_700, 1_700_000, 7 * 10**9)] == [
        "12", "1.7k", "1.7M", "7.0B",
    ]  # fmt: skip
    assert [screens.volume(n) for n in (1_700, 1_700_000, 7 * 10**9)] == [
        "1.7 kB", "1.7 MB", "7.0 GB",
    ]  # fmt: skip
