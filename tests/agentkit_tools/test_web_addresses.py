"""What web_fetch is not to be talked into: every way to this machine, its network or its cloud's credentials."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from urllib.parse import quote, unquote

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit import Tool, ToolError
from agentkit.errors import ConfigError
from agentkit_tools.addresses import Policy, kind_of
from agentkit_tools.web_fetch import WebFetch

pytestmark = pytest.mark.anyio

CONTEXT = ssl.create_default_context()  # slow to make
web_fetch = partial(WebFetch, verify=CONTEXT)


class Canary:
    """Listens on loopback; whatever asks for anything but a redirect is remembered."""

    def __init__(self) -> None:
        self.reached: list[str] = []
        canary = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.startswith("/to/"):
                    self.send_response(302)
                    self.send_header("Location", unquote(self.path[4:], "latin-1"))
                else:
                    canary.reached.append(f"{self.headers['Host']} {self.path}")
                    self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture(scope="module")
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.http.shutdown()
    canary.http.server_close()


NAMES = {
    "front.test": ["127.0.0.1"],
    "home.test": ["127.0.0.1"],
    "mixed.test": ["1.1.1.1", "127.0.0.1"],
    "six.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "cloud.test": ["169.254.169.254"],
    "metadata.google.internal": ["169.254.169.254"],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.localdomain": ["127.0.0.1"],
    "127.0.0.1.nip.test": ["127.0.0.1"],
}


async def names(host: str, port: int) -> Sequence[str]:
    assert host in NAMES, f"{host} was looked up"
    return NAMES[host]


def placed(url: str, canary: Canary) -> str:
    return url.replace(":P", f":{canary.port}")


async def refusal(url: str, canary: Canary, **options: Any) -> str:
    """What the tool says to a URL; nothing may have arrived at the canary."""
    canary.reached.clear()
    tools: Sequence[Tool]
    async with web_fetch(resolve=names, robots="ignore", timeout=5, **options).open(print) as tools:
        with pytest.raises(ToolError) as caught:
            await tools[0].handler({"url": url})
    assert canary.reached == []
    return str(caught.value)


# P is the canary's port. A host that is an address, or has one:
HOSTS = (
    "127.0.0.1 127.0.0.2 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 "
    "192.168.255.255 169.254.169.254 169.254.170.2 169.254.0.1 100.64.0.1 100.127.255.254 100.100.100.200 168.63.129.16 "
    "192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.1.2.3 "
    "240.0.0.1 255.255.255.255 [::] [::1] [0:0:0:0:0:0:0:1] [0000::0001] [::127.0.0.1] [::7f00:1] [::ffff:127.0.0.1] "
    "[::ffff:7f00:1] [::FFFF:10.0.0.1] [::ffff:169.254.169.254] [::ffff:a9fe:a9fe] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1] "
    "[64:ff9b::7f00:1] [64:ff9b::a9fe:a9fe] [64:ff9b:1::7f00:1] [2002:7f00:1::] [2002:a9fe:a9fe::1] [2002:c0a8:1::] "
    "[2001:0:7f00:1::] [2001::80ff:fffe] [2001:db8::1] [2001:10::1] [2001:20::1] [fc00::1] [fd00::1] [fd00:ec2::254] [fd00:ec2::23] "
    "[fe80::1] [fe80::1%25lo] [fe80::1%lo] [::1%25lo] [::1%lo] [febf::1] [fec0::1] [ff02::1] [ff0e::1] [100::1] [3fff::1] [5f00::1] [4000::1] "
    "127.0.0.1. 10.0.0.1. localhost LOCALHOST LocalHost. localhost.localdomain home.test HOME.TEST home.test. mixed.test "
    "six.test mapped.test cloud.test metadata.google.internal METADATA.google.internal. 127.0.0.1.nip.test 127。0。0。1 127.0.0.1 "
    "169。254。169。254"
).split()
# Not one reading, or none at all:
SPELLINGS = [*(
    "http://2130706433/ http://2130706433:P/ http://017700000001/ http://0x7f000001:P/ http://0x7F.0.0.1:P/ http://0177.0.0.1:P/ "
    "http://0177.0.0.0x1/ http://127.1:P/ http://127.0.1/ http://127.000.000.001:P/ http://0:P/ http://0/ http://00000.0/ http://0x0/ "
    "http://127.0.0.1.:P@home.test/ http://4294967297/ http://256.256.256.256/ http://1.1.1.1.1/ http://127.0.0.01:P/ http://0x/ "
    "http://2852039166/latest/meta-data/ http://0xA9FEA9FE/ http://0251.0376.0251.0376/ http://127.0.0.1../ http://127..1/ "
    "http://a@127.0.0.1:P/ http://127.0.0.1:P@home.test/ http://example.com@127.0.0.1:P/ http://example.com:80@127.0.0.1:P/ "
    "http://user:password@localhost:P/ http://:@127.0.0.1:P/ http://a%40b@127.0.0.1:P/ http://example.com%40127.0.0.1:P/ "
    "http://127.0.0.1%2F@example.com/ http://127.0.0.1:P\\@example.com/ http://example.com\\@127.0.0.1:P/ http:\\\\127.0.0.1:P\\ "
    "http:/\\127.0.0.1:P/ \\\\127.0.0.1\\c http://%31%32%37.0.0.1:P/ http://127%2E0.0.1:P/ http://loc%61lhost:P/ http://127.0.0.1%00.example.com/ "
    "http://127.0.0.1%0d%0a:P/ http://①②⑦.⓪.⓪.①:P/ http://127.0.0.1:P/ http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:P/ http://𝟏𝟐𝟕.𝟎.𝟎.𝟏:P/ "
    "http:///127.0.0.1:P/ http:127.0.0.1:P/ http:/127.0.0.1:P/ //127.0.0.1:P/ http:// http:///etc/passwd http://[::1:P/ http://[::1]]:P/ "
    "http://[]:P/ http://[127.0.0.1]:P/ http://[v1.x]:P/ http://[::ffff:127.1]:P/ http://127.0.0.1:P:80/ http://127.0.0.1:-80/ "
    "http://127.0.0.1:99999/ http://127.0.0.1:x/ http://127.0.0.1,example.com/ http://127.0.0.1;x/ http://*/ http://$HOST/ http://-a/ "
    "file:///etc/passwd file://localhost/etc/passwd FILE:///etc/passwd ftp://127.0.0.1:P/ gopher://127.0.0.1:P/_GET data:text/html,hi "
    "dict://127.0.0.1:P/ ldap://127.0.0.1:P/ ws://127.0.0.1:P/ wss://127.0.0.1:P/ javascript:alert(1) about:blank view-source:http://127.0.0.1/ "
    "unix:///run/docker.sock http+unix://%2Frun%2Fdocker.sock/info jar:http://127.0.0.1!/ blob:http://127.0.0.1/ blah mailto:a@b.c"
).split(), "http://127.0.0.1\t:P/", "http://127.\n0.0.1:P/", "ht\ntp://127.0.0.1:P/", "http://127.0.0.1:P/\r\nHost: x", "http://\x00127.0.0.1/",
    "http://127.0.0.1 :P/", "http://exa mple.com/", "http://127.0.0.1\u200b:P/", "http://" + "a" * 64 + ".test/", "http://" + "a." * 2500, "",
]  # fmt: skip
ADDRESSED = [f"http://{host}:P/" for host in HOSTS] + [
    "https://127.0.0.1:P/", "https://home.test:P/", "http://@127.0.0.1:P/", " http://127.0.0.1:P/ ", "HTTP://127.0.0.1:P/",
    "http://127.0.0.1:P#@example.com/", "http://127.0.0.1:P?@example.com/", "home.test:P/x", "http://127.0.0.1:000P/",
]  # fmt: skip


def test_the_battery_is_large_enough() -> None:
    assert len({*ADDRESSED, *SPELLINGS}) >= 180


@pytest.mark.parametrize("url", ADDRESSED)
async def test_an_address_that_is_not_the_internets_is_refused_for_being_that(
    url: str, canary: Canary
) -> None:
    said = await refusal(
        placed(url, canary),
        canary,
    )
    assert (
        "may not be reached: it is" in said
        or "is not a URL" in said
        or "no host" in said
        or "cannot be one" in said
    )


@pytest.mark.parametrize("url", SPELLINGS)
async def test_a_url_with_more_than_one_reading_is_refused_without_a_connection(
    url: str, canary: Canary
) -> None:
    await refusal(placed(url, canary), canary)


async def test_no_redirect_leads_to_what_may_not_be_reached(canary: Canary) -> None:
    through = f"http://front.test:{canary.port}/to/"
    allow = (f"front.test:{canary.port}",)
    canary.reached.clear()
    async with web_fetch(resolve=names, robots="ignore", timeout=10, allow=allow).open(print) as tools:
        for url in [*ADDRESSED, *SPELLINGS, "//127.0.0.1:P/x"]:
            with suppress(ToolError):  # what is no URL of another host is one of this host
                await tools[0].handler({"url": through + quote(placed(url, canary).encode())})
    assert {host for host, _, _ in map(lambda r: r.partition(" "), canary.reached)} <= {allow[0]}


async def test_a_chain_of_redirects_is_checked_at_each_step_and_ends(canary: Canary) -> None:
    front = f"http://front.test:{canary.port}/to/"
    allow = (f"front.test:{canary.port}",)
    chain = front + quote(front + quote(f"http://home.test:{canary.port}/x", safe=""), safe="")
    assert "home.test (127.0.0.1) may not be reached" in await refusal(chain, canary, allow=allow)
    assert "more than 5 redirects" in await refusal(
        front + quote("/to/" + "%2Fto%2F" * 9), canary, allow=allow
    )


@pytest.mark.parametrize("later", ["127.0.0.1", "::1", "169.254.169.254", "10.0.0.1", "::ffff:127.0.0.1"])
async def test_a_name_is_looked_up_once_so_that_its_second_answer_is_never_used(
    later: str, canary: Canary
) -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["192.0.2.77"] if len(asked) == 1 else [later]

    canary.reached.clear()
    # the first answer is allowed and leads nowhere, a second one would lead to the canary
    web = WebFetch(resolve=rebinding, robots="ignore", timeout=0.05, allow=("192.0.2.77",))
    async with web.open(print) as tools:
        with pytest.raises(ToolError):
            await tools[0].handler({"url": f"http://rebind.test:{canary.port}/"})
        assert asked == ["rebind.test"]
        with pytest.raises(ToolError, match="may not be reached: it is"):
            await tools[0].handler({"url": f"http://rebind.test:{canary.port}/"})
    assert canary.reached == []


async def test_an_ssrf_through_robots_txt_goes_nowhere_either(canary: Canary) -> None:
    canary.reached.clear()
    async with web_fetch(resolve=names, timeout=5).open(print) as tools:
        with pytest.raises(ToolError, match="may not be reached"):
            await tools[0].handler({"url": f"http://home.test:{canary.port}/"})
    assert canary.reached == []


async def test_metadata_stays_refused_when_private_addresses_and_its_name_are_allowed(canary: Canary) -> None:
    for url in (
        "http://169.254.169.254/",
        "http://metadata.google.internal/",
        "http://[fd00:ec2::254]/",
        "http://cloud.test/",
        "http://100.100.100.200/",
    ):
        said = await refusal(url, canary, allow_private=True, allow=("*.internal", "*.test", "*"))
        assert "metadata" in said


async def test_ports_that_are_not_the_webs_are_refused_of_public_hosts(canary: Canary) -> None:
    for port in (1, 22, 25, 6379, 11211, 65535):
        assert "port" in await refusal(f"http://1.1.1.1:{port}/", canary)


async def test_what_is_allowed_is_reached(canary: Canary) -> None:
    p = canary.port
    for url, options in {
        f"http://127.0.0.1:{p}/": {"allow_private": True},
        f"http://home.test:{p}/": {"allow_private": True},
        f"http://HOME.test.:{p}/": {"allow": ("home.test",)},
        f"http://front.test:{p}/": {"allow": (f"*.test:{p}",)},
        f"http://home.test:{p}/a": {"allow": ("127.0.0.0/8",)},
        f"http://127.0.0.1:{p}/b": {"allow": (f"127.0.0.1:{p}",)},
    }.items():
        canary.reached.clear()
        async with web_fetch(resolve=names, robots="ignore", **options).open(print) as tools:  # type: ignore[arg-type]
            await tools[0].handler({"url": url})
        assert len(canary.reached) == 1
    assert "may not be reached" in await refusal(
        f"http://home.test:{p}/", canary, allow=(f"home.test:{p + 1}",)
    )


@pytest.mark.parametrize("entry", ["http://wiki.corp", "10.0.0.0/99", "a b", "wiki.corp/x", ""])
def test_an_entry_that_allows_nothing_that_can_be_told_is_a_config_error(entry: str) -> None:
    with pytest.raises(ConfigError, match="allow holds"):
        WebFetch(allow=(entry,))


async def test_proxies_of_the_environment_are_not_used(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    await refusal("http://home.test/", canary)


async def test_behind_a_proxy_local_names_and_addresses_are_refused_and_the_rest_is_the_proxys(
    canary: Canary,
) -> None:
    proxy = f"http://127.0.0.1:{canary.port}"
    for url in (
        "http://localhost/",
        "http://127.0.0.1/",
        "http://intranet/",
        "http://metadata.google.internal/",
        "http://[::1]/",
        "http://10.0.0.1/",
        "http://a.test:22/",
    ):
        assert "may not be reached" in await refusal(url, canary, proxy=proxy)
    async with web_fetch(proxy=proxy, robots="ignore").open(print) as tools:
        await tools[0].handler({"url": "http://public.test/x"})
    assert canary.reached == ["public.test http://public.test/x"]


def spellings(address: IPv4Address) -> st.SearchStrategy[str]:
    """The ways inet_aton takes, and those of IPv6."""
    n, octets = int(address), address.packed
    forms: list[Callable[[int], str]] = [
        str,
        hex,
        lambda i: f"0{i:o}",
        lambda i: f"0X{i:X}",
        lambda i: f"{i:03d}",
    ]
    bases = st.sampled_from(forms)
    dotted = st.tuples(bases, bases, bases, bases).map(
        lambda b: ".".join(f(o) for f, o in zip(b, octets, strict=True))
    )
    short = bases.map(lambda f: f"{f(octets[0])}.{f(n & 0xFFFFFF)}")
    words = f"{n >> 16:x}:{n & 0xFFFF:x}"
    six = st.sampled_from(
        [
            f"[::ffff:{address}]",
            f"[::{words}]",
            f"[64:ff9b::{words}]",
            f"[2002:{words}::]",
            f"[::FFFF:{words}]",
        ]
    )
    wide = st.just("".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in str(address)))
    return st.one_of(dotted, short, bases.map(lambda f: f(n)), six, wide, st.just(f"{address}."))


LOCAL = [
    IPv4Address(f"{a}.{b}.0.1") for a, b in ((127, 0), (10, 1), (192, 168), (172, 20), (169, 254), (100, 64))
]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(LOCAL).flatmap(spellings), st.sampled_from(["http", "https", "HTTP"]))
def test_no_spelling_of_a_local_address_is_reached(host: str, scheme: str) -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise AssertionError(f"{host} was looked up")

    async def attempt() -> None:
        async with web_fetch(resolve=unknown, robots="ignore").open(print) as tools:
            with pytest.raises(ToolError):
                await tools[0].handler({"url": f"{scheme}://{host}/"})

    anyio.run(attempt)


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_public_only_if_python_thinks_so_too(number: int) -> None:
    address = IPv4Address(number)
    if kind_of(address) is None:
        assert address.is_global and not address.is_multicast and not address.is_reserved


@given(st.integers(0, 2**128 - 1))
def test_an_ipv6_address_is_public_only_if_it_is_global_unicast_and_wraps_no_other(number: int) -> None:
    address = IPv6Address(number)
    if kind_of(address) is None:
        assert address.is_global and number >> 125 == 1
        assert address.sixtofour is None and address.teredo is None and address.ipv4_mapped is None


def test_the_internets_addresses_are_public() -> None:
    for text in ("1.1.1.1", "8.8.8.8", "140.82.121.3", "172.15.0.1", "172.32.0.1", "100.128.0.1", "11.0.0.1"):
        assert kind_of(IPv4Address(text)) is None
    for text in ("2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2400:cb00::1"):
        assert kind_of(IPv6Address(text)) is None
    assert Policy().check("a.test", 443, ["1.1.1.1", "2606:4700::1111"]) == ["1.1.1.1", "2606:4700::1111"]
