"""Whether a job is tried again (contract 7.9).

What the answer says counts first (`X-Fal-Needs-Retry`), then what the caller said
(`X-Fal-No-Retry`, `X-Fal-Retry-Config`), then the app (`skip_retry_conditions`, `retry_config`),
then the rule: 503 and 504 are tried up to ten times in all, anything else is an answer. A job that
ran when the process died is another matter: nobody knows what it had done, so it runs again only
where its endpoint says `retry="safe"`, or where caller or app name `connection_error` themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from ...schemas.app import Options
from ...schemas.problems import ServerError
from ...schemas.queue import Job

Condition = Literal["timeout", "server_error", "connection_error"]
CONDITIONS: tuple[Condition, ...] = ("timeout", "server_error", "connection_error")
ATTEMPTS = 10
LONGEST_PAUSE = 60.0  # seconds between two attempts
CRASHES = 2  # after which a job is parked


class Limit(msgspec.Struct):
    retries: int


def wanted(headers: Mapping[str, str], options: Options) -> dict[str, int]:
    """How many further attempts each condition gets, where somebody said so. Raises ServerError 400."""
    limits: dict[str, int] = {}
    config = options.retry_config
    if config is not None:
        config = config.to_dict() if hasattr(config, "to_dict") else config
        limits |= _limits(config, "retry_config")
    limits |= dict.fromkeys(options.skip_retry_conditions or (), 0)
    if text := headers.get("x-fal-retry-config"):
        try:
            limits |= _limits(msgspec.json.decode(text), "X-Fal-Retry-Config")
        except msgspec.DecodeError:
            raise _malformed("X-Fal-Retry-Config") from None
    if headers.get("x-fal-no-retry", "").strip().lower() in ("1", "true", "yes"):
        limits |= dict.fromkeys(CONDITIONS, 0)
    return limits


def _limits(config: Any, where: str) -> dict[str, int]:
    try:
        limits = msgspec.convert(config, dict[Condition, Limit])
    except msgspec.ValidationError:
        raise _malformed(where) from None
    return {condition: max(0, limit.retries) for condition, limit in limits.items()}


def _malformed(where: str) -> ServerError:
    return ServerError(400, f'{where} must be JSON such as {{"server_error": {{"retries": 3}}}}', "bad_request")


def is_tried_again(job: Job, status: int, headers: Mapping[str, str]) -> bool:
    """Whether the attempt that gave this answer is followed by another."""
    if job.attempts >= ATTEMPTS:
        return False
    needs = headers.get("x-fal-needs-retry", "").strip().lower()
    if needs in ("1", "true"):
        return True
    if needs in ("0", "false") or status not in (503, 504):
        return False
    condition: Condition = "timeout" if status == 504 else "server_error"
    return job.attempts <= job.retries.get(condition, ATTEMPTS)


def may_run_after_crash(job: Job, *, is_safe: bool) -> bool:
    """Whether a job that ran when the process died may run again. It is parked when that is too often."""
    return is_safe or job.crashes < job.retries.get("connection_error", 0)


def pause(attempts: int) -> float:
    """Seconds until the next attempt, after so many."""
    return min(LONGEST_PAUSE, 0.25 * 2.0 ** (attempts - 1))
