"""Hosts: where the app that is tested runs. In this process, in a child process, or wherever a URL leads.

In this process it is the service that the command line would assemble, with every built-in plugin but
the watchdog (pytest has the process's one timer of that kind), a data folder of its own that is
deleted at the end, and a lane with real threads. In a child process it is the command line itself.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import msgspec

import runner

from ...schemas.app import AppSpec
from ...schemas.asgi import Message
from ...schemas.codec import Codec
from ...schemas.endpoint import Endpoint
from ...schemas.health import State
from ...schemas.problems import ConfigError
from ...schemas.settings import Settings
from ..registry import load_plugins
from ..types import describe
from .errors import AppClientError, TestingError
from .recording import Recorder, journal
from .transports import Direct, Transport, Wire

STOP_SECONDS = 15  # for a child to end once it is told to
NOT_HERE = ["watchdog"]


class Surface(msgspec.Struct):
    """What an app offers: its endpoints by name, how their values are read, and what it is called."""

    name: str
    app_id: str
    endpoints: Mapping[str, Endpoint]
    codec: Callable[[Any], Codec]


class Host:
    """The base of the three. `open` and `close` are called in one task, on one loop."""

    surface: Surface
    transport: Transport
    service: Any = None  # in this process only

    async def open(self) -> None: ...
    async def close(self) -> None:
        await self.transport.close()

    def before_request(self) -> None: ...

    def lines(self, request_id: str | None) -> list[str]:
        """What is known of the log of one request."""
        return journal.of(request_id) if request_id else []


# --- in this process


class Here(Host):
    """The assembled service, on this loop. With `listen` it also has a socket, on a free port."""

    def __init__(self, target: type, settings: Mapping[str, Any], plugins: Sequence[Any], startup_seconds: float, *, listen: bool = False) -> None:
        self._target, self._plugins, self._seconds, self._listen = target, plugins, startup_seconds, listen
        self._given = dict(settings)
        self._folder = ""
        self.recorder: Recorder | None = None
        self._asked: asyncio.Queue[Message] = asyncio.Queue()  # what the lifespan is asked, and what it says
        self._said: asyncio.Queue[Message] = asyncio.Queue()
        self._living: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        settings = self._settings()
        self.recorder = Recorder()
        self.recorder.begin()
        try:
            self.service = runner.asgi(self._target, settings, [self.recorder, *self._plugins])
            spec = self.service.app
            endpoints = {endpoint.name: endpoint for endpoint in self.service.endpoints}
            self.surface = Surface(spec.name, settings.app_id or f"local/{spec.alias}", endpoints, self.service.codec)
            self.transport = await self._listening(settings) if self._listen else Direct(self.service)
            self._asked.put_nowait({"type": "lifespan.startup"})
            self._living = asyncio.get_running_loop().create_task(self.service({"type": "lifespan"}, self._asked.get, self._said.put))
            await self._until_ready()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise

    def _settings(self) -> Settings:
        given = dict(self._given)
        if "data_dir" not in given:
            given["data_dir"] = self._folder = tempfile.mkdtemp(prefix="runner-test-")
        given["no_plugin"] = [*given.get("no_plugin", []), *NOT_HERE]
        try:
            return msgspec.convert(given, Settings)
        except msgspec.ValidationError as error:
            raise TestingError(f"settings: {error}; they are those of `runner --help`, for example settings={{'max_queued_requests': 1}}") from None

    async def _until_ready(self) -> None:
        news = asyncio.Event()
        self.service.health.watch(lambda state: news.set())
        with anyio.move_on_after(self._seconds) as scope:
            said = await self._said.get()
            if said["type"] == "lifespan.startup.failed":
                raise self._not_started(said.get("message", ""))
            while self.service.health.state is State.STARTING:
                news.clear()
                await news.wait()
        if scope.cancelled_caught:
            raise self._not_started(f"it was not ready after {self._seconds:g} s; give startup_timeout=… if it needs longer")
        if self.service.health.state is State.FAILED:
            raise self._not_started(self.service.health.reason or "")

    def _not_started(self, why: str) -> AppClientError:
        return AppClientError(f"{self.surface.name} did not start: {why}", logs=journal.of(None, since=self.recorder.began if self.recorder else 0))

    async def _listening(self, settings: Settings) -> Wire:
        server = importlib.import_module("runner.plugins.server")
        sock = server.listen(msgspec.structs.replace(settings, host="127.0.0.1", port=0))
        url = self.service.url = server.url_of(sock, settings)
        stop = self._closing = anyio.Event()

        async def drained() -> None: ...

        self._serving = asyncio.get_running_loop().create_task(
            server.serve(self.service, settings, sock, stop, drained, self.service.connections)
        )
        return Wire(url)

    def before_request(self) -> None:
        if self.recorder is not None:
            self.recorder.capture()

    async def close(self) -> None:
        if hasattr(self, "transport"):
            await self.transport.close()
        if self._serving is not None:
            self._closing.set()
            await asyncio.wait([self._serving])
        if self._living is not None:
            self._asked.put_nowait({"type": "lifespan.shutdown"})
            await asyncio.wait([self._living])
        if self.recorder is not None:
            self.recorder.end()
        if self._folder:
            await asyncio.to_thread(shutil.rmtree, self._folder, True)


# --- elsewhere


def surface_of(target: type, app_id: str = "") -> Surface:
    """The same, read from the class alone. Raises ConfigError when it cannot be served."""
    plugins = load_plugins(Settings())
    spec = spec_of(target, plugins)
    codecs: dict[Any, Codec] = {}

    def codec(type: Any) -> Codec:
        found: Codec | None = plugins.hook.type_codec(type=type)
        if found is None:
            raise ConfigError(f"values of {type!r} cannot cross the wire")
        return found

    def kept(type: Any) -> Codec:
        try:
            if type not in codecs:
                codecs[type] = codec(type)
            return codecs[type]
        except TypeError:  # not hashable
            return codec(type)

    endpoints = {}
    for name, mark in spec.marks.items():
        function = getattr(target, name)
        endpoints[name] = describe(getattr(function, "original_func", function), mark, owner=target)
    return Surface(spec.name, app_id or f"local/{spec.alias}", endpoints, kept)


def spec_of(target: type, plugins: Any) -> AppSpec:
    spec: AppSpec | None = runner.describe_app(target) if issubclass(target, runner.App) else plugins.hook.describe_app(target=target)
    if spec is None:
        raise TestingError(f"{target.__name__} is not an app; write class {target.__name__}(runner.App)")
    return spec


class There(Host):
    """A server that runs already, at `url`: an app's own address, or one that ends in its id as fal's do."""

    def __init__(self, target: type, url: str) -> None:
        parts = url.rstrip("/").split("/")
        under_id = len(parts) >= 5
        self.surface = surface_of(target, "/".join(parts[-2:]) if under_id else "")
        self._url = url

    async def open(self) -> None:
        self.transport = Wire(self._url)


class Child(Host):
    """The command line in a process of its own, on a free port."""

    def __init__(self, target: type, settings: Mapping[str, Any], startup_seconds: float) -> None:
        self.surface = surface_of(target, settings.get("app_id", ""))
        self._target, self._settings, self._seconds = target, dict(settings), startup_seconds
        self._folder = ""
        self._process: asyncio.subprocess.Process | None = None
        self._reading: list[asyncio.Task[None]] = []
        self._ready: asyncio.Future[str] | None = None
        self._last: list[str] = []

    async def open(self) -> None:
        command = [sys.executable, "-m", "runner", *command_for(self._target), "--host", "127.0.0.1", "--port", "0", "--log-format", "json"]
        if "data_dir" not in self._settings:
            self._settings["data_dir"] = self._folder = tempfile.mkdtemp(prefix="runner-test-")
        for name, value in self._settings.items():
            flag = f"--{name.replace('_', '-')}"
            command += [flag] if value is True else [part for each in (value if isinstance(value, list) else [value]) for part in (flag, str(each))]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNNER_")}
        environment["PYTHONPATH"] = os.pathsep.join([_home_of_runner(), *filter(None, [environment.get("PYTHONPATH")])])
        pipe = asyncio.subprocess.PIPE
        self._ready = asyncio.get_running_loop().create_future()
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment, limit=2**24
        )
        self._reading = [asyncio.create_task(self._read(stream)) for stream in (self._process.stdout, self._process.stderr)]
        try:
            async with asyncio.timeout(self._seconds):
                url = await self._ready
        except TimeoutError:
            await self.close()
            raise AppClientError(f"{self.surface.name} did not start: it was not ready after {self._seconds:g} s", logs=self._last[-20:]) from None
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise
        self.transport = Wire(url)

    async def _read(self, stream: Any) -> None:
        url = ""
        async for raw in stream:
            text = raw.decode(errors="replace").rstrip("\n")
            try:
                fields = json.loads(text)
            except ValueError:
                fields = {"event": text}
            if not isinstance(fields, dict):
                fields = {"event": text}
            self._last.append(journal.add(fields))
            if fields.get("event") == "server.listening":
                url = fields["url"]
            if fields.get("event") == "app.ready" and self._ready is not None and not self._ready.done():
                self._ready.set_result(url)
        if self._process is not None and stream is self._process.stderr and self._ready is not None and not self._ready.done():
            code = await self._process.wait()
            self._ready.set_exception(
                AppClientError(f"{self.surface.name} did not start: the process ended with code {code}", logs=self._last[-20:])
            )

    async def close(self) -> None:
        if hasattr(self, "transport"):
            await self.transport.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
            await asyncio.wait(self._reading)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def command_for(target: type) -> list[str]:
    """How the command line names `target`. Raises TestingError for a class that no import finds."""
    module, name = sys.modules.get(target.__module__), target.__qualname__
    file = getattr(module, "__file__", None)
    if "." in name or file is None or getattr(module, name, None) is not target:
        raise TestingError(
            f"{name} cannot be imported by another process; define it at the top of a module to serve it, or leave out serve=True"
        )
    if target.__module__ == "__main__":
        return [f"{file}:{name}"]
    parts = target.__module__.split(".")
    folder = Path(file).resolve().parent
    for _ in range(len(parts) - (0 if Path(file).name == "__init__.py" else 1)):
        folder = folder.parent
    return [f"{target.__module__}:{name}", "--app-dir", str(folder)]


def _home_of_runner() -> str:
    """The folder that `import runner` finds us in."""
    file = Path(runner.__file__ or "")
    return str(file.parent.parent if file.name == "__init__.py" else file.parent)
