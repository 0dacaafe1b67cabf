"""Webhooks: the end of a job, told to the URL that its caller gave (contract 7.11).

What is owed is written in the same step as the result, so a webhook survives the process as the
job does. It is signed with a key of this data folder (Ed25519; the public half is served as JWKS)
and tried eleven times over about two hours; a 4xx other than 408, 409, 425 and 429 ends it at once,
since trying again would not help. Targets are held to the rules for fetched files: only the public
internet unless the operator allows a host, and the address that was checked is the one connected to.
Redirects are not followed. A receiver may be told twice, when we die between its answer and our note.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec

from ...schemas.files import Unfetchable
from ...schemas.queue import Delivery, Job, JobOutcome, JobState, QueueStore, Unstorable
from ..addresses import addresses_of, canonical_host, host_and_port, is_address, is_public
from ..logs import get_logger

log = get_logger("runner.webhooks")

SECONDS = 15.0  # for one attempt
ATTEMPTS = 11
LONGEST_PAUSE = 1800.0  # 10 s, doubled, to this: 2.1 hours in all
AT_ONCE = 8  # deliveries; a slow receiver holds up one
WORTH_A_RETRY = (408, 409, 425, 429)
USER_ID = "local"  # there are no users here; receivers get the field all the same


class Keys:
    """The signing key of a data folder, made when first needed. Needs the package `cryptography`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._key: Any = None

    def _loaded(self) -> Any:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if self._key is None:
            if not self._file.exists():
                self._file.parent.mkdir(parents=True, exist_ok=True)
                new = Ed25519PrivateKey.generate()
                pem = new.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
                )
                part = self._file.with_suffix(f".{os.getpid()}")
                descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with open(descriptor, "wb") as opened:
                    opened.write(pem)
                part.rename(self._file)
            self._key = serialization.load_pem_private_key(self._file.read_bytes(), None)
        return self._key

    def sign(self, message: bytes) -> str:
        return str(self._loaded().sign(message).hex())

    def jwks(self) -> dict[str, Any]:
        """The public key as `/.well-known/jwks.json` has it."""
        raw = self._loaded().public_key().public_bytes_raw()
        x = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
        return {"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": hashlib.sha256(raw).hexdigest()[:16], "x": x}]}


def pause(attempts: int) -> float:
    """Seconds until the next attempt, spread a little so that many do not come at once."""
    seconds: float = min(LONGEST_PAUSE, 10.0 * 2.0 ** (attempts - 1))
    return seconds * random.uniform(0.9, 1.1)


