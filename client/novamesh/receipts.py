"""The receipts a client keeps: one file an answer, mode 0600, that verifies without anybody's help.

Rules: a file is named after its job, of several parts after the last one, and found by the id of
any of them, which are read from the file: no index can be lost. What it proves is decided by
`novamesh_proto.receipt` alone. Receipts are the client's own and are never removed by program.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh.private_file import write_private
from novamesh_proto import wire
from novamesh_proto.envelope import message_id
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import PARTS_MAX, RECEIPT_BYTES_MAX
from novamesh_proto.messages import JobAssignment, JobId, NodeId
from novamesh_proto.receipt import (
    Receipt,
    VerifiedReceipt,
    count_sections,
    decode_receipt,
    encode_receipt,
    verify_receipt,
)

SUFFIX: Final = ".receipt"
FILE_BYTES_MAX: Final = RECEIPT_BYTES_MAX * PARTS_MAX
_HEAD_BYTES: Final = 64
_ID_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class KeptReceipt:
    """A receipt file; `kept_at_ms` is when it was written, wall clock.

    `parts` is how many parts its answer has by its own word, 0 if that cannot be read; `donated`
    whether it says that its node was asked without a coordinator.
    """

    job: str
    path: Path
    kept_at_ms: int
    parts: int = 1
    donated: bool = False


class Receipts:
    """The receipts in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, job: JobId, receipt: Receipt) -> Path:
        """Write a receipt durably; its file. Raises STORAGE."""
        path = self._folder / f"{job.hex()}{SUFFIX}"
        write_private(path, encode_receipt(receipt))
        return path

    def list(self) -> tuple[KeptReceipt, ...]:
        """Every receipt kept, newest first."""
        files = self._folder.glob(f"*{SUFFIX}")
        kept = [
            KeptReceipt(f.stem, f, f.stat().st_mtime_ns // 1_000_000, _parts(f), _is_donated(f))
            for f in files
        ]
        return tuple(sorted(kept, key=lambda one: (-one.kept_at_ms, one.job)))

    def find(self, text: str) -> Path:
        """The receipt that a path, or the beginning of the id of one of its jobs, means.

        Raises:
            NovaMeshError: NOT_FOUND if there is none, CONFLICT if the beginning fits several.
        """
        path = Path(text)
        return path if path.exists() else self.find_job(text)

    def find_job(self, text: str) -> Path:
        """The receipt that the beginning of the id of one of its jobs means. Raises as `find`."""
        found = self._with(text.lower()) if text else ()
        if len(found) == 1:
            return found[0]
        if found:
            raise NovaMeshError(
                Code.CONFLICT, f"{len(found)} receipts begin with {text}", "write more of the id"
            )
        raise NovaMeshError(
            Code.NOT_FOUND, f"there is no receipt {text}", f"receipts are kept in {self._folder}"
        )

    def _with(self, beginning: str) -> tuple[Path, ...]:
        """The receipts one of whose jobs has an id that begins so."""
        files = sorted(self._folder.glob(f"*{SUFFIX}"))
        found = [path for path in files if path.stem.startswith(beginning)]
        if len(beginning) == _ID_CHARS and found:
            return tuple(found)
        several = [path for path in files if path not in found and _parts(path) > 1]
        found += [path for path in several if any(job.startswith(beginning) for job in _jobs(path))]
        return tuple(found)


def _parts(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return count_sections(file.read(_HEAD_BYTES))
    except OSError:
        return 0


def _jobs(path: Path) -> tuple[str, ...]:
    """The jobs of a receipt, by its own word; none if it cannot be read."""
    try:
        last = decode_receipt(read_receipt(path))
    except NovaMeshError:
        return ()
    terms = (part.terms for part in (*last.earlier, last))
    return tuple(message_id(sealed).hex() for sealed in terms if sealed is not None)


def _is_donated(path: Path) -> bool:
    try:
        given = decode_receipt(read_receipt(path)).assignment
        said = None if given is None else wire.decode(JobAssignment, given.payload)
    except NovaMeshError:
        return False
    return said is not None and said.header.issuer == said.node


def read_receipt(path: Path) -> bytes:
    """The bytes of a receipt file.

    Raises:
        NovaMeshError: NOT_FOUND if it cannot be read, TOO_LARGE.
    """
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        hint = "name a receipt file that you may read:  novamesh receipt ls"
        raise NovaMeshError(
            Code.NOT_FOUND, f"cannot read {path}: {error.strerror}", hint
        ) from error
    if len(data) > FILE_BYTES_MAX:
        raise NovaMeshError(
            Code.TOO_LARGE,
            f"{path} has more than {FILE_BYTES_MAX} bytes",
            "this is no receipt file:  novamesh receipt ls",
        )
    return data


def verify_file(
    path: Path, coordinator: NodeId | None = None, client: NodeId | None = None
) -> VerifiedReceipt:
    """What a receipt file proves; see `novamesh_proto.receipt.verify_receipt`.

    Raises:
        NovaMeshError: as reading and verifying do, naming the part that is wrong.
    """
    return verify_receipt(read_receipt(path), coordinator, client)
