"""Figures: what Prometheus reads, and nobody's name in it."""

from __future__ import annotations

from novamesh_coordinator.metrics import Metrics
from support.table import Table


def test_the_page_counts_what_the_core_holds() -> None:
    table, metrics = Table(), Metrics()
    client, node = table.client(), table.node(slots=3)
    order = table.order(client, node)
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk(2))
    metrics.observe_call("Submit", "ok", 0.003)
    metrics.count_refusal("stale")
    page = metrics.collect(table.core, healthy=True, tasks=7).decode()
    for line in (
        "novamesh_members 2.0",
        "novamesh_nodes_attached 1.0",
        "novamesh_slots 3.0",
        "novamesh_slots_free 2.0",
        "novamesh_jobs_live 1.0",
        "novamesh_relay_chunks 1.0",
        "novamesh_storage_healthy 1.0",
        "novamesh_tasks 7.0",
        'novamesh_stream_refusals_total{code="stale"} 1.0',
        'novamesh_call_seconds_count{code="ok",method="Submit"} 1.0',
    ):
        assert line in page.splitlines()
    table.send(attempt, attempt.chunk(1, final=True))
    table.attest(attempt)
    page = metrics.collect(table.core, healthy=False, tasks=7).decode()
    assert "novamesh_completion_tokens_settled 3.0" in page
    assert "novamesh_storage_healthy 0.0" in page
    assert order.id.hex()[:12] not in page


def test_two_coordinators_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.count_refusal("stale")
    assert b"stale" not in two.collect(Table().core, healthy=True, tasks=7)
