"""From the group of errors that ends a task group to the one error that people should see.

Rule: an expected error is shown as itself; a bug keeps its whole group, so that nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

from novamesh_proto.errors import NovaMeshError


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first expected error of a group that has no other kind; else the group itself."""
    leaves = list(_leaves(group))
    if all(isinstance(leaf, NovaMeshError) for leaf in leaves):
        return leaves[0]
    return group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