class Webhooks:
    """Delivers what the store says is owed. Lives on the event loop; each attempt has a thread for itself."""

    def __init__(
        self,
        store: QueueStore,
        keys: Keys,
        *,
        allowed_hosts: Iterable[str] = (),
        tls: ssl.SSLContext | None = None,
        pause: Callable[[int], float] = pause,
    ) -> None:
        self._store, self._keys, self._tls, self._pause = store, keys, tls, pause
        self._allowed = frozenset(map(host_and_port, allowed_hosts))
        self._news = asyncio.Event()
        self._under_way: set[str] = set()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def look(self) -> None:
        """Something new may be owed."""
        self._news.set()

    async def deliver(self) -> None:
        """Deliver what is owed for as long as the server lives; after a start, all of it at once."""
        is_start = True
        async with asyncio.TaskGroup() as group:
            while True:
                self._news.clear()
                try:
                    owed = await self._store.deliveries()
                except Unstorable as error:
                    log.warning("webhook.postponed", problem=str(error))
                    owed = []
                now, next_due = time.time(), float("inf")
                for delivery in owed:
                    if delivery.id in self._under_way:
                        continue
                    if delivery.due <= now or is_start:
                        self._under_way.add(delivery.id)
                        group.create_task(self._one(delivery))
                    else:
                        next_due = min(next_due, delivery.due)
                is_start = False
                with anyio.move_on_after(min(60.0, next_due - now)):
                    await self._news.wait()

    async def _one(self, delivery: Delivery) -> None:
        try:
            async with self._slots:
                await self._attempt(delivery)
        except Unstorable as error:
            log.warning("webhook.postponed", request_id=delivery.id, problem=str(error))
            await asyncio.sleep(1)
        finally:
            self._under_way.discard(delivery.id)
            self.look()

    async def _attempt(self, delivery: Delivery) -> None:
        job, outcome = await self._store.load(delivery.id), await self._store.outcome(delivery.id)
        if job is None or outcome is None:
            await self._store.delivered(delivery.id)
            return
        body = body_of(job, outcome)
        try:
            headers = await anyio.to_thread.run_sync(self._headers, job.id, body)
            status = await anyio.to_thread.run_sync(self._post, delivery.url, headers, body, abandon_on_cancel=True)
            problem = "" if 200 <= status < 300 else f"its server answered {status}"
            is_final = 400 <= status < 500 and status not in WORTH_A_RETRY
        except Unfetchable as error:
            problem, is_final = str(error), False
        except (OSError, ImportError, http.client.HTTPException) as error:
            problem, is_final = f"{type(error).__name__}: {error}", False
        attempts = delivery.attempts + 1
        if not problem:
            await self._store.delivered(job.id)
            log.info("webhook.delivered", request_id=job.id, attempts=attempts)
        elif is_final or attempts >= ATTEMPTS:
            log.error("webhook.given_up", request_id=job.id, attempts=attempts, problem=problem)
            await self._store.delivered(job.id)
        else:
            seconds = self._pause(attempts)
            await self._store.deliver_later(job.id, time.time() + seconds)
            log.warning("webhook.failed", request_id=job.id, attempts=attempts, problem=problem, seconds=round(seconds, 1))

    def _headers(self, id: str, body: bytes) -> dict[str, str]:
        when = str(int(time.time()))
        signed = "\n".join((id, USER_ID, when, hashlib.sha256(body).hexdigest())).encode()
        return {
            "Content-Type": "application/json",
            "User-Agent": "runner",
            "Connection": "close",
            "X-Fal-Webhook-Request-Id": id,
            "X-Fal-Webhook-User-Id": USER_ID,
            "X-Fal-Webhook-Timestamp": when,
            "X-Fal-Webhook-Signature": self._keys.sign(signed),
        }

    def _post(self, url: str, headers: dict[str, str], body: bytes) -> int:
        """One POST in a thread. Returns the status; raises Unfetchable, OSError or HTTPException."""
        parts = urlsplit(url)
        host = canonical_host(parts.hostname or "")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
        sock = self._connected(host, port)
        try:
            if parts.scheme == "https":
                sock = (self._tls or _tls()).wrap_socket(sock, server_hostname=host.rstrip("."))
            connection.sock = sock
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path.encode("ascii", "ignore").decode(), body, {"Host": parts.netloc.rpartition("@")[2], **headers})
            return connection.getresponse().status
        finally:
            sock.close()

    def _connected(self, host: str, port: int) -> socket.socket:
        addresses = [host] if is_address(host) else addresses_of(host, port)
        if not {(host.rstrip("."), None), (host.rstrip("."), port)} & self._allowed and not all(map(is_public, addresses)):
            raise Unfetchable("its host is not on the public internet; --allow-private-hosts allows one")
        problem: OSError | None = None
        for address in addresses:
            try:
                return socket.create_connection((address, port), SECONDS)
            except OSError as error:
                problem = error
        raise problem or Unfetchable("its host has no address")


def body_of(job: Job, outcome: JobOutcome) -> bytes:
    """What a webhook says of an end: its payload is the output, or the body of the error."""
    told: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.gateway_id or job.id}
    failed = job.state is not JobState.DONE
    told["status"] = "ERROR" if failed else "OK"
    if failed:
        told["error"] = f"Invalid status code: {outcome.status}"
    try:
        msgspec.json.decode(outcome.body)
        told["payload"] = msgspec.Raw(outcome.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told["payload"] = None
        told["payload_error"] = f"the output is {outcome.media_type or 'not JSON'}; fetch it from the response_url"
    return msgspec.json.encode(told)


@cache
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()  # the system's authorities; slim images have none
    with suppress(ImportError):
        import certifi

        context.load_verify_locations(certifi.where())
    return context


