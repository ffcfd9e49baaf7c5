"""The Hugging Face Hub: what a repository holds at one commit, and its refusals in our words.

Rules: one commit from the first question to the last byte; what a repository says is a stranger's
text, so only plain file names count, of the few kinds that a profile needs, and no file is ever
code. Tokens, cache and endpoint (HF_TOKEN, HF_HOME, HF_ENDPOINT) are huggingface_hub's business.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from novamesh_engine.files import corrupt, parse_object, read_bytes
from novamesh_engine.models.config import CONFIG_BYTES_MAX, CONFIG_FILE
from novamesh_engine.quant.convert import COMPANIONS
from novamesh_engine.tokenizer import TOKENIZER_BYTES_MAX
from novamesh_engine.weights.store import INDEX_BYTES_MAX, INDEX_FILE
from novamesh_proto.errors import Code, NovaMeshError

SINGLE_FILE: Final = "model.safetensors"
FILES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 1 << 42
TIMEOUT_S: Final = 30.0
RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})

# huggingface_hub 1 speaks through httpx, 2 through httpx2; its own error derives from whichever.
TransportError: Final = cast(type[Exception], HfHubHTTPError.__mro__[1])

_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SMALL: Final = {CONFIG_FILE: CONFIG_BYTES_MAX, INDEX_FILE: INDEX_BYTES_MAX} | dict.fromkeys(
    COMPANIONS, TOKENIZER_BYTES_MAX
)


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file: a plain name, its bytes, and its digest: sha256 in hex, else git's blob id."""

    name: str
    size: int
    sha256: str
    blob_id: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of one commit that a profile can be made of."""

    endpoint: str
    repository: str
    commit: str
    files: Mapping[str, HubFile]

    @property
    def small(self) -> tuple[HubFile, ...]:
        """Everything but weights."""
        return tuple(file for name, file in sorted(self.files.items()) if name in _SMALL)

    @property
    def label(self) -> str:
        """As people see it: org/name@1234567890ab."""
        return f"{self.repository}@{self.commit[:12]}"

    def url(self, name: str) -> str:
        """Where a file is."""
        return f"{self.endpoint}/{quote(self.repository)}/resolve/{self.commit}/{quote(name)}"


def list_repository(repository: str, revision: str | None) -> Listing:
    """What a repository holds at a revision, its newest commit if None.

    Raises:
        NovaMeshError: MODEL_NOT_FOUND, NOT_FOUND, FORBIDDEN, BUSY, UNAVAILABLE, BAD_REQUEST,
            CORRUPT for an answer that makes no sense.
    """
    endpoint = constants.ENDPOINT
    with translated(repository, endpoint):
        info = _api(endpoint).model_info(
            repository, revision=revision, files_metadata=True, timeout=TIMEOUT_S
        )
    commit = info.sha
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise _nonsense(endpoint, repository, "names no commit")
    siblings = info.siblings or []
    if len(siblings) > FILES_MAX:
        raise _nonsense(endpoint, repository, f"lists more than {FILES_MAX} files")
    files = {file.name: file for file in map(_read_sibling, siblings) if file is not None}
    if CONFIG_FILE not in files:
        raise NovaMeshError(
            Code.UNSUPPORTED, f"{repository} has no {CONFIG_FILE}: it is no model that we can read",
            "name the repository of the model itself, not of an adapter or a conversion",
        )  # fmt: skip
    return Listing(endpoint, repository, commit, files)


def read_index(listing: Listing, folder: Path) -> dict[str, str] | None:
    """Which tensor is in which file, as the index in `folder` says; None if all are in one file.

    Raises:
        NovaMeshError: UNSUPPORTED if there are no safetensors, CORRUPT.
    """
    if INDEX_FILE not in listing.files:
        if SINGLE_FILE in listing.files:
            return None
        raise NovaMeshError(
            Code.UNSUPPORTED, f"{listing.repository} has no {SINGLE_FILE} and no {INDEX_FILE}",
            "novamesh reads safetensors only: look for a repository that has them",
        )  # fmt: skip
    path = folder / INDEX_FILE
    where = parse_object(read_bytes(path, INDEX_BYTES_MAX), path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise corrupt(path, "has no readable weight_map")
    for name in where.values():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise corrupt(path, "names files that are no safetensors")
        if name not in listing.files:
            raise corrupt(path, f"names {name[:80]!r}, which the repository lacks")
    return where


def find_cached(listing: Listing, file: HubFile) -> Path | None:
    """The file in Hugging Face's own cache, if somebody has downloaded it there."""
    found = huggingface_hub.try_to_load_from_cache(
        listing.repository, file.name, revision=listing.commit
    )
    if not isinstance(found, str):
        return None
    path = Path(found)
    return path if path.is_file() and path.stat().st_size == file.size else None


