"""Small internets of network namespaces: public hosts, homes behind NAT, links to cut.

    with Internet() as net:
        pool = net.add_host("pool")                   # on the public net
        home = net.add_home("ada", idle_s=15)         # a router with NAT, and home.host behind it
        subprocess.run([*home.host.prefix, "ping", "-c1", pool.address])
        net.cut(home, outbound=False)                 # it is heard and hears nothing
    net.move(home)                                # and wakes up in another network

Rules: everything is made by the test and gone afterwards, also what an earlier run left that was
killed; nothing outside the namespaces is changed or reached. Needs root, and a kernel with veth,
bridges and NAT: `missing()` says what is not there; iproute2 and nftables are fetched. A router
lets in what belongs to a connection that began inside, forgets one that was idle for `idle_s`, and
takes no packet from the middle of one that it does not know, as routers at home do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

from support.debian_packages import tool

T = TypeVar("T")

NETNS: Final = Path("/run/netns")
PREFIX: Final = "nmbed"  # of every namespace made here
PUBLIC_NET: Final = "198.51.100"  # TEST-NET-2: nobody's
_CLONE_NEWNET: Final = 0x40000000
# States of a connection in which a router keeps it for idle_s, as `nf_conntrack_tcp_timeout_…`.
_TCP_STATES: Final = ("established", "close_wait", "fin_wait", "last_ack", "unacknowledged")
_NAT: Final = """
table ip bed {{
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
    oifname "public" masquerade
  }}
  chain passing {{
    type filter hook forward priority 0; policy drop;
    ct state invalid drop
    ct state established,related accept
    iifname "private" accept
  }}
  chain entering {{
    type filter hook input priority 0; policy accept;
    iifname "public" ct state new,invalid drop
  }}
}}
"""
# Laid in front of the router's own rules, or of a public host's; a packet is seen where it enters.
_CUT: Final = """
table ip cut {{
  chain wire {{
    type filter hook {hook} priority -300; policy accept;
    {rules}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace and its address on the link named `link`."""

    name: str
    namespace: str
    address: str
    gateway: str = ""
    link: str = "eth0"

    @property
    def prefix(self) -> list[str]:
        """What stands in front of a command that runs there; the process keeps its id."""
        return ["nsenter", f"--net={NETNS / self.namespace}"]

    def ip(self, *arguments: str) -> None:
        """`ip …` there."""
        _ip("-n", self.namespace, *arguments)

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a short command there; what it prints."""
        return _run([*self.prefix, *command], text)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function in a thread that is there: sockets it makes stay there."""
        results: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                _enter(self.namespace)
                results.append(function())
            except BaseException as error:  # raised again below, in the caller's thread
                errors.append(error)

        thread = threading.Thread(target=work, name=f"in-{self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


@dataclass(frozen=True, slots=True)
class Home:
    """A router with its public address, and a host behind it."""

    router: Host
    host: Host

    def connections(self) -> list[str]:
        """What the router knows now, a line each, as the kernel tells it."""
        table = self.router.run("cat", "/proc/net/nf_conntrack")
        return [line for line in table.splitlines() if f"src={self.host.address}" in line]


@dataclass
class Internet:
    """Use as `with Internet() as net`."""

    places: dict[str, Host | Home] = field(default_factory=dict)
    _namespaces: list[str] = field(default_factory=list)
    _addresses: Iterator[int] = field(default_factory=lambda: iter(range(10, 250)))
    _subnets: Iterator[int] = field(default_factory=lambda: iter(range(1, 250)))

    def __enter__(self) -> Internet:
        _sweep()
        try:
            self._hub = self._make("net")
            _ip("-n", self._hub, "link", "add", "hub", "type", "bridge")
            _ip("-n", self._hub, "link", "set", "hub", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def add_host(self, name: str) -> Host:
        """A host with a public address."""
        host = Host(name, self._make(name), f"{PUBLIC_NET}.{next(self._addresses)}", link="public")
        self._plug(host)
        self.places[name] = host
        return host

    def add_home(self, name: str, idle_s: int = 15) -> Home:
        """A home behind NAT that forgets what is idle for `idle_s` seconds."""
        outside = f"{PUBLIC_NET}.{next(self._addresses)}"
        router = Host(f"{name}-router", self._make(f"{name}-r"), outside, link="public")
        net = f"192.168.{next(self._subnets)}"
        host = Host(name, self._make(name), f"{net}.10", gateway=f"{net}.1")
        self._plug(router)
        _ip("link", "add", host.link, "netns", host.namespace,
            "type", "veth", "peer", "name", "private", "netns", router.namespace)  # fmt: skip
        router.ip("address", "add", f"{host.gateway}/24", "dev", "private")
        router.ip("link", "set", "private", "up")
        _address(host)
        _set(router, "net.ipv4.ip_forward", 1)
        _set(router, "net.netfilter.nf_conntrack_tcp_loose", 0)
        for state in _TCP_STATES:
            _set(router, f"net.netfilter.nf_conntrack_tcp_timeout_{state}", idle_s)
        for kind in ("udp_timeout", "udp_timeout_stream"):
            _set(router, f"net.netfilter.nf_conntrack_{kind}", idle_s)
        _nft(router, _NAT.format())
        home = Home(router, host)
        self.places[name] = home
        return home

    def cut(
        self,
        place: Host | Home,
        *,
        inbound: bool = True,
        outbound: bool = True,
        peer: Host | None = None,
    ) -> None:
        """Drop what goes to a place, what comes from it, or both, until `mend`; nobody is told.

        `peer`: only what it exchanges with that host; None: everything.
        """
        self.mend(place)
        of, to = "drop", "drop"
        if peer is not None:
            of, to = f"ip saddr {peer.address} drop", f"ip daddr {peer.address} drop"
        if isinstance(place, Home):
            wanted = {f'iifname "public" {of}': inbound, f'iifname "private" {to}': outbound}
            _nft(place.router, _CUT.format(hook="prerouting", rules=_join(wanted)))
            return
        if inbound:
            _nft(place, _CUT.format(hook="prerouting", rules=f'iifname "public" {of}'))
        if outbound:
            rules = _CUT.format(hook="output", rules=f'oifname "public" {to}')
            _nft(place, rules.replace("chain wire", "chain wire_out"))

    def mend(self, place: Host | Home) -> None:
        """Let everything through again."""
        wire = place.router if isinstance(place, Home) else place
        _nft(wire, "table ip cut\ndelete table ip cut\n")

    def move(self, place: Host) -> Host:
        """Give a public host another address: it came back from sleep in another network."""
        moved = replace(place, address=f"{PUBLIC_NET}.{next(self._addresses)}")
        place.ip("address", "flush", "dev", place.link)
        _address(moved)
        self.places[place.name] = moved
        return moved

    def delay(self, place: Host | Home, ms: int) -> bool:
        """Let everything that leaves a place take so long; False where the kernel cannot."""
        wire = place.router if isinstance(place, Home) else place
        tc = tool("tc", "iproute2")
        command = [*wire.prefix, str(tc.path), "qdisc", "replace", "dev", "public", "root"]
        done = subprocess.run(
            [*command, "netem", "delay", f"{ms}ms"],
            capture_output=True,
            check=False,
            env=tc.environment(),
        )
        return done.returncode == 0

    def _make(self, name: str) -> str:
        namespace = f"{PREFIX}-{os.getpid()}-{name}"
        _ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        _ip("-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _plug(self, host: Host) -> None:
        """Connect a namespace to the public net."""
        port = f"p{host.address.rpartition('.')[2]}"
        _ip("link", "add", host.link, "netns", host.namespace,
            "type", "veth", "peer", "name", port, "netns", self._hub)  # fmt: skip
        _ip("-n", self._hub, "link", "set", port, "master", "hub", "up")
        _address(host)

    def _remove(self) -> None:
        for namespace in self._namespaces:
            _delete(namespace)
        self._namespaces.clear()


def missing() -> str:
    """What this machine lacks for an internet of namespaces; empty if nothing.

    Raises:
        ToolMissingError: iproute2 or nftables cannot be had.
    """
    if os.geteuid() != 0:
        return "root"
    try:
        _try()
    except (AssertionError, OSError) as error:
        return f"a kernel that can do this: {error}"
    return ""


@cache
def _try() -> None:
    """Make the smallest internet that uses every feature of the kernel that is needed."""
    with Internet() as net:
        host, home = net.add_host("there"), net.add_home("try")
        net.cut(home)
        net.mend(home)
        net.cut(host)


def _address(host: Host) -> None:
    host.ip("address", "add", f"{host.address}/24", "dev", host.link)
    host.ip("link", "set", host.link, "up")
    if host.gateway:
        host.ip("route", "replace", "default", "via", host.gateway)


def _join(wanted: dict[str, bool]) -> str:
    return "\n    ".join(rule for rule, on in wanted.items() if on)


def _sweep() -> None:
    """Remove what a run left behind whose process is gone."""
    for path in NETNS.glob(f"{PREFIX}-*"):
        owner = path.name.split("-")[1]
        if not Path(f"/proc/{owner}").exists():
            _delete(path.name)


def _delete(namespace: str) -> None:
    with contextlib.suppress(AssertionError):  # it is gone already
        _ip("netns", "delete", namespace)


def _set(host: Host, key: str, value: int) -> None:
    """A sysctl of one namespace."""
    path = "/proc/sys/" + key.replace(".", "/")
    host.call(lambda: Path(path).write_text(f"{value}\n"))


def _nft(host: Host, rules: str) -> None:
    nft = tool("nft", "nftables")
    _run([*host.prefix, str(nft.path), "-f", "-"], rules, nft.environment())


def _ip(*arguments: str) -> None:
    ip = tool("ip", "iproute2")
    _run([str(ip.path), *arguments], env=ip.environment())


def _run(command: list[str], text: str | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, timeout=30, env=env
    )
    if done.returncode:
        said = " ".join(done.stderr.split())[:400]
        raise AssertionError(f"{' '.join(command[:8])} exits {done.returncode}: {said}")
    return done.stdout


def _enter(namespace: str) -> None:
    """Put the calling thread into a namespace, for good."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (NETNS / namespace).open("rb") as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns failed")
