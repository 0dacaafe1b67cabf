"""`AppClient`: an app's endpoints as methods of a client, which has the core's loop in a thread of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from ...schemas.endpoint import Endpoint
from .core import Core, Submitted, Talk, credentials, until_healthy
from .errors import Answer, AppClientError, TestingError
from .hosts import Child, Here, Host, There
from .targets import resolve
from .transports import Reply

A = TypeVar("A")
STARTUP_SECONDS = 60.0


class Client(Generic[A]):
    """What both clients are made with. See AppClient."""

    def __init__(
        self,
        app: type[A] | str,
        url: str | None = None,
        timeout: float | None = None,
        *,
        serve: bool = False,
        settings: Mapping[str, Any] | None = None,
        plugins: Sequence[Any] = (),
        headers: Mapping[str, str] | None = None,
        startup_timeout: float = STARTUP_SECONDS,
        _listen: bool = False,
    ) -> None:
        target = resolve(app)
        if url is not None and (serve or settings or plugins):
            raise TestingError("with a url the app runs elsewhere: serve, settings and plugins are for one that the client starts")
        if serve and plugins:
            raise TestingError("with serve=True the app runs in another process: name plugins there, settings={'plugin': ['my_plugin.py']}")
        host: Host
        if url is not None:
            host = There(target, url)
        elif serve:
            host = Child(target, settings or {}, startup_timeout)
        else:
            host = Here(target, settings or {}, plugins, startup_timeout, listen=_listen)
        sent = {**(credentials() if url is not None else {}), **{name.lower(): value for name, value in (headers or {}).items()}}
        self._core = Core(host, headers=sent, timeout=timeout)
        self._target = target

    @property
    def url(self) -> str:
        """Where the app answers. In this process without a socket nobody else finds it there."""
        return self._core.url

    @property
    def application(self) -> str:
        """The app's id, `owner/name`."""
        return self._core.host.surface.app_id

    @property
    def endpoints(self) -> list[str]:
        """The names of the endpoint methods."""
        return list(self._core.host.surface.endpoints)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(self._core.host.surface.endpoints if hasattr(self._core.host, "surface") else ())})


