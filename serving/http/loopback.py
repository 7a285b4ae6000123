"""Who asks a server that trusts this machine: addresses to listen on, hosts that a request names, pages behind it."""

from __future__ import annotations

import ipaddress


def is_loopback_host(host: str) -> bool:
    """Return whether a ``Host`` header, with or without a port, names this machine as itself.

    >>> [is_loopback_host(host) for host in ("127.0.0.1:8080", "localhost", "[::1]:80", "example.org", "127.0.0.1.nip.io", "")]
    [True, True, True, False, False, False]
    """
    name, _, port = host.rpartition(":") if _has_port(host) else (host, "", "")
    if port and not port.isdecimal():
        return False
    name = name.lower().removesuffix(".")
    return name == "localhost" or is_loopback_address(name.removeprefix("[").removesuffix("]"))


def is_loopback_address(address: str) -> bool:
    """Return whether ``address`` is an IP address that leads to this machine alone."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def is_foreign(fetch_site: str | None, origin: str | None, host: str) -> bool:
    """Return whether a browser says that a page of another origin is behind a request; programs say nothing.

    Args:
        fetch_site: The request's ``Sec-Fetch-Site``.
        origin: Its ``Origin``.
        host: Its ``Host``.

    >>> is_foreign(None, None, "localhost"), is_foreign(None, "http://localhost", "localhost"), is_foreign("x", None, "")
    (False, False, True)
    """
    if fetch_site not in (None, "none", "same-origin"):
        return True
    return origin is not None and origin not in (f"http://{host}", f"https://{host}")


def _has_port(host: str) -> bool:
    return host.rpartition("]")[2].count(":") == 1
