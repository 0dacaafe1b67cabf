"""Addresses: which spelling of a host counts, and which addresses all the internet can reach.

A host has one canonical spelling here, which is checked, connected to and named alike; whatever
else could be read as an address in some other way is refused. Of IPv6 only what is handed out
counts as public: mapped and translated IPv4 (NAT64, 6to4, Teredo) never does, so a machine that
has no other way to IPv4 cannot fetch from there.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from ..schemas.files import Unfetchable
from ..schemas.problems import ConfigError

# Registries of IANA (special-purpose addresses), checked by hand: `is_global` of the standard
# library knows them only since 3.11.10 or so, and calls multicast and site-local global.
NOT_PUBLIC_4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
        "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # a public number, yet inside Azure the machine's own wire server
    )
]  # fmt: skip
PUBLIC_6 = ipaddress.IPv6Network("2000::/3")  # all that is handed out; mapped, NAT64, site-local … lie outside
NOT_PUBLIC_6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo and ORCHID among them
        "2001:db8::/32", "2002::/16", "3fff::/20",  # examples, 6to4, examples
        "2620:4f:8000::/48",  # AS112, which answers for private addresses
    )
]  # fmt: skip
HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
ENDS_IN_A_NUMBER = re.compile(r"(?:^|\.)(?:0x[0-9a-f]*|[0-9]+)\.?$")  # so browsers tell addresses from names


def canonical_host(host: str) -> str:
    """The one spelling of `host` that is checked, connected to and named. Raises Unfetchable for riddles."""
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host if "%" not in host else "").compressed
        except ValueError:
            raise Unfetchable("its host is not a plain IPv6 address") from None
    if not host.isascii():
        import idna

        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError:
            raise Unfetchable("its host is not a name") from None
    if not HOST_NAME.fullmatch(host):
        raise Unfetchable("its host is not a name")
    if ENDS_IN_A_NUMBER.search(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise Unfetchable("its host is a number that is not written as an IP address") from None
    return host


def is_address(host: str) -> bool:
    """Whether a canonical host is an address and no name."""
    return ":" in host or bool(ENDS_IN_A_NUMBER.search(host))


def is_public(address: str) -> bool:
    """Whether all the internet reaches `address`, and not only this machine or its neighbours."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in network for network in NOT_PUBLIC_4)
    return found in PUBLIC_6 and not any(found in network for network in NOT_PUBLIC_6)


def addresses_of(host: str, port: int) -> list[str]:
    """What the system's resolver says, best first."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def host_and_port(entry: str) -> tuple[str, int | None]:
    """A host of the allow-list, taken apart. Raises ConfigError that shows a good one."""
    text = entry.strip().lower()
    try:
        bare = text.count(":") > 1 and not text.startswith("[")
        parts = urlsplit(f"//[{text}]" if bare else f"//{text}")
        if not parts.hostname or parts.netloc != parts.geturl()[2:]:
            raise ValueError
        return canonical_host(parts.hostname).rstrip("."), parts.port
    except (ValueError, Unfetchable):
        raise ConfigError(
            f"--allow-private-hosts {entry!r} is not a host; for example minio.internal, 10.0.0.5 or [fd00::1]:9000"
        ) from None
