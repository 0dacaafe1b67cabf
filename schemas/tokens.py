"""Keys and tokens: who may call. A key is the operator's; a token is made from it and soon expires.

Tokens are JWTs (HS256) whose secret is derived from the keys, so every part of the server, and
every process with the same keys, knows its own. They are for callers that cannot keep a key or
send a header, such as a browser's WebSocket.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import time
from collections.abc import Sequence

import msgspec

HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")


class Claims(msgspec.Struct):
    exp: float  # Unix seconds
    apps: list[str] = []  # that may be called; empty: all


class Tokens:
    """Makes tokens and knows them again. Without keys everybody may call, with any token or none."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._secret = _secret(tuple(keys))

    def make(self, seconds: float, apps: Sequence[str] = ()) -> str:
        payload = _encoded(msgspec.json.encode(Claims(exp=int(time.time() + seconds), apps=list(apps))))
        return b".".join((HEADER, payload, self._signature(payload))).decode()

    def allows(self, token: str, app: str) -> bool:
        """Whether `token` is ours, still valid, and for the app of this name."""
        header, _, rest = token.encode("utf-8", "replace").partition(b".")
        payload, _, signature = rest.partition(b".")
        if not hmac.compare_digest(signature, self._signature(payload)) or header != HEADER:
            return False
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4)), type=Claims)
        return claims.exp > time.time() and (not claims.apps or app in claims.apps)

    def _signature(self, payload: bytes) -> bytes:
        return _encoded(hmac.digest(self._secret, HEADER + b"." + payload, "sha256"))


@functools.cache
def _secret(keys: tuple[str, ...]) -> bytes:
    if not keys:
        return b"nobody is kept out"
    # Slow on purpose, once: from a token nobody shall guess a short key.
    return hashlib.scrypt("\n".join(sorted(keys)).encode(), salt=b"runner tokens", n=2**14, r=8, p=1)


def _encoded(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def is_known(key: str, keys: Sequence[str]) -> bool:
    """Whether `key` is one of `keys`, in a time that does not tell which or how nearly."""
    given = hashlib.sha256(key.encode("utf-8", "replace")).digest()
    return sum([hmac.compare_digest(given, hashlib.sha256(known.encode()).digest()) for known in keys]) > 0
