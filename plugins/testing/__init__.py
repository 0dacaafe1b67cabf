"""The testing kit, `runner.testing`: an app's endpoints as methods of a client, and its cancels on trial.

    from runner.testing import AppClient

    def test_it_greets() -> None:
        with AppClient(MyApp) as client:
            assert client.greet(name="Ada") == "hello Ada"

    client.py       AppClient and what its endpoints give; async_client.py, its twin
    core.py         what both share: requests and answers
    inputs.py       arguments of a call as a request
    hosts.py        the app in this process, in a child process, at a URL
    transports.py   ASGI without a socket; HTTP and WebSockets with one
    recording.py    what the app logs, for errors and reports
    cancelling.py   cancel_at; census.py, what it counts
    entry.py        the pytest plugin, which imports the rest only when asked

Importing it lets apps `import fal` in tests where the fal package is not installed.
"""

from __future__ import annotations

from .async_client import AsyncAppClient, AsyncBoundEndpoint, AsyncRealtimeSession, AsyncStream
from .cancelling import Cancelled, cancel_at
from .client import AppClient, BoundEndpoint, Job, RealtimeSession, Stream
from .errors import Answer, AppClientError
from .targets import offer_modules

__all__ = [
    "Answer", "AppClient", "AppClientError", "AsyncAppClient", "AsyncBoundEndpoint", "AsyncRealtimeSession", "AsyncStream",
    "BoundEndpoint", "Cancelled", "Job", "RealtimeSession", "Stream", "cancel_at",
]  # fmt: skip

for _name in __all__:  # how they are shown: by the name that tests import
    globals()[_name].__module__ = "runner.testing"
offer_modules()
