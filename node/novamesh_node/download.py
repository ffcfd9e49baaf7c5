"""A repository's files to a folder: each goes on where it was cut off, and counts when it is whole.

A file grows under a name of its own and gets its last name when its size and digest are what the
Hub said and it is on the disk; what is there under that name is never asked for again. (The
library's own downloads begin anew after an interruption since its version 2.) Rules: a connection
that drops is taken up again, with pauses, until several tries in a row have brought nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status

from novamesh_engine.files import corrupt, parse_object
from novamesh_engine.quant.shards import sync_folder
from novamesh_engine.weights.store import HEADER_BYTES_MAX, TensorFile
from novamesh_node import hub
from novamesh_node.hub import HubFile, Listing
from novamesh_proto.errors import Code, NovaMeshError

TRIES: Final = 5  # in a row that bring nothing
PAUSE_S_MAX: Final = 60.0
CHUNK_BYTES: Final = 1 << 20
_PARTIAL: Final = 206


class Audience(Protocol):
    """Who is told how a download goes."""

    def receive(self, name: str, position: int, size: int) -> None:
        """Of a file of `size` bytes, so many are here."""
        ...

    def note(self, text: str) -> None:
        """Something that a person may want to know."""
        ...


class Downloads:
    """The files of one listing, on their way into one folder."""

    def __init__(
        self,
        listing: Listing,
        folder: Path,
        audience: Audience,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.listing = listing
        self.folder = folder
        self._audience = audience
        self._sleep = sleep

    def path(self, name: str) -> Path | None:
        """Where a file is, whole: in our folder, or in Hugging Face's cache."""
        file = self.listing.files[name]
        path = self.folder / name
        if path.is_file() and path.stat().st_size == file.size:
            return path
        return hub.find_cached(self.listing, file)

    def missing_bytes(self, name: str) -> int:
        """What is still to be downloaded of a file."""
        if self.path(name) is not None:
            return 0
        return self.listing.files[name].size - self._position(self._draft(name))

    def fetch(self, name: str) -> Path:
        """A file, whole; it is downloaded if it is not here.

        Raises:
            NovaMeshError: CORRUPT if what arrives is not what the Hub named, and as
                `hub.list_repository`.
            OSError: it cannot be written.
        """
        there = self.path(name)
        if there is not None:
            return there
        file, draft = self.listing.files[name], self._draft(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with draft.open("ab") as target:
            self._persist(lambda: self._receive(file, target), target.tell)
            target.flush()
            os.fsync(target.fileno())
        if not _is_whole(draft, file):
            draft.unlink()
            what = f"{name} of {self.listing.label} did not arrive as the Hub names it"
            raise NovaMeshError(Code.CORRUPT, what, "pull again: it is downloaded anew")
        draft.replace(self.folder / name)
        sync_folder(self.folder)
        return self.folder / name

    def tensor_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The tensors of a safetensors file, from its first bytes if it is not here.

        Raises:
            NovaMeshError: as `fetch`.
        """
        there = self.path(name)
        if there is not None:
            return {key: entry.shape for key, entry in TensorFile.map(there).entries.items()}
        place = Path(name)
        length = int.from_bytes(self._receive_span(name, 0, 8), "little")
        if not 2 <= length <= HEADER_BYTES_MAX:
            raise corrupt(place, "its header is damaged or cut off")
        header = parse_object(self._receive_span(name, 8, 8 + length), place)
        header.pop("__metadata__", None)
        return {key: _read_shape(place, entry) for key, entry in header.items()}

    def has_weights(self) -> bool:
        """Whether our folder holds anything that took long to come."""
        return any(any(self.folder.glob(f"*.safetensors{end}")) for end in ("", ".part"))

    def remove(self, name: str) -> None:
        """Give the space of a file back; one in Hugging Face's cache is not ours."""
        (self.folder / name).unlink(missing_ok=True)

    def _draft(self, name: str) -> Path:
        return self.folder / f"{name}.part"

    def _position(self, draft: Path) -> int:
        try:
            return draft.stat().st_size
        except FileNotFoundError:
            return 0

    def _persist(self, action: Callable[[], None], progress: Callable[[], int]) -> None:
        """Do it until it is done: what passes is waited for, what does not is raised."""
        vain = 0
        while True:
            before = progress()
            try:
                return action()
            except (HfHubHTTPError, hub.TransportError, OfflineModeIsEnabled) as error:
                vain = 0 if progress() > before else vain + 1
                refused = hub.translate(error, self.listing.repository, self.listing.endpoint)
                pause = hub.retry_after(error) or min(2.0**vain, 16.0)
                if vain >= TRIES or not _passes(error) or pause > PAUSE_S_MAX:
                    raise refused from error
                self._audience.note(f"{refused.message}; trying again in {pause:.0f} s")
                self._sleep(pause)

    def _receive(self, file: HubFile, target: BinaryIO) -> None:
        """Append what is missing of a file."""
        if target.tell() > file.size:
            target.truncate(0)
        start = target.seek(0, os.SEEK_END)
        if start == file.size:
            return
        wanted = {"Range": f"bytes={start}-"} if start else {}
        with self._stream(file.name, wanted) as response:
            hf_raise_for_status(response)
            if not _continues(response, start):
                target.truncate(0)
                start = target.seek(0)
            self._audience.receive(file.name, start, file.size)
            for chunk in response.iter_bytes():  # as it comes: nothing is lost if no more comes
                start += len(chunk)
                if start > file.size:
                    what = f"{file.name} of {self.listing.label} is longer than the Hub says"
                    raise NovaMeshError(Code.CORRUPT, what, "pull again")
                target.write(chunk)
                self._audience.receive(file.name, start, file.size)
        if start < file.size:
            raise hub.TransportError("the connection ended early")

    def _receive_span(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file, by one request."""
        received = b""

        def receive() -> None:
            nonlocal received
            received = b""
            wanted = {"Range": f"bytes={start}-{stop - 1}"}
            with self._stream(name, wanted) as response:
                hf_raise_for_status(response)
                skipped = 0 if response.status_code == _PARTIAL else start
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) >= skipped + stop - start:
                        break
            received = received[skipped : skipped + stop - start]
            if len(received) < stop - start:
                raise hub.TransportError("the connection ended early")

        self._persist(receive, lambda: 0)
        return received

    def _stream(self, name: str, wanted: dict[str, str]) -> Any:
        return get_session().stream(
            "GET", self.listing.url(name), headers=hub.headers() | wanted, timeout=hub.TIMEOUT_S
        )


def _passes(error: Exception) -> bool:
    """Whether trying again can help."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in hub.RETRIED
    return not isinstance(error, OfflineModeIsEnabled)


def _continues(response: Any, start: int) -> bool:
    """Whether a body begins at `start`, as it was asked for; some servers send all of it."""
    spoken = str(response.headers.get("Content-Range", f"bytes {start}-"))
    return bool(response.status_code == _PARTIAL and spoken.startswith(f"bytes {start}-"))


def _is_whole(path: Path, file: HubFile) -> bool:
    """Whether a file is what the Hub said: by SHA-256, or by git's digest of a small file."""
    if path.stat().st_size != file.size:
        return False
    with path.open("rb") as source:
        if file.sha256:
            return hashlib.file_digest(source, "sha256").hexdigest() == file.sha256
        if file.blob_id:
            # git's, not ours: it guards against accidents, and the connection against people.
            hashed = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
            while chunk := source.read(CHUNK_BYTES):
                hashed.update(chunk)
            return hashed.hexdigest() == file.blob_id
    return True


def _read_shape(place: Path, entry: Any) -> tuple[int, ...]:
    """What a header says before its file is here; all of it is checked when it is."""
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise corrupt(place, "its header is damaged")
    return tuple(shape)
