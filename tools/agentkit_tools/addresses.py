"""Which machines a tool may talk to when a model names them, and an HTTP transport that connects to no others.

A name is looked up once, by the transport, as it connects: every address it has must be allowed, and the connection
goes to the very address that was checked. So neither a redirect nor a name that changes its mind leads elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, TypeAlias

import anyio

from agentkit.errors import ConfigError, ToolError

if TYPE_CHECKING:
    import ssl

    import httpcore2
    import httpx2

__all__ = ["Policy", "Resolve", "guarded_transport", "kind_of", "read_url"]

Address: TypeAlias = IPv4Address | IPv6Address
# A host and a port -> the addresses of the host, as text.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

_SCHEMES = {"http": 80, "https": 443}
_PORTS = (80, 443, 8080, 8443)  # others speak other protocols as well
_LONGEST = 4000  # characters of a URL
_CONNECTING = 5.0  # seconds for one address; a host may have several

# compatible, mapped, translated, NAT64 (also a network's own), Teredo, 6to4: where they lead, others decide
_EMBEDDED = "an IPv4 address in an IPv6 one"
# https://www.iana.org/assignments/iana-ipv4-special-registry and its sister for IPv6, whatever this Python knows of them
_IPV4 = {
    "a loopback address": ("127.0.0.0/8", "0.0.0.0/8"),  # 0.0.0.0 reaches this machine, too
    "a private address": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
    "a link-local address": ("169.254.0.0/16",),
    "a multicast address": ("224.0.0.0/4",),
    "a reserved address": (
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "240.0.0.0/4",
    ),
}
_IPV6 = {
    "a loopback address": ("::1/128", "::/128"),
    "a private address": ("fc00::/7", "fec0::/10"),
    "a link-local address": ("fe80::/10",),
    "a multicast address": ("ff00::/8",),
    _EMBEDDED: (
        "::/96",
        "::ffff:0:0/96",
        "::ffff:0:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
    ),
    "a reserved address": ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20", "5f00::/16"),
}
_GLOBAL_IPV6 = IPv6Network("2000::/3")  # nothing outside of it has been handed out
_TABLE = [(ip_network(n), kind) for t in (_IPV4, _IPV6) for kind, networks in t.items() for n in networks]
_METADATA = "the address of a cloud's metadata"
_METADATA_ADDRESSES = frozenset(
    ip_address(a)
    for a in (
        "169.254.169.254",  # AWS, Google, Azure and most others
        "169.254.170.2",  # AWS, for containers
        "169.254.170.23",
        "168.63.129.16",  # Azure; a public address by its number
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",
        "fd20:ce::254",  # Google
    )
)
_LOCAL_NAMES = (
    ".localhost",
    ".local",
    ".localdomain",
    ".internal",
    ".lan",
    ".home.arpa",
    ".corp",
    ".home",
    ".intranet",
)
_PRIVATE = ("a loopback address", "a private address", "a link-local address")


def kind_of(address: Address) -> str | None:
    """What an address is, in words, if it is no public one: "a loopback address"; None for the internet's."""
    if address in _METADATA_ADDRESSES:
        return _METADATA
    for network, kind in _TABLE:
        if address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_IPV6:
        return "a reserved address"
    return None if address.is_global else "a reserved address"


@dataclass(frozen=True)
class Policy:
    """What may be reached: the internet's addresses on the web's ports, and what else is allowed.

    `allow_private`: loopback, private and link-local addresses as well, on any port. `allow`: addresses and networks
    ("10.1.0.0/16"), and hosts ("wiki.corp", "*.corp", "localhost:8000"), wherever they are. The metadata addresses of
    clouds, which hand out credentials, must be named by their numbers. Raises `ConfigError` for an entry that is
    neither.
    """

    allow_private: bool = False
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _ = self._networks, self._hosts  # complain now

    @cached_property
    def _networks(self) -> list[IPv4Network | IPv6Network]:
        return [n for entry in self.allow if (n := _network(entry))]

    @cached_property
    def _hosts(self) -> list[str]:
        hosts = [entry.strip().lower().rstrip(".") for entry in self.allow if not _network(entry)]
        for host in hosts:
            if not re.fullmatch(r"[a-z0-9_.*?-]+(:\d+)?", host):
                raise ConfigError(
                    f"allow holds {host!r}; write a host (wiki.corp, *.corp, localhost:8000), an address or a network (10.1.0.0/16)."
                )
        return hosts

    def check(self, host: str, port: int, addresses: Iterable[str]) -> list[str]:
        """The addresses of a host, one of which is to be connected to; one that is not allowed spoils them all.

        Raises:
            ToolError: it may not be reached, or has none.
        """
        named, checked, any_port = self._named(host, port), list[str](), True
        for text in addresses:
            address = _bare(text)
            kind = kind_of(address)
            inside = any(address in network for network in self._networks)
            allowed = inside or kind is None or (named and kind not in (_METADATA, _EMBEDDED))
            if not allowed and not (self.allow_private and kind in _PRIVATE):
                where = host if host == text else f"{host} ({text})"
                raise ToolError(f"{where} may not be reached: it is {kind}, not one of the internet's")
            any_port = any_port and inside
            checked.append(text)
        if not checked:
            raise ToolError(f"there is no host {host}; check the spelling")
        if port not in _PORTS and not (any_port or named or self.allow_private):
            raise ToolError(f"port {port} of {host} may not be reached, only {', '.join(map(str, _PORTS))}")
        return checked

    def check_name(self, host: str, port: int) -> None:
        """What can be told of a host that a proxy will look up: a local name, or an address in a name's place.

        Raises:
            ToolError: it may not be reached.
        """
        local = "." not in host or host.endswith(_LOCAL_NAMES)
        if literal(host) is not None:
            self.check(host, port, [host])
        elif local and not (self.allow_private or self._named(host, port)):
            raise ToolError(
                f"{host} may not be reached: it is a name of this network, not one of the internet's"
            )
        else:
            self.check(host, port, ["1.1.1.1"])  # its port

    def _named(self, host: str, port: int) -> bool:
        return any(fnmatchcase(f"{host}:{port}" if ":" in h else host, h) for h in self._hosts)


