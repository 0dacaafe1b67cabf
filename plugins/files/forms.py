"""Forms of any size: the parts of a multipart/form-data body (RFC 7578) as they come in.

Where `uploads` reads forms that fill an endpoint's input and lie in memory, this keeps no more than
a chunk and the boundary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from ...schemas.files import safe_name
from ...schemas.problems import HTTPError
from .headers import decoded, essence_of, parameters

MOST_HEAD_BYTES = 2048  # of one part; a name of 255 characters fits
MOST_PARTS = 1000


class FormPart(NamedTuple):
    """The head of one part. `file_name` is None for a text field."""

    name: str
    file_name: str | None
    content_type: str | None


class FormReader:
    """The parts of one form, in order: `next_part`, then `data`, until there is no next part."""

    def __init__(self, chunks: AsyncIterator[bytes], content_type: str) -> None:
        boundary = parameters(content_type).get("boundary", "")
        if not boundary or len(boundary) > 200:
            raise _broken("its Content-Type names no boundary")
        self._fence = b"\r\n--" + boundary.encode()
        self._chunks = chunks
        self._held = bytearray(b"\r\n")  # so that the first boundary is found like all others
        self._parts = 0
        self._inside = True  # in a part, or in what precedes the first one

    async def next_part(self) -> FormPart | None:
        """The head of the next part, what is left of the last one skipped; None at the end."""
        async for _ in self.data():
            pass
        while len(self._held) < 2:
            await self._more()
        if self._held.startswith(b"--"):
            async for _ in self._chunks:  # what follows the form is nobody's, yet it belongs to the body
                pass
            return None
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise _broken(f"it has more than {MOST_PARTS} parts")
        while (end := self._held.find(b"\r\n\r\n", 0, MOST_HEAD_BYTES)) < 0:
            if len(self._held) >= MOST_HEAD_BYTES:
                raise _broken("a part's head is too long")
            await self._more()
        head = decoded(bytes(self._held[:end]))
        del self._held[: end + 4]
        self._inside = True
        return _part(head)

    async def data(self) -> AsyncIterator[bytes]:
        """The bytes of the current part that were not read yet."""
        keep = len(self._fence) - 1  # of the held bytes, which may be the beginning of a boundary
        while self._inside:
            at = self._held.find(self._fence)
            size = at if at >= 0 else len(self._held) - keep
            if size > 0:
                with memoryview(self._held) as view:
                    chunk = bytes(view[:size])
                del self._held[:size]
                yield chunk
            if at >= 0:
                del self._held[: len(self._fence)]
                self._inside = False
            else:
                await self._more()

    async def _more(self) -> None:
        async for chunk in self._chunks:
            self._held += chunk
            return
        raise _broken("it ends too early")


def _part(head: str) -> FormPart:
    headers: dict[str, str] = {}
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    told = parameters(headers.get("content-disposition", ""))
    if "name" not in told:
        raise _broken("a part has no name")
    file_name = safe_name(told["filename"].replace("%22", '"')) or "file" if "filename" in told else None
    return FormPart(told["name"], file_name, essence_of(headers.get("content-type")))


def _broken(reason: str) -> HTTPError:
    return HTTPError(400, f"the form cannot be read: {reason}")
