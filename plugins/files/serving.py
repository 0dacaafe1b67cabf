"""Serving: `GET /files/{id}/{name}`, whole or in ranges (RFC 9110), and never as a page of ours.

What lies here was made by strangers. So nothing is ever sniffed, types that a browser could run
are downloads, and whatever is opened all the same is sandboxed: it has no origin, no scripts and
no way to call anybody.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import BinaryIO

import anyio

from ...schemas.problems import HTTPError
from ...schemas.request import Request
from ...schemas.response import Response
from ...schemas.storing import content_disposition
from .store import Found, LocalStore

MiB = 1024 * 1024
PART = 512 * 1024  # bytes read and sent at once; more did not help
WHOLE = 256 * 1024  # files up to this size are one read and no stream
RANGE = re.compile(r"bytes=\s*(\d*)-(\d*)\s*", re.ASCII)
YEAR = 365 * 24 * 3600
GUARDS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'",
    "cross-origin-resource-policy": "cross-origin",  # a page may show it
    "accept-ranges": "bytes",
}


class Serving:
    """What answers GET and HEAD for the files of one store."""

    def __init__(self, store: LocalStore, now: Callable[[], float] = time.time) -> None:
        self._store, self._now = store, now

    async def answer(self, request: Request) -> Response:
        return await anyio.to_thread.run_sync(self._answer, request)

    def _answer(self, request: Request) -> Response:
        found = self._store.find(request.path_parameters["id"])
        if found is None or found.name != request.path_parameters["name"]:
            if found is not None:
                found.file.close()
            raise HTTPError(404, "there is no such file, or no longer")
        keep_open = False
        try:
            response = self._response(request, found)
            keep_open = response.stream is not None
            return response
        finally:
            if not keep_open:
                found.file.close()

    def _response(self, request: Request, found: Found) -> Response:
        headers = self._headers(found)
        if unchanged(request, headers["etag"]):
            return Response(b"", 304, headers)
        start, end, status = 0, found.size, 200
        asked = request.headers.get("range")
        if asked and request.headers.get("if-range", headers["etag"]) == headers["etag"]:
            bounds = bounds_of(asked, found.size)
            if bounds is not None:
                (start, end), status = bounds, 206
                if start >= end:
                    raise HTTPError(416, "the file has no such range", {"content-range": f"bytes */{found.size}"})
                headers["content-range"] = f"bytes {start}-{end - 1}/{found.size}"
        headers["content-length"] = str(end - start)
        if request.method == "HEAD":
            return Response(b"", status, headers, found.content_type)
        if end - start <= WHOLE:
            return Response(os.pread(found.file.fileno(), end - start, start), status, headers, found.content_type)
        return Response(status=status, headers=headers, media_type=found.content_type, stream=Slices(found.file, start, end))

    def _headers(self, found: Found) -> dict[str, str]:
        left = YEAR if found.expires is None else int(found.expires - self._now())
        return {
            **GUARDS,
            "etag": f'"{found.digest}"',
            "cache-control": f"public, max-age={max(0, min(left, YEAR))}, immutable",
            "content-disposition": content_disposition(found.name, found.content_type),
        }


def unchanged(request: Request, etag: str) -> bool:
    """Whether the caller has this very content already."""
    known = request.headers.get("if-none-match")
    return known is not None and (known.strip() == "*" or etag in re.findall(r'"[^"]*"', known))


def bounds_of(asked: str, size: int) -> tuple[int, int] | None:
    """The start and end of the range asked for, empty when the file has none of it; None to send all.

    Several ranges at once, and what is not understood, are answered with the whole file, as
    RFC 9110, 14.2 allows.
    """
    match = RANGE.fullmatch(asked)
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    return start, end


class Slices:
    """The bytes of an open file from `start` to `end`, in order. Owns the file and closes it."""

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._at, self._end = file, start, end

    def __aiter__(self) -> Slices:
        return self

    async def __anext__(self) -> bytes:
        if self._at >= self._end:
            raise StopAsyncIteration
        size = min(PART, self._end - self._at)
        part = await anyio.to_thread.run_sync(os.pread, self._file.fileno(), size, self._at)
        if not part:
            raise OSError(f"a file of the store ended {self._end - self._at} bytes too early")
        self._at += len(part)
        return part

    async def aclose(self) -> None:
        self._file.close()
