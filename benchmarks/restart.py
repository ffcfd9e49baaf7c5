"""How long a coordinator needs from the start of its process until it serves, with many jobs.

    PYTHONPATH=tests python benchmarks/restart.py [--jobs N] [--folder FOLDER] [--starts N] [--json]

Writes a log as production writes it, every envelope truly signed, through the production store:
each job admitted, assigned, accepted, settled and countersigned, all of it within half an hour, so
that the state still holds every job, which is the most that it ever holds; the last jobs are still
live. The writer dies with SIGKILL, its newest snapshot as far behind as it ever is. Then the
coordinator is started as an owner starts it, and the clock runs until it says that it is ready.
The first start finds what the kill left, later ones too: the folder is put back before each.
Exits 1 when the median is above the bar. With --folder the log is kept and used again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from novamesh_coordinator.events import JobAdmitted
from novamesh_coordinator.snapshotter import SNAPSHOT_EVERY, Snapshotter
from novamesh_coordinator.store import Entry, Store, open_store
from support.parties import COORDINATOR, NETWORK
from support.table import Table

BAR_S: Final = 5.0
LIVE: Final = 32
AGE_S: Final = 1_200  # of the oldest job; jobs are kept for half an hour after their end
RENEW_S: Final = 40  # how often a node signs a new descriptor
BATCH: Final = 500  # records in a transaction
CONFIG: Final = f'network = "{NETWORK}"\nlisten = "127.0.0.1:0"\nhttp = ""\nopen = true\n'


def write(home: Path, jobs: int) -> None:
    """A coordinator's home, as a process that was killed leaves it."""
    folder = home / "coordinator"
    folder.mkdir(parents=True)
    key = folder / "coordinator.key"
    key.touch(0o600)
    key.write_text(COORDINATOR.to_bytes().hex() + "\n")
    (folder / "config.toml").write_text(CONFIG)
    asyncio.run(_write_log(folder / "coordinator.db", jobs))


async def _write_log(path: Path, jobs: int) -> None:
    table = Table(open_pool=True)
    table.clock.set_wall(time.time_ns() // 1_000_000 - AGE_S * 1_000)
    client, node = table.client(), table.node(slots=LIVE)
    store = await open_store(path)
    await store.load()
    snapshotter = Snapshotter(store)
    for number in range(jobs):
        if number % max(1, jobs * RENEW_S // AGE_S) == 0:
            table.renew(node)
        order = table.order(client, node, key=f"job-{number}")
        attempt = table.assigned(node)
        if number < jobs - LIVE:
            table.answer(attempt, chunks=1, step_s=AGE_S / jobs)
            table.countersign(client.countersign(attempt, table.now_ms))
        body = (order.id, order.job.body)
        table.jobs.clear()
        table.effects.clear()
        if len(table.log) >= BATCH or number == jobs - 1:
            await _commit(store, table, body)
            if store.mark.seq - store.snapshot_seq >= SNAPSHOT_EVERY:
                await snapshotter.save(table.core)
    if store.mark.seq - store.snapshot_seq < SNAPSHOT_EVERY // 2:
        raise AssertionError("the newest snapshot is too young: choose another number of jobs")
    os.kill(os.getpid(), signal.SIGKILL)


async def _commit(store: Store, table: Table, newest: tuple[bytes, bytes]) -> None:
    """What was logged since the last time."""
    last = max(i for i, record in enumerate(table.log) if isinstance(record, JobAdmitted))
    await store.commit(
        [Entry((record,), newest if i == last else None) for i, record in enumerate(table.log)]
    )
    table.log.clear()


def start(folder: Path) -> tuple[float, float]:
    """Seconds from the start of the process to its ready line, and of CPU; it is killed then."""
    command = [str(Path(sys.executable).parent / "novamesh"), "coordinator", "serve"]
    began_s = time.monotonic()
    process = subprocess.Popen(
        [*command, "--home", str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        took_s = time.monotonic() - began_s
        if not line or not json.loads(line)["ready"]:
            raise AssertionError(f"the coordinator ended with {process.wait(10)}")
        before = _children_cpu_s()
    finally:
        process.kill()
        process.communicate()
    return took_s, _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def _folder(wanted: Path | None) -> Iterator[Path]:
    if wanted is not None:
        yield wanted
        return
    with tempfile.TemporaryDirectory(prefix="restart-") as made:
        yield Path(made)


def main() -> int:
    """Write, start, tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="kept, and used again if it is there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with _folder(options.folder) as root:
        written, used = root / f"written-{options.jobs}", root / "used"
        if not written.exists():
            writer = multiprocessing.get_context("spawn").Process(
                target=write, args=(written, options.jobs)
            )
            writer.start()
            writer.join()
            if writer.exitcode != -signal.SIGKILL:
                return 1
        starts = []
        for _ in range(options.starts):
            shutil.rmtree(used, ignore_errors=True)
            shutil.copytree(written, used)
            starts.append(start(used))
        size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    median_s = statistics.median(wall_s for wall_s, _ in starts)
    report = {
        "jobs": options.jobs,
        "megabytes": round(size / 1e6),
        "starts_s": [round(wall_s, 2) for wall_s, _ in starts],
        "cpu_s": [round(cpu_s, 2) for _, cpu_s in starts],
        "median_s": round(median_s, 2),
        "bar_s": BAR_S,
    }
    print(
        json.dumps(report) if options.json else "\n".join(f"{k:10} {v}" for k, v in report.items())
    )
    return int(median_s > BAR_S)


if __name__ == "__main__":
    sys.exit(main())
