"""A cache of answers by endpoint and input, for endpoints that give the same answer to the same input.

The app says which, and for how many seconds:

    class Embeddings(runner.App):
        cache_seconds = {"/embed": 3600}

The key is the SHA-256 of the path and of the input as it was understood, so the order of its keys, spaces
and defaults left out make no difference. A File counts with the bytes that are in it, not with its URL. Only
whole answers with status 200 are kept, in memory, up to CACHE_BYTES; the least recently used go first. Each
answer says what happened in `Cache-Status` (RFC 9211); a caller who sends `Cache-Control: no-cache` gets a new one.
Where answers name files, let the seconds be fewer than those files live (--file-seconds).
"""

import hashlib
import os
import time
from collections import OrderedDict

import anyio
import msgspec

import runner


def digest(path, arguments):
    """What the input is, as 64 hex digits. Reads the Files in it."""
    seen = hashlib.sha256(path.encode())

    def plain(value):
        if isinstance(value, runner.File):
            return hashlib.sha256(value.as_bytes()).hexdigest()
        if hasattr(value, "model_dump"):  # pydantic's
            return {name: getattr(value, name) for name in type(value).model_fields}
        raise TypeError(f"the input of {path} holds a {type(value).__name__}, which has no content; take it out of cache_seconds")

    seen.update(msgspec.json.encode(arguments, enc_hook=plain, order="deterministic"))
    return seen.hexdigest()


class Plugin:
    def __init__(self):
        self.kept = OrderedDict()  # key to body, headers, media type, until when
        self.bytes, self.most = 0, int(os.environ.get("CACHE_BYTES", 64 * 1024**2))

    @runner.hookimpl
    def wrap_call(self, endpoint, service):
        seconds = getattr(service.instance, "cache_seconds", {}).get(endpoint.path)
        inputs = [parameter.name for parameter in endpoint.parameters if parameter.source != "response"]
        return (lambda call: self.cached(call, endpoint.path, inputs, seconds)) if seconds else None

    def cached(self, call, path, inputs, seconds):
        async def answer(request, arguments):
            if "text/event-stream" in request.headers.get("accept", ""):
                response = await call(request, arguments)  # one event: another form of the answer
                response.headers["cache-status"] = "runner; fwd=bypass"
                return response
            key = await anyio.to_thread.run_sync(digest, path, {name: arguments[name] for name in inputs})
            forced = "no-cache" in request.headers.get("cache-control", "")
            body, headers, media_type, until = self.kept.get(key, (b"", {}, None, 0))
            if (left := until - time.monotonic()) > 0 and not forced:
                self.kept.move_to_end(key)
                return runner.Response(body, headers=headers | {"cache-status": f"runner; hit; ttl={int(left)}"}, media_type=media_type)
            response = await call(request, arguments)
            keep = response.status == 200 and response.stream is None
            if keep:
                self.keep(key, response, time.monotonic() + seconds)
            why = "request" if forced else "stale" if until else "miss"
            response.headers["cache-status"] = f"runner; fwd={why}{'; stored' if keep else ''}"
            return response

        return answer

    def keep(self, key, response, until):
        self.bytes -= len(self.kept.pop(key, (b"",))[0])
        self.kept[key] = response.body, dict(response.headers), response.media_type, until
        self.bytes += len(response.body)
        while self.bytes > self.most:
            self.bytes -= len(self.kept.popitem(last=False)[1][0])
