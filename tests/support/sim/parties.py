"""Everybody in the simulated world: the pool, its nodes, its clients, and what they stand on."""

from __future__ import annotations

from support.sim.client import Client, Wish
from support.sim.node import Node, Pace
from support.sim.pool import IDENTITY, Coordinator
from support.sim.world import ADDRESS, Party, World

__all__ = ["ADDRESS", "IDENTITY", "Client", "Coordinator", "Node", "Pace", "Party", "Wish", "World"]
