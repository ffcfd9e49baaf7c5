"""A TCP proxy that is cut at a bad moment: while a COMMIT is answered, or without a word."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from types import TracebackType

PIECE = 65_536


class CuttingProxy:
    """Passes bytes on between whoever connects and a port on loopback."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._open: list[socket.socket] = []
        self._passing = threading.Event()
        self._passing.set()
        self._closed = False
        self._commit: bool | None = (
            None  # whether the next one still gets through; None: all is well
        )
        self.cuts = 0

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        self._passing.set()
        self._listening.close()
        for one in self._open:
            _hang_up(one)

    def cut_at_commit(self, *, arrives: bool) -> None:
        """The next COMMIT gets no answer: it arrives at the server and is carried out, or not."""
        self._commit = arrives

    def freeze(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self._passing.clear()

    def thaw(self) -> None:
        """What was held up goes on."""
        self._passing.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._target_port))
                self._open += [near, far]
                threading.Thread(target=self._pass_on, args=(near, far), daemon=True).start()

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed meanwhile
            while True:
                ready, _, _ = select.select([near, far], [], [])
                self._passing.wait()
                for one in ready:
                    piece = one.recv(PIECE)
                    if not piece:
                        return self._cut(near, far)
                    if one is near and self._commit is not None and b"COMMIT" in piece:
                        if self._commit:
                            far.sendall(piece)
                            far.recv(PIECE)  # it is done, and nobody will know
                        self._commit = None
                        self.cuts += 1
                        return self._cut(near, far)
                    (far if one is near else near).sendall(piece)
        return self._cut(near, far)

    def _cut(self, *ends: socket.socket) -> None:
        for end in ends:
            _hang_up(end)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
