"""Which way a job takes best: from the node itself, through a tunnel, or through the coordinator.

Pure. The relayed way always is there while the coordinator is; another one must be reachable, which
a probe tells, and must not be a detour. A tunnel is opened where the coordinator is away or far.
Addresses are tried in the order in which they are likely to lead somewhere soon.
"""

from __future__ import annotations

from typing import Final

from novamesh_proto.messages import JobPath, NodeDescriptor

DETOUR: Final = 2.0  # a relay's way is twice as long as that to the coordinator, about
SLACK_S: Final = 0.02
# Round trip to the coordinator from which on a tunnel is worth opening, in seconds. To be taken it
# must be SLACK_S shorter; it costs 2 ms a call, 50 ms once (docs/mesh.md), and a stream of a node
# that has few: where the coordinator is on the same continent there is too little to win.
FAR_S: Final = 0.06
_MULTIADDRESS: Final = "/"


def direct_endpoints(descriptor: NodeDescriptor) -> tuple[str, ...]:
    """host:port at which a node says it listens, in its own order."""
    return tuple(one for one in descriptor.endpoints if not one.startswith(_MULTIADDRESS))


def tunnel_addresses(descriptor: NodeDescriptor) -> tuple[str, ...]:
    """libp2p multiaddrs at which a node says it is found."""
    return tuple(one for one in descriptor.endpoints if one.startswith(_MULTIADDRESS))


def is_far(relay_rtt_s: float | None) -> bool:
    """Whether the coordinator is so far that a node out of reach is asked through a tunnel.

    `relay_rtt_s`: round trip to it, seconds; None if it was not measured, which tells nothing.
    """
    return relay_rtt_s is not None and relay_rtt_s >= FAR_S


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
