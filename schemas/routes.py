"""Paths and what answers them: a table that is filled at assembly and only read afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar
from urllib.parse import quote

from .problems import ConfigError, HTTPError
from .request import Request
from .service import Mount

T = TypeVar("T")

PART = re.compile(r"{(\w+)(?::(\w+))?}")
KINDS = {None: "[^/]+", "str": "[^/]+", "int": "[0-9]+", "float": r"[0-9]+(?:\.[0-9]+)?", "path": ".+", "uuid": "[0-9a-fA-F-]{36}"}


class Routes(Generic[T]):
    """What answers a method and a path. Literal paths win over those with parts in braces."""

    def __init__(self) -> None:
        self._literal: dict[str, dict[str, T]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, T]]] = []
        self._of_pattern: dict[str, dict[str, T]] = {}
        self._mounts: list[Mount] = []

    def add(self, method: str, path: str, answer: T) -> bool:
        """Put in `answer` unless something answers there already; return whether it was free."""
        if "{" not in path:
            methods = self._literal.setdefault(path, {})
        elif path in self._of_pattern:
            methods = self._of_pattern[path]
        else:
            methods = self._of_pattern[path] = {}
            self._patterns.append((compiled(path), methods))
        if method in methods:
            return False
        methods[method] = answer
        return True

    def mount(self, mounts: Sequence[Mount]) -> None:
        """Let all paths answer under these prefixes too; the longest prefix that fits counts."""
        self._mounts = sorted([*self._mounts, *mounts], key=lambda m: (bool(m.host), len(m.prefix)), reverse=True)

    def find(self, request: Request) -> T:
        """What answers `request`, whose `path` and `path_parameters` are set on the way.

        Raises HTTPError 404, 405 with its Allow header, or 307 for a slash too many or too few.
        """
        methods = self._literal.get(request.path)
        if methods is None:
            if self._mounts:
                request.path = self._below_mount(request)
            methods, request.path_parameters = self._match(request.path)
        method = request.method or "GET"
        found = methods.get(method)
        if found is None and method == "HEAD":
            found = methods.get("GET")
        if found is None:
            raise self._refusal(request, methods)
        return found

    def known(self, path: str) -> Mapping[str, T]:
        """What answers at `path`, by method."""
        return self._match(path)[0]

    def _match(self, path: str) -> tuple[dict[str, T], Mapping[str, str]]:
        if (methods := self._literal.get(path)) is not None:
            return methods, {}
        for pattern, methods in self._patterns:
            if (match := pattern.fullmatch(path)) is not None:
                return methods, match.groupdict()
        return {}, {}

    def _below_mount(self, request: Request) -> str:
        host = None
        for mount in self._mounts:
            if mount.host:
                host = host if host is not None else _host(request)
                if not (host.startswith(mount.host[:-1]) if mount.host.endswith("*") else host == mount.host):
                    continue
            if request.path == mount.prefix:
                return mount.onto or "/"
            if request.path.startswith(f"{mount.prefix}/"):
                return mount.onto + request.path[len(mount.prefix) :]
        return request.path

    def _refusal(self, request: Request, methods: Mapping[str, T]) -> HTTPError:
        if methods:
            return HTTPError(405, "Method Not Allowed", {"Allow": ", ".join(sorted(methods))})
        path = request.path
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        if other.strip("/") and self._match(other)[0]:
            asked = request.scope.get("path", path)
            there = asked.rstrip("/") if path.endswith("/") else f"{asked}/"
            query = request.scope.get("query_string", b"").decode("latin-1")
            return HTTPError(307, "Temporary Redirect", {"Location": quote("/" + there.lstrip("/")) + (f"?{query}" if query else "")})
        return HTTPError(404, f"Path {path} not found", {"x-fal-billable-units": "0"})


def compiled(path: str) -> re.Pattern[str]:
    """`/files/{id}/{name:path}` as a pattern. Raises ConfigError for an unknown kind of part."""
    parts, at = [], 0
    for part in PART.finditer(path):
        name, kind = part.groups()
        if kind not in KINDS:
            raise ConfigError(f"the path {path!r} has a part of kind {kind!r}; known are int, float, path, str and uuid, as in {{name:path}}")
        parts += [re.escape(path[at : part.start()]), f"(?P<{name}>{KINDS[kind]})"]
        at = part.end()
    return re.compile("".join([*parts, re.escape(path[at:])]), re.DOTALL)


def _host(request: Request) -> str:
    return request.headers.get("host", "").rpartition("@")[2].partition(":")[0].lower()
