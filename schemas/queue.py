"""A job of the queue: what is kept of it, where it can stand, and what a store must promise.

Every change of a job is a `JobMove`, and `advance_job` is the one place that says which moves there are.
A store applies it to what it has stored, so of two moves that race only one is made.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import msgspec

JobHeaders = tuple[tuple[str, str], ...]
Priority = Literal["normal", "low"]
SignWebhook = Callable[[str, bytes], Mapping[str, str]]  # the job's id and the body; gives headers


class JobState(enum.StrEnum):
    """Where a job stands. The last five are ends: nothing follows them."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"  # answered below 400
    FAILED = "failed"  # answered with an error, or lost with the process that ran it
    CANCELLED = "cancelled"
    LATE = "late"  # it could not begin in the time its caller gave it
    PARKED = "parked"  # the process died twice while it ran


class JobMove(enum.StrEnum):
    """What may happen to a job."""

    BEGIN = "begin"
    FINISH = "finish"  # it was answered below 400
    FAIL = "fail"
    CANCEL = "cancel"
    MISS = "miss"  # its time to begin has passed
    ASK = "ask"  # somebody wants it cancelled while it runs
    RETRY = "retry"
    PUT_BACK = "put_back"  # the server stops: it begins anew after the next start
    RECOVER = "recover"  # the process died, and it may run again
    PARK = "park"


S = JobState
MOVES: dict[JobMove, dict[JobState, JobState]] = {
    JobMove.BEGIN: {S.WAITING: S.RUNNING},
    JobMove.FINISH: {S.RUNNING: S.DONE, S.WAITING: S.DONE},
    JobMove.FAIL: {S.RUNNING: S.FAILED, S.WAITING: S.FAILED},  # a wrong input fails before it begins
    JobMove.CANCEL: {S.WAITING: S.CANCELLED, S.RUNNING: S.CANCELLED},
    JobMove.MISS: {S.WAITING: S.LATE},
    JobMove.ASK: {S.RUNNING: S.RUNNING},
    JobMove.RETRY: {S.RUNNING: S.WAITING, S.WAITING: S.WAITING},
    JobMove.PUT_BACK: {S.RUNNING: S.WAITING},
    JobMove.RECOVER: {S.RUNNING: S.WAITING},
    JobMove.PARK: {S.RUNNING: S.PARKED},
}
ENDS = frozenset(JobState) - {S.WAITING, S.RUNNING}


class LogLine(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line that the app printed for a job, as fal's clients read it."""

    message: str
    level: str
    timestamp: str
    labels: dict[str, str]
    source: str = "USER"


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One accepted request. Times are Unix seconds. The payloads are kept beside it."""

    id: str
    path: str  # of the endpoint
    submitted: float
    query: str = ""
    origin: str = ""  # where its caller found this server
    headers: JobHeaders = ()  # that the endpoint gets
    priority: Priority = "normal"
    start_by: float | None = None
    webhook: str | None = None
    key: str | None = None  # of idempotency: two submits with one key are one job
    digest: str = ""  # of what was submitted under the key
    keeps: bool = True  # False: its payloads go soon after the end
    retries: dict[str, int] = {}  # further attempts by condition, as caller and app want them
    number: int = 0  # order of arrival, given by the store
    state: JobState = JobState.WAITING
    attempts: int = 0  # counted before each begins
    crashes: int = 0  # attempts during which the process died
    gateway_id: str = ""  # of the present attempt
    not_before: float = 0.0
    asked: bool = False  # to be cancelled
    began: float | None = None  # the last attempt
    ended: float | None = None
    status: int = 0  # of the answer
    error: str | None = None
    error_type: str | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ENDS


class JobOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a job, as its result is served."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: JobHeaders = ()
    logs: tuple[LogLine, ...] = ()


class JobChange(msgspec.Struct, frozen=True, kw_only=True):
    """A move with what it brings along."""

    move: JobMove
    at: float
    outcome: JobOutcome | None = None  # with every move to an end
    error: str | None = None
    error_type: str | None = None
    not_before: float = 0.0
    gateway_id: str = ""


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook that is still to be delivered."""

    id: str  # of the job
    url: str
    attempts: int = 0
    due: float = 0.0


def advance_job(job: Job, change: JobChange) -> Job | None:
    """`job` after `change`, or None when there is no such move from where it stands."""
    to = MOVES[change.move].get(job.state)
    if to is None:
        return None
    moved = msgspec.structs.replace(job, state=to)
    match change.move:
        case JobMove.BEGIN:
            return msgspec.structs.replace(moved, attempts=job.attempts + 1, began=change.at)
        case JobMove.ASK:
            return msgspec.structs.replace(moved, asked=True)
        case JobMove.RETRY:
            uncounted = job.state is S.WAITING  # it failed before it began
            return msgspec.structs.replace(
                moved, attempts=job.attempts + uncounted, not_before=change.not_before, gateway_id=change.gateway_id
            )
        case JobMove.PUT_BACK:
            return msgspec.structs.replace(moved, attempts=job.attempts - 1)
        case JobMove.RECOVER:
            return msgspec.structs.replace(moved, crashes=job.crashes + 1, gateway_id=change.gateway_id)
    return msgspec.structs.replace(
        moved,
        ended=change.at,
        status=change.outcome.status if change.outcome else 0,
        error=change.error,
        error_type=change.error_type,
        crashes=job.crashes + (change.move is JobMove.PARK),
    )


class Unstorable(Exception):
    """The store cannot write: its disk is full, read-only, or taken by somebody else. Says which."""


class StoreTaken(Unstorable):
    """Another process has this store. Says which."""


class QueueStore(Protocol):
    """Where jobs are kept. All methods may raise Unstorable; once one returns, its change is kept.

    What is kept survives the death of the process; with the setting `durability = "power"` the
    loss of power as well.
    """

    @property
    def exists(self) -> bool:
        """Whether an earlier process may have left jobs; if not, nothing is opened before the first submit."""
        ...

    async def open(self) -> Sequence[Job]:
        """Get ready, and return every job that is not over, in order of arrival. Called first, again after Unstorable.

        Raises StoreTaken while another process uses the store.
        """
        ...

    async def submit(self, job: Job, body: bytes) -> Job:
        """Keep a new job and its input; return it with its number.

        When there is one with its `key` already, change nothing and return that one. A job with
        its id and another key or none is refused with KeyError.
        """
        ...

    async def change(self, id: str, change: JobChange) -> Job | None:
        """Apply `advance_job` to the stored job and keep what it gives, with the outcome in the same step.

        None when there is no such job or no such move. At an end the input is let go, and a job
        with a webhook gets its Delivery.
        """
        ...

    async def load(self, id: str) -> Job | None: ...
    async def input(self, id: str) -> bytes: ...
    async def outcome(self, id: str) -> JobOutcome | None: ...

    async def deliveries(self) -> Sequence[Delivery]:
        """The webhooks that are still to be delivered."""
        ...

    async def deliver_later(self, id: str, due: float) -> None:
        """Count a failed attempt at a webhook; the next is at `due`."""
        ...

    async def delivered(self, id: str) -> None:
        """Forget a webhook: it was delivered, or given up."""
        ...

    async def sweep(self, *, ended_before: float, let_go_before: float, budget_bytes: int) -> int:
        """Forget jobs that ended before the one time, or before the other when they do not `keeps`; then the oldest
        ended ones until all fits the budget. Return how many went. What has a Delivery stays."""
        ...

    async def check(self) -> None:
        """Raise Unstorable when a new job could not be kept now. Changes nothing that others see. Asked every few seconds."""
        ...

    async def close(self) -> None: ...