def headers() -> dict[str, str]:
    """What a request of ours says about itself; the token goes in here, if there is one."""
    made: dict[str, Any] = build_hf_headers(
        library_name="novamesh", library_version=version("novamesh")
    )
    # Compressed on the way, a file could not go on from where it was cut off.
    return {**made, "Accept-Encoding": "identity"}


@contextlib.contextmanager
def translated(repository: str, endpoint: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors of ours."""
    try:
        yield
    except (HfHubHTTPError, TransportError, OfflineModeIsEnabled, EntryNotFoundError) as error:
        raise translate(error, repository, endpoint) from error
    except HFValidationError as error:
        raise NovaMeshError(
            Code.BAD_REQUEST, f"{repository[:120]!r} is not a model on the Hub",
            "write org/name, such as microsoft/Phi-mini-MoE-instruct",
        ) from error  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise _nonsense(endpoint, repository, "answers what is no answer of a Hub") from error


def translate(error: Exception, repository: str, endpoint: str) -> NovaMeshError:
    """The error of ours for one that huggingface_hub or its transport raised."""
    page = f"{endpoint}/{repository}"
    if isinstance(error, OfflineModeIsEnabled):
        return NovaMeshError(
            Code.UNAVAILABLE, "HF_HUB_OFFLINE is set, so nothing is downloaded",
            "unset it, or name the folder of a model that is here",
        )  # fmt: skip
    if isinstance(error, GatedRepoError):
        return NovaMeshError(
            Code.FORBIDDEN, f"{repository} is gated: its owner decides who may download it",
            f"ask for access at {page}, then set HF_TOKEN, or:  hf auth login",
        )  # fmt: skip
    if isinstance(error, RepositoryNotFoundError):
        return NovaMeshError(
            Code.MODEL_NOT_FOUND, f"there is no model {repository} at {endpoint}, or it is private",
            "look at how its name is written; for a private one set HF_TOKEN, or:  hf auth login",
        )  # fmt: skip
    if isinstance(error, RevisionNotFoundError):
        return NovaMeshError(
            Code.NOT_FOUND, f"{repository} has no such revision", f"see {page}/commits/main"
        )
    if isinstance(error, EntryNotFoundError):
        return NovaMeshError(
            Code.NOT_FOUND, f"{repository} lacks a file that it lists", "pull again"
        )
    if isinstance(error, HfHubHTTPError):
        return _refused(error, repository, endpoint)
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return NovaMeshError(
        Code.UNAVAILABLE, f"cannot reach {endpoint}: {reason}",
        "check the connection, then pull again: it goes on where it stopped",
    )  # fmt: skip


def retry_after(error: Exception) -> float:
    """Seconds that a server asks to wait; 0 if it does not say."""
    response = getattr(error, "response", None)
    text = response.headers.get("Retry-After", "") if response is not None else ""
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def _refused(error: HfHubHTTPError, repository: str, endpoint: str) -> NovaMeshError:
    """By HTTP status, where huggingface_hub has no error of its own."""
    status = error.response.status_code
    if status == 429:
        wait = retry_after(error)
        when = f"in {wait:.0f} s" if wait else "in a few minutes"
        return NovaMeshError(
            Code.BUSY, f"{endpoint} has had too many requests from here",
            f"pull again {when}: it goes on where it stopped; with HF_TOKEN set more is allowed",
            retry_after_ms=int(wait * 1000),
        )  # fmt: skip
    if status in (401, 403):
        return NovaMeshError(
            Code.FORBIDDEN, f"{endpoint} does not let this token read {repository}",
            "check HF_TOKEN, or log in anew:  hf auth login",
        )  # fmt: skip
    return NovaMeshError(
        Code.UNAVAILABLE, f"{endpoint} answers with HTTP status {status}",
        "pull again later: it goes on where it stopped",
    )  # fmt: skip


def _read_sibling(sibling: Any) -> HubFile | None:
    """A file of the listing that we would use, None for all others."""
    name, size = sibling.rfilename, sibling.size
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        return None
    if name not in _SMALL and not name.endswith(".safetensors"):
        return None
    if type(size) is not int or not 0 <= size <= _SMALL.get(name, FILE_BYTES_MAX):
        return None
    sha256 = str(sibling.lfs.sha256) if sibling.lfs is not None else ""
    return HubFile(name, size, sha256, str(sibling.blob_id or ""))


def _api(endpoint: str) -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(
        endpoint=endpoint, library_name="novamesh", library_version=version("novamesh")
    )


def _nonsense(endpoint: str, repository: str, what: str) -> NovaMeshError:
    return NovaMeshError(
        Code.CORRUPT, f"{repository} at {endpoint} {what}",
        "tell the repository's owner; if HF_ENDPOINT is set, check that a Hub answers there",
    )  # fmt: skip
