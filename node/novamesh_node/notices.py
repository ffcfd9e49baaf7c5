"""What the owner reads at the daemon's own terminal when the node's life takes a turn.

A pure function from two states to a headline and a line; times are this machine's. Rules: one line
for each turn that somebody asked for, from whichever side it came; jobs coming and going are no
turn. What the pool is told is the governor's sentence.
"""

from __future__ import annotations

from novamesh_node.governor import moment
from novamesh_node.lifecycle import State

Notice = tuple[str, str]


def notice(before: State, after: State, now_ms: int) -> Notice | None:
    """What to say about a step, if anything; `now_ms` is the wall clock."""
    if after.stopped:
        given_up = not before.stopped and after.running
        return ("stop", f"gives up {jobs(after.running)}") if given_up else None
    if after.draining and after.deadline_ms != before.deadline_ms:
        left_s = -(max(0, after.deadline_ms - now_ms) // -1000)  # rounded up
        return "stop", f"{jobs(after.running)} left, {left_s} s at most; again to stop at once"
    if after.draining and not before.draining:
        return "finish", f"{jobs(after.running)} left, then the node stops; Ctrl-C to stop sooner"
    if before.draining and not after.draining:
        return "resume", "takes work again"
    if after.paused and (before.paused, before.resumes_at_ms) != (True, after.resumes_at_ms):
        until = moment(after.resumes_at_ms, now_ms, None) if after.resumes_at_ms else "resumed"
        return "pause", f"no new work until {until}; go on:  novamesh node resume"
    if before.paused and not after.paused:
        return "resume", "takes work again"
    return None


def farewell(taken: int) -> Notice:
    """The last line of a node that was asked to stop; `taken`: jobs of this run."""
    return "end", f"the node has stopped; it took {jobs(taken)}"


def lost(device: str, fault: str, slots: int) -> Notice:
    """A device is out for the rest of this run; `slots` are those of the devices that are left."""
    left = "1 slot is" if slots == 1 else f"{slots} slots are"
    return "lost", f"{device} is out: {fault}; {left} left"


def jobs(count: int) -> str:
    """1 job, 2 jobs."""
    return "1 job" if count == 1 else f"{count} jobs"
