"""The core that both clients share: it opens a host, makes requests, and reads answers. All of it is async."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec

from ...schemas.endpoint import Endpoint
from ...schemas.files import Content, Unfetchable
from ...schemas.problems import InvalidInput
from ...schemas.storing import PLAIN_ERRAND, Errand
from ..files.places import files_in
from ..types.codecs import to_json
from .errors import Answer, AppClientError, TestingError, parts_of_error
from .hosts import Host
from .inputs import Outgoing, arrange, wire
from .transports import Broken, Frame, Refused, Reply, Socket

EVENTS = "text/event-stream"


class Core:
    """One client of one app. Used on the loop that it was opened on."""

    def __init__(self, host: Host, *, headers: Mapping[str, str], timeout: float | None) -> None:
        self.host, self.timeout = host, timeout
        self._headers = {"accept": "*/*", **headers}
        self.loop: asyncio.AbstractEventLoop = None  # type: ignore[assignment] # set by `open`
        self.open_now = False
        self._tasks: set[asyncio.Task[None]] = set()

    def later(self, function: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """On the loop: do it beside everything else."""
        task = self.loop.create_task(function(*arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def open(self) -> None:
        if self.loop is not None:
            raise TestingError("a client is opened once; make another one")
        try:
            self.loop = asyncio.get_running_loop()
        except RuntimeError:
            raise TestingError("apps run on asyncio, and this test does not: give it the backend asyncio") from None
        await self.host.open()
        self.open_now = True

    async def close(self) -> None:
        self.open_now = False
        await self.host.close()

    @property
    def url(self) -> str:
        return self.host.transport.url if hasattr(self.host, "transport") else ""

    def endpoint(self, name: str) -> Endpoint:
        endpoints = self.host.surface.endpoints
        if name not in endpoints:
            raise AttributeError(f"{self.host.surface.name} has no endpoint {name!r}; it has {', '.join(endpoints) or 'none'}")
        return endpoints[name]

    # --- requests

    async def send(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Reply:
        """The answer, once its head is there."""
        if not self.open_now:
            raise TestingError("the client is not open; write `with AppClient(MyApp) as client:`")
        self.host.before_request()
        sent = {**self._headers, **{name.lower(): value for name, value in (headers or {}).items()}}
        if body or method in ("POST", "PUT"):
            sent.setdefault("content-length", str(len(body)))
        with self._in_time(f"{method} {path}"):
            return await self.host.transport.request(method, path, sent, body)

    def _in_time(self, what: str) -> Any:
        return _within(self.timeout, what)

    async def whole(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        reply = await self.send(method, path, headers, body)
        return await self.read(reply)

    async def read(self, reply: Reply) -> Answer:
        body = b""
        try:
            with self._in_time("reading the answer"):
                async for part in reply:
                    body += part
        except Broken:
            if reply.status < 400:
                raise
        finally:
            await reply.aclose()
        return Answer(reply.status, reply.headers, body)

    async def outgoing(self, endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any]) -> Outgoing:
        made = arrange(endpoint, arguments, fields)
        for upload in made.uploads:
            sent = await self.whole("POST", self._root("/files"), {"content-type": upload.described["content_type"]}, upload.data)
            if sent.status != 201:
                raise self.failed(sent, "POST", "/files")
            upload.described["url"] = sent.json()["url"]
        return made

    async def begin(self, endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any], options: Mapping[str, str]) -> Reply:
        made = await self.outgoing(endpoint, arguments, fields)
        body = made.body()
        headers = {**made.headers, **({"content-type": "application/json"} if body else {}), **options}
        return await self.send("POST", made.path, headers, body)

    async def answer(self, endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any], options: Mapping[str, str]) -> Answer:
        """All of the answer, whatever its status."""
        return await self.read(await self.begin(endpoint, arguments, fields, options))

    async def call(self, endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any], options: Mapping[str, str]) -> Any:
        """What the endpoint returns, in its type."""
        answer = await self.answer(endpoint, arguments, fields, options)
        if not 200 <= answer.status < 300:
            raise self.failed(answer, "POST", endpoint.path)
        return self.typed(endpoint, answer)

    def failed(self, answer: Answer, method: str, path: str) -> AppClientError:
        return answer.error(method, self.url + path, self.host.lines(answer.headers.get("x-fal-request-id")))

    # --- answers

    def typed(self, endpoint: Endpoint, answer: Answer) -> Any:
        if answer.media_type == EVENTS:
            parser = Events()
            return [self.item(endpoint, data) for data in parser.feed(answer.body)]
        if answer.media_type != "application/json":
            return answer.text if answer.media_type.startswith("text/") else answer.body
        return self.value(endpoint.output, answer.body)

    def item(self, endpoint: Endpoint, data: bytes) -> Any:
        return self.value(endpoint.output, data)

    def value(self, type: Any, body: bytes) -> Any:
        """`body` in its type, its files ready to be read."""
        if type is Any:
            value = msgspec.json.decode(body)
        else:
            try:
                value = self.host.surface.codec(type).decode(body)
            except InvalidInput as error:
                shown = body[:500].decode(errors="replace")
                raise AppClientError(f"the answer does not fit {type!r}: {error}; it was {shown}") from error
        for _, file in files_in(value, ()):
            file.attach(self.download, loc=("answer",), gone=lambda: False)
        return value

    def download(self, url: str, gone: Callable[[], bool], errand: Errand = PLAIN_ERRAND) -> Content:
        """Read a file of an answer. Called in any thread but the loop's."""
        return asyncio.run_coroutine_threadsafe(self._downloaded(url), self.loop).result()

    async def _downloaded(self, url: str) -> Content:
        own = f"{self.url}/"
        path = url.removeprefix(self.url) if url.startswith(own) and not urlsplit(self.url).path else url
        if path.startswith("http") and not self.host.transport.reaches_others:
            depot = self.host.service.depot
            content: Content = await asyncio.to_thread(depot.fetch, url, lambda: False)
            return content
        answer = await self.whole("GET", path)
        if answer.status != 200:
            raise Unfetchable(f"GET {url} answered {answer.status}")
        content = Content(content_type=answer.media_type or None)
        content.append(answer.body)
        return content

    async def health(self) -> Any:
        answer = await self.whole("GET", "/health")
        if not 200 <= answer.status < 300:
            raise self.failed(answer, "GET", "/health")
        return answer.json()

    def _root(self, path: str) -> str:
        """A path of the server's own, beside the app's when the URL ends in the app's id."""
        own = urlsplit(self.url).path
        if not own:
            return path
        return self.url[: len(self.url) - len(own)] + path

    # --- streams

    async def stream(
        self, endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any], options: Mapping[str, str], keep: list[Reply]
    ) -> AsyncIterator[Any]:
        """The items of a stream as they come. `keep` gets the answer, for whoever wants to hang up."""
        reply = await self.begin(endpoint, arguments, fields, options)
        keep.append(reply)
        try:
            if not 200 <= reply.status < 300:
                raise self.failed(await self.read(reply), "POST", endpoint.path)
            kind = reply.headers.get("content-type", "")
            async for data in self._items(reply) if kind.startswith(EVENTS) else reply:
                yield self.item(endpoint, data) if kind.startswith(EVENTS) else data
        except Broken as error:
            raise AppClientError(f"POST {self.url}{endpoint.path}: {error}", reply.status, reply.headers, logs=self._logs(reply)) from None
        finally:
            with anyio.CancelScope(shield=True):
                await reply.aclose()

    def _logs(self, reply: Reply) -> list[str]:
        return self.host.lines(reply.headers.get("x-fal-request-id"))

    async def _items(self, reply: Reply) -> AsyncIterator[bytes]:
        """The data of each event. The last one of a stream that is broken off is its error."""
        parser = Events()
        suspect: bytes | None = None  # looks like an error; what comes next tells
        try:
            async for part in reply:
                for data in parser.feed(part):
                    if suspect is not None:
                        yield suspect
                    suspect = data if _looks_like_error(data) else None
                    if suspect is None:
                        yield data
        except Broken:
            if suspect is None:
                raise
            detail, error_type = parts_of_error(suspect)
            message = f"the stream ended with an error: {suspect.decode(errors='replace')}"
            raise AppClientError(message, reply.status, reply.headers, detail=detail, error_type=error_type, logs=self._logs(reply)) from None
        if suspect is not None:
            yield suspect

    # --- realtime

    async def connect(self, endpoint: Endpoint, options: Mapping[str, str]) -> Talk:
        self.host.before_request()
        try:
            socket = await self.host.transport.connect(endpoint.path, {**self._headers, **options})
        except Refused as error:
            raise self.failed(error.answer, "GET", endpoint.path) from None
        return Talk(self, endpoint, socket)

    # --- the queue

    async def submit(self, endpoint: Endpoint, arguments: Sequence[Any], fields: Mapping[str, Any], options: Mapping[str, str]) -> Submitted:
        made = await self.outgoing(endpoint, arguments, fields)
        body = made.body()
        headers = {**made.headers, **({"content-type": "application/json"} if body else {}), **options}
        base = self._root(f"/queue/{self.host.surface.app_id}")
        answer = await self.whole("POST", base + made.path, headers, body)
        if not 200 <= answer.status < 300:
            raise self.failed(answer, "POST", base + made.path)
        return Submitted(self, endpoint, f"{base}/requests/{answer.json()['request_id']}", answer.json()["request_id"])


