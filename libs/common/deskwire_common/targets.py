"""Which addresses of others this program may call: an operator's rules, and how to dial by them.

A host and port that a tenant names (an adapter, a database to capture) is refused unless a rule allows it. The
name is resolved once, every address that it stands for is checked, and the addresses that were checked are what
is dialled. Dialling the name instead would ask its DNS server a second time, and that server may be the tenant's.

Rules are a list with commas, each `HOST:PORT`:

- `public:443`: every address of the public internet;
- `crm.example.org:443`, `*.example.org:443`: a name, or all names under it. It may stand for private and loopback
  addresses too, since the operator chose it, but not for link-local ones: there clouds keep their credentials;
- `10.1.0.0/16:443`, `127.0.0.1:443`, `[fd00::/8]:443`: addresses, whatever name stands for them.

PORT is a number, a range (`8000-8999`) or `*`. Without rules nothing is allowed.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve: TypeAlias = Callable[[str], Sequence[str]]
"""Host name → its addresses, best first. May block; raises OSError or UnicodeError."""

PUBLIC: Final = "public"
_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_MAX_NAME: Final = 253


def _networks(*texts: str) -> tuple[IpNetwork, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# The IANA registries of special-purpose addresses, written out: `is_global` differs between versions of Python.
# And Azure's own one for its machines, which is in none of them.
_NOT_PUBLIC: Final = _networks(
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "168.63.129.16/32", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)  # fmt: skip
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# Networks that no name may stand for.
_NEVER_BY_NAME: Final = _networks(
    "0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128", "fe80::/10", "fec0::/10", "ff00::/8",
    # Where AWS, Alibaba and Azure keep credentials besides.
    "fd00:ec2::/32", "100.100.100.200/32", "168.63.129.16/32",
)  # fmt: skip


class TargetRefused(Exception):
    """No rule allows the target, or its name can't be resolved. The message is for the operator, never for a tenant."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `network` for addresses, else `name` (lower case; a leading dot: all names under it)."""

    ports: range
    name: str = ""
    network: IpNetwork | None = None

    def allows(self, host: str, port: int, address: IpAddress) -> bool:
        """Whether `host` (lower case), which stands for `address`, may be called at `port`."""
        if port not in self.ports:
            return False
        if self.network is not None:
            return address.version == self.network.version and address in self.network
        if self.name == PUBLIC:
            return is_public(address)
        named = host == self.name or (self.name.startswith(".") and host.endswith(self.name))
        return named and not any(_within(each, _NEVER_BY_NAME) for each in _meant(address))


def parse_rules(text: str) -> tuple[Rule, ...]:
    """The rules of a setting. Raises ValueError that says what is wrong."""
    return tuple(_rule(part.strip()) for part in text.split(",") if part.strip())


def _rule(text: str) -> Rule:
    host, separator, port = text.rpartition(":")
    ports = _ports(port)
    if not separator or not host or ports is None:
        raise ValueError(f"{text!r} is not HOST:PORT, with PORT a number, a range or *")
    bare = host.removeprefix("[").removesuffix("]").lower()
    if ":" in bare and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets, [{bare}]:{port}")
    if ":" in bare or re.fullmatch(r"[0-9./]+", bare):
        # Raises ValueError itself: for 10.1.0.5/16, too, which has bits beyond its mask.
        return Rule(ports, network=ipaddress.ip_network(bare))
    name = bare.removeprefix("*") if bare.startswith("*.") else bare
    if "[" in host or not _is_name(name.removeprefix(".")) or bare.startswith("."):
        raise ValueError(f"{host!r} is no host: public, a name, *.name, an address or a network")
    return Rule(ports, name=name)


def _ports(text: str) -> range | None:
    if text == "*":
        return range(1, 65_536)
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2] or match[1])
    return range(first, last + 1) if 0 < first <= last < 65_536 else None


def _is_name(host: str) -> bool:
    return len(host) <= _MAX_NAME and _NAME.fullmatch(host) is not None


def is_public(address: IpAddress) -> bool:
    """Whether it is an address of the public internet that doesn't lead back into a private network."""
    address = plain(address)
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return is_public(_embedded(address))
        return address in _GLOBAL_UNICAST and not _within(address, _NOT_PUBLIC)
    return not _within(address, _NOT_PUBLIC)


def plain(address: IpAddress) -> IpAddress:
    """The address that is really dialled: `::ffff:127.0.0.1` is 127.0.0.1."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def _meant(address: IpAddress) -> list[IpAddress]:
    """The address, and those that NAT64, 6to4 and Teredo carry within it."""
    found: list[IpAddress] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            found.append(_embedded(address))
        if address.sixtofour is not None:
            found.append(address.sixtofour)
        found += address.teredo or ()
    return found


def _embedded(address: IpAddress) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _within(address: IpAddress, networks: Sequence[IpNetwork]) -> bool:
    return any(address.version == each.version and address in each for each in networks)


def system_resolve(host: str) -> list[str]:
    """The addresses of a name as this machine knows them, best first. Blocks. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets that may be called. Each `addresses` calls `resolve` once."""

    rules: tuple[Rule, ...]
    resolve: Resolve = system_resolve

    def addresses(self, host: str, port: int) -> list[IpAddress]:
        """The addresses to dial for `host`, each of them allowed, best first. Blocks while it resolves.

        Call this before every connection: what a name stood for yesterday proves nothing about today.
        Raises TargetRefused; one address that isn't allowed refuses them all.
        """
        name = host.lower().removesuffix(".")
        found = self._resolved(name)
        for address in found:
            if not any(rule.allows(name, port, address) for rule in self.rules):
                raise TargetRefused(f"no rule allows {host}:{port}, which is {address}")
        return found

    def _resolved(self, name: str) -> list[IpAddress]:
        # A zone (`fe80::1%eth0`) is no part of an address, and could hide further targets: `2001:db8::1%1]:443,[::1`.
        if "%" not in name:
            try:
                return [plain(ipaddress.ip_address(name.removeprefix("[").removesuffix("]")))]
            except ValueError:
                pass
        if not _is_name(name):
            raise TargetRefused(f"{name!r} is no host name and no address")
        try:
            answer = [ipaddress.ip_address(each.partition("%")[0]) for each in self.resolve(name)]
        except (OSError, ValueError) as error:
            raise TargetRefused(f"{name} can't be resolved: {error}") from error
        if not answer:
            raise TargetRefused(f"{name} has no address")
        return list(dict.fromkeys(plain(each) for each in answer))


def grpc_target(addresses: Sequence[IpAddress], port: int) -> str:
    """A gRPC target of exactly these addresses, which nothing resolves again.

    gRPC takes addresses of one version only; if there are both, those of IPv4 are written in the form of IPv6.
    """
    if all(address.version == 4 for address in addresses):
        return "ipv4:" + ",".join(f"{address}:{port}" for address in addresses)
    forms = [str(each) if each.version == 6 else f"::ffff:{each}" for each in addresses]
    return "ipv6:" + ",".join(f"[{form}]:{port}" for form in forms)
