"""What plugins see of the service, and the calls that it is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from .app import AppSpec
from .codec import Codec
from .endpoint import Endpoint
from .health import Health
from .request import Request
from .response import Response
from .settings import Settings
from .storing import FileDepot

Call = Callable[[Request, dict[str, Any]], Awaitable[Response]]
Wrapper = Callable[[Call], Call]
Bind = Callable[[Request], dict[str, Any]]
BindWrapper = Callable[[Bind], Bind]


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """A prefix under which the app answers as well, on one host or on every one."""

    prefix: str  # "/run/local/my-app"
    host: str = ""  # without port; "" for every host


class Answer(NamedTuple):
    """What answers one method on one path: an endpoint of the app, or a path of a plugin."""

    answer: Callable[[Request], Response | Awaitable[Response]]
    endpoint: Endpoint | None = None
    streams_in: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A path that a plugin answers: `answer` is called with the request, its body read.

    With `streams_in` the body is not read: `answer` reads it part by part from `request.stream`,
    which ends at `max_file_bytes` instead of `max_body_bytes`.
    """

    method: str
    path: str  # may hold {name} parts, found in `request.path_parameters`
    answer: Callable[[Request], Awaitable[Response] | Response]
    streams_in: bool = False


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

    def codec(self, type: Any) -> Codec:
        """The codec of `type`, made once and kept."""
        ...

    @property
    def instance(self) -> Any:
        """The app's object; its `setup()` may still be running."""
        ...
