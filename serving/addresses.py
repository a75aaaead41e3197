"""Which servers stand behind the name of a Triton: a headless Service has an address for each replica."""

from __future__ import annotations

import socket

from mvfoul.errors import UnavailableError


def addresses_of(target: str) -> list[str]:
    """Return `address:port` of every server behind `host:port`, or behind gRPC's own `ipv4:A:P,B:P`; blocks.

    Raises:
        UnavailableError: The name is not known.
    """
    scheme, _, listed = target.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return listed.split(",")
    host, _, port = target.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(f"--triton {target}: no address for {host} ({error}). Is it running?") from error
    by_family: dict[int, dict[str, None]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, {})[str(address[0])] = None
    # A host with addresses of both families is one server; the family with more addresses names them all.
    most = max(by_family.values(), key=len)
    if len(most) == 1:
        return [target]
    return [f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in most]
