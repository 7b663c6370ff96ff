"""Connections that keep one deadline and one limit of bytes, whatever the peer does; addresses, proxies, trust.

Every call of the operating system gets what is left of the request's time, and every byte that it brings is counted,
TLS and a proxy's part included. So nothing that is built on top (TLS handshake, headers, interim answers, trailers) can
wait longer or take more. What no deadline covers is the look-up of a host name, which cannot be interrupted.
"""

from __future__ import annotations

import ipaddress
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

import httpcore

from lit_mmpg.errors import UserError
from lit_mmpg.texts import printable

BLOCK = 1 << 14
"""Bytes that are read at once: what is made of them takes no time worth counting."""
KEPT_S = 5.0
"""How long an idle connection is kept for the next request."""
PORTS = {"http": 80, "https": 443}

_T = TypeVar("_T")


class TooMuchError(Exception):
    """The peer sends more than was agreed to read."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, by its form; a name may still be resolved to another one."""
    return host == "localhost" or is_loopback_address(host)


def is_loopback_address(address: str) -> bool:
    """Whether an address is of this machine; names are none."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Address:
    """Where something is served.

    Attributes:
        scheme: ``http`` or ``https``.
        host: Name or IP address, without brackets.
        port: 1 to 65535.
        path: What stands before the paths of the service; empty or ``/...`` without a slash at its end.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and, unless it is the usual one, port, as in a ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def parse_address(url: str, what: str) -> Address:
    """Parse the address of a service.

    Args:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``, a path may follow.
        what: What it is called in a message.

    Raises:
        UserError: If it is anything else. Credentials and a query are never shown.
    """
    _, at, rest = url.rpartition("@")
    shown = f"{what} '{'***@' if at else ''}{printable(rest.partition('?')[0])}'"
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise UserError(
            f"{shown} holds a blank, a control character or a letter beyond ASCII; write such a host name in its ASCII "
            "form (xn--...), such a path in per cents"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UserError(f"{shown} has no usable host or port; {_HINT}") from error
    if "@" in parts.netloc:
        raise UserError(f"{shown} holds credentials, which would be seen and logged; leave them out")
    if parts.scheme not in PORTS or not host:
        raise UserError(f"{shown} is not a URL; {_HINT}")
    if port == 0 or not (_is_ipv6(host) if ":" in host else re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", host)):
        raise UserError(f"{shown} has no usable host or port; {_HINT}")
    if "?" in url or "#" in url:
        raise UserError(f"{shown} holds a query or a fragment; {_HINT}")
    return Address(parts.scheme, host, port or PORTS[parts.scheme], parts.path.rstrip("/"))


_HINT = "write http://HOST:PORT or https://HOST:PORT (an IPv6 address in brackets, a port up to 65535)"


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


@dataclass
class Budget:
    """What the present request may still use, and what it has used.

    Attributes:
        until: When its time is over (``time.monotonic``).
        left: Bytes that may still be read.
        sent: Bytes that were handed to sockets: HTTP, and TLS where it is used, its handshake included.
        received: Bytes that came from them, likewise.
        connections: Connections that were opened.
    """

    until: float = 0.0
    left: int = 0
    sent: int = 0
    received: int = 0
    connections: int = 0

    def start(self, seconds: float, limit: int) -> None:
        """Begin a request that takes so long and reads so many bytes at most."""
        self.until, self.left, self.sent, self.received = time.monotonic() + seconds, limit, 0, 0

    def seconds(self) -> float:
        """Time that is left.

        Raises:
            httpcore.TimeoutException: If none is.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise httpcore.TimeoutException("the time is over")
        return max(left, 1e-3)

    def took(self, count: int) -> None:
        """Count bytes that were read.

        Raises:
            TooMuchError: If they are too many.
        """
        self.received += count
        self.left -= count
        if self.left < 0:
            raise TooMuchError


class Backend(httpcore.NetworkBackend):
    """Opens connections under a budget.

    Args:
        budget: The budget; started anew for each request.
        loopback_only: Whether to talk to this machine alone, whatever a name is resolved to.
    """

    def __init__(self, budget: Budget, loopback_only: bool) -> None:
        self._budget, self._loopback_only = budget, loopback_only

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers; the addresses share what is left of the time.

        Raises:
            httpcore.NetworkError: If none does.
            httpcore.TimeoutException: If the time is over.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host} cannot be resolved") from error
        if self._loopback_only:
            found = [entry for entry in found if is_loopback(str(entry[4][0]))]
            if not found:
                raise httpcore.ConnectError(f"{host} is not this machine, and the key would travel unencrypted")
        self._budget.connections += 1
        problem: OSError | None = None
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            left = self._budget.seconds()
            try:
                connected = socket.socket(family, kind, protocol)
                try:
                    connected.settimeout(left / (len(found) - tried))
                    connected.connect(address)
                    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError:
                    connected.close()
                    raise
                return _Socket(connected, self._budget)
            except OSError as error:
                problem = error
        if isinstance(problem, TimeoutError):
            raise httpcore.ConnectTimeout("no connection in time") from problem
        raise httpcore.ConnectError(_said(problem)) from problem


class _Socket(httpcore.NetworkStream):
    """A connected socket."""

    def __init__(self, connected: socket.socket, budget: Budget) -> None:
        self._socket, self._budget = connected, budget

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(self._budget.seconds())
        try:
            data = self._socket.recv(min(max_bytes, BLOCK))
        except TimeoutError as error:
            raise httpcore.ReadTimeout("nothing came in time") from error
        except OSError as error:
            raise httpcore.ReadError(_said(error)) from error
        self._budget.took(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        while rest:
            self._socket.settimeout(self._budget.seconds())
            try:
                count = self._socket.send(rest)
            except TimeoutError as error:
                raise httpcore.WriteTimeout("not all was taken in time") from error
            except OSError as error:
                raise httpcore.WriteError(_said(error)) from error
            self._budget.sent += count
            rest = rest[count:]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Tls(self, ssl_context, server_hostname)

    def get_extra_info(self, info: str) -> Any:
        if info != "is_readable":
            return None
        if self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))


class _Tls(httpcore.NetworkStream):
    """TLS over any stream, which does all reading and writing: TLS itself cannot wait."""

    def __init__(self, lower: httpcore.NetworkStream, context: ssl.SSLContext, host: str | None) -> None:
        self._lower = lower
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
            self._run(self._tls.do_handshake)
        except (OSError, ValueError) as error:
            lower.close()
            raise httpcore.ConnectError(f"TLS: {_said(error)}") from error
        except BaseException:
            lower.close()
            raise

    def _run(self, step: Callable[[], _T]) -> _T:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._lower.read(BLOCK)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
                continue
            self._flush()
            return result

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._lower.write(self._outgoing.read())

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return self._run(lambda: self._tls.read(min(max_bytes, BLOCK)))
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""
        except ssl.SSLError as error:
            raise httpcore.ReadError(f"TLS: {_said(error)}") from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            for start in range(0, len(buffer), BLOCK):
                part = buffer[start : start + BLOCK]
                self._run(lambda part=part: self._tls.write(part))  # type: ignore[misc]
        except ssl.SSLError as error:
            raise httpcore.WriteError(f"TLS: {_said(error)}") from error

    def close(self) -> None:
        self._lower.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Tls(self, ssl_context, server_hostname)

    def get_extra_info(self, info: str) -> Any:
        return self._tls if info == "ssl_object" else self._lower.get_extra_info(info)


def _said(error: BaseException | None) -> str:
    """What the operating system or TLS says, in its own fixed words: nothing of the request, nothing of the peer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLEOFError):
        return "the peer hung up"
    if isinstance(error, ssl.SSLError):
        return str(error.reason or "failed").replace("_", " ").lower()
    return str(getattr(error, "strerror", None) or type(error).__name__)


def connections(address: Address, budget: Budget, loopback_only: bool) -> httpcore.ConnectionPool:
    """A pool of one connection to an address.

    Plain HTTP goes there directly, whatever the environment says: a proxy would read it. HTTPS goes through the proxy
    that ``HTTPS_PROXY`` or ``ALL_PROXY`` names, by CONNECT, unless ``NO_PROXY`` excepts the host or it is this machine.

    Raises:
        UserError: If a variable names something unusable.
    """
    shared: Any = {"max_connections": 1, "keepalive_expiry": KEPT_S, "network_backend": Backend(budget, loopback_only)}
    if address.scheme == "http":
        return httpcore.ConnectionPool(**shared)
    shared["ssl_context"], proxy = trusted(), _proxy(address)
    if proxy is None:
        return httpcore.ConnectionPool(**shared)
    where, credentials = proxy
    return httpcore.HTTPProxy(
        httpcore.URL(scheme=where.scheme.encode(), host=where.host.encode(), port=where.port, target=b"/"),
        proxy_auth=credentials,
        proxy_ssl_context=trusted() if where.scheme == "https" else None,
        **shared,
    )


def trusted() -> ssl.SSLContext:
    """Whom TLS trusts: ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` where they are set, else the system and certifi.

    Raises:
        UserError: If a variable names no certificates.
    """
    file, folder = (os.environ.get(name) or None for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"))
    if file is None and folder is None:
        return httpcore.default_ssl_context()
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"SSL_CERT_DIR {folder} is not a folder; name one with certificates, or unset it")
    try:
        return ssl.create_default_context(cafile=file, capath=folder)
    except OSError as error:  # ssl.SSLError is one
        raise UserError(
            f"SSL_CERT_FILE {file} holds no readable certificates ({_said(error)}); name a PEM file, or unset it"
        ) from error


def _proxy(address: Address) -> tuple[Address, tuple[bytes, bytes] | None] | None:
    """Where CONNECT goes, and with which credentials; ``None``: nowhere."""
    proxies = getproxies_environment()
    name = next((name for name in ("https", "all") if proxies.get(name)), None)
    if name is None or is_loopback(address.host) or proxy_bypass_environment(address.authority, proxies):
        return None
    url = proxies[name]
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    credentials, _, place = rest.rpartition("@")
    what = f"proxy of the environment variable {name.upper()}_PROXY"
    if separator and scheme.lower() not in PORTS:
        kind = scheme if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]{0,20}", scheme) else "unknown"  # or it is credentials
        raise UserError(f"the {what} is of the kind {kind}, not http; name another, or NO_PROXY={address.host}")
    where = parse_address(f"{scheme.lower() or 'http'}://{place}", what)
    user, _, password = credentials.partition(":")
    return where, (_raw(user), _raw(password)) if credentials else None


def _raw(text: str) -> bytes:
    return unquote(text).encode("utf-8", "surrogateescape")
