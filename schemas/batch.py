"""A batch: many callers' inputs in one call of a method, and the one request that stands for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from .problems import ConfigError
from .request import Cancellable, Request, current_request


class Batch(msgspec.Struct, frozen=True):
    """How an endpoint is batched: `@endpoint(path, batch=Batch(...))`. Its method takes and gives lists.

    One call gets at most `max_size` inputs. `max_wait_ms`, in milliseconds, is how long a batch that
    could begin waits for company, where company is likely: a caller who comes alone never waits.
    Raises ConfigError for a size below 1 and a wait below 0.
    """

    max_size: int = 8
    max_wait_ms: float = 5
    example: ClassVar[str] = "for example runner.Batch(max_size=8, max_wait_ms=5)"

    def __post_init__(self) -> None:
        if type(self.max_size) is not int or self.max_size < 1:
            raise ConfigError(f"Batch: max_size is {self.max_size!r}; it is how many inputs one call gets at most, from 1; {self.example}")
        is_number = type(self.max_wait_ms) in (int, float)
        if not is_number or not 0 <= self.max_wait_ms < float("inf"):
            raise ConfigError(f"Batch: max_wait_ms is {self.max_wait_ms!r}; it is a number of milliseconds from 0; {self.example}")


class BatchRequest(Request):
    """The current request while a batched method runs: `members` are those whose inputs it got.

    Its `id` is theirs, joined by commas; it has no headers, and is cancelled when the last member
    has left. What is told of its progress, is told to every member.
    """

    def __init__(self, members: Sequence[Request], token: Cancellable) -> None:
        first = members[0]
        super().__init__(",".join(request.id or "" for request in members), path=first.path, token=token, depot=first.depot)
        self.members = tuple(members)
        logs = [request.log for request in members if request.log is not None]
        self.log = _Logs(logs) if logs else None


class _Logs:
    """The event logs of several requests, written as one."""

    def __init__(self, logs: list[Any]) -> None:
        self._logs = logs

    def append(self, kind: str, data: Any = None, **given: Any) -> None:
        for log in self._logs:
            log.append(kind, data, **given)

    def latest(self, about: str, data: Any) -> None:
        for log in self._logs:
            log.latest(about, data)


def current_batch() -> tuple[Request, ...]:
    """The requests whose inputs the running batch has, in the order of its lists; empty outside of one.

    Those of callers who left are among them, and say so: `request.cancelled`.
    """
    return current_request().members
