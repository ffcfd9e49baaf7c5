"""From a client's seed to the noise that picks each token, the same on every device.

Sampling is a Gumbel-max over keyed noise: noise is a function of (key, absolute position, token
id) alone, so an answer can be interrupted, continued elsewhere, or replayed by an auditor.

    key      = SHA-256("novamesh/sampling/v1" || client_seed || model_profile)
    h        = BLAKE2b(key = key, size = 8 bytes, LE32(position) || LE32(token)), read little-endian
    u        = (h >> 11) * 2**-53 + 2**-54, at most 1 - 2**-53
    noise    = -ln(-ln(u))

Rules: the seed and the profile digest are 32 bytes each; nothing here is random and nothing is
kept. It does not choose tokens: that is the engine's sampler.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.names import LABEL_SAMPLING

SEED_BYTES: Final = 32
PROFILE_BYTES: Final = 32
NOISE_BYTES: Final = 8
POSITION_MAX: Final = (1 << 32) - 1

# The largest u rounds to 1.0 in float64, whose noise would be infinite and beat every logit.
_BELOW_ONE: Final = 1.0 - 2.0**-53


@dataclass(frozen=True, slots=True)
class SamplingKey:
    """The 32 secret bytes from which one request's noise comes; never printed."""

    data: bytes = field(repr=False)


def derive(client_seed: bytes, model_profile: bytes) -> SamplingKey:
    """Bind a client's 32-byte seed to the 32-byte digest of a model profile.

    Raises: NovaMeshError (bad_request) if either has another length.
    """
    for name, value, size in (
        ("sampling seed", client_seed, SEED_BYTES),
        ("model profile digest", model_profile, PROFILE_BYTES),
    ):
        if len(value) != size:
            message = f"the {name} has {len(value)} bytes, not {size}"
            raise NovaMeshError(Code.BAD_REQUEST, message, f"give exactly {size} bytes")
    return SamplingKey(hashlib.sha256(LABEL_SAMPLING + client_seed + model_profile).digest())


def gumbel(key: SamplingKey, position: int, token_ids: Sequence[int]) -> NDArray[np.float64]:
    """Noise of each candidate token at one absolute position (prompt tokens count), float64 [n].

    Raises: NovaMeshError (bad_request) if position or a token id is not in [0, 2**32).
    """
    keyed = hashlib.blake2b(_le32(position, "position"), key=key.data, digest_size=NOISE_BYTES)
    digests = bytearray()
    for token in token_ids:
        one = keyed.copy()
        one.update(_le32(token, "token id"))
        digests += one.digest()
    high = np.frombuffer(bytes(digests), dtype="<u8") >> np.uint64(11)
    uniform = np.minimum(high.astype(np.float64) * 2.0**-53 + 2.0**-54, _BELOW_ONE)
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise


def _le32(value: int, name: str) -> bytes:
    if not 0 <= value <= POSITION_MAX:
        message = f"{name} {value} is outside [0, 2**32)"
        raise NovaMeshError(Code.BAD_REQUEST, message, f"give a {name} of at most 32 bits")
    return int(value).to_bytes(4, "little")
