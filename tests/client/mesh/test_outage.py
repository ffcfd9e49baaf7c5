"""Peers whose bootstrap is killed: they go on hearing each other, and one comes back by its file.

`benchmarks/mesh.py` measures the same with ten peers in processes of their own.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import trio

from support.mesh_peers import NETWORK, TESTS, Companion, mesh_config, trio_until

PEERS = 5


async def _outlive(folder: Path, child: subprocess.Popen[str], where: tuple[str, ...]) -> None:
    peers = [Companion(mesh_config(folder, where)) for _ in range(PEERS)]
    async with trio.open_nursery() as nursery:
        left, leave = peers[-1], trio.CancelScope()

        async def run_left(*, task_status: trio.TaskStatus[object]) -> None:
            with leave:
                await left.peer.run(task_status=task_status)

        for peer in peers[:-1]:
            await nursery.start(peer.peer.run)
        await nursery.start(run_left)
        for peer in peers:
            peer.say()
        await trio_until(lambda: all(a.knows(b) for a in peers for b in peers if a is not b))
        await trio_until(lambda: all(peer.peer.connections >= 3 for peer in peers))
        child.send_signal(signal.SIGKILL)
        for speaker in peers[:2]:
            speaker.say()
            await trio_until(lambda s=speaker: all(p.knows(s) for p in peers if p is not s))
        # One goes and comes back with nothing but its file.
        leave.cancel()
        left.peers.save()
        back = Companion(mesh_config(folder, key=left.config.key))
        assert len(back.peers) >= PEERS - 1
        await nursery.start(back.peer.run)
        rest = peers[:-1]
        back.sequence = left.sequence
        back.say()
        await trio_until(lambda: all(back.knows(p) and p.knows(back) for p in rest))
        nursery.cancel_scope.cancel()


def test_pool_outlives_its_bootstrap(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "support.mesh_peers", str(tmp_path), NETWORK]
    with subprocess.Popen(
        command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            where = tuple(child.stdout.readline().split()[1:])
            trio.run(_outlive, tmp_path, child, where)
        finally:
            child.kill()
