"""Objects of Starlette and FastAPI, known by the names of their classes.

Neither is imported: an app that uses one has imported it, all others shall not pay for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .response import Response


def is_starlette(type_: type, name: str) -> bool:
    """Whether `type_` is Starlette's class `name` or made from it."""
    return _is_starlette(type_, name)


@lru_cache(1024)  # asked for every value that an endpoint returns
def _is_starlette(type_: Any, name: str) -> bool:
    return any(base.__name__ == name and base.__module__.startswith("starlette.") for base in type_.__mro__)


def merge_starlette(response: Response, injected: Any) -> None:
    """Put the headers, status and background work of an injected Starlette Response into ours."""
    for name, value in injected.headers.items():
        response.headers[name.lower()] = value
    if injected.status_code is not None:
        response.status = injected.status_code
    if injected.background is not None:
        response.after = injected.background


def headers_of(foreign: Any) -> dict[str, str]:
    """The headers of a Starlette Response, repeated ones joined, without its length."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in foreign.raw_headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name != "content-length":
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


class ForeignResponse(Response):
    """A Starlette Response that an endpoint returned: an ASGI app, which sends itself."""

    __slots__ = ("app",)

    def __init__(self, app: Any) -> None:
        super().__init__(b"", app.status_code)
        self.app = app
