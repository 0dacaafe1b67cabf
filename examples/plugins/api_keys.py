"""API keys with a quota per caller and day: `Authorization: Key …`, 401 without, 429 when used up.

KEYS_FILE names a JSON file that tells each caller's key by its SHA-256, so that the file is no secret:

    {"ada": {"sha256": "2bb80d53…", "per_day": 100}}        printf %s THE-KEY | sha256sum

One POST is one call, a job of the queue too; reading is free, health checks need no key. Days are UTC.
What was used is in quotas.sqlite below --data-dir, so a restart forgives nobody.
"""

import hashlib
import json
import os
import sqlite3
import time
from contextlib import asynccontextmanager
from pathlib import Path

import runner

DAY = 24 * 3600
COUNT = """INSERT INTO used VALUES (?, ?, 1) ON CONFLICT (caller, day) DO UPDATE SET calls = calls + 1
           WHERE calls < ? RETURNING calls"""


class Plugin:
    def __init__(self):
        file = os.environ.get("KEYS_FILE", "keys.json")
        try:
            callers = json.loads(Path(file).read_text())
            self.callers = {told["sha256"]: (caller, int(told["per_day"])) for caller, told in callers.items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise runner.ConfigError(f"KEYS_FILE={file}: {error!r}; see the top of api_keys.py for what is in it") from error

    @runner.hookimpl
    def lifespan(self, service):
        return self.opened(Path(service.settings.data_dir) / "quotas.sqlite")

    @asynccontextmanager
    async def opened(self, file):
        file.parent.mkdir(parents=True, exist_ok=True)
        self.used = sqlite3.connect(file, isolation_level=None)
        self.used.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;")
        self.used.execute("CREATE TABLE IF NOT EXISTS used (caller, day, calls, PRIMARY KEY (caller, day))")
        yield
        self.used.close()

    def caller(self, request):
        """The caller's name and quota; None when nobody has this key."""
        kind, _, key = request.headers.get("authorization", "").partition(" ")
        known = self.callers.get(hashlib.sha256(key.strip().encode()).hexdigest())
        return known if kind.lower() in ("key", "bearer") else None

    @runner.hookimpl
    def intercept_requests(self):
        def look(request):
            if request.path.startswith("/health"):
                return None
            if (known := self.caller(request)) is None:
                told = {"detail": "a key is needed: Authorization: Key …"}
                return runner.json_response(told, status=401, headers={"www-authenticate": "Key"})
            name, per_day = known
            day, into = divmod(int(time.time()), DAY)
            if request.method == "POST" and self.used.execute(COUNT, (name, day, per_day)).fetchone() is None:
                told = {"detail": f"{name} has used all {per_day} calls of today"}
                return runner.json_response(told, status=429, headers={"retry-after": str(DAY - into)})
            return None

        return look

    @runner.hookimpl
    def response_headers(self):
        def left(request):
            if (known := self.caller(request)) is None:
                return []
            row = self.used.execute("SELECT calls FROM used WHERE caller = ? AND day = ?", (known[0], int(time.time()) // DAY)).fetchone()
            return [(b"x-quota-remaining", b"%d" % (known[1] - (row[0] if row else 0)))]

        return left
