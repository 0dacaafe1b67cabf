"""Stopping: the requests that run now, and how each of them is made to stop.

Whoever wants a request stopped comes here: its client, who hung up or asked for it by its id, and
the server, which drains. An author may have written a `{path}/cancel` endpoint, as fal teaches; it
is called first, with the same request id, and what still runs after the grace period is cancelled.
Without one the cancel is at once. Deadlines need no kindness and cancel the request's token.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Literal

import anyio

from ..schemas.endpoint import Endpoint
from ..schemas.request import Request, enter_request
from ..schemas.response import Response, json_response
from ..schemas.service import Answer
from .logs import get_logger

log = get_logger("runner.stopping")

CANCEL = "/cancel"
REMEMBERED = 10_000  # ids of finished requests, so that a late cancel is told so; a number out of the air
GRACE_SECONDS = 5.0  # for an author's own cancel endpoint to do its work

Outcome = Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]
STATUS: dict[Outcome, int] = {"CANCELLATION_REQUESTED": 202, "ALREADY_COMPLETED": 400, "NOT_FOUND": 404}


def cancel_path(path: str) -> str:
    """Where fal's platform cancels requests to `path`: `/cancel` for the root, else `{path}/cancel`."""
    return path.rstrip("/") + CANCEL


class Running:
    """The requests of one service that are not answered yet. Lives on the event loop."""

    def __init__(self, grace_seconds: float | None = None) -> None:
        self.handlers: dict[str, Answer] = {}  # authors' own cancel endpoints, by the path they cancel
        self._grace = grace_seconds
        self._requests: dict[Request, Endpoint | None] = {}  # that work is done for
        self._readers: dict[Request, Callable[[], object]] = {}  # that only tell of others, and what ends each
        self._is_ending = False
        self._by_id: dict[str, Request] = {}
        self._finished: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._none: anyio.Event | None = None  # made by whoever waits for it

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    def add(self, request: Request) -> None:
        """Count `request` among those that a drain waits for."""
        self._requests[request] = None

    def only_reads(self, request: Request, end: Callable[[], object] | None = None) -> None:
        """`request` only tells of others: a drain does not wait for it, and has `end` end it, or else its token."""
        self._requests.pop(request, None)
        self._readers[request] = end or (lambda: request.token.cancel("draining"))
        self._look()
        if self._is_ending:
            self._readers[request]()

    def begins(self, request: Request, endpoint: Endpoint) -> None:
        """`request` is about to run `endpoint`: from now on its id stops it."""
        self._requests[request] = endpoint
        if request.id is not None:
            self._by_id[request.id] = request

    def ended(self, request: Request) -> None:
        endpoint = self._requests.pop(request, None)
        self._readers.pop(request, None)
        if endpoint is not None and request.id is not None and self._by_id.get(request.id) is request:
            del self._by_id[request.id]
            self._finished[request.id] = None
            if len(self._finished) > REMEMBERED:
                self._finished.popitem(last=False)
        self._look()

    def _look(self) -> None:
        if self._none is not None and not self._requests and not (self._is_ending and self._readers):
            self._none.set()
            self._none = None

    async def none_left(self) -> None:
        """Wait until every request is answered, but for those who only read."""
        if self._requests or (self._is_ending and self._readers):
            self._none = self._none or anyio.Event()
            await self._none.wait()

    async def end_readers(self) -> None:
        """End those who only read, and wait until they are gone."""
        self._is_ending = True
        for end in list(self._readers.values()):
            end()
        await self.none_left()

    def cancel(self, request_id: str) -> Outcome:
        """Stop the request of this id, for whoever asked for it."""
        if (request := self._by_id.get(request_id)) is not None:
            self.stop(request, "client_cancelled")
            return "CANCELLATION_REQUESTED"
        return "ALREADY_COMPLETED" if request_id in self._finished else "NOT_FOUND"

    def stop(self, request: Request, reason: str) -> None:
        """Stop `request`: by its author's cancel endpoint if there is one, then by its token."""
        endpoint = self._requests.get(request)
        handler = self.handlers.get(endpoint.path) if endpoint else None
        if handler is not None:
            self._keep(self._ask_author(handler, request))
        self.stop_later(request, reason, kindly=handler is not None)

    def stop_later(self, request: Request, reason: str, *, kindly: bool) -> None:
        """Cancel the token of `request` after the grace period: the app's own, or ours when its author acts."""
        grace = self._grace if self._grace is not None else GRACE_SECONDS if kindly else 0.0
        if grace:
            asyncio.get_running_loop().call_later(grace, request.token.cancel, reason)
        else:
            request.token.cancel(reason)

    async def _ask_author(self, handler: Answer, stopped: Request) -> None:
        """Call the author's cancel endpoint as fal's platform does. What it answers changes nothing."""
        left_out = (b"content-length", b"content-type", b"content-encoding", b"x-fal-request-id")
        headers = [(name, value) for name, value in stopped.scope["headers"] if name not in left_out]
        headers.append((b"x-fal-request-id", (stopped.id or "").encode("latin-1")))
        scope = {**stopped.scope, "headers": headers, "query_string": b""}
        request = Request(stopped.id, scope=scope, path=cancel_path(stopped.path), depot=stopped.depot)
        enter_request(request)
        try:
            answered = handler.answer(request)
            if not isinstance(answered, Response):
                await answered
        except Exception as error:
            log.info("cancel_endpoint.failed", path=request.path, problem=repr(error))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what answers POST {path}/cancel

    def by_id(self, request: Request) -> Response:
        """Ours, where the author wrote none: stop the request whose id the header names."""
        outcome = self.cancel(request.id or "")
        return json_response({"status": outcome}, status=STATUS[outcome])

    def after(self, own: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The author's, and then ours for what is left after the grace period."""

        async def answer(request: Request) -> Response:
            target = self._by_id.get(request.id or "")
            if target is not None:
                self.stop_later(target, "client_cancelled", kindly=True)
            return await own(request)

        return answer
