"""What is mounted into Grafana's image, which has no package here that could read it.

Dashboards are read and written back by Grafana's own model of one, of the newest version that it
has been made for: what it does not know would be lost on the way. Provisioning and settings are
held against the names that Grafana 12.1 reads (pkg/services/provisioning, conf/defaults.ini).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from support.compose_file import ROOT, SERVICES

GRAFANA = ROOT / "deploy" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
PROVIDER = {
    "name": str, "type": str, "orgId": int, "folder": str, "folderUid": str, "options": dict,
    "disableDeletion": bool, "updateIntervalSeconds": int, "allowUiUpdates": bool,
}  # fmt: skip
SOURCE = {
    "name": str, "uid": str, "type": str, "access": str, "url": str, "orgId": int, "orgName": str,
    "version": int, "user": str, "database": str, "basicAuth": bool, "basicAuthUser": str,
    "withCredentials": bool, "isDefault": bool, "jsonData": dict, "secureJsonData": dict,
    "correlations": list, "editable": bool,
}  # fmt: skip
PROVISIONED = {
    "dashboards/pool.yml": {"providers": PROVIDER},
    "datasources/prometheus.yml": {"datasources": SOURCE, "deleteDatasources": {}},
}
SETTINGS = {
    "SECURITY_ADMIN_PASSWORD", "ANALYTICS_REPORTING_ENABLED", "ANALYTICS_CHECK_FOR_UPDATES",
    "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES", "PLUGINS_PREINSTALL_DISABLED", "LOG_MODE",
}  # fmt: skip


def lost(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """What a reader that knows less has left out or changed."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in after:
                yield from lost(value, after[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{place}[{number}]")
    elif before != after:
        yield f"{place} = {before!r}"


def through_grafana(board: dict[str, Any]) -> dict[str, Any]:
    """A dashboard as Grafana's model of one has it."""
    pytest.importorskip(
        "grafana_foundation_sdk", reason="grafana-foundation-sdk is of the test extra"
    )
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    return json.loads(JSONEncoder().encode(Dashboard.from_json(board)))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.name)
def test_grafana_knows_every_field_of_a_dashboard(path: Path) -> None:
    board = json.loads(path.read_text())
    assert list(lost(board, through_grafana(board))) == []


def test_it_would_be_seen() -> None:
    board = json.loads(DASHBOARDS[0].read_text())
    board["refersh"] = "30s"
    panel = board["panels"][0]
    panel["fieldConfig"]["defaults"]["units"] = "s"
    panel["targets"][0]["legendformat"] = "x"
    assert set(lost(board, through_grafana(board))) == {
        ".refersh", ".panels[0].fieldConfig.defaults.units", ".panels[0].targets[0].legendformat",
    }  # fmt: skip


def test_provisioning_says_only_what_grafana_reads() -> None:
    mounted = GRAFANA / "provisioning"
    files = {str(path.relative_to(mounted)) for path in mounted.rglob("*") if path.is_file()}
    assert files == set(PROVISIONED)
    for name, sections in PROVISIONED.items():
        text = (mounted / name).read_text()
        told = json.loads(json.dumps(YAML(typ="safe", pure=True).load(text)))
        assert told.pop("apiVersion") == 1
        assert told.keys() <= sections.keys()
        for section, entries in told.items():
            for key, value in ((key, each[key]) for each in entries for key in each):
                assert type(value) is sections[section][key], f"{name}: {key}"


def test_every_variable_is_a_setting_of_grafanas() -> None:
    """GF_SECTION_KEY, and with __FILE what the image's start script reads from a file."""
    for variable in SERVICES["grafana"]["environment"]:
        assert variable.removeprefix("GF_").removesuffix("__FILE") in SETTINGS, variable
