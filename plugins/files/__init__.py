"""Files: fetched for the endpoint that reads them, never from a network that is not the caller's.

A URL in an input is an order to our network, given by a stranger. So a host is resolved once, every
address it has must be one that all the internet can reach, and the connection goes to the address
that was checked, under the host's name (RFC 9110 Host, TLS SNI): a name that resolves elsewhere a
moment later changes nothing. Each redirect starts again from there. Hosts in `allow_private_hosts`
are exempt. Proxies named in the environment are not asked: they would resolve for us.

The download runs in the thread that reads, when it reads, and ends within a moment once the request
is cancelled. An upload is the same input in another dress: see `uploads`.
"""

from __future__ import annotations

import functools
from typing import Any

from ...schemas.endpoint import Endpoint
from ...schemas.files import Loc
from ...schemas.request import Request, current_request
from ...schemas.service import BindWrapper, Call, ServiceView, Wrapper
from ..hookspecs import hookimpl
from .fetching import Fetcher
from .places import files_in, holds_files
from .uploads import accept_uploads

__all__ = ["Fetcher", "accept_uploads", "attach", "files_in", "holds_files", "wrap_bind", "wrap_call"]


@hookimpl
def wrap_call(endpoint: Endpoint, service: ServiceView) -> Wrapper | None:
    """Give every File of a request the means to fetch it; what holds no File is left alone."""
    places = [
        (p.name, ("body", p.alias) if endpoint.embed else ("body",))
        for p in endpoint.body_parameters()
        if holds_files(p.type)
    ]
    if not places:
        return None
    fetch = Fetcher(allowed_hosts=service.settings.allow_private_hosts)

    def wrapper(call: Call) -> Call:
        async def call_with_files(request: Request, arguments: dict[str, Any]) -> Any:
            for name, loc in places:
                attach(arguments.get(name), loc, request, fetch)
            return await call(request, arguments)

        return call_with_files

    return wrapper


@hookimpl
def wrap_bind(endpoint: Endpoint, service: ServiceView) -> BindWrapper | None:
    """Let callers upload the File that an endpoint takes."""
    if not any(holds_files(p.type) for p in endpoint.body_parameters()):
        return None
    return functools.partial(accept_uploads, endpoint)


def attach(value: Any, loc: Loc, request: Request, fetch: Fetcher) -> None:
    """Let the Files in `value` be fetched for `request`; `loc` is where `value` stands in the input."""

    def gone() -> bool:
        # Ask whoever reads: a File that is a field's default is one object for all requests.
        # Threads that an author starts may know of no request; they work for the one it came with.
        here = current_request()
        return (here if here.id is not None else request).cancelled

    for at, file in files_in(value, loc):
        file.attach(fetch, loc=at, gone=gone)
