"""Rate limits: each caller may send RATE requests in RATE_SECONDS (60 in 60 unless told), all at once or spread.

A caller is the key it shows, or else its address. Beyond the limit it is answered 429 with Retry-After. Every
answer says how it stands, in the fields RateLimit and RateLimit-Policy of the IETF's draft. Health checks are
not counted. The rule is GCRA: one number per caller, the time at which it would have nothing left to wait for.
"""

import hashlib
import math
import os
import time

import runner

MOST_CALLERS = 100_000


class Plugin:
    def __init__(self):
        try:
            self.most, self.seconds = int(os.environ.get("RATE", 60)), float(os.environ.get("RATE_SECONDS", 60))
        except ValueError as error:
            raise runner.ConfigError(f"RATE and RATE_SECONDS are numbers, such as RATE=60: {error}") from None
        if self.most < 1 or self.seconds <= 0:
            raise runner.ConfigError("RATE is at least 1 and RATE_SECONDS above 0, for example RATE=60 RATE_SECONDS=60")
        self.each = self.seconds / self.most  # the time that one request uses up
        self.free_at = {}  # by caller

    def caller(self, request):
        if key := request.headers.get("authorization"):
            return hashlib.sha256(key.encode()).digest()
        client = request.scope.get("client")
        return client[0] if client else ""

    def left(self, free_at, now):
        """Requests that may be sent at once."""
        return int((self.seconds - max(free_at - now, 0)) / self.each + 1e-9)

    @runner.hookimpl
    def intercept_requests(self):
        def look(request):
            if request.path.startswith("/health"):
                return None
            now, caller = time.monotonic(), self.caller(request)
            free_at = self.free_at.get(caller, now)
            if self.left(free_at, now) < 1:
                wait = math.ceil(free_at + self.each - self.seconds - now)
                told = {"detail": f"more than {self.most} requests in {self.seconds:g} s; try again in {wait} s"}
                return runner.json_response(told, status=429, headers={"retry-after": str(wait)})
            if len(self.free_at) >= MOST_CALLERS:
                self.free_at = {caller: at for caller, at in self.free_at.items() if at > now}
            self.free_at[caller] = max(free_at, now) + self.each
            return None

        return look

    @runner.hookimpl
    def response_headers(self):
        policy = f'"default";q={self.most};w={math.ceil(self.seconds)}'.encode()

        def stand(request):
            now = time.monotonic()
            free_at = self.free_at.get(self.caller(request), now)
            reset = math.ceil(max(free_at - now, 0))
            return [(b"ratelimit-policy", policy), (b"ratelimit", b'"default";r=%d;t=%d' % (self.left(free_at, now), reset))]

        return stand
