"""Figures of a running coordinator, for Prometheus. Counts and durations only, never a name of a
member, a prompt or an answer.

One registry a coordinator, so that two in one process do not mix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

if TYPE_CHECKING:
    from novamesh_coordinator.core import Core

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0)


class Metrics:
    """All figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # CPU, memory, file descriptors
        self._calls = Histogram(
            "novamesh_call_seconds",
            "Duration of calls by method and error code.",
            ("method", "code"),
            registry=self.registry,
            buckets=_BUCKETS_S,
        )
        self._rows: dict[tuple[str, str], Histogram] = {}  # one a method and code: few
        self._refused = Counter(
            "novamesh_stream_refusals",
            "Messages of node streams that were refused, by error code.",
            ("code",),
            registry=self.registry,
        )
        self._unfit = Counter(
            "novamesh_broker_refusals",
            "Messages of the MQTT broker that were refused, by error code.",
            ("code",),
            registry=self.registry,
        )
        self._gauges = {
            name: Gauge(f"novamesh_{name}", text, registry=self.registry)
            for name, text in _GAUGES.items()
        }

    def observe_call(self, method: str, code: str, seconds: float) -> None:
        """One call ended."""
        row = self._rows.get((method, code))
        if row is None:
            row = self._rows[method, code] = self._calls.labels(method, code)
        row.observe(seconds)

    def count_refusal(self, code: str) -> None:
        """A message on a node's stream was refused."""
        self._refused.labels(code).inc()

    def count_unfit(self, code: str) -> None:
        """A message that the broker passed on was refused."""
        self._unfit.labels(code).inc()

    def watch_broker(self, nodes: Callable[[], int], reached: Callable[[], bool]) -> None:
        """From now on tell how many nodes are known by the broker, and whether it is reached."""
        self._gauges["broker_nodes"].set_function(nodes)
        self._gauges["broker_reached"].set_function(reached)

    def collect(self, core: Core, healthy: bool, tasks: int) -> bytes:
        """The page that Prometheus reads, with the core's figures as they are now."""
        slots, free = core.registry.counts()
        values = {
            "members": len(core.membership),
            "nodes_attached": len(core.registry.sessions),
            "slots": slots,
            "slots_free": free,
            "reservations": len(core.registry.reservations),
            "jobs_live": core.jobs.live_count(),
            "jobs_kept": len(core.jobs),
            "jobs_settled": core.ledger.jobs_settled,
            "prompt_tokens_settled": core.ledger.prompt_tokens,
            "completion_tokens_settled": core.ledger.completion_tokens,
            "relay_bytes": core.relay.bytes,
            "relay_chunks": core.relay.chunks_relayed,
            "storage_healthy": int(healthy),
            "tasks": tasks,
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)


_GAUGES = {
    "members": "Members of the pool.",
    "nodes_attached": "Nodes whose stream is open.",
    "slots": "Slots of attached nodes.",
    "slots_free": "Of these, free now.",
    "reservations": "Slots held between a match and its submission.",
    "jobs_live": "Jobs that have not ended.",
    "jobs_kept": "Jobs in memory, ended ones included.",
    "jobs_settled": "Jobs attested and settled since the pool began.",
    "prompt_tokens_settled": "Prompt tokens settled since the pool began.",
    "completion_tokens_settled": "Completion tokens settled since the pool began.",
    "relay_bytes": "Sealed bytes in the relay's buffers.",
    "relay_chunks": "Sealed chunks relayed since the start.",
    "tasks": "Tasks of the event loop.",
    "broker_nodes": "Nodes whose descriptor came by the MQTT broker.",
    "broker_reached": "1 while the MQTT broker is reached.",
    "storage_healthy": "1 while the disk takes writes.",
}
