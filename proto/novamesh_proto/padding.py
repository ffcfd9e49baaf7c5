"""Hide lengths in buckets before anything is sealed: a 0x80 byte, then zeros to a multiple.

Rules: padding is always there, as short as it can be, and the only one that fits, so that two
plaintexts never pad to the same bytes and no byte of it can carry a message.
"""

from __future__ import annotations

from typing import Final

from novamesh_proto.errors import Code, NovaMeshError

TAG_BYTES: Final = 16  # of ChaCha20-Poly1305

_PAD: Final = b"\x80"


def pad(data: bytes, block: int, sealed_max: int) -> bytes:
    """Pad so that the sealed length, tag included, is a multiple of `block`.

    Raises:
        NovaMeshError: TOO_LARGE if it would be above `sealed_max`.
    """
    padded = data + _PAD
    padded += bytes(-(len(padded) + TAG_BYTES) % block)
    sealed = len(padded) + TAG_BYTES
    if sealed > sealed_max:
        raise NovaMeshError(
            Code.TOO_LARGE, f"sealed this has {sealed} bytes, at most {sealed_max} are taken"
        )
    return padded


def unpad(padded: bytes, block: int) -> bytes:
    """Undo `pad`, and refuse what it would never have made.

    Raises:
        NovaMeshError: BAD_REQUEST.
    """
    data, mark, zeros = padded.rpartition(_PAD)
    whole = (len(padded) + TAG_BYTES) % block == 0
    if not mark or any(zeros) or len(zeros) >= block or not whole:
        raise NovaMeshError(Code.BAD_REQUEST, "the padding is broken")
    return data
