"""Every string that two sides must share, once: labels that separate keys, media types, metadata.

A label never changes its meaning; a new meaning gets a new label with a new version.
"""

from __future__ import annotations

import re
from typing import Final

LABEL_REQUEST: Final = b"novamesh/v1/request\0"  # HPKE info of a key wrap, then the job id
LABEL_BODY: Final = b"novamesh/v1/body\0"  # AAD of a sealed body
LABEL_BODY_KEY: Final = b"novamesh/v1/body-key\0"  # commitment to the body key
LABEL_SEED: Final = b"novamesh/v1/seed\0"  # commitment to the client's seed
LABEL_CHUNK_KEY: Final = b"novamesh/v1/chunk-key\0"  # HKDF info of an attempt's chunk key
LABEL_CHUNK: Final = b"novamesh/v1/chunk\0"  # AAD of a chunk and link of the chain
LABEL_CHAIN: Final = b"novamesh/v1/chain\0"  # first head of an attempt's chain
LABEL_SALT: Final = b"novamesh/v1/salt\0"  # HKDF info of a job's digest salt
LABEL_PROMPT: Final = b"novamesh/v1/prompt\0"  # digest of prompt token ids
LABEL_OUTPUT: Final = b"novamesh/v1/output\0"  # digest of completion token ids
LABEL_PREFIX: Final = b"novamesh/v1/prefix\0"  # digest of a forced prefix's token ids
LABEL_SAMPLING: Final = b"novamesh/sampling/v1"  # key of the sampling noise

TLS_SERVER_NAME: Final = "novamesh"  # the only name in our certificates; the PeerId is the pin
ERROR_METADATA: Final = "novamesh-error-bin"  # trailing metadata that carries an ErrorDetail

_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def payload_type(message_name: str) -> str:
    """Media type of a signed message: JobTerms → application/vnd.novamesh.job-terms.v1+protobuf."""
    kebab = _WORD_START.sub("-", message_name).lower()
    return f"application/vnd.novamesh.{kebab}.v1+protobuf"
