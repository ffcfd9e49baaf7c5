"""Which way a job takes best: from the node itself, through a tunnel, or through the coordinator.

Pure. The relayed way always is there while the coordinator is; another one must be reachable, which
a probe tells, and must not be a detour. Addresses are tried in the order in which they are likely
to lead somewhere soon.
"""

from __future__ import annotations

from typing import Final

from novamesh_proto.messages import JobPath, NodeDescriptor

DETOUR: Final = 2.0  # a relay's way is twice as long as that to the coordinator, about
SLACK_S: Final = 0.02
_MULTIADDRESS: Final = "/"


def direct_endpoints(descriptor: NodeDescriptor) -> tuple[str, ...]:
    """host:port at which a node says it listens, in its own order."""
    return tuple(one for one in descriptor.endpoints if not one.startswith(_MULTIADDRESS))


def tunnel_addresses(descriptor: NodeDescriptor) -> tuple[str, ...]:
    """libp2p multiaddrs at which a node says it is found."""
    return tuple(one for one in descriptor.endpoints if one.startswith(_MULTIADDRESS))


def is_better(path: JobPath, rtt_s: float, relay_rtt_s: float | None) -> bool:
    """Whether a probed path is taken rather than the relayed one.

    Args:
        path: The way that was probed.
        rtt_s: Its round trip, seconds.
        relay_rtt_s: Round trip to the coordinator, seconds; None where it does not answer.
    """
    if relay_rtt_s is None:
        return True
    if path is JobPath.TUNNEL:  # it shares a thread and a stream with gossip: only if it is nearer
        return rtt_s + SLACK_S < relay_rtt_s
    return rtt_s <= relay_rtt_s * DETOUR + SLACK_S
