"""What a listening socket does not hear: packets from given addresses, dropped by the kernel.

A classic BPF program (McCanne and Jacobson, 1993; Linux's socket filters, socket(7)) needs no
privilege and no firewall. On a socket that listens it sees who wants to connect, before there is a
connection, so whoever is kept out costs this process nothing. Connections that are made inherit it,
and nothing of theirs is dropped: it names only others. The kernel lends each socket little memory
(net.core.optmem_max) for it, so it is short. Where there are no such filters, none is attached.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

INSTRUCTIONS_MAX: Final = 2_048  # 16 KiB; the kernel would take twice as many
SO_ATTACH_FILTER: Final = 26
SO_DETACH_FILTER: Final = 27

Instruction = tuple[int, int, int, int]  # code, instructions to skip if true, if false, k

_LOAD_BYTE, _LOAD_WORD = 0x30, 0x20  # BPF_LD | BPF_ABS
_SHIFT_RIGHT, _JUMP, _JUMP_EQUAL, _RETURN = 0x74, 0x05, 0x15, 0x06
_HEADER: Final = 0xFFF00000  # SKF_NET_OFF: from here on k counts from the network header
_V4_SOURCE, _V6_SOURCE = _HEADER + 12, _HEADER + 8
_DROP: Final[Instruction] = (_RETURN, 0, 0, 0)
_KEEP: Final[Instruction] = (_RETURN, 0, 0, 0xFFFFFFFF)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class PacketFilter:
    """A program, and the places that it drops."""

    program: tuple[Instruction, ...]
    places: frozenset[str]

    def attach(self, listener: socket.socket) -> None:
        """Make a listening socket deaf to these places, and to no others.

        Raises:
            OSError: the system refuses, and the socket hears everybody.
        """
        # Taken off first: the kernel would need room for the old one and the new one at once.
        with contextlib.suppress(FileNotFoundError):  # there was none
            listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        if not self.places:
            return
        packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in self.program)
        kept = ctypes.create_string_buffer(packed, len(packed))
        header = _Program(len(self.program), ctypes.addressof(kept))
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(header))


def deaf_to(places: Iterable[str]) -> PacketFilter:
    """A filter of places, as many as it has room for.

    A place is an IPv4 address or a network of IPv6 of 64 bits; others are left out, and all where
    the system has no filters.
    """
    if not sys.platform.startswith("linux"):
        return PacketFilter((), frozenset())
    v4: list[Instruction] = [(_LOAD_WORD, 0, 0, _V4_SOURCE)]
    v6: list[Instruction] = []
    named = set()
    for place in places:
        if len(v4) + len(v6) > INSTRUCTIONS_MAX - 16:
            break
        try:
            network = ipaddress.ip_network(place)
        except ValueError:
            continue
        if isinstance(network, ipaddress.IPv4Network) and network.prefixlen == 32:
            v4 += [(_JUMP_EQUAL, 0, 1, int(network.network_address)), _DROP]
        elif network.version == 6 and network.prefixlen == 64:
            high, low = struct.unpack("!II", network.network_address.packed[:8])
            v6 += [
                (_LOAD_WORD, 0, 0, _V6_SOURCE),
                (_JUMP_EQUAL, 0, 3, high),
                (_LOAD_WORD, 0, 0, _V6_SOURCE + 4),
                (_JUMP_EQUAL, 0, 1, low),
                _DROP,
            ]
        else:
            continue
        named.add(place)
    begin: list[Instruction] = [
        (_LOAD_BYTE, 0, 0, _HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_JUMP_EQUAL, 1, 0, 4),  # the version; jumps on a condition are short
        (_JUMP, 0, 0, len(v4) + 1),
    ]
    return PacketFilter((*begin, *v4, _KEEP, *v6, _KEEP), frozenset(named))
