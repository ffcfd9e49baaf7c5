"""What commands print: plain text from values, without any I/O.

Rules: columns are aligned, lines end where they end, no colour is needed to read them; what others
wrote never reaches a terminal with control characters in it; the JSON forms have the same facts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from novamesh_engine.quant.profile import ModelProfile
from novamesh_node.devices import LABEL_CHARS
from novamesh_node.durations import format_duration
from novamesh_node.shelf import Entry
from novamesh_proto.errors import NovaMeshError


def describe_status(reply: Mapping[str, Any]) -> str:
    """`node status`."""
    waiting = "dialling" if reply["models"] else "models are loaded first"
    again = f", next try in {reply['next_try_s']} s" if reply["next_try_s"] else ""
    away = f"not attached: {reply['trouble'] or waiting}{again}"
    link = "attached" if reply["attached"] else away
    reason = f": {reply['reason']}" if reply["reason"] else ""
    up, offset_ms = format_duration(reply["uptime_s"]), reply["clock_offset_ms"]
    clock = "not measured yet" if offset_ms is None else f"{offset_ms} ms from the coordinator's"
    rows = [
        ("node", reply["node"]),
        ("state", reply["phase"] + reason),
        ("pool", f"{reply['pool']} at {reply['address']}, {link}"),
        *([("broker", reply["broker"])] if "broker" in reply else ()),
        ("machine", reply["hardware"]),
        ("slots", f"{reply['free_slots']} of {reply['slots']} free, {reply['taken']} jobs taken"),
        ("clock", clock),
        ("process", f"{reply['pid']}, novamesh {reply['version']}, up {up}"),
    ]
    devices = reply.get("devices", ())  # a node that was started before an update tells none
    for device in devices if len(devices) > 1 else ():
        name, work = device["id"][:LABEL_CHARS], f"{device['running']} of {device['slots']} at work"
        rows.append(("device", f"{name} {device['hardware']}, {device['fault'] or work}"))
    for model in reply["models"]:
        digest, speed = model["digest"].removeprefix("sha256:")[:12], model["decode_tokens_per_s"]
        rows.append(("model", f"{model['name']} {digest}, {speed:g} tokens/s alone"))
    return table(rows)


def explain_idle(reply: Mapping[str, Any]) -> str:
    """`node why`."""
    if not reply["accepting"]:
        return clean(f"this node takes no work: {reply['reason']}")
    lines = [f"{reply['considered']} requests looked at this node, {reply['chosen']} chose it"]
    lines += [f"{each['count']:>6} times  {each['reason']}" for each in reply["reasons"]]
    if not reply["considered"]:
        lines.append("nobody has asked this pool for its models since it attached")
    return "\n".join(map(clean, lines))


def list_entries(entries: Iterable[Entry]) -> str:
    """`models ls`."""
    rows = [("NAME", "DIGEST", "FAMILY", "SIZE", "PARAMETERS", "CONTEXT", "QUANT", "WHERE")]
    for entry in entries:
        profile = entry.profile
        if profile is None:
            rows.append((entry.name, "-", "-", "-", "-", "-", "-", entry.fault))
            continue
        counts = f"{amount(profile.active_parameters)} of {amount(profile.parameters)}"
        where = "built in" if entry.built_in else str(entry.path)
        rows.append((
            entry.name, profile.digest_short, profile.model_type, volume(profile.size), counts,
            str(profile.max_context), profile.quant, where,
        ))  # fmt: skip
    return table(rows)


def entry_fields(entry: Entry) -> dict[str, Any]:
    """`models ls --json`, one model."""
    if entry.profile is None:
        return {"name": entry.name, "path": str(entry.path), "fault": entry.fault}
    return profile_fields(entry.profile) | {"name": entry.name, "built_in": entry.built_in}


def show_profile(
    profile: ModelProfile, damaged: Container[str] = (), origin: str = "", user: str = ""
) -> str:
    """`models show`; `damaged` are names of files, `user` is who serves it now."""
    counts = f"{profile.parameters:,}, active per token {profile.active_parameters:,}"
    rows = [
        ("name", profile.name),
        ("digest", profile.digest_text),
        ("family", f"{profile.model_type}, {profile.quant}"),
        ("parameters", counts),
        ("context", f"{profile.max_context} tokens"),
        ("size", volume(profile.size)),
        ("folder", str(profile.path)),
    ]
    if origin:
        rows.append(("from", origin))
    rows.append(("used by", user or "no node of this machine"))
    rows += [
        ("damaged" if file.path in damaged else "file", f"{file.path}  {file.size:,} bytes")
        for file in profile.files
    ]
    return table(rows)


def verify_report(profile: ModelProfile, damage: Mapping[str, NovaMeshError]) -> str:
    """`models verify`: a line a file, and what is wrong with it."""
    rows = [
        ("damaged", file.path, damage[file.path].message)
        if file.path in damage
        else ("ok", file.path, "")
        for file in profile.files
    ]
    return table(rows)


def describe_origin(origin: Mapping[str, str]) -> str:
    """Where a model on the shelf came from, in a few words."""
    if "repository" in origin:
        return f"{origin['repository']}@{origin.get('commit', '')[:12]}"
    return origin.get("folder", "")


def profile_fields(profile: ModelProfile) -> dict[str, Any]:
    """`models show --json`."""
    files = [{"path": f.path, "bytes": f.size, "sha256": f.sha256} for f in profile.files]
    return {
        "name": profile.name,
        "digest": profile.digest_text,
        "model_type": profile.model_type,
        "quant": profile.quant,
        "parameters": profile.parameters,
        "active_parameters": profile.active_parameters,
        "max_context": profile.max_context,
        "bytes": profile.size,
        "path": str(profile.path),
        "files": files,
    }


def amount(count: int) -> str:
    """A count in its unit: 1.7M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def volume(size: int) -> str:
    """Bytes in the unit that people use for it: 4.3 GB, 1.2 MB, 1.7 kB."""
    if size >= 10**9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 10**6 else f"{size / 1e3:.1f} kB"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; the last one ends where it ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join(clean("  ".join(row).rstrip()) for row in cells)


def clean(text: str) -> str:
    """One line without what a terminal would obey: control, format and private characters."""
    return "".join("\ufffd" if unicodedata.category(char)[0] == "C" else char for char in text)
