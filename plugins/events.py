"""Events: what happens to a request, for readers other than the connection it came on.

An endpoint with `on_disconnect="finish"` goes on when its caller leaves. Its requests keep an event
log, named in the answer's `x-runner-events` header; `GET` there replays it and follows it to the
end, from the event after `Last-Event-ID`. The id in that path is the request's own if we made it
up, else a new one: whoever chose a request id may have chosen one that others guess.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any
from uuid import uuid4

from ..schemas.endpoint import Endpoint
from ..schemas.events import as_sse
from ..schemas.problems import HTTPError
from ..schemas.request import Request
from ..schemas.response import EVENTS, JSON, Response
from ..schemas.service import Call, Route, ServiceView, Wrapper
from .eventlog import EventLog
from .hookspecs import hookimpl


@hookimpl
def wrap_call(endpoint: Endpoint, service: ServiceView) -> Wrapper | None:
    if endpoint.on_disconnect != "finish":
        return None

    def wrap(call: Call) -> Call:
        async def logged(request: Request, arguments: dict[str, Any]) -> Response:
            if request.log is not None:  # the queue's: it says where it is read
                return await call(request, arguments)
            request.log = service.logs.add(EventLog(readable_id(request)))
            request.log.append("queued")
            response = await call(request, arguments)
            if response.stream is None and response.media_type == JSON:
                request.log.append("output", encoded=response.body)
            response.headers["x-runner-events"] = f"/requests/{request.log.id}/events"
            return response

        return logged

    return wrap


def readable_id(request: Request) -> str:
    """An id that nobody can guess who did not get the answer's head."""
    chosen = request.headers.get("x-fal-request-id")
    return str(uuid4()) if request.id is None or chosen == request.id else request.id


@hookimpl
def register_routes(service: ServiceView) -> list[Route]:
    def answer(request: Request) -> Response:
        log: EventLog | None = service.logs.find(request.path_parameters["id"])
        if log is None or not log.may_read(request):
            raise HTTPError(404, "there are no events of such a request; they are kept for a while after its end")
        seen = last_seen(request)
        if log.ended and seen >= log.last:
            return Response(b"", 204)  # tells an EventSource not to come again
        headers = {"cache-control": "no-store"}
        following = Following(log, seen)
        service.running_now.only_reads(request, following.end)
        return Response(headers=headers, media_type=EVENTS, stream=following)

    return [Route(method="GET", path="/requests/{id}/events", answer=answer)]


def last_seen(request: Request) -> int:
    """The number of the event that the reader saw last; 0: none."""
    text = request.headers.get("last-event-id") or (request.query.get("last_event_id") or ["0"])[0]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise HTTPError(400, f"Last-Event-ID is {text[:40]!r}; it is the number of an event, such as 12")
    return int(text)


class Following:
    """A log as the parts of an answer."""

    def __init__(self, log: EventLog, seen: int) -> None:
        self.items = 0
        self._log, self._enough = log, False
        self._batches: AsyncGenerator[list[Any], None] = log.follow(seen, enough=lambda: self._enough)

    def end(self) -> None:
        """The server stops: all that is there is still told, and who comes again goes on from there."""
        self._enough = True
        self._log.wake()

    def __aiter__(self) -> Following:
        return self

    async def __anext__(self) -> bytes:
        batch = await anext(self._batches)
        self.items += len(batch)
        return b"".join(map(as_sse, batch))

    async def aclose(self) -> None:
        await self._batches.aclose()
