"""What the engine refuses, by kind. Messages never hold a prompt or an answer."""

from __future__ import annotations

from novamesh_proto.errors import Code, NovaMeshError


class RequestError(NovaMeshError):
    """A request that can never run: a parameter out of range, a prompt that is too long."""

    def __init__(self, message: str, hint: str, code: Code = Code.BAD_REQUEST) -> None:
        super().__init__(code, message, hint)


class QueueFullError(NovaMeshError):
    """As many requests wait as may wait; the same request is welcome later."""

    def __init__(self, waiting: int) -> None:
        message = f"the engine's queue is full: {waiting} requests wait"
        super().__init__(Code.BUSY, message, "submit again later", retry_after_ms=1000)


class MemoryShortError(NovaMeshError):
    """Memory ran out in the middle of a step, and this request was the newest of it."""

    def __init__(self) -> None:
        message = "this machine ran out of memory, and the newest request had to go"
        hint = "try again, or another node; a shorter prompt needs less"
        super().__init__(Code.BUSY, message, hint, retry_after_ms=1000)


class NoNumbersError(NovaMeshError):
    """The model's logits are not numbers, so that no token can be chosen."""

    def __init__(self) -> None:
        message = "the engine could not compute the next token"
        super().__init__(Code.INTERNAL, message, "verify the model's files, and try again")


class IntegrityError(NovaMeshError):
    """The engine's own books disagree: a bug of ours, found by check_integrity()."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.INTERNAL, message, "restart the engine and report this message")
