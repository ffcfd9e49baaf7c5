"""Flags of `coordinator init`, `serve` and `check` about where the log is.

Apart from the commands, because three of them take the same; what they mean is `config`'s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Final

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class DatabaseFlags:
    """Each None where it was not given."""

    database: Annotated[
        str | None, Parameter(help="URL of a PostgreSQL database, instead of a file in the folder.")
    ] = None
    database_password_file: Annotated[
        str | None, Parameter(help="File with the password of that database.")
    ] = None

    def flags(self) -> dict[str, object]:
        """As the configuration takes them."""
        return asdict(self)


USUAL: Final = DatabaseFlags()
