"""What a listening socket does not hear: packets from given addresses, dropped by the kernel.

A classic BPF program (McCanne and Jacobson, 1993; Linux's socket filters, socket(7)) needs no
privilege and no firewall. On a socket that listens it sees who wants to connect, before there is a
connection, so whoever is kept out costs this process nothing. Connections that are made inherit it,
and never meet it: it names only others. Where a system has no such filters, nothing is attached.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable
from typing import Final

INSTRUCTIONS_MAX: Final = 4_096  # BPF_MAXINSNS
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


def deaf_to(places: Iterable[str]) -> tuple[list[Instruction], frozenset[str]]:
    """A program that drops what comes from places, and those of them that it has room for.

    A place is an IPv4 address or a network of IPv6 of 64 bits; others are left out.
    """
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
    return [*begin, *v4, _KEEP, *v6, _KEEP], frozenset(named)


def attach(listener: socket.socket, places: Iterable[str]) -> frozenset[str]:
    """Make a listening socket deaf to places, and to no others; those of which it is.

    Raises:
        OSError: the system refuses.
    """
    if not sys.platform.startswith("linux"):
        return frozenset()
    program, named = deaf_to(places)
    if not named:
        with contextlib.suppress(FileNotFoundError):  # it hears everybody already
            listener.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        return named
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    kept = ctypes.create_string_buffer(packed, len(packed))
    header = _Program(len(program), ctypes.addressof(kept))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(header))
    return named
