"""How the tokens of one step are divided between the prompts that are being read: arithmetic only.

Half of the tokens is split evenly, and what one does not need goes to the others: so each of n gets
at least max(1, budget // 2 // n) in every step, whoever else is there, and nobody starves. The
other half goes to whoever needs the fewest, the earlier first: it is soonest out of the way, and
the others lose little. So a short prompt is read within a few steps beside a long one, and equal
prompts end one after the other, not all of them late.
"""

from __future__ import annotations

from collections.abc import Sequence


def divide(wants: Sequence[int], budget: int) -> list[int]:
    """Parts of `budget` for wants in order of arrival; nobody gets more than it wants.

    Nothing is left over while somebody wants more. `budget` should be at least len(wants): then
    everybody gets something.
    """
    even = min(budget, max(budget // 2, len(wants)))
    order = sorted(range(len(wants)), key=wants.__getitem__)
    parts = _split(wants, order, even)
    left = budget - sum(parts)
    for index in order:
        more = min(wants[index] - parts[index], left)
        parts[index] += more
        left -= more
    return parts


def _split(wants: Sequence[int], order: list[int], budget: int) -> list[int]:
    """Even parts, the smallest want first, so that what it leaves is split among the rest."""
    parts = [0] * len(wants)
    for done, index in enumerate(order):
        parts[index] = min(wants[index], budget // (len(order) - done))
        budget -= parts[index]
    return parts
