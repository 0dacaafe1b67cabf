"""The depot: one service's store, what fetches for it, and the address that callers know it by.

Without `--public-url` a file's URL begins with what its caller called: the Host of the request, or
what a trusted proxy says.
That is right behind a port that Docker maps, and for a caller on another machine. The names of
fal's own hosts are left out, for a file must be readable by those who do not come through the
gateway.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ...schemas.files import Content, Unfetchable
from ...schemas.origins import Origins
from ...schemas.request import Request, current_request
from ...schemas.settings import Settings
from ...schemas.storing import PLAIN_ERRAND, Errand, FileStore, FileTraffic
from ...schemas.tracing import part_of
from .fetching import Fetcher

HOST = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\])(?::\d{1,5})?", re.ASCII)
FALS = re.compile(r"(?:^|\.)(?:fal\.run|fal\.ai|fal\.media|falrun\.com)(?::\d+)?$", re.IGNORECASE)


class Depot:
    """See `runner.schemas.storing.FileDepot`. Owns the count of bytes, and no other state."""

    def __init__(self, store: FileStore, settings: Settings, own_url: Callable[[], str] = lambda: "") -> None:
        self.store, self.traffic = store, FileTraffic()
        self._public_url = settings.public_url.rstrip("/")
        self._own_url = own_url
        self._origins = Origins(settings.trusted_proxy)
        self._bound = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{settings.port}"
        self._fetcher = Fetcher(allowed_hosts=settings.allow_private_hosts, max_bytes=settings.max_file_bytes)

    def fetch(self, url: str, gone: Callable[[], bool], errand: Errand = PLAIN_ERRAND) -> Content:
        with part_of(current_request(), "files", {"runner.file.way": "fetch", "url.scheme": url.partition(":")[0][:20]}):
            content = self._fetched(url, gone, errand)
        self.traffic.count("fetched", content.size)
        return content

    def _fetched(self, url: str, gone: Callable[[], bool], errand: Errand) -> Content:
        content = self.store.read(url)
        if content is None:
            return self._fetcher(url, gone, errand)
        if errand.most_bytes is not None and content.size > errand.most_bytes:
            content.close()
            raise Unfetchable(f"it is larger than {errand.most_bytes} bytes")
        return content

    def absolute(self, url: str, request: Request) -> str:
        return self.base(request) + url if url.startswith("/") else url

    def base(self, request: Request) -> str:
        """Where the caller of `request` finds this server, without a slash at its end."""
        if self._public_url:
            return self._public_url
        origin = self._origins.of(request)
        scheme, _, rest = origin.partition("://")
        host = rest.partition("/")[0]
        told = request.headers.get("host", host)
        if HOST.fullmatch(host) and HOST.fullmatch(told) and not FALS.search(host):
            return origin.replace(scheme, {"wss": "https", "ws": "http"}.get(scheme, scheme), 1)
        return self._own_url() or self._bound