class _within:
    """Within so many seconds, or TimeoutError that names what took longer."""

    def __init__(self, seconds: float | None, what: str) -> None:
        self._seconds, self._what = seconds, what
        self._scope: anyio.CancelScope | None = None

    def __enter__(self) -> None:
        if self._seconds is not None:
            self._scope = anyio.CancelScope(deadline=anyio.current_time() + self._seconds)
            self._scope.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._scope is not None and self._scope.__exit__(kind, error, trace):
            raise TimeoutError(f"{self._what} took longer than timeout={self._seconds:g}")


class Events:
    """A stream of server-sent events, cut into the data of each."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, part: bytes) -> list[bytes]:
        *events, self._rest = (self._rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
        found = []
        for event in events:
            lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if lines:
                found.append(b"\n".join(lines))
        return found


def _looks_like_error(data: bytes) -> bool:
    if b'"detail"' not in data:
        return False
    try:
        return {"detail", "error_type"} <= set(json.loads(data))
    except (ValueError, TypeError):
        return False


class Talk:
    """One socket of a realtime or raw endpoint."""

    def __init__(self, core: Core, endpoint: Endpoint, socket: Socket) -> None:
        self._core, self._endpoint, self._socket = core, endpoint, socket
        self._raw = endpoint.mark.realtime_mode is None

    async def send(self, arguments: Sequence[Any], fields: Mapping[str, Any]) -> None:
        if self._raw or (len(arguments) == 1 and isinstance(arguments[0], bytes | str)):
            return await self._socket.send(arguments[0])
        hint = self._endpoint.parameters[0].type if self._endpoint.parameters else Any
        if self._endpoint.mark.decode_message is not None:
            raise TypeError(f"{self._endpoint.name} reads its messages itself (decode_message); send bytes or a str")
        value = wire(arguments[0] if arguments else dict(fields), hint, [])
        await self._socket.send(msgspec.msgpack.encode(value, enc_hook=to_json))

    async def receive(self) -> Any:
        """The next message in its type; None once the session is over. Raises AppClientError for an error of the server."""
        with self._core._in_time("the next message"):
            frame = await self._socket.receive()
        if frame is None or self._raw:
            return frame
        if isinstance(frame, str) and (told := _told(frame)) is not None:
            if told["type"] != "x-fal-error":
                return await self.receive()
            if told.get("error") == "TIMEOUT":
                return None
            message = f"{self._endpoint.path}: {told.get('error')}: {told.get('reason')}"
            raise AppClientError(message, detail=told.get("reason"), error_type=told.get("error"))
        return self._read(frame)

    def _read(self, frame: Frame) -> Any:
        if self._endpoint.mark.encode_message is not None:
            return frame
        value = msgspec.json.decode(frame) if isinstance(frame, str) else msgspec.msgpack.decode(frame)
        output = self._endpoint.mark.output_modal or self._endpoint.output
        return value if output is Any else self._core.host.surface.codec(output).convert(value)

    async def close(self) -> None:
        await self._socket.close()


def _told(frame: str) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(frame)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) and str(value.get("type", "")).startswith("x-fal-") else None


class Submitted:
    """A job of the queue."""

    def __init__(self, core: Core, endpoint: Endpoint, path: str, request_id: str) -> None:
        self._core, self._endpoint, self._path, self.request_id = core, endpoint, path, request_id

    async def status(self) -> dict[str, Any]:
        answer = await self._core.whole("GET", f"{self._path}/status?logs=1")
        if not 200 <= answer.status < 300:
            raise self._core.failed(answer, "GET", self._path)
        status: dict[str, Any] = answer.json()
        return status

    async def result(self) -> Any:
        """Wait for the end, without asking again and again, and give the result in its type."""
        reply = await self._core.send("GET", f"{self._path}/status/stream")
        await self._core.read(reply)
        answer = await self._core.whole("GET", self._path)
        if not 200 <= answer.status < 300:
            raise self._core.failed(answer, "GET", self._path)
        return self._core.typed(self._endpoint, answer)

    async def cancel(self) -> str:
        answer = await self._core.whole("PUT", f"{self._path}/cancel")
        return str(answer.json().get("status", answer.status))


def credentials() -> dict[str, str]:
    """The Authorization of fal's clients, from their environment."""
    key = os.environ.get("FAL_KEY") or ":".join(filter(None, (os.environ.get("FAL_KEY_ID"), os.environ.get("FAL_KEY_SECRET"))))
    return {"authorization": f"Key {key}"} if key else {}


async def until_healthy(core: Core, seconds: float, each: float, pause: float) -> None:
    """Ask `GET /health` until it is well: for a server that may still be starting. As fal's `connect` does."""
    end = time.monotonic() + seconds
    while True:
        try:
            with anyio.fail_after(each):
                answer = await core.whole("GET", "/health")
            if 200 <= answer.status < 300:
                return
            if answer.status not in (404, 500, 503):
                raise core.failed(answer, "GET", "/health")
            why = f"{answer.status} {answer.text}"
        except (OSError, TimeoutError) as error:
            why = repr(error)
        if time.monotonic() > end:
            raise AppClientError(f"{core.url} was not well after {seconds:g} s: {why}")
        await anyio.sleep(pause)
