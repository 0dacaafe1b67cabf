"""What plugins see of the service, and the calls that it is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from .app import AppSpec
from .asgi import Receive, Send
from .codec import Codec
from .endpoint import Endpoint
from .events import OnOutput
from .health import Health
from .queue import QueueStore, SignWebhook
from .request import Request
from .response import Response
from .settings import Settings
from .storing import FileDepot

Call = Callable[[Request, dict[str, Any]], Awaitable[Response]]
Wrapper = Callable[[Call], Call]
Bind = Callable[[Request], dict[str, Any]]
BindWrapper = Callable[[Bind], Bind]
Check = Callable[[], Awaitable[str | None]]  # of the app's health; None: well, else what is wrong


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A prefix under which the app answers as well, on one host or on every one."""

    prefix: str  # "/run/local/my-app"
    host: str = ""  # without port; "" for every host, "queue.*" for those that begin so
    onto: str = ""  # the path that stands in place of the prefix


class Answer(NamedTuple):
    """What answers one method on one path: an endpoint of the app, or a path of a plugin."""

    answer: Callable[[Request], Response | Awaitable[Response]]
    endpoint: Endpoint | None = None
    streams_in: bool = False
    path: str = ""  # as declared by the plugin


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A path that a plugin answers: `answer` is called with the request, its body read.

    With `streams_in` the body is not read: `answer` reads it part by part from `request.stream`,
    which ends at `max_file_bytes` instead of `max_body_bytes`.
    """

    method: str
    path: str  # may hold {name} parts, found in `request.path_parameters`
    answer: Callable[[Request], Awaitable[Response] | Response]
    streams_in: bool = False


class RunningView(Protocol):
    """The requests that run now."""

    def only_reads(self, request: Request, end: Callable[[], object] | None = None) -> None:
        """`request` only tells of others: a drain does not wait for it, and has `end` end it, or else its token."""
        ...

    def __iter__(self) -> Iterator[Request]: ...

    def stop(self, request: Request, reason: str) -> None:
        """Stop `request`: by its author's cancel endpoint if there is one, then by its token."""
        ...

    def cancel(self, request_id: str) -> Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]:
        """Stop the request of this id, for whoever asked for it."""
        ...


class FailuresView(Protocol):
    """What plugins raised while requests ran."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How often, by plugin."""
        ...

    def blame(self, error: BaseException) -> dict[str, str]:
        """Fields for the log: `plugin`, when it was one's code that raised `error`, which is counted then."""
        ...


class Logs(Protocol):
    """Event logs by the id they are read under: `runner.plugins.eventlog.EventLogs`."""

    def add(self, log: Any) -> Any:
        """Keep an `EventLog` until a while after its end."""
        ...

    def also_in(self, find: Callable[[str], Any]) -> None:
        """Ask `find` too: it gives the log of an id, or None. For plugins that keep their own."""
        ...

    def find(self, id: str) -> Any:
        """The log that is read under `id`, or None."""
        ...


class ServiceView(Protocol):
    """What a plugin may read of the service it is part of."""

    @property
    def app(self) -> AppSpec: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def endpoints(self) -> tuple[Endpoint, ...]: ...
    @property
    def health(self) -> Health: ...
    @property
    def lanes(self) -> Mapping[str, int]:
        """`places`, `running`, `waiting` and `ghosts` of the app's lane, as they are now."""
        ...

    @property
    def depot(self) -> FileDepot | None:
        """Where Files are fetched and kept; None when the plugin files is left out."""
        ...

    @property
    def url(self) -> str:
        """Where this server listens, as far as it knows: what another machine must call may differ."""
        ...

    @property
    def logs(self) -> Logs:
        """The event logs of requests that have one."""
        ...

    def codec(self, type: Any) -> Codec:
        """The codec of `type`, made once and kept."""
        ...

    @property
    def output_observers(self) -> tuple[OnOutput, ...]: ...
    @property
    def tallies(self) -> dict[str, Callable[[], Mapping[str, float]]]:
        """What plugins count, by name: `/health` shows it, `/metrics` has it as `runner_{name}_…`."""
        ...

    @property
    def failures(self) -> FailuresView: ...
    @property
    def batches(self) -> Mapping[str, Mapping[int, int]]:
        """How many batches of each size have run, by the path of their endpoint."""
        ...

    @property
    def queue_store(self) -> QueueStore | None:
        """What the hook of that name gave; known before `register_routes` is asked."""
        ...

    @property
    def webhook_signers(self) -> tuple[SignWebhook, ...]:
        """What the hook `sign_webhooks` gave; known before `lifespan` is asked."""
        ...

    @property
    def running_now(self) -> RunningView: ...
    @property
    def health_checks(self) -> Mapping[str, Check]:
        """What the hook of that name gave, by name; known before `lifespan` is asked."""
        ...

    def give_up(self, exit_code: int, reason: str) -> None:
        """From any thread: nothing begins any more, running requests end as in a drain, and the process with `exit_code`."""
        ...

    async def beside(self, function: Callable[[], Any]) -> Any:
        """Call a sync or async function of the app past its places, a sync one in a thread."""
        ...

    async def perform(self, request: Request, receive: Receive, send: Send) -> None:
        """Answer a request that did not come over the wire as if it had; `receive` and `send` are ASGI's."""
        ...

    @property
    def instance(self) -> Any:
        """The app's object; its `setup()` may still be running."""
        ...
