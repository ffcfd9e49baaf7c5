"""A pool of real processes, each party in a place of its own on a small internet."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType

from support.network_beds import Home, Host, Internet
from support.processes import RealPool

PORT = 7700


@dataclass
class SpreadPool(RealPool):
    """As a real pool; a party is at the place of its name, and at the pool's if it has none."""

    net: Internet = field(default_factory=Internet)
    _invite: str = ""

    def __enter__(self) -> SpreadPool:
        self.net.__enter__()
        try:
            self.address = f"{self.net.add_host('pool').address}:{PORT}"
            super().__enter__()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self.net.__exit__(kind, error, trace)

    def host(self, name: str) -> Host:
        """The place of a party that has a public address."""
        place = self.net.places[name]
        assert isinstance(place, Host)
        return place

    def add_home(self, name: str, idle_s: int = 15) -> Home:
        """A place behind NAT for the party of that name."""
        return self.net.add_home(name, idle_s)

    def invite(self) -> str:
        """One join code for everybody."""
        self._invite = self._invite or super().invite()
        return self._invite

    def command(self, home: str) -> list[str]:
        """The command line, there."""
        return [*self.prefix(home), *super().command(home)]

    def prefix(self, home: str) -> list[str]:
        """What stands in front of a command at a party's place."""
        place = self.net.places.get(home) or self.net.places["pool"]
        host = place.host if isinstance(place, Home) else place
        return host.prefix
