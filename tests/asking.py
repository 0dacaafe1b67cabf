"""Requests to a service in the test's own loop, whose callers can leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from runner.schemas.asgi import Message
from runner.schemas.health import State
from runner.schemas.settings import Settings

import runner

GUARD_SECONDS = 20


class Asked:
    """One POST, under way as soon as it is made, and what was answered so far."""

    def __init__(self, service: runner.Service, path: str = "/", body: Any = None, *, id: str = "", method: str = "POST", **headers: str) -> None:
        sent = {"content-type": "application/json", **({"x-fal-request-id": id} if id else {}), **{k.replace("_", "-"): v for k, v in headers.items()}}
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "scheme": "http", "headers": [(k.encode(), v.encode()) for k, v in sent.items()], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip
        self._body: bytes | None = b"" if body is None else json.dumps(body).encode()
        self._gone = asyncio.Event()
        self.reads = asyncio.Event()  # cleared, the caller takes nothing more
        self.reads.set()
        self._news = asyncio.Event()
        self.heads: list[Message] = []  # one, if all is well
        self.body = b""
        self.task = asyncio.get_running_loop().create_task(service(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.heads.append(message)
        else:
            self.body += message.get("body", b"")
            self._news.set()
            await self.reads.wait()

    def leave(self) -> None:
        self._gone.set()

    async def over(self) -> Asked:
        with anyio.fail_after(GUARD_SECONDS):
            await self.task
        return self

    async def until_events(self, count: int) -> list[Any]:
        """The first events of a stream, waiting until there are so many."""
        with anyio.fail_after(GUARD_SECONDS):
            while len(self.events) < count:
                self._news.clear()
                await self._news.wait()
        return self.events

    @property
    def status(self) -> int:
        (head,) = self.heads
        return int(head["status"])

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        return [json.loads(event.removeprefix("data: ")) for event in self.body.decode().split("\n\n") if event.startswith("data: ")]


@asynccontextmanager
async def service_of(app: type[runner.App], folder: Path, *plugins: Any, **settings: Any) -> AsyncIterator[runner.Service]:
    """`app`, set up and ready to be asked, and torn down at the end."""
    service = runner.asgi(app, Settings(data_dir=str(folder), **settings), plugins)
    async with service.running():
        ready = asyncio.Event()
        service.health.watch(lambda state: ready.set() if state is State.READY else None)
        if service.health.state is not State.READY:
            with anyio.fail_after(GUARD_SECONDS):
                await ready.wait()
        yield service
        await service.drain()