def _bare(address: str) -> Address:
    return ip_address(address.partition("%")[0])  # an interface says nothing of where it leads


def _network(entry: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(entry.strip().strip("[]"), strict=False)
    except ValueError:
        return None


def literal(host: str) -> Address | None:
    """The address that stands in a host's place, if one does."""
    try:
        return ip_address(host)
    except ValueError:
        return None


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_NO_SCHEME = re.compile(r"[\w-]+(\.[\w-]+)*\.[a-z]{2,}(:\d+)?([/?#].*)?", re.IGNORECASE)


def read_url(text: str, base: httpx2.URL | None = None) -> httpx2.URL:
    """An http or https URL with a host that has only one reading; relative to *base*, if that is given.

    Raises:
        ToolError: it is none.
    """
    import httpx2

    text = text.strip()
    if len(text) > _LONGEST:
        raise ToolError(f"the URL is longer than {_LONGEST:,} characters")
    shown = text if len(text) <= 200 else f"{text[:200]}…"
    if any(ord(c) < 32 or c == "\x7f" for c in text) or "\\" in text:
        raise ToolError("a URL holds no control characters and no backslashes")
    if base is None and _NO_SCHEME.fullmatch(text):
        text = f"https://{text}"
    try:
        url = base.join(text) if base is not None else httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError):
        raise ToolError(f"{shown!r} is not a URL") from None
    if url.scheme not in _SCHEMES:
        raise ToolError(f"only http and https URLs can be fetched, not {shown!r}")
    if url.userinfo:
        raise ToolError("a URL with a user name or a password is not fetched; leave them out")
    host = url.raw_host.decode("ascii").lower()
    host = host[:-1] if host.endswith(".") else host
    if not host:
        raise ToolError(f"{shown!r} names no host")
    if literal(host) is None:
        if len(host) > 253 or not _HOST.fullmatch(host):
            raise ToolError(f"{shown!r} has a host that cannot be one")
        if _NUMBER.fullmatch(
            host.rpartition(".")[2]
        ):  # 127.1, 0x7f000001: what resolvers still take for addresses
            raise ToolError(f"{host} is no host; write an address as four decimal numbers")
    if url.port is not None and not 0 < url.port < 65536:
        raise ToolError(f"{url.port} is not a port")
    return url.copy_with(host=host, fragment=None)


def port_of(url: httpx2.URL) -> int:
    return url.port or _SCHEMES[url.scheme]


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as this system finds them."""
    import socket

    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def guarded_transport(
    policy: Policy, ssl_context: ssl.SSLContext, resolve: Resolve = resolve
) -> httpx2.AsyncBaseTransport:
    """A transport for `httpx2.AsyncClient` that connects only to what *policy* allows, by HTTP/1.1 and without proxies.

    A host that may not be reached raises `ToolError`, as does one that cannot be; TLS still checks the host's name.
    """
    import httpcore2
    import httpx2

    class Backend(httpcore2.AsyncNetworkBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Any = None,
        ) -> httpcore2.AsyncNetworkStream:
            addresses = [host] if literal(host) is not None else await resolve(host, port)
            tcp = httpcore2.AnyIOBackend()
            for address in policy.check(host, port, addresses):
                try:
                    stream = await tcp.connect_tcp(address, port, timeout=_CONNECTING)
                except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                    continue
                peer = stream.get_extra_info("server_addr")
                if not isinstance(peer, tuple) or _bare(peer[0]) != _bare(address):
                    await stream.aclose()
                    raise ToolError(f"{host} is not where it was looked for")
                return stream
            raise ToolError(f"{host} does not answer on port {port}")

        async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore2.AsyncNetworkStream:
            raise ToolError("sockets of this machine may not be reached")

        async def sleep(self, seconds: float) -> None:
            await anyio.sleep(seconds)

    class Body(httpx2.AsyncByteStream):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for part in self._stream:
                yield part

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Transport(httpx2.AsyncBaseTransport):
        def __init__(self) -> None:
            self._pool = httpcore2.AsyncConnectionPool(
                ssl_context=ssl_context, network_backend=Backend(), keepalive_expiry=5.0
            )

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            url = httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            )
            response = await self._pool.handle_async_request(
                httpcore2.Request(
                    request.method, url, headers=request.headers.raw, extensions=request.extensions
                )
            )
            return httpx2.Response(
                response.status,
                headers=response.headers,
                stream=Body(response.stream),
                extensions=response.extensions,
            )

        async def aclose(self) -> None:
            await self._pool.aclose()

    return Transport()
