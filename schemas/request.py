"""A request, as the code that serves it sees it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qsl, quote

from .asgi import Scope
from .connection import Shortcuts

if TYPE_CHECKING:
    from .storing import FileDepot
    from .tracing import Trace


class Cancellable(Protocol):
    """A cancel token as a request shows it: asked to stop, and why. `runner.plugins.cancellation` has the real one."""

    @property
    def cancelled(self) -> bool: ...
    @property
    def reason(self) -> str | None: ...
    def cancel(self, reason: str) -> bool: ...
    def on_cancel(self, listener: Callable[[], object]) -> None: ...
    def forget(self, listener: Callable[[], object]) -> None: ...


class Never:
    """The token of work that no request asked for, such as `setup`: nobody cancels it."""

    cancelled = False
    reason = None

    def cancel(self, reason: str) -> bool:
        return False

    def on_cancel(self, listener: Callable[[], object]) -> None: ...
    def forget(self, listener: Callable[[], object]) -> None: ...


class BodyStream(Protocol):
    """A request's body on its way in, in order and once. `ended` is true when it was read to its end."""

    @property
    def ended(self) -> bool: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Request:
    """One request while it is served: who asked for what. Owned by the service, read by everybody.

    Outside a request `current_request()` gives an empty one: `id` and `endpoint` are None,
    `headers` is `{}`. Header names are lower case. Attribute names repeat those of fal's
    `RequestContext` (`request_id`, `endpoint`, `lifecycle_preference`, `headers`).
    """

    # Most of it differs in few requests: an object has an attribute once it does.
    path_parameters: Mapping[str, str] = {}
    place: Any = None  # in the lane, while an endpoint runs for this request
    stream: BodyStream | None = None  # the body, for a route that reads it part by part
    # Set for a job of the queue, which waits in a line of its own: notes for good that the work
    # begins. Asked once the job has its place; the work waits for it, and does not begin if it raises.
    begin: Callable[[], Awaitable[None]] | None = None
    from_within = False  # the runner itself asks: nobody intercepts, and no hang-up is watched for
    log: Any = None  # its EventLog, for requests that keep one
    shortcuts: Shortcuts | None = None  # past ASGI, when a protocol of ours has it on a connection
    alone = False  # it begins once nobody else runs, and nobody else begins before it is through
    trace: Trace | None = None  # set as the request is entered, by the plugin that traces
    quiet = False  # one of many that only look: its access line is for debugging
    streams = False  # a stream of events is on its way out
    _headers: dict[str, str] | None = None
    members: tuple[Request, ...] = ()  # of the request that stands for a batch: see `batch.py`

    def __init__(
        self,
        id: str | None = None,
        *,
        scope: Scope | None = None,
        path: str = "",
        body: bytes = b"",
        token: Cancellable | None = None,
        depot: FileDepot | None = None,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.id = id
        self.body = body
        self.token: Cancellable = token or Never()
        self.depot = depot  # of its service: where its Files are fetched and kept
        self.method: str | None
        if shortcuts is None:
            self.scope = scope if scope is not None else {}
            self.path = path
            self.method = self.scope.get("method")
        else:
            self.shortcuts = shortcuts
            self.path, self.method = shortcuts.path, shortcuts.method
            self.first = shortcuts.first_headers

    @cached_property
    def scope(self) -> Scope:
        """The request as ASGI has it; made when first asked for."""
        assert self.shortcuts is not None
        return self.shortcuts.scope

    @property
    def client(self) -> str | None:
        """The address of who called."""
        client = self.shortcuts.client if self.shortcuts is not None else self.scope.get("client")
        return client[0] if client else None

    def send_on(self, path: str, query: str) -> None:
        """Let another path of this server answer. For interceptors: nothing is routed yet."""
        full, raw_query = self.scope.get("root_path", "") + path, query.encode("latin-1", "replace")
        self.scope = {**self.scope, "path": full, "raw_path": quote(full).encode(), "query_string": raw_query}
        self.path = path
        self.__dict__.pop("query", None)

    @property
    def request_id(self) -> str | None:
        return self.id

    @property
    def ids(self) -> tuple[str, ...]:
        """Its id, or those of a batch's members: for whom something is told."""
        if self.members:
            return tuple(member.id or "" for member in self.members)
        return () if self.id is None else (self.id,)

    @cached_property
    def first(self) -> Mapping[bytes, bytes]:
        """The first header of each name, as it was sent: the quick way to one of them."""
        return dict(reversed([*self.scope.get("headers", ())]))

    def header(self, name: bytes) -> bytes | None:
        """The first header of this name, in lower case, as it was sent."""
        return self.first.get(name)

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case. Repeated headers are joined by a comma (RFC 9110, 5.3)."""
        if self._headers is None:
            self._headers = self._joined_headers()
        return self._headers

    @property
    def headers_were_read(self) -> bool:
        """Whether anybody has seen `headers`, and may have changed them."""
        return self._headers is not None

    def _joined_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for raw_name, raw_value in self.scope.get("headers", ()):
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query string, each name with all its values in order."""
        query: dict[str, list[str]] = {}
        text = self.scope.get("query_string", b"").decode("latin-1")
        for name, value in parse_qsl(text, keep_blank_values=True):
            query.setdefault(name, []).append(value)
        return query

    @property
    def endpoint(self) -> str | None:
        """The full endpoint that a gateway in front called (`owner/app/path`), when it says so."""
        return self.headers.get("x-fal-endpoint")

    @cached_property
    def lifecycle_preference(self) -> dict[str, Any] | None:
        """How long outputs shall live, from `x-fal-object-lifecycle-preference`; None if absent or malformed."""
        return lifecycle_of(self.headers)

    @property
    def cancelled(self) -> bool:
        """True once somebody asked this request to stop."""
        return self.token.cancelled


def lifecycle_of(headers: Mapping[str, str]) -> dict[str, Any] | None:
    """What `headers` wish of the life of files (contract 4.2); None if absent or malformed."""
    text = headers.get("x-fal-object-lifecycle-preference") or headers.get("x-fal-object-lifecycle")
    try:
        value = json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


_current: ContextVar[Request] = ContextVar("runner_request")
_nobody = Request()


def current_request() -> Request:
    """The request that this code runs for, in sync and async endpoints alike; an empty one outside."""
    return _current.get(_nobody)


def enter_request(request: Request) -> None:
    """Make `request` the current one for the rest of this task and what it starts."""
    _current.set(request)


def entering(functions: Sequence[Callable[[Request], None]]) -> Callable[[Request], None]:
    """`enter_request`, and then each of `functions`, as one."""
    if not functions:
        return enter_request

    def enter(request: Request) -> None:
        _current.set(request)
        for function in functions:
            function(request)

    return enter