class AppClient(Client[A]):
    """A client of one app, for its tests. Each endpoint is an attribute:

        with AppClient(MyApp) as client:
            client.generate(prompt="hello")     # or client.generate(Input(prompt="hello"))
            for token in client.tokens(prompt="hello"): ...
            with client.step() as socket: ...   # realtime
            client.generate.submit(prompt="hello").result()

    By default the app runs in this process, without a socket: the service that `runner app:MyApp` would
    assemble, with its lane, its codecs, its queue and its files. `serve=True` starts the command line in a
    process of its own, on a free port; `url` means a server that runs already. `timeout` is in
    seconds for one answer. `settings` are those of the command line by their Python names, `plugins`
    more plugins. Raises AppClientError when the app does not start within `startup_timeout` seconds.

    An endpoint that answers with an error raises AppClientError, with `status_code` and `detail`.
    """

    _portal: BlockingPortal | None = None

    @classmethod
    @contextmanager
    def connect(
        cls,
        app_cls: type[A] | str,
        *,
        health_request_timeout: float = 30,
        startup_timeout: float = STARTUP_SECONDS,
        health_check_interval: float = 0.5,
    ) -> Iterator[AppClient[A]]:
        """As fal's: the app in this process on a free port, ready to be called, also by others at `client.url`."""
        client: AppClient[A] = cls(app_cls, startup_timeout=startup_timeout, _listen=True)
        with client:
            client._call(until_healthy, client._core, startup_timeout, health_request_timeout, health_check_interval)
            yield client

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(
                start_blocking_portal(backend_options={"use_uvloop": importlib.util.find_spec("uvloop") is not None}, name="runner-test")
            )
            stack.callback(setattr, self, "_portal", None)
            self._call(self._core.open)
            stack.callback(lambda: self._call(self._core.close))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def close(self) -> None:
        """Hang up what is open, tear the app down. The `with` block does it by itself."""
        self._stack.close()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._portal is None:
            raise TestingError(f"the client is not open; write `with AppClient({self._target.__name__}) as client:`")
        __tracebackhide__ = True  # a test that fails here wants to see its own line
        try:
            return self._portal.call(function, *arguments)
        except (AppClientError, AssertionError, TimeoutError) as error:
            raise error.with_traceback(None) from error.__cause__

    @property
    def app(self) -> A:
        """This client, for editors and type checkers: its endpoints have the signatures that the class gives them."""
        return cast(A, self)

    def __getattr__(self, name: str) -> BoundEndpoint:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> BoundEndpoint:
        """An endpoint by name, also one whose name the client has for itself, such as `health`."""
        return BoundEndpoint(self, self._core.endpoint(name), {})

    def health(self) -> Any:
        """What `GET /health` says. Raises AppClientError when it is not well."""
        return self._call(self._core.health)

    def request(self, method: str, path: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        """Any request, its answer as it came, whatever its status."""
        answer: Answer = self._call(self._core.whole, method, path, headers, body)
        return answer


class BoundEndpoint:
    """One endpoint of one client. Calling it sends a request."""

    def __init__(self, client: AppClient[Any], endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._client, self._headers = client, headers
        self.endpoint = endpoint
        self.__name__, self.__doc__ = endpoint.name, endpoint.description

    def with_headers(self, headers: Mapping[str, str]) -> BoundEndpoint:
        """The same endpoint, called with these headers too: `x-fal-request-id`, `x-fal-request-timeout` …"""
        return BoundEndpoint(self._client, self.endpoint, {**self._headers, **{n.lower(): v for n, v in headers.items()}})

    def __call__(self, *arguments: Any, **fields: Any) -> Any:
        """What the method returns, in its type; a Stream where it yields; a RealtimeSession for realtime."""
        __tracebackhide__ = True
        if self.endpoint.mark.is_websocket:
            if arguments or fields:
                raise TypeError(f"{self.endpoint.name} is realtime: write `with client.{self.endpoint.name}() as socket: socket.send(…)`")
            return RealtimeSession(self)
        if self.endpoint.streams:
            return Stream(self._client, *self._stream(arguments, fields))
        return self._client._call(self._client._core.call, self.endpoint, arguments, fields, self._headers)

    def _stream(self, arguments: Any, fields: Any) -> tuple[AsyncIterator[Any], list[Reply]]:
        keep: list[Reply] = []
        return self._client._core.stream(self.endpoint, arguments, fields, self._headers, keep), keep

    def answer(self, *arguments: Any, **fields: Any) -> Answer:
        """The answer as it comes over the wire, with its status and headers, whatever it is."""
        answer: Answer = self._client._call(self._client._core.answer, self.endpoint, arguments, fields, self._headers)
        return answer

    def submit(self, *arguments: Any, **fields: Any) -> Job:
        """Put it into the queue, and return the job."""
        client = self._client
        return Job(client, client._call(client._core.submit, self.endpoint, arguments, fields, self._headers))

    def __repr__(self) -> str:
        return f"<endpoint {self.endpoint.name} at {self.endpoint.path}>"


class Stream(Iterator[Any]):
    """The items that an endpoint yields, as they come. The request goes out with the first `next`; closing hangs up."""

    def __init__(self, client: AppClient[Any], items: AsyncIterator[Any], keep: list[Reply]) -> None:
        self._client, self._items, self._keep = client, items, keep
        self._closed = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        try:
            return self._client._call(_anext, self._items)
        except StopAsyncIteration:
            self._closed = True
            raise StopIteration from None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up: what still runs for this stream is cancelled. Returns when the request has ended."""
        if not self._closed:
            self._closed = True
            if self._client._portal is not None:
                self._client._call(hang_up, self._items, self._keep)

    def __del__(self) -> None:
        if not self._closed and self._client._portal is not None:
            # Whatever thread collects it, the loop's own too: nobody may wait here.
            with suppress(RuntimeError):  # the loop is closed by now
                self._client._core.loop.call_soon_threadsafe(self._client._core.later, hang_up, self._items, self._keep)


async def _anext(items: AsyncIterator[Any]) -> Any:
    return await anext(items)


async def hang_up(items: Any, keep: list[Reply]) -> None:
    for reply in keep:
        await reply.aclose()
    with suppress(RuntimeError):  # it is being read at this moment, and ends by itself
        await items.aclose()


class RealtimeSession:
    """One socket: `send` messages, `recv` answers. Iterating gives answers until the session is over."""

    def __init__(self, endpoint: BoundEndpoint) -> None:
        self._bound, self._client = endpoint, endpoint._client
        self._talk: Talk | None = None

    def __enter__(self) -> Self:
        self._talk = self._client._call(self._client._core.connect, self._bound.endpoint, self._bound._headers)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> Talk:
        if self._talk is None:
            raise TestingError(f"the socket is not open; write `with client.{self._bound.endpoint.name}() as socket:`")
        return self._talk

    def send(self, *message: Any, **fields: Any) -> None:
        """Send one message: a model, a mapping, its fields by name; bytes or str as they are."""
        self._client._call(self._open().send, message, fields)

    def recv(self) -> Any:
        """The next answer in its type; None when the session is over. Raises AppClientError for one that failed."""
        return self._client._call(self._open().receive)

    def call(self, *message: Any, **fields: Any) -> Any:
        """Send one message and wait for one answer."""
        self.send(*message, **fields)
        return self.recv()

    def __iter__(self) -> Iterator[Any]:
        while (message := self.recv()) is not None:
            yield message

    def close(self) -> None:
        """Leave: what still runs for this socket is cancelled."""
        if self._talk is not None and self._client._portal is not None:
            self._client._call(self._talk.close)


class Job:
    """A request in the queue."""

    def __init__(self, client: AppClient[Any], submitted: Submitted) -> None:
        self._client, self._submitted = client, submitted
        self.request_id = submitted.request_id

    def status(self) -> dict[str, Any]:
        """`status`, `queue_position`, `logs`, `progress` … as the queue's API has them."""
        status: dict[str, Any] = self._client._call(self._submitted.status)
        return status

    @property
    def logs(self) -> list[str]:
        """What the endpoint has printed for it so far."""
        return [line["message"] for line in self.status().get("logs") or []]

    def result(self) -> Any:
        """Wait for the end; the result in its type. Raises AppClientError when it failed or was cancelled."""
        return self._client._call(self._submitted.result)

    def cancel(self) -> str:
        """Ask for it to stop: OK, CANCELLATION_REQUESTED or ALREADY_COMPLETED."""
        return str(self._client._call(self._submitted.cancel))
