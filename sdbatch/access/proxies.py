"""What a proxy in front of the page says of its visitors; only one of `trusted_proxies` is believed.

X-Forwarded-For is the visitor's address. X-Forwarded-Proto and X-Forwarded-Prefix are the page's own address: they
decide on links and on the cookie's flags.
"""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sdbatch.config.settings import UNIX_PROXY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BY_SOCKET = "localhost"  # how waitress calls whoever comes by a Unix socket
ABOUT_THE_PAGE = {"HTTP_X_FORWARDED_PROTO": r"https?", "HTTP_X_FORWARDED_PREFIX": r"(/[\w.~-]+)*/?"}


def believing(page: "WSGIApplication", trusted: Sequence[str]) -> "WSGIApplication":
    """The page without headers about its address that come from elsewhere, or have another form."""

    def answer(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        is_believed = is_trusted(str(environ.get("REMOTE_ADDR", "")), trusted)
        for name, usual in ABOUT_THE_PAGE.items():
            said = str(environ.pop(name, "")).rpartition(",")[2].strip()
            if is_believed and re.fullmatch(usual, said):
                environ[name] = said
        return page(environ, start)

    return answer


def visitor(address: str, chain: Sequence[str], trusted: Sequence[str]) -> str:
    """The visitor's address, by that of the connection and the X-Forwarded-For of trusted proxies.

    For IPv6 it is the /64 network, because one machine can use all its addresses.
    """
    found, left = address, [*chain]
    while left and left[-1].strip() and is_trusted(found, trusted):
        found = left.pop().strip()
    parsed = _parsed(found)
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed or found)


def is_trusted(address: str, trusted: Sequence[str]) -> bool:
    """Whether an address is that of a trusted proxy."""
    parsed = _parsed(address)
    if parsed is None:
        return address == BY_SOCKET and UNIX_PROXY in trusted
    return any(parsed in ipaddress.ip_network(name) for name in trusted if name != UNIX_PROXY)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address, with or without a port, as proxies write it."""
    bare = re.sub(r"^\[(.*)\](:\d+)?$|^([\d.]+):\d+$", r"\1\3", text)
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
