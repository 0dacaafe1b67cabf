"""Fetching: a URL becomes bytes in a temporary file, or a reason in words for the caller who sent it.

httpcore speaks HTTP over sockets of ours: they connect only to addresses that were checked, and
never block for longer than `POLL_SECONDS`, after which the download looks whether it is still
wanted. Not covered: a public address that leads back to this machine.
"""

from __future__ import annotations

import errno
import functools
import math
import mimetypes
import os
import queue
import select
import socket
import ssl
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urljoin, urlsplit

from ...schemas.files import Content, Unfetchable, checked_url, is_data, safe_name
from ...schemas.problems import HTTPError, RequestCancelled
from ...schemas.request import current_request
from ...schemas.storing import PLAIN_ERRAND, Errand
from ..addresses import addresses_of, canonical_host, host_and_port, is_address, is_public
from .headers import decoded, essence_of, parameters

T = TypeVar("T")
Resolve = Callable[[str, int], list[str]]

GiB = 1024 * 1024 * 1024
POLL_SECONDS = 0.05
CONNECT_SECONDS = 5  # for one address; the next one may answer
CREDENTIALS = ("authorization", "cookie", "proxy-authorization")


class Fetcher:
    """Downloads from the public internet into temporary files, within limits of size and time."""

    def __init__(
        self,
        *,
        allowed_hosts: Iterable[str] = (),
        max_bytes: int = 4 * GiB,
        seconds: float = 600,  # for all of it, redirects included
        idle_seconds: float = 15,  # without a byte
        redirects: int = 5,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`allowed_hosts` are names or addresses as URLs spell them, each with or without `:port`."""
        self._allowed = frozenset(map(host_and_port, allowed_hosts))
        self._max_bytes, self._redirects = max_bytes, redirects
        self._seconds, self._idle_seconds = seconds, idle_seconds
        self._resolve = resolve or addresses_of
        self._tls = tls

    def __call__(self, url: str, gone: Callable[[], bool], errand: Errand = PLAIN_ERRAND) -> Content:
        """Fetch `url` as `errand` says, within the limits of this Fetcher unless an author asks.

        Raises Unfetchable in words for the caller, RequestCancelled once `gone()`.
        """
        import httpcore  # not before a file is fetched: it would cost every cold start 60 ms

        largest, longest = (sys.maxsize, math.inf) if errand.by_author else (self._max_bytes, self._seconds)
        most_bytes = largest if errand.most_bytes is None else min(largest, errand.most_bytes)
        seconds = longest if errand.seconds is None else min(longest, errand.seconds)
        watch = Watch(gone, seconds, self._idle_seconds, most_bytes)
        try:
            return self._follow(url, watch, errand)
        except (httpcore.RemoteProtocolError, httpcore.LocalProtocolError) as error:
            raise Unfetchable(f"its server broke the rules of HTTP ({error})") from None
        except OSError as error:  # sockets raise Unfetchable, so this is our own disk
            raise HTTPError(507, f"this server could not keep the file: {error.strerror}") from error

    def _follow(self, url: str, watch: Watch, errand: Errand) -> Content:
        asked = {name.lower(): value for name, value in errand.headers.items()}
        headers = {"accept": "*/*", "user-agent": "runner", **asked, "accept-encoding": "identity"}
        target = Target(url)
        for _ in range(self._redirects + 1):
            if target.authorization:
                headers["authorization"] = target.authorization
            found = self._get(target, headers, watch, errand.folder)
            if isinstance(found, Content):
                return found
            came_from, target = target, _redirected(target, found)
            if target.origin != came_from.origin:
                headers = {name: value for name, value in headers.items() if name not in CREDENTIALS}
        raise Unfetchable(f"it redirects more than {self._redirects} times")

    def _get(self, target: Target, headers: Mapping[str, str], watch: Watch, folder: str | None) -> Content | str:
        """The content, or where the server sends us instead."""
        import httpcore

        url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        asked = [("host", target.named), *headers.items()]
        backend = cast(Any, _Sockets(functools.partial(self._connect, watch=watch)))
        tls = (self._tls or _tls()) if target.scheme == "https" else None
        with (
            httpcore.ConnectionPool(ssl_context=tls, network_backend=backend) as pool,
            pool.stream("GET", url, headers=asked) as response,
        ):
            received = {name.decode("latin-1").lower(): decoded(value) for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and "location" in received:
                return received["location"]
            if not 200 <= response.status < 300:
                raise Unfetchable(f"its server answered {response.status}")
            coding = received.get("content-encoding", "identity").strip().lower()
            if coding != "identity":
                # Nobody asked for it, and what it unpacks to has no announced size.
                raise Unfetchable(f"its server sent the content coding {coding!r}, unasked")
            length = received.get("content-length", "")
            if length.isdecimal() and int(length) > watch.most_bytes:
                raise _too_large(watch.most_bytes)
            return self._kept(response, received, target, watch.most_bytes, folder)

    def _kept(self, response: Any, received: Mapping[str, str], target: Target, most_bytes: int, folder: str | None) -> Content:
        name = parameters(received.get("content-disposition", "")).get("filename")
        name = safe_name(name) or safe_name(unquote(target.path.partition("?")[0]))
        guessed = mimetypes.guess_type(name)[0] if name else None
        content = Content(content_type=essence_of(received.get("content-type")) or guessed, file_name=name, folder=folder)
        length = received.get("content-length", "")
        progress = {"message": f"downloading {name or 'a file'}"} | ({"total": int(length)} if length.isdecimal() else {})
        log = current_request().log  # of the request that reads; most keep none
        try:
            for chunk in response.iter_stream():
                if content.size + len(chunk) > most_bytes:
                    raise _too_large(most_bytes)
                content.append(chunk)
                if log is not None:
                    log.latest("progress", {"done": content.size, **progress})
        except BaseException:
            content.close()
            raise
        return content

    def _connect(self, host: str, port: int, watch: Watch) -> _Stream:
        """Connect to `host` at an address that was checked; which one it resolves to is settled here."""
        addresses, name = self._addresses(host, port, watch), host.rstrip(".")
        if not {(name, None), (name, port)} & self._allowed and not all(map(is_public, addresses)):
            raise Unfetchable("its host is not on the public internet")
        problem = Unfetchable("its host has no address")
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            stream = _Stream(socket.socket(family, socket.SOCK_STREAM), watch)
            try:
                stream.connect(address, port)
            except Unfetchable as error:
                stream.close()
                problem = error
            except BaseException:
                stream.close()
                raise
            else:
                return stream
        raise problem

    def _addresses(self, host: str, port: int, watch: Watch) -> list[str]:
        """All addresses of `host`. The resolver cannot be interrupted, so it is left behind if need be."""
        if is_address(host):
            return [host]
        answers: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._resolve(host, port))
            except Exception:  # no such name, no resolver, a label of more than 63 letters
                answers.put([])

        threading.Thread(target=ask, name="runner-resolve", daemon=True).start()
        since = time.monotonic()
        while True:
            with suppress(queue.Empty):
                return answers.get(timeout=POLL_SECONDS)
            watch.check(since)

class Target:
    """A URL taken apart. Raises Unfetchable for hosts that are no names and no plain addresses."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.host = canonical_host(parts.hostname or "")
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.origin = (self.scheme, self.host, self.port)
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.named = f"{shown}:{parts.port}" if parts.port else shown
        # What is not ASCII goes out as percent-encoded UTF-8, as browsers send it.
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.path = "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in path)
        self.url = f"{self.scheme}://{self.named}{self.path}"
        self.authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self.authorization = f"Basic {b64encode(pair.encode()).decode()}"


class Watch:
    """The clock over one download: it ends when nobody wants it, or when time is up. Knows its size limit, too."""

    def __init__(self, gone: Callable[[], bool], seconds: float, idle_seconds: float, most_bytes: int) -> None:
        self._gone, self._seconds, self.idle_seconds = gone, seconds, idle_seconds
        self.most_bytes = most_bytes
        self._deadline = time.monotonic() + seconds

    def check(self, idle_since: float | None = None, idle_seconds: float | None = None) -> None:
        """Raise if this download shall not go on."""
        if self._gone():
            raise RequestCancelled
        now, patience = time.monotonic(), idle_seconds or self.idle_seconds
        if now > self._deadline:
            raise Unfetchable(f"it took longer than {self._seconds:g} seconds")
        if idle_since is not None and now - idle_since > patience:
            raise Unfetchable(f"its server was silent for {patience:g} seconds")


class _Sockets:
    """The part of httpcore's network backend that we answer: one way to connect, and ours."""

    def __init__(self, connect: Callable[[str, int], _Stream]) -> None:
        self._connect = connect

    def connect_tcp(self, host: str, port: int, **options: Any) -> _Stream:
        return self._connect(host, port)


class _Stream:
    """A connection as httpcore uses one. It waits in small steps, so that `watch` can end it."""

    def __init__(self, sock: socket.socket, watch: Watch) -> None:
        sock.setblocking(False)
        self._sock, self._watch = sock, watch

    def connect(self, address: str, port: int) -> None:
        def begin() -> None:
            if (code := self._sock.connect_ex((address, port))) not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))

        self._attempt(begin, select.POLLOUT)
        self._wait(select.POLLOUT, min(CONNECT_SECONDS, self._watch.idle_seconds))
        if code := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise Unfetchable(f"the connection failed ({os.strerror(code)})")
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> _Stream:
        name = (server_hostname or "").rstrip(".")  # RFC 6066, 3: without the dot that ends a full name
        sock = ssl_context.wrap_socket(self._sock, server_hostname=name, do_handshake_on_connect=False)
        stream = _Stream(sock, self._watch)
        try:
            stream._attempt(sock.do_handshake, select.POLLIN)
        except BaseException:
            stream.close()
            raise
        return stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._attempt(lambda: self._sock.recv(max_bytes), select.POLLIN)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left = memoryview(buffer)
        while left:
            left = left[self._attempt(functools.partial(self._sock.send, left), select.POLLOUT) :]

    def close(self) -> None:
        self._sock.close()

    def get_extra_info(self, info: str) -> Any:
        return None

    def _attempt(self, action: Callable[[], T], event: int) -> T:
        """Do `action`, waiting for `event` as often as the socket would block."""
        while True:
            self._watch.check()
            try:
                return action()
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN)
            except BlockingIOError:
                self._wait(event)
            except ssl.SSLCertVerificationError as error:
                raise Unfetchable(f"the certificate of its host is not valid ({error.verify_message})") from None
            except OSError as error:
                raise Unfetchable(f"the connection failed ({error.strerror or error})") from None

    def _wait(self, event: int, idle_seconds: float | None = None) -> None:
        poll, since = select.poll(), time.monotonic()
        poll.register(self._sock, event)
        while not poll.poll(POLL_SECONDS * 1000):
            self._watch.check(since, idle_seconds)


def _too_large(most_bytes: int) -> Unfetchable:
    return Unfetchable(f"it is larger than {most_bytes} bytes, the limit of this server")


def _redirected(target: Target, location: str) -> Target:
    try:
        url = checked_url(urljoin(target.url, location))
    except ValueError:
        raise Unfetchable("it redirects to something that is not a URL") from None
    if is_data(url):
        raise Unfetchable("it redirects to a data: URI")
    return Target(url)


@functools.cache
def _tls() -> ssl.SSLContext:
    import certifi

    context = ssl.create_default_context()  # the system's authorities; slim images have none
    context.load_verify_locations(certifi.where())
    return context
